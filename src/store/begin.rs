//! Begins the log of a node that follows a stream. On a single machine a log begins when it is opened first.
//!
//! A node may have been away for longer than the stream keeps what retention has forgotten. Then the log that it has cannot go on,
//! and is set aside for one that begins where the stream does.

use std::{fs, path::Path};

use super::{
    OpenError, Store,
    acknowledged::AcknowledgedFiles,
    database,
    directory::{self, LOG, check_expected, check_not_used_up},
    error::StartFailure,
    followed, index,
    layout::INDEX,
    log::{self, Log, Opened, Streamed, older},
};
use crate::{
    cluster::{Beginning, Link, Position},
    files,
};

impl Store {
    /// Whether a log may begin in this directory: it has none, and never had one. Changes nothing.
    pub(crate) fn may_begin(path: &Path) -> bool {
        check_expected(path, true).is_err() && check_expected(path, false).is_ok()
    }

    /// Begins the log of a node that follows a stream, in a directory that has none. One that has a log is left as it is, unless
    /// the stream has left it behind: then that log is set aside. Refuses a directory whose log is not there any more, as
    /// [`Self::open_to_serve`] does.
    pub fn begin_behind(
        path: &Path,
        is_expected: bool,
        beginning: &Beginning,
    ) -> Result<(), OpenError> {
        check_expected(path, is_expected)?;
        check_not_used_up(path)?;
        let begun = fs::create_dir_all(path)
            .map_err(StartFailure::from)
            .and_then(|()| directory::lock(path))
            .and_then(|_lock| begin_behind(path, beginning));
        begun.map_err(|error| error.at(path))
    }

    /// Whether a directory has the log of a node that follows a stream. Refuses one that another process has.
    pub fn is_of_node(path: &Path) -> Result<bool, OpenError> {
        if !path.join(LOG).is_dir() {
            return Ok(false);
        }
        let is_of_node = directory::lock(path).and_then(|_lock| is_of_node(path));
        is_of_node.map_err(|error| error.at(path))
    }
}

fn is_of_node(path: &Path) -> Result<bool, StartFailure> {
    log::check_format(path)?;
    if older::is_begun(path)? {
        return Ok(false); // it has none for now
    }
    let acknowledged = AcknowledgedFiles::read(path)?;
    let opened = Log::open(path, acknowledged, acknowledged.is_some())?;
    Ok(opened.is_some_and(|opened| opened.log.streamed() != Streamed::default()))
}

fn begin_behind(path: &Path, beginning: &Beginning) -> Result<(), StartFailure> {
    log::check_format(path)?;
    if !older::is_begun(path)? {
        let is_begun = AcknowledgedFiles::read(path)?.is_some()
            || database::is_in(&path.join(INDEX))?
            || Log::open(path, None, false)?.is_some();
        if !is_begun {
            return create(path, beginning);
        }
        if followed::stream_of(path) != beginning.stream {
            return Ok(()); // opening it says so
        }
        let Some(frame) = left_behind(path, beginning)? else {
            return Ok(());
        };
        older::begin(path, frame)?;
    }

    // From here on a start that was cut off is done again by the next one.
    older::move_segments(path)?;
    for name in AcknowledgedFiles::FILES {
        files::if_there(fs::remove_file(path.join(name)))?;
    }
    index::empty(path)?;
    create(path, beginning)?;
    Ok(older::end(path)?)
}

fn create(path: &Path, beginning: &Beginning) -> Result<(), StartFailure> {
    let position = &beginning.position;
    followed::note(path, beginning.stream)?;
    let streamed = Streamed {
        frame: position.frame,
        chain: position.chain,
    };
    Log::create_behind(path, position.epoch, streamed, position.totals)?;
    Ok(())
}

/// The frame that a log has come to, if the stream has left it behind.
fn left_behind(path: &Path, beginning: &Beginning) -> Result<Option<u64>, StartFailure> {
    if beginning.first <= 1 {
        return Ok(None); // nothing was removed: that log need not be read yet
    }
    let acknowledged = AcknowledgedFiles::read(path)?;
    let Some(Opened { log, totals, .. }) = Log::open(path, acknowledged, acknowledged.is_some())?
    else {
        return Ok(None); // opening it says what is wrong
    };

    let Streamed { frame, chain } = log.streamed();
    let link = Link::start(log.epoch());
    let position = Position {
        epoch: link.epoch,
        seen: frame,
        frame,
        chain,
        totals,
    };
    if !beginning.leaves_behind(&position) {
        return Ok(None);
    }
    tracing::warn!(
        frame,
        first = beginning.first,
        events = totals.event_count,
        "this node was away for longer than the cluster keeps: retention has forgotten every event that it has; its log is set \
         aside, and read from the stream anew"
    );
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{StreamId, Totals},
        event::{Epoch, Sequence},
    };

    const EPOCH: Epoch = Epoch(7);
    const STREAM: StreamId = StreamId(5);

    /// A stream whose first message is this one, and in which so many events are forgotten.
    fn stream(first: u64, forgotten: u64) -> Beginning {
        let totals = Totals {
            first_available: forgotten + 1,
            ..Totals::EMPTY
        };
        let position = Position {
            seen: first,
            frame: first,
            totals,
            ..Position::start(EPOCH)
        };
        Beginning {
            stream: STREAM,
            position,
            first,
            first_available: Sequence(forgotten + 1),
        }
    }

    /// The directory of a node that has come to frame 5, with three events behind it.
    fn old() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        Store::begin_behind(directory.path(), false, &stream(5, 3)).unwrap();
        drop(open(directory.path()).unwrap());
        directory
    }

    fn open(path: &Path) -> Result<Store, OpenError> {
        Store::open(path, 1 << 20)
    }

    #[test]
    fn a_log_that_is_left_behind_is_set_aside_and_one_that_is_not_stays() {
        let directory = old();
        let path = directory.path();
        // The next frame is there, or an event may be retained.
        let other = Beginning {
            stream: StreamId(6),
            ..stream(20, 9)
        };
        for stays in [stream(6, 9), stream(20, 2), other] {
            Store::begin_behind(path, false, &stays).unwrap();
            let store = open(path).unwrap();
            assert_eq!((store.log.streamed().frame, store.stream()), (5, STREAM));
            assert!(!store.log.has_older());
        }

        Store::begin_behind(path, false, &stream(20, 9)).unwrap();
        let store = open(path).unwrap();
        assert_eq!((store.log.streamed().frame, store.head().0), (20, 9));
        let older = path.join("log/older-5");
        assert!(fs::read_dir(&older).unwrap().next().is_some());
        store.log.remove_older();
        assert!(older.is_dir(), "nobody has said that it may go");
        store.log.let_go_of_older();
        assert!(store.log.needs_care(Sequence(10)));
        store.log.remove_older();
        assert!(!older.exists() && !store.log.has_older());
    }

    #[test]
    fn setting_a_log_aside_goes_on_wherever_it_was_cut_off() {
        type Step = fn(&Path);
        let steps: [Step; 4] = [
            |_| {},
            |path| older::move_segments(path).unwrap(),
            |path| {
                older::move_segments(path).unwrap();
                fs::write(path.join("log/000000000001.log"), "half of it").unwrap();
            },
            |path| {
                older::move_segments(path).unwrap();
                fs::remove_file(path.join("acknowledged")).unwrap();
                create(path, &stream(20, 9)).unwrap();
            },
        ];
        for (number, step) in steps.into_iter().enumerate() {
            let directory = old();
            let path = directory.path();
            older::begin(path, 5).unwrap();
            step(path);
            let refused = open(path).unwrap_err().to_string();
            assert!(refused.contains("set aside"), "{number}: {refused}");

            Store::begin_behind(path, false, &stream(20, 9)).unwrap();
            let store = open(path).unwrap();
            assert_eq!(store.log.streamed().frame, 20, "{number}");
            let old = fs::read_dir(path.join("log/older-5")).unwrap();
            assert_eq!(old.count(), 1, "{number}");
        }
    }
}
