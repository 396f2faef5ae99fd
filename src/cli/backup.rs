//! `backup`: everything the broker keeps, in one file, while it runs.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;

use super::{
    client::GrpcArgs,
    output::{self, note},
};
use crate::wire::v1;

/// What stands for standard output, or input, in place of a file.
pub(super) const STANDARD: &str = "-";
/// Added to the file's name until it is whole.
const PARTIAL: &str = ".partial";

/// Copies every event, with its callback's body, and the quarantine into one file.
#[derive(Args, Debug)]
#[command(after_help = "\
The broker goes on meanwhile; the file holds what was there when it began, and everything that was answered by then. It is
called FILE.partial until it is whole. It holds bodies as they were received: keep it as you keep the data directory.

Examples:
  blobcast backup events.backup
  blobcast backup - | zstd > events.backup.zst
  blobcast restore events.backup --data-dir new-data

Exit codes: 0 the backup is whole and on disk; 1 it is not; 2 usage.")]
pub(super) struct BackupArgs {
    /// Where to write it; - is standard output.
    file: PathBuf,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: BackupArgs) -> anyhow::Result<ExitCode> {
    let mut target = Target::create(&args.file)?;
    let answer = args.grpc.admin()?.backup(v1::BackupRequest {}).await;
    let mut stream = answer.map_err(|status| args.grpc.error(&status))?.into_inner();
    let (mut summary, mut bytes) = (None, 0);
    while let Some(message) = stream.message().await.map_err(|status| args.grpc.error(&status))? {
        bytes += message.chunk.len() as u64;
        target.write(&message.chunk)?;
        summary = message.summary;
    }
    let Some(summary) = summary.filter(|summary| summary.backup_bytes == bytes) else {
        anyhow::bail!("the backup has ended early: try again");
    };
    target.finish()?;
    let v1::BackupSummary { event_count, quarantine_count, backup_bytes, .. } = summary;
    note(&format!("{event_count} events and {quarantine_count} quarantined callbacks in {backup_bytes} bytes"));
    Ok(ExitCode::SUCCESS)
}

/// A file that gets its name when it is whole, and is removed if it does not get that far; or standard output.
enum Target<'a> {
    Standard,
    File { file: File, path: &'a Path, partial: PathBuf, is_whole: bool },
}

impl<'a> Target<'a> {
    fn create(path: &'a Path) -> anyhow::Result<Self> {
        if path == Path::new(STANDARD) {
            return Ok(Self::Standard);
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(PARTIAL);
        let partial = PathBuf::from(partial);
        let mut options = File::options();
        // Nobody else's to read: it has what the log has.
        let opened = options.write(true).create(true).truncate(false).mode(0o600).open(&partial);
        let file = opened.with_context(|| cannot_write(&partial))?;
        file.try_lock().with_context(|| format!("another backup writes {}: let it end first", partial.display()))?;
        file.set_len(0).with_context(|| cannot_write(&partial))?;
        Ok(Self::File { file, path, partial, is_whole: false })
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Standard => output::write(&mut io::stdout(), bytes),
            Self::File { file, partial, .. } => file.write_all(bytes).with_context(|| cannot_write(partial)),
        }
    }

    /// Makes it durable under its own name.
    fn finish(mut self) -> anyhow::Result<()> {
        let Self::File { file, path, partial, is_whole } = &mut self else { return Ok(()) };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let renamed = file.sync_all().and_then(|()| fs::rename(partial, &path));
        renamed.with_context(|| cannot_write(path))?;
        *is_whole = true;
        File::open(parent).and_then(|parent| parent.sync_all()).with_context(|| cannot_write(path))
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if let Self::File { partial, is_whole: false, .. } = self {
            // Should it stay, its name still says what it is.
            let _ = fs::remove_file(partial).is_ok();
        }
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}: name a file in a directory with room for the whole log", path.display())
}
