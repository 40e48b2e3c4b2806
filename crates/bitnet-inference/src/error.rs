//! What can go wrong while a model is opened or runs.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of `bitnet-inference`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, a tokenizer or memory.
    #[error(transparent)]
    Core(#[from] bitnet_core::Error),
    /// The model is of a kind that the engine does not know.
    #[error("{}: {what} is not supported; {hint}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported.
        what: String,
        /// What the user can do instead.
        hint: String,
    },
    /// An infinity or NaN arose: the weights are broken, or do not belong together.
    #[error(
        "the model produced an infinity or NaN in {op}{} at position {position}: its weights are broken, or the file \
         is of another layout than it says; try another --i2s-layout for an I2_S file, or get the file again",
        layer_name(*.layer)
    )]
    NonFinite {
        /// The layer; `None` behind the last.
        layer: Option<usize>,
        /// The operation whose input or output it was.
        op: &'static str,
        /// The position of the token.
        position: usize,
    },
    /// The prompt and what was generated fill the context.
    #[error("the context of {max_seq_len} tokens is full; give a larger --context or a shorter prompt")]
    ContextFull {
        /// The session's limit.
        max_seq_len: usize,
    },
    /// More positions were asked for than the model was made for.
    #[error(
        "a context of {asked} tokens is beyond the {limit} that the model was made for; ask for at most that"
    )]
    ContextTooLong {
        /// Positions asked for.
        asked: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("token {id} is not in the vocabulary of {vocab_size}; give ids below that")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Ids that there are.
        vocab_size: usize,
    },
    /// No token to compute on.
    #[error("the prompt is empty; give it some text")]
    EmptyPrompt,
    /// Every row of a batch has a prompt already.
    #[error(
        "all {rows} rows of the batch are taken; try again when an answer has ended, or open the batch with more"
    )]
    BatchFull {
        /// Rows that there are.
        rows: usize,
    },
    /// A saved session is not what can be loaded here.
    #[error("{}: {mismatch}", .path.display())]
    SavedSession {
        /// The file.
        path: PathBuf,
        /// Why not.
        mismatch: Mismatch,
    },
    /// An option has a value that makes no sense.
    #[error("{option} must be {must}")]
    BadOption {
        /// The option.
        option: &'static str,
        /// The values that make sense, as the rest of the sentence.
        must: &'static str,
    },
    /// The model came without the part that is needed.
    #[error("the model has no {part}; {hint}")]
    MissingPart {
        /// The part.
        part: &'static str,
        /// What the user can do instead.
        hint: &'static str,
    },
}

/// Why a saved session cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// The file is something else.
    #[error("not a saved session; give a file that was written as one")]
    NoSession,
    /// The file is of another version of the format.
    #[error(
        "a session of format version {found}, where this program reads {known}; give it to a program that does, or save the \
         session again"
    )]
    Version {
        /// The file's version.
        found: String,
        /// The version that is read here.
        known: &'static str,
    },
    /// Keys and values mean something to the weights that computed them, and to no others.
    #[error(
        "a session of another model, or of one with other precisions; give the model that it was saved with"
    )]
    Model,
    /// Keys and values are stored in another way.
    #[error(
        "its keys and values are {saved}, those of the session {session}; give the session the same precision"
    )]
    KvFormat {
        /// In the file.
        saved: &'static str,
        /// In the session.
        session: &'static str,
    },
    /// The session is shorter than what was saved.
    #[error("its {saved} tokens are more than a context of {session} has room for; give a larger --context")]
    Context {
        /// Tokens in the file.
        saved: usize,
        /// Tokens that the session has room for.
        session: usize,
    },
    /// The bytes are not those that were written.
    #[error("altered since it was saved: {what}; get the file again, or do without it")]
    Altered {
        /// What does not fit.
        what: String,
    },
}

fn layer_name(layer: Option<usize>) -> String {
    layer.map_or(String::new(), |l| format!(" of layer {l}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each variant: the match below does not compile before a new one is here, too.
    fn one_of_each() -> Vec<Error> {
        let text = || String::from("x");
        let all = vec![
            Error::Core(bitnet_core::Error::ForeignHandle),
            Error::Unsupported { path: "m.gguf".into(), what: text(), hint: "convert the model".into() },
            Error::NonFinite { layer: Some(1), op: "the gate", position: 2 },
            Error::ContextFull { max_seq_len: 1 },
            Error::ContextTooLong { asked: 2, limit: 1 },
            Error::TokenOutOfRange { id: 1, vocab_size: 1 },
            Error::EmptyPrompt,
            Error::BatchFull { rows: 1 },
            Error::SavedSession { path: "s".into(), mismatch: Mismatch::Model },
            Error::BadOption { option: "the context", must: "at least 1" },
            Error::MissingPart { part: "tokenizer", hint: "put tokenizer.json beside the weights" },
        ];
        for error in &all {
            match error {
                Error::Core(_)
                | Error::Unsupported { .. }
                | Error::NonFinite { .. }
                | Error::ContextFull { .. }
                | Error::ContextTooLong { .. }
                | Error::TokenOutOfRange { .. }
                | Error::EmptyPrompt
                | Error::BatchFull { .. }
                | Error::SavedSession { .. }
                | Error::BadOption { .. }
                | Error::MissingPart { .. } => {}
            }
        }
        all
    }

    /// An option's message says what its value must be; every other one says what to do behind its last semicolon.
    #[test]
    fn every_message_says_what_to_do_next() {
        let starts = ["ask", "convert", "get", "give", "put", "try", "use"];
        let mismatches = [
            Mismatch::NoSession,
            Mismatch::Version { found: "9".into(), known: "1" },
            Mismatch::KvFormat { saved: "f32", session: "f16" },
            Mismatch::Context { saved: 2, session: 1 },
            Mismatch::Altered { what: "x".into() },
        ];
        let mismatches =
            mismatches.map(|mismatch| Error::SavedSession { path: "s".into(), mismatch }).into_iter();
        for error in one_of_each().into_iter().chain(mismatches) {
            let message = error.to_string();
            let advice = message.rsplit("; ").next().filter(|advice| *advice != message);
            let says = advice.is_some_and(|advice| starts.iter().any(|start| advice.starts_with(start)));
            assert!(says || message.contains(" must be "), "no advice in: {message}");
        }
    }
}
