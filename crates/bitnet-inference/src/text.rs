//! The textual side of a model: its tokenizer, its chat format, and how its answers end.

use bitnet_core::tokenizer::{ChatTemplate, GenerationConfig, Message, Tokenizer};

use crate::Result;
use crate::source::TextParts;

/// Tokens that end a turn, whatever a file says: a vocabulary that has one of them uses it so.
const END_OF_TURN: [&str; 7] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "<|endoftext|>",
];

/// The textual side of a model.
#[derive(Debug)]
pub struct Text {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// The chat format; `None` when the model has none.
    pub chat_template: Option<ChatTemplate>,
    /// Suggested sampling, and the ids that end an answer.
    pub generation: GenerationConfig,
}

impl Text {
    /// Puts the parts together; the notice says when the file's own template was not taken.
    pub(crate) fn new(parts: TextParts, architecture: &str) -> Result<(Self, Option<String>)> {
        let TextParts { tokenizer, chat_template, bos_token, eos_token, mut generation, .. } = parts;
        let chosen =
            ChatTemplate::choose(chat_template.as_deref(), architecture, &tokenizer, &bos_token, &eos_token)?;
        let end_of_turn = END_OF_TURN.iter().filter_map(|token| tokenizer.token_to_id(token));
        generation.eos_token_ids.extend(end_of_turn);
        generation.eos_token_ids.sort_unstable();
        generation.eos_token_ids.dedup();
        let (chat_template, notice) = chosen.map_or((None, None), |c| (Some(c.template), c.notice));
        Ok((Text { tokenizer, chat_template, generation }, notice))
    }

    /// The ids of a prompt without a chat format.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(prompt, true)?)
    }

    /// The ids of a conversation, ending where the model is to answer; without a chat format, the last message alone.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        match &self.chat_template {
            // The template writes the beginning of the text itself.
            Some(template) => Ok(self.tokenizer.encode(&template.render(messages, true)?, false)?),
            None => self.encode(messages.last().map_or("", |m| &m.content)),
        }
    }
}
