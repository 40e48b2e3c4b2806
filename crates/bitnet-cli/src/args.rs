//! What the command line looks like as a whole. The arguments of a subcommand are in its own file.

use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::chat::ChatArgs;
use crate::completions::CompletionsArgs;
use crate::convert::ConvertArgs;
use crate::devices::DevicesArgs;
use crate::inspect::InspectArgs;
use crate::logits::LogitsArgs;
use crate::precision::PrecisionArgs;
use crate::quantize::QuantizeArgs;
use crate::run::RunArgs;
use crate::synth::SynthArgs;
use crate::tokenize::TokenizeArgs;

/// Run ternary (BitNet b1.58) language models.
#[derive(Debug, Parser)]
#[command(
    name = "bitnet",
    version,
    max_term_width = 100,
    after_help = "Models are GGUF files, safetensors files, folders as Hugging Face has them or with one GGUF file, and \
        names of the Hugging Face hub (ORG/NAME) that were downloaded to its local cache. Without --model, the stories \
        model that is part of the program is used.\n\n\
        Environment:\n  \
        BITNET_ISA  The instruction set: scalar, sse41, avx2, avx512 or neon; the widest that works by default\n  \
        BITNET_CACHE_DIR  Where faster weights and timings are kept; a folder in the user's cache by default\n  \
        HF_HUB_CACHE, HF_HOME  Where the Hugging Face cache is; ~/.cache/huggingface/hub by default\n\n\
        Exit status: 0 for success, 1 for failure, 2 for wrong usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Chat(ChatArgs),
    Inspect(InspectArgs),
    Convert(ConvertArgs),
    Quantize(QuantizeArgs),
    Synth(SynthArgs),
    Bench(BenchArgs),
    Precision(PrecisionArgs),
    Logits(LogitsArgs),
    Tokenize(TokenizeArgs),
    Devices(DevicesArgs),
    Completions(CompletionsArgs),
}
