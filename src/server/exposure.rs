//! Finds out which other users of the machine could read or change the broker's data and secrets.
//!
//! Warns, and neither changes nor refuses anything: containers and clusters mount secrets with wider permissions than a dedicated machine
//! needs. Access lists and directories further up are not looked at.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::process::{getegid, geteuid, getgroups};

use super::watch::Reading;
use crate::config::Config;

const ROOT: u32 = 0;
const GROUP_MAY_READ: u32 = 0o040;
const GROUP_MAY_WRITE: u32 = 0o020;
const ALL_MAY_READ: u32 = 0o004;
const ALL_MAY_WRITE: u32 = 0o002;
/// In a directory with this bit only a file's owner may replace the file.
const STICKY: u32 = 0o1000;

/// A warning for each file and directory of the configuration that others can use, with the next step.
pub(crate) fn exposures(config: &Config, reader: &Reader) -> Vec<String> {
    let Config {
        data_dir,
        credentials_file,
        ingest,
        grpc,
        admin,
        cluster,
        ..
    } = config;
    let keys = [
        &ingest.tls_key_file,
        &grpc.tls_key_file,
        &admin.tls_key_file,
        &cluster.tls_key_file,
        &cluster.password_file,
    ];
    let secrets = keys.into_iter().chain([credentials_file]).flatten();
    let secrets = secrets.filter_map(|path| exposed_secret(path, reader));
    exposed_directory(data_dir, reader)
        .into_iter()
        .chain(secrets)
        .collect()
}

/// Warns of [`exposed_secrets`] that have just been read.
pub(super) fn warn_of(exposed: &[String], reading: Reading) {
    if reading == Reading::News {
        exposed.iter().for_each(|problem| warn(problem));
    }
}

/// A warning for each of these files that others can use.
pub(super) fn exposed_secrets<'a>(secrets: impl IntoIterator<Item = &'a PathBuf>) -> Vec<String> {
    let reader = Reader::of_this_process();
    secrets
        .into_iter()
        .filter_map(|path| exposed_secret(path, &reader))
        .collect()
}

/// Logs one of [`exposures`].
pub(crate) fn warn(problem: &str) {
    tracing::warn!(
        problem,
        "others can get at what should be the broker's alone"
    );
}

/// A warning if others can enter a data directory; `None` if they cannot, or if there is none.
pub(crate) fn exposed_directory(path: &Path, reader: &Reader) -> Option<String> {
    let found = Found::of(&fs::metadata(path).ok()?);
    let what = match found.mode & 0o077 {
        _ if !reader.trusts(found.owner) => format!("belongs to another user ({})", found.owner),
        0 => return None,
        _ => format!("can be entered by others (mode {:o})", found.mode & 0o7777),
    };
    Some(format!(
        "{} {what}: make it the broker's, and chmod -R go= it",
        path.display()
    ))
}

/// A warning if others can use a file with secrets.
fn exposed_secret(path: &Path, reader: &Reader) -> Option<String> {
    // A file that cannot be looked at is reported by the code that reads it.
    let metadata = fs::metadata(path).ok()?;
    let mut problems = Found::of(&metadata).problems_of_file(reader);
    problems.extend(exposed_place(path, reader));
    if problems.is_empty() {
        return None;
    }
    let advice = "chmod 600 it, or give it to root and chmod 640 it with the broker's group";
    Some(format!(
        "{} {}: {advice}",
        path.display(),
        problems.join(", ")
    ))
}

/// Whether others could replace a file, at its path and, behind symbolic links, at its real place.
fn exposed_place(path: &Path, reader: &Reader) -> Option<&'static str> {
    let folder_of = |path: &Path| path.parent().map(|folder| Path::new(".").join(folder));
    let folders = [
        folder_of(path),
        path.canonicalize().ok().as_deref().and_then(folder_of),
    ];
    let found = folders
        .into_iter()
        .flatten()
        .filter_map(|folder| fs::metadata(folder).ok());
    found
        .into_iter()
        .find_map(|metadata| Found::of(&metadata).problem_of_folder(reader))
}

/// The user that has to read the files.
#[derive(Debug)]
pub(crate) struct Reader {
    /// `None`: that of another process, which is not known.
    user: Option<u32>,
    groups: Vec<u32>,
}

impl Reader {
    /// The user of this process.
    pub(crate) fn of_this_process() -> Self {
        let mut groups: Vec<_> = getgroups()
            .unwrap_or_default()
            .iter()
            .map(|group| group.as_raw())
            .collect();
        groups.push(getegid().as_raw());
        Self {
            user: Some(geteuid().as_raw()),
            groups,
        }
    }

    /// The user of a broker whose configuration this process checks: root does that for other users.
    pub(crate) fn of_a_broker() -> Self {
        let this = Self::of_this_process();
        Self {
            user: this.user.filter(|&user| user != ROOT),
            ..this
        }
    }

    fn trusts(&self, owner: u32) -> bool {
        owner == ROOT || self.user.is_none_or(|user| user == owner)
    }
}

/// The permissions of a file or directory.
#[derive(Clone, Copy)]
struct Found {
    mode: u32,
    owner: u32,
    group: u32,
}

impl Found {
    fn of(metadata: &Metadata) -> Self {
        Self {
            mode: metadata.mode(),
            owner: metadata.uid(),
            group: metadata.gid(),
        }
    }

    fn problems_of_file(self, reader: &Reader) -> Vec<&'static str> {
        let may = |bit| self.mode & bit != 0;
        // A broker reads root's files by its group. Only root is in root's own group, and an access list shows as the group's permission.
        let group_is_meant = self.owner == ROOT
            && (self.group == ROOT || reader.user.is_none() || reader.groups.contains(&self.group));
        let problems = [
            (!reader.trusts(self.owner), "belongs to another user"),
            (may(ALL_MAY_READ), "can be read by every user"),
            (
                may(GROUP_MAY_READ) && !may(ALL_MAY_READ) && !group_is_meant,
                "can be read by its group",
            ),
            (may(ALL_MAY_WRITE), "can be changed by every user"),
            (
                may(GROUP_MAY_WRITE) && !may(ALL_MAY_WRITE),
                "can be changed by its group",
            ),
        ];
        problems
            .into_iter()
            .filter_map(|(applies, problem)| applies.then_some(problem))
            .collect()
    }

    fn problem_of_folder(self, reader: &Reader) -> Option<&'static str> {
        let may = |bit| self.mode & bit != 0 && self.mode & STICKY == 0;
        let problems = [
            (
                !reader.trusts(self.owner),
                "can be replaced by the owner of its directory",
            ),
            (
                may(ALL_MAY_WRITE),
                "can be replaced by every user (its directory is theirs to write)",
            ),
            (
                may(GROUP_MAY_WRITE) && self.group != ROOT,
                "can be replaced by the group of its directory",
            ),
        ];
        problems
            .into_iter()
            .find_map(|(applies, problem)| applies.then_some(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: u32 = 990;
    const STRANGER: u32 = 1000;

    fn file(owner: u32, group: u32, mode: u32, reader: &Reader) -> String {
        Found { mode, owner, group }
            .problems_of_file(reader)
            .join(", ")
    }

    fn broker() -> Reader {
        Reader {
            user: Some(BROKER),
            groups: vec![BROKER],
        }
    }

    #[test]
    fn a_secret_that_only_the_broker_and_root_can_use_is_no_problem() {
        for (owner, group, mode) in [
            (BROKER, BROKER, 0o600),
            (BROKER, BROKER, 0o400),
            // As docs/access.md says: root's, and the broker's group reads it.
            (ROOT, BROKER, 0o640),
            // A credential of systemd: an access list for the user shows as the group's right.
            (ROOT, ROOT, 0o440),
            (ROOT, ROOT, 0o400),
        ] {
            assert_eq!(
                file(owner, group, mode, &broker()),
                "",
                "{owner}:{group} {mode:o}"
            );
        }
    }

    #[test]
    fn a_secret_that_others_can_read_or_change_is_a_problem() {
        for (owner, group, mode, problem) in [
            (BROKER, BROKER, 0o640, "can be read by its group"),
            (BROKER, BROKER, 0o644, "can be read by every user"),
            (BROKER, BROKER, 0o604, "can be read by every user"),
            (BROKER, BROKER, 0o620, "can be changed by its group"),
            (BROKER, BROKER, 0o602, "can be changed by every user"),
            (
                BROKER,
                BROKER,
                0o666,
                "can be read by every user, can be changed by every user",
            ),
            (ROOT, BROKER, 0o660, "can be changed by its group"),
            (ROOT, STRANGER, 0o640, "can be read by its group"),
            (ROOT, ROOT, 0o644, "can be read by every user"),
            (STRANGER, BROKER, 0o600, "belongs to another user"),
        ] {
            assert_eq!(
                file(owner, group, mode, &broker()),
                problem,
                "{owner}:{group} {mode:o}"
            );
        }
    }

    #[test]
    fn a_check_by_root_reports_only_what_is_wrong_for_any_user() {
        let unknown = Reader {
            user: None,
            groups: vec![ROOT],
        };
        for (owner, group, mode, problem) in [
            (BROKER, BROKER, 0o600, ""),
            (ROOT, BROKER, 0o640, ""),
            (BROKER, BROKER, 0o640, "can be read by its group"),
            (ROOT, BROKER, 0o644, "can be read by every user"),
            (ROOT, BROKER, 0o660, "can be changed by its group"),
        ] {
            assert_eq!(
                file(owner, group, mode, &unknown),
                problem,
                "{owner}:{group} {mode:o}"
            );
        }
    }

    #[test]
    fn a_directory_in_which_others_can_replace_the_file_is_a_problem() {
        let folder = |owner, group, mode| {
            Found { mode, owner, group }
                .problem_of_folder(&broker())
                .unwrap_or_default()
        };
        for mode in [0o700, 0o755, 0o1777, 0o1770] {
            assert_eq!(folder(ROOT, STRANGER, mode), "", "{mode:o}");
        }
        assert_eq!(folder(BROKER, BROKER, 0o755), "");
        assert_eq!(folder(ROOT, ROOT, 0o775), "");
        assert!(folder(ROOT, ROOT, 0o777).contains("every user"));
        assert!(folder(ROOT, STRANGER, 0o775).contains("the group of its directory"));
        assert!(folder(STRANGER, BROKER, 0o755).contains("the owner of its directory"));
    }
}
