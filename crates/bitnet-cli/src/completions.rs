//! `bitnet completions`: scripts that teach a shell the command line.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    bitnet completions bash > ~/.local/share/bash-completion/completions/bitnet\n  \
    bitnet completions fish > ~/.config/fish/completions/bitnet.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    // Into memory first: the generator panics when its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bitnet", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}
