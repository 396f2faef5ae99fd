//! `restore`: a new data directory from a backup. Works without a broker.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;

use super::{backup::STANDARD, output::note};
use crate::{
    server,
    store::{self, BackupSummary},
};

/// Makes a new data directory from a backup.
#[derive(Args, Debug)]
#[command(after_help = "\
The new log has the events, places, revisions and quarantine of the old one, and knows the same duplicates, but it is another
log: cursors of the old one are refused with EPOCH_MISMATCH, and their readers start again, with `--from earliest` or a time.

Example:
  blobcast restore events.backup --data-dir new-data && blobcast serve --data-dir new-data

Exit codes: 0 restored and on disk; 1 not, and the directory is as empty as before; 2 usage.")]
pub(super) struct RestoreArgs {
    /// The backup; - is standard input.
    file: PathBuf,
    /// Directory to restore into: empty, or not there yet.
    #[arg(long, value_name = "PATH")]
    data_dir: PathBuf,
}

pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    super::keep_files_private();
    let RestoreArgs { file, data_dir } = args;
    let backup: Box<dyn Read> = if file == Path::new(STANDARD) {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
    };
    let BackupSummary { event_count, quarantine_count, .. } = store::restore(backup, data_dir)?;
    if let Some(problem) = server::exposed_directory(data_dir, &server::Reader::of_this_process()) {
        note(&format!("warning: {problem}"));
    }
    let data_dir = data_dir.display();
    note(&format!("{event_count} events and {quarantine_count} quarantined callbacks are in {data_dir}"));
    Ok(ExitCode::SUCCESS)
}
