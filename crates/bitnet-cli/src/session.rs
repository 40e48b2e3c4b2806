//! The session's size and precisions, as the command line asks for them.

use bitnet_core::BitNetDType;
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_inference::config::ModelConfig;
use bitnet_inference::{DEFAULT_MAX_SEQ_LEN, HeadMode, SavedSession, SessionOptions};
use clap::{Args, ValueEnum};

use crate::values;

/// Tokens that a saved session has room for behind its own, where the model allows it.
const ROOM_TO_GO_ON: usize = 1024;

/// How a session is opened.
#[derive(Debug, Args)]
#[command(next_help_heading = "Session")]
pub(crate) struct SessionArgs {
    /// Tokens of prompt and answer that there is room for [default: what the model was made for, at most 4096, or 1024 more
    /// than a saved session has].
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    context: Option<usize>,
    /// How keys and values are kept; int8 takes half of what f16 takes, and changed a story's perplexity by 0.01 %
    /// [default: what --precision says, or f16].
    #[arg(long, value_enum)]
    kv: Option<KvFormat>,
    #[command(flatten)]
    pub(crate) head: HeadArgs,
    /// Tokens of the prompt that are computed together; it changes no result.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    chunk: Option<usize>,
}

/// A format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvFormat {
    F32,
    F16,
    Bf16,
    Int8,
    Int4,
}

/// How the head is computed.
#[derive(Debug, Args)]
pub(crate) struct HeadArgs {
    /// How the head is computed where a token is chosen. Large heads are read in 8 bits (exact) or 4 bits (int4), and what
    /// may win as it is stored; exact gives the tokens of the whole head (f16), int4 all but certainly
    /// [default: what --precision says, or exact].
    #[arg(long = "head", value_enum)]
    mode: Option<Head>,
}

/// A way to compute the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Head {
    Exact,
    Int4,
    F16,
}

impl HeadArgs {
    /// The way that is asked for.
    pub(crate) fn mode(&self) -> Option<HeadMode> {
        self.mode.map(|mode| match mode {
            Head::Exact => HeadMode::Exact,
            Head::Int4 => HeadMode::Int4,
            Head::F16 => HeadMode::F16,
        })
    }
}

impl SessionArgs {
    pub(crate) fn options(&self) -> SessionOptions {
        SessionOptions { max_seq_len: self.context, chunk: self.chunk, precision: KvFormat::asked(self.kv) }
    }

    /// The options of a session that is to go on from `saved`: keys and values are kept as they are there, and there is room
    /// for more.
    pub(crate) fn options_for(&self, saved: Option<&SavedSession>, config: &ModelConfig) -> SessionOptions {
        let mut options = self.options();
        let Some(saved) = saved else { return options };
        let wanted = (saved.tokens().len() + ROOM_TO_GO_ON).max(DEFAULT_MAX_SEQ_LEN);
        options.max_seq_len.get_or_insert(wanted.min(config.max_seq_len));
        if self.kv.is_none() {
            let kv = MixedPrecisionConfig::default().with_component(ComponentType::KvCache, saved.kv_dtype());
            options.precision = kv;
        }
        options
    }
}

impl KvFormat {
    /// The precisions of a session for which this format is asked, or none.
    pub(crate) fn asked(format: Option<KvFormat>) -> MixedPrecisionConfig {
        format.map_or_else(MixedPrecisionConfig::default, KvFormat::precision)
    }

    /// The precisions of a session with a cache in this format.
    pub(crate) fn precision(self) -> MixedPrecisionConfig {
        let dtype = match self {
            KvFormat::F32 => BitNetDType::F32,
            KvFormat::F16 => BitNetDType::F16,
            KvFormat::Bf16 => BitNetDType::BF16,
            KvFormat::Int8 => BitNetDType::I8,
            KvFormat::Int4 => BitNetDType::I4,
        };
        MixedPrecisionConfig::default().with_component(ComponentType::KvCache, dtype)
    }
}
