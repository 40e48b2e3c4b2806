//! `bitnet tokenize`: text to token ids, and back.

use std::io::{self, Write};

use anyhow::{Context, bail};
use clap::Args;

use crate::model::SourceArgs;

/// Turn text into token ids, or ids into text.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    bitnet tokenize \"Once upon a time\"\n  \
    bitnet tokenize --special --model model.gguf \"Hello\"\n  \
    bitnet tokenize --decode \"1097 879 257 513\"")]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The text, or the ids with --decode; - for standard input.
    #[arg(allow_hyphen_values = true)]
    text: String,
    /// Add the tokens that the model expects around a text.
    #[arg(long)]
    special: bool,
    /// Take ids, separated by spaces or commas, and print their text.
    #[arg(long, conflicts_with = "special")]
    decode: bool,
}

pub(crate) fn tokenize(args: &TokenizeArgs) -> anyhow::Result<()> {
    let Some(parts) = args.source.open()?.text()? else {
        bail!("the model has no tokenizer; put tokenizer.json beside the weights");
    };
    let text = crate::run::text_or_stdin(&args.text)?;
    let line = if args.decode {
        let ids = text.split([' ', ',', '\n']).filter(|id| !id.is_empty());
        let ids = ids.map(|id| id.parse().with_context(|| format!("`{id}` is no token id")));
        parts.tokenizer.decode(&ids.collect::<anyhow::Result<Vec<u32>>>()?, false)?
    } else {
        let ids = parts.tokenizer.encode(&text, args.special)?;
        ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
    };
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}
