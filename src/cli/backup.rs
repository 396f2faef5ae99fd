//! `backup`: everything the broker keeps, in one file, while it runs.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    process::geteuid,
};

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
called FILE.partial until it is whole; what is there by that name is replaced if a backup of yours was cut off, and else left
alone. It holds bodies as they were received: keep it as you keep the data directory.

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
        remove_what_was_cut_off(&partial)?;

        // Only into a file of its own making, whatever is at that name by now; and nobody else's to read: it has what the log has.
        let file = match File::options().write(true).create_new(true).mode(0o600).open(&partial) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => anyhow::bail!(another_writes(&partial)),
            opened => opened.with_context(|| cannot_write(&partial))?,
        };
        // Before it had the lock, another backup may have taken the file for one that was cut off.
        let has_lock = file.try_lock().is_ok();
        anyhow::ensure!(has_lock && is_at(&file, &partial), another_writes(&partial));
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
        file.sync_all().with_context(|| cannot_write(partial))?;
        anyhow::ensure!(
            is_at(file, partial),
            "{} was replaced meanwhile: name a file in a directory of yours",
            partial.display()
        );
        // Takes the place of what has that name: a symbolic link itself, not what it leads to.
        fs::rename(partial, &path).with_context(|| cannot_write(path))?;
        *is_whole = true;
        File::open(parent).and_then(|parent| parent.sync_all()).with_context(|| cannot_write(path))
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if let Self::File { file, partial, is_whole: false, .. } = self
            && is_at(file, partial)
        {
            // Should it stay, its name still says what it is.
            let _ = fs::remove_file(partial).is_ok();
        }
    }
}

/// Removes what a backup of the same user has left that was cut off. What anybody else has put there is not touched.
fn remove_what_was_cut_off(partial: &Path) -> anyhow::Result<()> {
    // Does not wait for the other end of a FIFO either.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let foreign = || {
        format!("{} is there, and no backup of yours has made it: remove it, or name another file", partial.display())
    };
    let file = match rustix::fs::open(partial, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error).with_context(foreign),
    };

    let metadata = file.metadata().with_context(foreign)?;
    anyhow::ensure!(metadata.is_file() && metadata.uid() == geteuid().as_raw(), foreign());
    anyhow::ensure!(file.try_lock().is_ok() && is_at(&file, partial), another_writes(partial));
    fs::remove_file(partial).with_context(|| cannot_write(partial))
}

/// Whether a name still is this file's.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (opened, named) = (file.metadata().map(place), fs::symlink_metadata(path).map(place));
    matches!((opened, named), (Ok(opened), Ok(named)) if opened == named)
}

fn another_writes(partial: &Path) -> String {
    format!("another backup writes {}: let it end first", partial.display())
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}: name a file in a directory with room for the whole log", path.display())
}
