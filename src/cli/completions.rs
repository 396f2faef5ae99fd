//! `completions`: scripts that complete verbs and flags.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::output::emit;

/// Prints a completion script for a shell.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  blobcast completions bash > /etc/bash_completion.d/blobcast
  blobcast completions fish > ~/.config/fish/completions/blobcast.fish")]
pub(super) struct CompletionsArgs {
    /// For which shell.
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, command: &mut Command) -> anyhow::Result<ExitCode> {
    // Into memory first: the generator panics when a pipe is closed under it.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "blobcast", &mut script);
    emit(&script)?;
    Ok(ExitCode::SUCCESS)
}
