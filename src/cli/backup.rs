//! `backup`: everything the broker keeps, in one file, while it runs; or in one more file of a directory of them.

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
    backup_directory::{cut_off, name, name_of_begun, remove_surplus},
    client::GrpcArgs,
    output::{self, note},
};
use crate::{event::Cursor, wire::v1};

/// What stands for standard output, or input, in place of a file.
pub(super) const STANDARD: &str = "-";
/// Added to the file's name until it is whole.
const PARTIAL: &str = ".partial";
/// The exit code when the backup is whole, and older ones could not be removed.
const NOT_REMOVED: u8 = 3;

/// Copies every event, with its callback's body, and the quarantine into one file.
#[derive(Args, Debug)]
#[command(after_help = "\
The broker goes on meanwhile; the file holds what was there when it began, and everything that was answered by then. It is \
called FILE.partial until it is whole; then it takes the place of a regular FILE that is there. A link, a device, a FIFO or a \
directory is refused: for a stream write -. What has the name FILE.partial is replaced if a backup of yours was cut off, and \
else left alone. The file holds bodies as they were received: keep it as you keep the data directory.

With --directory each run makes a file of its own, called blobcast-TIME-LOG.backup by the time (UTC) at which it began and the first 8 \
digits of its log's epoch. What earlier runs have left there that did not come to their end is removed. With --keep N the oldest files \
with such names are removed when the new one is whole and on disk, until N of the same log are left. Backups of another log, and those \
of a time yet to come, are neither counted nor removed; other files are never touched.

Examples:
  blobcast backup events.backup
  blobcast backup --directory /var/lib/blobcast-backup --keep 7 --token-file backup.token
  blobcast backup - | zstd > events.backup.zst
  blobcast restore events.backup --data-dir new-data

Exit codes: 0 the backup is whole and on disk; 1 it is not; 2 usage; 3 it is, but older ones could not be removed.")]
pub(super) struct BackupArgs {
    /// Where to write it; - is standard output.
    #[arg(required_unless_present = "directory")]
    file: Option<PathBuf>,
    /// A directory to put it into, under a name with the time.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "file")]
    directory: Option<PathBuf>,
    /// How many of the same log to keep there, the new one included; the oldest are removed [default: all].
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
        anyhow::bail!("the backup has ended early: try again");
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
                "the new backup is whole, but of the older ones more than {keep} are left: {error:#}"
            ));
            ExitCode::from(NOT_REMOVED)
        }
    })
}

/// Where the backup goes.
fn file(args: &BackupArgs, began: Timestamp) -> anyhow::Result<PathBuf> {
    let Some(directory) = &args.directory else {
        return Ok(args.file.clone().unwrap_or_else(|| STANDARD.into()));
    };
    for partial in cut_off(directory, PARTIAL)? {
        // Another one may just be writing it.
        match remove_what_was_cut_off(&partial) {
            Ok(()) => note(&format!("removed {}, which was cut off", partial.display())),
            Err(error) => note(&format!("{error:#}")),
        }
    }
    Ok(directory.join(name_of_begun(began)))
}

/// A file that gets its name when it is whole, and is removed if it does not get that far; or standard output.
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
        remove_what_was_cut_off(&partial)?;

        // Only into a file of its own making, whatever is at that name by now; and nobody else's to read: it has what the log has.
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
        // Before it had the lock, another backup may have taken the file for one that was cut off.
        let is_free = is_free(&file) && is_at(&file, &partial);
        let told = another_writes(&partial);
        let target = Self::File {
            file,
            partial,
            is_whole: false,
        };
        anyhow::ensure!(is_free, told);
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

    /// Makes it durable under its own name, `path`, beside the one that it has until then.
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
            "{} was replaced meanwhile: name a file in a directory of yours",
            partial.display()
        );
        // Again: it may have come meanwhile. A link that comes even later is replaced itself, not what it leads to.
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
            // Should it stay, its name still says what it is.
            let _ = fs::remove_file(partial).is_ok();
        }
    }
}

/// Refuses to put a file in the place of a device, a FIFO, a link or a directory.
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
        "{} is there, and no regular file that could be replaced: name another file, or write - to send the backup to standard \
         output",
        path.display()
    );
    Ok(())
}

/// Removes what a backup of the same user has left that was cut off. What anybody else has put there is not touched.
fn remove_what_was_cut_off(partial: &Path) -> anyhow::Result<()> {
    // Does not wait for the other end of a FIFO either.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let foreign = || {
        format!(
            "{} is there, and no backup of yours has made it: remove it, or name another file",
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

/// Takes the lock of a file that is written; false if another backup has it. Where there are no locks, it goes on without one.
fn is_free(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Whether a name still is this file's.
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
        "another backup writes {}: let it end first",
        partial.display()
    )
}

fn cannot_write(path: &Path) -> String {
    format!(
        "cannot write {}: name a file in a directory with room for the whole log",
        path.display()
    )
}
