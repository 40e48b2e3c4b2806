//! The session's size and precisions, as the command line asks for them.

use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_core::{BitNetDType, Error};
use bitnet_inference::SessionOptions;
use clap::{Args, ValueEnum};

/// How a session is opened.
#[derive(Debug, Args)]
#[command(next_help_heading = "Session")]
pub(crate) struct SessionArgs {
    /// Tokens of prompt and answer that there is room for [default: what the model was made for, at most 4096].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// How keys and values are kept: int8 takes half the memory and the reading of f16.
    #[arg(long, value_enum, default_value_t = KvFormat::F16)]
    kv: KvFormat,
    /// How the head is computed: exact and f16 both compute all of it and give the same tokens; int4 is not available
    /// in this version.
    #[arg(long, value_enum, default_value_t = Head::Exact)]
    head: Head,
    /// Tokens of the prompt that are computed together; it changes no result.
    #[arg(long, value_name = "N")]
    chunk: Option<usize>,
}

/// A format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvFormat {
    F32,
    F16,
    Int8,
}

/// A way to compute the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Head {
    Exact,
    F16,
    Int4,
}

impl SessionArgs {
    pub(crate) fn options(&self) -> anyhow::Result<SessionOptions> {
        if self.head == Head::Int4 {
            let reason = "--head int4 is not available in this version; use --head exact".into();
            return Err(Error::Unavailable { reason }.into());
        }
        Ok(SessionOptions { max_seq_len: self.context, chunk: self.chunk, precision: self.kv.precision() })
    }
}

impl KvFormat {
    /// The precisions of a session with a cache in this format.
    pub(crate) fn precision(self) -> MixedPrecisionConfig {
        let dtype = match self {
            KvFormat::F32 => BitNetDType::F32,
            KvFormat::F16 => BitNetDType::F16,
            KvFormat::Int8 => BitNetDType::I8,
        };
        MixedPrecisionConfig::default().with_component(ComponentType::KvCache, dtype)
    }
}
