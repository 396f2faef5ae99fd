//! Begins the log of a node that follows a stream. On a single machine a log begins when it is opened first.

use std::{fs, path::Path};

use super::{
    OpenError, Store,
    acknowledged::AcknowledgedFiles,
    database,
    directory::{self, check_expected, check_not_used_up},
    error::StartFailure,
    layout::INDEX,
    log::{self, Log, Streamed},
};
use crate::cluster::Position;

impl Store {
    /// Whether a log may begin in this directory: it has none, and never had one. Changes nothing.
    pub(crate) fn may_begin(path: &Path) -> bool {
        check_expected(path, true).is_err() && check_expected(path, false).is_ok()
    }

    /// Begins the log of a node that follows a stream, behind this position, in a directory that has none; one that has a log is
    /// left as it is. Refuses a directory whose log is not there any more, as [`Self::open_to_serve`] does.
    pub fn begin_behind(
        path: &Path,
        is_expected: bool,
        position: &Position,
    ) -> Result<(), OpenError> {
        check_expected(path, is_expected)?;
        check_not_used_up(path)?;
        let begun = fs::create_dir_all(path)
            .map_err(StartFailure::from)
            .and_then(|()| directory::lock(path))
            .and_then(|_lock| begin_behind(path, position));
        begun.map_err(|error| error.at(path))
    }
}

fn begin_behind(path: &Path, position: &Position) -> Result<(), StartFailure> {
    log::check_format(path)?;
    let is_begun = AcknowledgedFiles::read(path)?.is_some()
        || database::is_in(&path.join(INDEX))?
        || Log::open(path, None, false)?.is_some();
    if is_begun {
        return Ok(());
    }
    let streamed = Streamed {
        frame: position.frame,
        chain: position.chain,
    };
    Log::create_behind(path, position.epoch, streamed, position.totals)?;
    Ok(())
}
