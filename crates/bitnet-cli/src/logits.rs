//! `bitnet logits`: what the model computes for given tokens, as a file for other programs to compare with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bitnet_core::Error as CoreError;
use bitnet_core::file::safetensors::{Dtype, TensorSpec, write};
use bitnet_inference::convert::refuse_own_input;
use bitnet_inference::{Error, HeadMode, Preparation, SessionOptions};
use clap::Args;

use crate::interrupt;
use crate::model::{ModelArgs, load, print_notices};
use crate::session::KvFormat;
use crate::values;

/// Write the logits that follow every token.
#[derive(Debug, Args)]
#[command(after_help = "The file has one tensor `logits`, F32, of shape [tokens, vocabulary].\n\n\
    Examples:\n  \
    bitnet logits --tokens 2040,1097,879,257,513 --output logits.safetensors\n  \
    bitnet logits --model model.gguf --tokens 1,2,3 --output logits.safetensors --chunk 1")]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, separated by commas. None are added.
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// The safetensors file to write.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Tokens that are computed together; it changes no result.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    chunk: Option<usize>,
    /// How keys and values are kept; int8 takes half of what f16 takes, and changed a story's perplexity by 0.01 %.
    #[arg(long, value_enum, default_value_t = KvFormat::F32)]
    kv: KvFormat,
}

pub(crate) fn logits(args: &LogitsArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    let precision = args.kv.precision();
    // All logits are asked for, which only the whole head gives.
    let options = args.model.options(Preparation::Never, Some(HeadMode::F16))?;
    let source = args.model.source.open()?;
    refuse_own_input(source.path(), &args.output)?;
    let model = load(&*source, &options)?;
    print_notices(&model);
    let options = SessionOptions { max_seq_len: Some(args.tokens.len()), chunk: args.chunk, precision };
    let mut session = model.session(options)?;

    let shape = [args.tokens.len(), model.config().vocab_size];
    let spec = TensorSpec { name: "logits", dtype: Dtype::F32, shape: &shape };
    // Rows go to the file as they are computed: together they may be larger than the model.
    let mut engine_error = None;
    let written = write(&args.output, &BTreeMap::new(), &[spec], |_, sink| {
        let mut bytes = Vec::with_capacity(size_of::<f32>() * shape[1]);
        let computed = session.forward_all(&args.tokens, |_, row| {
            bytes.clear();
            bytes.extend(row.iter().flat_map(|logit| logit.to_le_bytes()));
            Ok(sink.write(&bytes)?)
        });
        computed.map_err(|error| match error {
            Error::Core(error) => error,
            error => {
                let reason = error.to_string();
                engine_error = Some(error);
                CoreError::Backend { backend: "cpu", reason }
            }
        })
    });
    match engine_error {
        Some(error) => Err(error.into()),
        None => Ok(written?),
    }
}
