//! `backup`: copies everything that a running broker keeps into a file, or into a new file of a
//! directory of backups.
//!
//! A file gets its name only when it is complete and on disk; until then it is called FILE.partial.
//! Never replaces a file that is not regular, and never touches another user's partial file.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    num::NonZeroUsize,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    process::geteuid,
};

use super::{
    backup_directory::{interrupted, name, name_of_begun, remove_surplus},
    client::GrpcArgs,
    output::{self, note},
};
use crate::{event::Cursor, wire::v1};

/// Stands for standard output or input in place of a file name.
pub(super) const STANDARD: &str = "-";
/// Suffix of the file's name until it is complete.
const PARTIAL: &str = ".partial";
/// Exit code if the backup is complete but older ones could not be removed.
const NOT_REMOVED: u8 = 3;

/// Copies every event, with its callback's body, and the quarantine into one file.
#[derive(Args, Debug)]
#[command(after_help = "\
The broker keeps running. The backup contains every event that was acknowledged before it began. \
The file is called FILE.partial until it is complete; then it replaces FILE, if that is a regular \
file. A link, a device, a FIFO or a directory is refused: for a stream write -. An existing \
FILE.partial is replaced if it was left by an interrupted backup of yours, and is not touched \
otherwise. The file contains bodies as they were received: protect it like the data directory.

With --directory each run writes a new file, blobcast-TIME-LOG.backup, named after the time (UTC) \
at which it began and the first 8 digits of its log's epoch. Partial files of earlier interrupted \
runs are removed. With --keep N, once the new file is complete and on disk, the oldest files with \
such names are removed until N of the same log are left. Backups of another log, and those with a \
time in the future, are neither counted nor removed. Other files are never touched.

Examples:
  blobcast backup events.backup
  blobcast backup --directory /var/lib/blobcast-backup --keep 7 --token-file backup.token
  blobcast backup - | zstd > events.backup.zst
  blobcast restore events.backup --data-dir new-data

Exit codes: 0 the backup is complete and on disk; 1 it is not; 2 usage; 3 it is, but older ones could not be removed.")]
pub(super) struct BackupArgs {
    /// File to write the backup to; - is standard output.
    #[arg(required_unless_present = "directory")]
    file: Option<PathBuf>,
    /// Directory to write a new file into, named after the time.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "file")]
    directory: Option<PathBuf>,
    /// Backups of the same log to keep in the directory, with the new one; the oldest are removed
    /// [default: all].
    #[arg(
        long,
        value_name = "N",
        requires = "directory",
        conflicts_with = "file"
    )]
    keep: Option<NonZeroUsize>,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: BackupArgs) -> anyhow::Result<ExitCode> {
    let began = Timestamp::now();
    let file = file(&args, began)?;
    let mut target = Target::create(&file)?;
    let answer = args.grpc.admin()?.backup(v1::BackupRequest {}).await;
    let mut stream = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();
    let (mut summary, mut bytes) = (None, 0);
    while let Some(message) = stream
        .message()
        .await
        .map_err(|status| args.grpc.error(&status))?
    {
        bytes += message.chunk.len() as u64;
        target.write(&message.chunk)?;
        summary = message.summary;
    }

    let Some(summary) = summary.filter(|summary| summary.backup_bytes == bytes) else {
        anyhow::bail!("the backup ended early: try again");
    };

    let v1::BackupSummary {
        event_count,
        quarantine_count,
        backup_bytes,
        head,
    } = summary;
    let file = match &args.directory {
        Some(directory) => {
            let head = Cursor::parse(&head)
                .context("the broker's answer is not a backup's: is it of this version?")?;
            directory.join(name(began, head.epoch))
        }
        None => file.clone(),
    };

    target.finish(&file)?;

    let of_directory = args
        .directory
        .as_ref()
        .map(|_| format!("{}: ", file.display()))
        .unwrap_or_default();
    let counts = format!(
        "{event_count} events and {quarantine_count} quarantined callbacks in {backup_bytes} bytes"
    );
    note(&format!("{of_directory}{counts}"));

    let Some(keep) = args.keep else {
        return Ok(ExitCode::SUCCESS);
    };

    Ok(match remove_surplus(&file, keep.get()) {
        Ok(gone) => {
            gone.iter()
                .for_each(|path| note(&format!("removed {}", path.display())));
            ExitCode::SUCCESS
        }
        Err(error) => {
            note(&format!(
                "the new backup is complete, but more than {keep} are left: {error:#}"
            ));
            ExitCode::from(NOT_REMOVED)
        }
    })
}

/// The file to write. In a directory of backups, first removes partial files of earlier runs.
fn file(args: &BackupArgs, began: Timestamp) -> anyhow::Result<PathBuf> {
    let Some(directory) = &args.directory else {
        return Ok(args.file.clone().unwrap_or_else(|| STANDARD.into()));
    };
    for partial in interrupted(directory, PARTIAL)? {
        // An error is only reported: another backup may still be writing this file.
        match remove_interrupted(&partial) {
            Ok(()) => note(&format!(
                "removed {}, left by an interrupted backup",
                partial.display()
            )),
            Err(error) => note(&format!("{error:#}")),
        }
    }
    Ok(directory.join(name_of_begun(began)))
}

/// The output: a file that is renamed when it is complete and removed otherwise, or standard
/// output.
enum Target {
    Standard,
    File {
        file: File,
        partial: PathBuf,
        is_whole: bool,
    },
}

impl Target {
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new(STANDARD) {
            return Ok(Self::Standard);
        }

        check_may_be_replaced(path)?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(PARTIAL);
        let partial = PathBuf::from(partial);
        remove_interrupted(&partial)?;

        // Always a new file, whatever has that name by now, and readable for its owner only: it has
        // the content of the log.
        let file = match File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
        {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                anyhow::bail!(another_writes(&partial))
            }
            opened => opened.with_context(|| cannot_write(&partial))?,
        };

        // Another backup may have removed the file as an interrupted one before this process had
        // the lock.
        let is_free = is_free(&file) && is_at(&file, &partial);
        let busy = another_writes(&partial);
        let target = Self::File {
            file,
            partial,
            is_whole: false,
        };

        anyhow::ensure!(is_free, busy);
        Ok(target)
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Standard => output::write(&mut io::stdout(), bytes),
            Self::File { file, partial, .. } => {
                file.write_all(bytes).with_context(|| cannot_write(partial))
            }
        }
    }

    /// Syncs the file and renames it to `path`, in the same directory.
    fn finish(mut self, path: &Path) -> anyhow::Result<()> {
        let Self::File {
            file,
            partial,
            is_whole,
        } = &mut self
        else {
            return Ok(());
        };

        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));

        file.sync_all().with_context(|| cannot_write(partial))?;
        anyhow::ensure!(
            is_at(file, partial),
            "{} was replaced meanwhile: name a file in a directory that only you can write to",
            partial.display()
        );

        // Checked again: the file may have appeared meanwhile. A link that appears after the check
        // is replaced, not its target.
        check_may_be_replaced(path)?;
        fs::rename(partial, path).with_context(|| cannot_write(path))?;
        *is_whole = true;

        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .with_context(|| cannot_write(path))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Self::File {
            file,
            partial,
            is_whole: false,
            ..
        } = self
            && is_at(file, partial)
        {
            let _ = fs::remove_file(partial).is_ok(); // if it stays, its name says that it is partial
        }
    }
}

/// Refuses to replace a device, a FIFO, a link or a directory.
fn check_may_be_replaced(path: &Path) -> anyhow::Result<()> {
    let is_free = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(error) => matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
    };
    anyhow::ensure!(
        is_free,
        "{} exists and is not a regular file: name another file, or write - to send the backup to \
         standard output",
        path.display()
    );
    Ok(())
}

/// Removes the partial file of an interrupted backup of the same user. Anything else at that name
/// is an error.
fn remove_interrupted(partial: &Path) -> anyhow::Result<()> {
    // NONBLOCK: opening a FIFO must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let foreign = || {
        format!(
            "{} exists and was not made by a backup of yours: remove it, or name another file",
            partial.display()
        )
    };

    let file = match rustix::fs::open(partial, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error).with_context(foreign),
    };

    let metadata = file.metadata().with_context(foreign)?;
    anyhow::ensure!(
        metadata.is_file() && metadata.uid() == geteuid().as_raw(),
        foreign()
    );

    anyhow::ensure!(
        is_free(&file) && is_at(&file, partial),
        another_writes(partial)
    );

    fs::remove_file(partial).with_context(|| cannot_write(partial))
}

/// Locks a partial file; false if another backup has the lock. On a file system without locks it
/// counts as free.
fn is_free(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Whether `path` still names this open file.
fn is_at(file: &File, path: &Path) -> bool {
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (opened, named) = (
        file.metadata().map(place),
        fs::symlink_metadata(path).map(place),
    );
    matches!((opened, named), (Ok(opened), Ok(named)) if opened == named)
}

fn another_writes(partial: &Path) -> String {
    format!(
        "another backup is writing {}: wait until it ends",
        partial.display()
    )
}

fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}: name a file in a directory with room for the whole log",
        path.display()
    )
}
