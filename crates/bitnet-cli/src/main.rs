//! The program `bitnet`.

mod convert;
mod synth;

use clap::Parser;

/// Ternary language models.
#[derive(Debug, Parser)]
#[command(name = "bitnet")]
enum Command {
    Convert(convert::Args),
    Synth(synth::Args),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Convert(args) => convert::run(args),
        Command::Synth(args) => synth::run(args),
    }
}
