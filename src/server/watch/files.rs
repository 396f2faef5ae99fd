//! The files of one set, and how they are read and put into force.

use std::{path::PathBuf, sync::Arc};

use crate::{
    files::Stamp,
    server::refusal::{Input, Refusal},
};

/// Puts into force what was read. Must not wait for anything.
pub(in crate::server) type Change = Box<dyn FnOnce(Reading) -> Applied + Send>;

/// What is read of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Reading {
    /// Something that was not there before, or an operator has asked for it: its doubts are logged.
    News,
    /// What was read before, once more: it was logged then.
    Again,
}
pub(super) type Named = Arc<dyn Fn() -> Vec<PathBuf> + Send + Sync>;
pub(super) type Read = Arc<dyn Fn() -> Result<Change, Vec<Refusal>> + Send + Sync>;

/// What is in force now, for people.
#[derive(Debug, Default)]
pub(in crate::server) struct Applied {
    pub summary: String,
    /// What differs from before, as far as that is known.
    pub changes: Vec<String>,
}

/// Files that are read together, and their stamps when this was made. To be made before they are read, so that no change is missed.
pub(in crate::server) struct Files {
    /// All that they hold.
    pub(super) inputs: Vec<Input>,
    /// Each with what it holds.
    pub(super) paths: Arc<[(Input, PathBuf)]>,
    /// Further files. After those that are named have changed, they are read once more, quietly.
    pub(super) named: Option<Named>,
    pub(super) seen: Vec<Stamp>,
}

impl Files {
    /// Looks at the files.
    pub(in crate::server) fn new(paths: impl IntoIterator<Item = (Input, PathBuf)>) -> Self {
        let paths: Arc<[_]> = paths.into_iter().collect();
        let mut inputs: Vec<_> = paths.iter().map(|(input, _)| *input).collect();
        inputs.dedup();
        Self {
            inputs,
            seen: stamps(&paths, None),
            paths,
            named: None,
        }
    }

    /// For an input that is in no file that can be looked at: it is read again only on request.
    pub(in crate::server) fn on_demand(input: Input) -> Self {
        Self {
            inputs: vec![input],
            paths: Arc::default(),
            named: None,
            seen: Vec::new(),
        }
    }

    /// Looks at further files, too: those that are named by what is in force at the time.
    pub(in crate::server) fn with_named(
        mut self,
        named: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static,
    ) -> Self {
        self.named = Some(Arc::new(named));
        self
    }

    /// `read` reads them again. It is called aside.
    pub(in crate::server) fn watched(
        self,
        read: impl Fn() -> Result<Change, Vec<Refusal>> + Send + Sync + 'static,
    ) -> Watched {
        Watched {
            files: self,
            read: Arc::new(read),
        }
    }
}

/// Files, and what reads them again when they change.
pub(in crate::server) struct Watched {
    pub(super) files: Files,
    pub(super) read: Read,
}

pub(super) fn stamps(paths: &[(Input, PathBuf)], named: Option<&Named>) -> Vec<Stamp> {
    let named = named.map(|named| named()).unwrap_or_default();
    let paths = paths.iter().map(|(_, path)| path).chain(&named);
    paths.map(|path| Stamp::of(path)).collect()
}
