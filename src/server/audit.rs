//! The audit file, and the one thread that writes it. A record is confirmed when it is on the disk.
//!
//! A write that fails leaves nothing behind: half a line would hide the rest of the file from a reader of JSON lines.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use prometheus::IntCounterVec;
use rustix::{fs::OFlags, process::geteuid};
use tokio::sync::oneshot;

use crate::{
    accounts,
    audit::{Command, QUEUE_MAX},
    files,
};

/// Records that share a sync.
const BATCH_MAX: usize = 64;
/// How often it is logged that records cannot be written.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Opens the file, creating it for this user alone, and starts its thread, which ends when all senders are dropped.
pub(super) fn start(path: &Path, records: &IntCounterVec) -> Result<SyncSender<Command>, String> {
    let told = |error: io::Error| format!("{}: {error}", path.display());
    let file = open(path).map_err(|error| {
        let step = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => remedy(path),
            _ => "name a regular file on a disk that can be written".to_owned(),
        };
        format!("{}; {step}", told(error))
    })?;

    let (sender, commands) = sync_channel(QUEUE_MAX);
    let [written, lost] = ["written", "lost"].map(|result| records.with_label_values(&[result]));
    let mut log = Log {
        path: path.to_owned(),
        file,
        is_torn: false,
        complained: None,
    };
    let run = move || {
        while let Ok(first) = commands.recv() {
            let count = |is_written, records| {
                let counter = if is_written { &written } else { &lost };
                counter.inc_by(records);
            };
            log.take(first, &commands, count);
        }
    };

    thread::Builder::new()
        .name("audit".into())
        .spawn(run)
        .map_err(told)?;
    Ok(sender)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600);
    let mut file = files::open_regular(path, &mut options, OFlags::empty())?;
    let metadata = file.metadata()?;

    // A power cut may have torn the last line.
    let mut last = [b'\n'];
    if metadata.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    if metadata.len() == 0 {
        // Else a power cut could lose a new file with everything in it. Not every file system syncs directories.
        let _ = File::open(directory_of(path))
            .and_then(|directory| directory.sync_all())
            .is_ok();
    }
    Ok(file)
}

/// The directory of a file.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The next step when the file cannot be opened.
pub(super) fn remedy(path: &Path) -> String {
    let (directory, user) = (
        directory_of(path).display(),
        accounts::name_of(geteuid().as_raw()),
    );
    format!(
        "{directory} has to be there, and user {user} has to write in it: `install -d -o {user} -m 750 {directory}`"
    )
}

struct Log {
    path: PathBuf,
    file: File,
    /// The file may end in half a line, which must not run into the next one.
    is_torn: bool,
    complained: Option<Instant>,
}

impl Log {
    /// Executes `first` and the commands that wait behind it.
    fn take(&mut self, first: Command, commands: &Receiver<Command>, count: impl Fn(bool, u64)) {
        let (mut lines, mut waiting) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Write(line, done) => {
                    lines.extend_from_slice(&line);
                    waiting.push((done, !line.is_empty()));
                }
                Command::Reopen(done) => {
                    self.write(&mut lines, &mut waiting, &count);
                    let _ = done.send(self.reopen()).is_ok(); // the caller may have given up
                }
            }
            next = if waiting.len() < BATCH_MAX {
                commands.try_recv().ok()
            } else {
                None
            };
        }
        self.write(&mut lines, &mut waiting, &count);
    }

    fn write(
        &mut self,
        lines: &mut Vec<u8>,
        waiting: &mut Vec<(oneshot::Sender<bool>, bool)>,
        count: &impl Fn(bool, u64),
    ) {
        let written = if lines.is_empty() {
            Ok(())
        } else {
            self.append(lines)
        };
        let records = waiting.iter().filter(|(_, is_record)| *is_record).count() as u64;
        count(written.is_ok(), records);

        if let Err(error) = &written
            && self
                .complained
                .is_none_or(|complained| complained.elapsed() >= COMPLAINT)
        {
            self.complained = Some(Instant::now());
            let path = self.path.display();
            tracing::error!(
                %error, %path,
                "audit records cannot be written: make room on the disk, or mend audit.file and reload; blobcast_audit_records_total \
                 counts those that are lost"
            );
        }

        for (done, _) in waiting.drain(..) {
            let _ = done.send(written.is_ok()).is_ok(); // not every caller waits for it
        }
        lines.clear();
    }

    /// Opens the file again after it was moved away. If that fails, the old one is written on.
    fn reopen(&mut self) -> Result<(), String> {
        self.file =
            open(&self.path).map_err(|error| format!("{}: {error}", self.path.display()))?;
        (self.is_torn, self.complained) = (false, None);
        Ok(())
    }

    /// Appends lines and syncs them. After an error they are cut off again, as far as the disk allows that.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let end: &[u8] = if self.is_torn { b"\n" } else { b"" };
        let written = self
            .file
            .write_all(&[end, lines].concat())
            .and_then(|()| self.file.sync_data());
        match &written {
            Ok(()) => self.is_torn = false,
            Err(_) => self.is_torn |= self.file.set_len(length).is_err(),
        }
        written
    }
}
