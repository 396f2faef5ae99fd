//! `completions`: prints shell scripts that complete verbs and flags.

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
    /// The shell to print it for.
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, command: &mut Command) -> anyhow::Result<ExitCode> {
    // Into memory first: the generator panics if its output is a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "blobcast", &mut script);
    emit(&script)?;
    Ok(ExitCode::SUCCESS)
}
