//! `bitnet inspect`: what is in a model file, and what running it takes. No weights are loaded, and files that the
//! engine cannot run are described as far as they can be read.

mod listing;
mod print;
mod summary;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::model::LayoutArgs;
use crate::values;
use listing::Listing;
use summary::Summary;

/// Describe a model file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    bitnet inspect\n  \
    bitnet inspect model.gguf --tensors\n  \
    bitnet inspect model.gguf --json --context 8192")]
pub(crate) struct InspectArgs {
    /// A GGUF file, a safetensors file, a model folder, or the ORG/NAME of a model in the local Hugging Face cache;
    /// the embedded stories model by default.
    #[arg(value_name = "MODEL")]
    path: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// Estimate the memory for this many tokens [default: what the model was made for, at most 4096].
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    context: Option<usize>,
    #[command(flatten)]
    layout: LayoutArgs,
}

pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let source = crate::model::open_source(args.path.as_deref(), &args.layout);
    // A file that cannot be listed is not of a known format, and the reason not to open it says so best.
    let (listing, source) = match (Listing::open(args.path.as_deref()), source) {
        (Ok(listing), source) => (listing, source),
        (Err(e), Ok(_)) | (Err(_), Err(e)) => return Err(e),
    };
    let summary = Summary::new(source, listing.tensor_bytes(), args.context)?;
    let mut stdout = io::stdout().lock();
    if args.json {
        let mut object = summary.to_json();
        object.insert("file".into(), listing.to_json(args.tensors));
        writeln!(stdout, "{}", serde_json::Value::Object(object))?;
    } else {
        print::listing(&mut stdout, &listing)?;
        print::summary(&mut stdout, &summary)?;
        if args.tensors {
            print::tensors(&mut stdout, &listing)?;
        }
    }
    Ok(())
}
