//! `restore`: makes a new data directory from a backup, and appends the log of another broker that
//! ran meanwhile. Needs no running broker.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Args;

use super::{
    backup::STANDARD,
    output::{note, unreadable},
};
use crate::{
    server,
    store::{self, AppendSummary, BackupSummary, WhenRunning},
};

/// Makes a new data directory from a backup.
#[derive(Args, Debug)]
#[command(after_help = "\
The new log has the events, positions, revisions and quarantine of the old one, and detects the \
same duplicates, but it is another log: cursors of the old one are refused with EPOCH_MISMATCH, \
and their readers start again with `--from earliest` or a time.

With --append the new log continues after the backup with the content of the data directory OTHER: \
its events in their order, and its quarantine. A callback that is in both is kept once. The broker \
on OTHER must be stopped: before, or, with --wait, once the backup is restored; stop its socket \
units, too. At the end a file in OTHER (appended-to) keeps brokers from starting there; OTHER is \
not changed otherwise. Until the end the new directory needs room for a copy of OTHER. Tasks that \
were erased in either are erased in the new log.

Examples:
  blobcast restore events.backup --data-dir new-data && blobcast serve --data-dir new-data
  blobcast restore events.backup --data-dir new-data --append meanwhile --wait

Exit codes: 0 restored and on disk; 1 an error, and the directory is as empty as before; 2 usage.")]
pub(super) struct RestoreArgs {
    /// The backup; - is standard input.
    file: PathBuf,
    /// Directory to restore into: empty, or created if it is missing.
    #[arg(long, value_name = "PATH")]
    data_dir: PathBuf,
    /// Data directory of a stopped broker that has received callbacks meanwhile: its events follow
    /// those of the backup.
    #[arg(long, value_name = "OTHER")]
    append: Option<PathBuf>,
    /// Let that broker run until the backup is restored; then ask you to stop it, and wait.
    #[arg(long, requires = "append")]
    wait: bool,
}

pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    super::keep_files_private();
    let began = Instant::now();
    let RestoreArgs {
        file,
        data_dir,
        append,
        wait,
    } = args;

    let backup: Box<dyn Read> = if file == Path::new(STANDARD) {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).map_err(|error| unreadable("the backup", file, &error))?)
    };

    let (restored, appended) = match append {
        None => (store::restore(backup, data_dir)?, None),
        Some(other) => {
            let ask_to_stop = || {
                note(&format!(
                    "the backup is restored: stop the broker on {} now, with the units that would \
                     start it again (systemctl stop blobcast.service 'blobcast-*.socket'); waiting \
                     until it has stopped",
                    other.display()
                ));
            };
            let when_running = if *wait {
                WhenRunning::Wait(&ask_to_stop)
            } else {
                WhenRunning::Refuse
            };
            let (restored, appended) =
                store::restore_and_append(backup, data_dir, other, when_running)?;
            (restored, Some((other, appended)))
        }
    };

    if let Some(problem) = server::exposed_directory(data_dir, &server::Reader::of_this_process()) {
        note(&format!("warning: {problem}"));
    }

    let BackupSummary {
        event_count,
        quarantine_count,
        backup_bytes,
        ..
    } = restored;

    let data_dir = data_dir.display();
    let seconds = began.elapsed().as_secs_f64();
    let rate = backup_bytes as f64 / 1e6 / seconds.max(0.001);
    note(&format!(
        "{event_count} events and {quarantine_count} quarantined callbacks are in {data_dir}: \
         {backup_bytes} bytes in {seconds:.1} s, {rate:.0} MB/s"
    ));

    if let Some((other, appended)) = appended {
        note_appended(other, &appended);
    }

    Ok(ExitCode::SUCCESS)
}

fn note_appended(other: &Path, appended: &AppendSummary) {
    let AppendSummary {
        event_count,
        duplicate_count,
        quarantine_count,
        quarantine_duplicate_count,
        erased_count,
        expectation_count,
        after_erasure_count,
        after_erasure,
    } = appended;

    let other = other.display();
    note(&format!(
        "appended {event_count} events and {quarantine_count} quarantined callbacks of {other}; \
         {duplicate_count} events and {quarantine_duplicate_count} quarantined callbacks were in \
         the backup already"
    ));

    note(&format!(
        "no broker will start on {other} any more: start it on the new directory"
    ));
    if *erased_count > 0 {
        note(&format!(
            "erased {erased_count} events of the backup, because their tasks were erased in {other}"
        ));
    }

    if *expectation_count > 0 {
        note(&format!(
            "{expectation_count} tasks that {other} expects are expected"
        ));
    }

    if *after_erasure_count > 0 {
        note(&format!(
            "{after_erasure_count} erased tasks have new content from {other}: erase them again \
             if necessary"
        ));
        for (product, task_id) in after_erasure {
            note(&format!("  blobcast erase {product} {task_id}"));
        }
        let more = after_erasure_count.saturating_sub(after_erasure.len() as u64);
        if more > 0 {
            note(&format!("  and {more} more"));
        }
    }

    if event_count + quarantine_count + erased_count + expectation_count > 0 {
        note("no backup contains the appended events: take a backup when the broker runs");
    }
}
