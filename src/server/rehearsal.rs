//! Rehearses a start without its effects, for `check-config`. Files that `serve` would read are read by the same code, as the user of
//! this process. Files that it would write, and addresses that it would bind, are only checked. So a broker may run meanwhile.

use std::{
    ffi::OsStr,
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::{
    fs::{Access, access},
    process::geteuid,
};
use tokio::runtime;

use super::{
    acme,
    addresses::Addresses,
    aside::{self, START_TIMEOUT},
    audit, cluster, credentials,
    from_files::FromFiles,
    listeners::{NAMES, is_meant},
    resources,
    socket_units::{SocketUnit, Units},
    vendor_api::unused_proxy,
};
use crate::{accounts, config::Config, metrics::Metrics, store};

/// Files of the data directory that are checked: a log of 300 GiB has so many.
const DATA_FILES_MAX: usize = 10_000;
/// Below this port only root may listen, unless the kernel is configured otherwise.
const PRIVILEGED_PORTS: u16 = 1_024;
const PRIVILEGED_PORTS_FILE: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// The findings of a rehearsal.
#[derive(Debug, Default)]
pub(crate) struct Rehearsal {
    /// Why a start would fail: each with the file, the cause and the next step.
    pub problems: Vec<String>,
    /// What a start would accept, and is probably a mistake.
    pub warnings: Vec<String>,
}

/// Rehearses a start with `config`.
pub(crate) fn rehearse(config: &Config) -> Rehearsal {
    let config = config.clone();
    let runtime = match runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => return Rehearsal::refused(format!("no runtime: {error}")),
    };
    // Aside, so that a mount which hangs ends it with an error.
    let rehearsed = runtime.block_on(aside::within(START_TIMEOUT, move || look(&config)));
    rehearsed.unwrap_or_else(Rehearsal::refused)
}

impl Rehearsal {
    fn refused(problem: String) -> Self {
        Self {
            problems: vec![problem],
            ..Self::default()
        }
    }
}

fn look(config: &Config) -> Rehearsal {
    let units = Units::read();
    let configured = [
        config.ingest.listen,
        config.grpc.listen,
        config.admin.listen,
    ];
    let (held, mut warnings) = held(configured, &units.sockets);
    warnings.extend(privileged(configured, &held));

    let places =
        [configured, held.map(|(_, address)| address)].map(|[ingest, grpc, admin]| Addresses {
            ingest,
            grpc,
            admin,
        });
    let read = FromFiles::read(
        &Arc::new(Mutex::new(config.clone())),
        &places,
        &Arc::new(Metrics::default()),
    );
    if let Ok(read) = &read {
        warnings.extend(read.warnings.iter().cloned());
        let credentials = read.credentials.get();
        warnings.extend(credentials::not_isolated(
            config,
            &credentials,
            &credentials.intruders(),
        ));
    }

    let refusals = read.err().unwrap_or_default();
    let mut problems: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    let is_ours = |name: &OsStr| {
        store::is_part(name) || !config.acme.domains.is_empty() && name == acme::DIRECTORY
    };
    problems.extend(problem_of_data_dir(
        &config.data_dir,
        &units.state_directories,
        is_ours,
    ));
    problems.extend(config.audit.file.as_deref().and_then(problem_of_audit_file));
    problems.extend(cluster::problems_of_files(config));
    let missing = store::check_expected(&config.data_dir, config.log.expect_existing);
    problems.extend(missing.err().map(|error| error.to_string()));
    warnings.extend(resources::warnings(config));
    warnings.extend(unused_proxy(&config.reconcile));
    Rehearsal { problems, warnings }
}

/// Where each listener would be, and whether systemd holds its socket. Also returns warnings of differences from the configuration.
fn held(
    configured: [SocketAddr; 3],
    sockets: &[Option<SocketUnit>; 3],
) -> ([(bool, SocketAddr); 3], Vec<String>) {
    let (mut held, mut warnings) = (configured.map(|address| (false, address)), Vec::new());
    for ((place, name), socket) in held.iter_mut().zip(NAMES).zip(sockets) {
        let Some(socket) = socket else { continue };
        let (SocketUnit { unit, streams }, configured) = (socket, place.1);

        let address = socket.address(|address| is_meant(configured, address));
        if let Some(address) = address.filter(|&address| !is_meant(configured, address)) {
            warnings.push(format!(
                "{unit} listens on {address}, and {name}.listen is {configured}: under systemd the unit decides; make them the same, \
                 with `systemctl edit {unit}` (an empty ListenStream= before the new one) or in the configuration"
            ));
        }
        if streams.len() != 1 || address.is_none() {
            warnings.push(format!(
                "{unit} has {} addresses ({}), of which {} is answered: it needs one, as in {name}.listen; `systemctl edit {unit}`, \
                 with an empty ListenStream= before the one that is meant",
                streams.len(),
                streams.join(", "),
                address.map_or_else(|| "none".to_owned(), |address| address.to_string())
            ));
        }

        *place = (true, address.unwrap_or(configured));
    }
    (held, warnings)
}

/// Warns of ports that this user may not listen on, and whose sockets systemd does not hold.
fn privileged(configured: [SocketAddr; 3], held: &[(bool, SocketAddr); 3]) -> Vec<String> {
    let first = fs::read_to_string(PRIVILEGED_PORTS_FILE)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let first: u16 = first.unwrap_or(PRIVILEGED_PORTS);
    let is_refused =
        |address: SocketAddr| address.port() != 0 && address.port() < first && !geteuid().is_root();
    let listeners = NAMES.into_iter().zip(configured).zip(held);
    let refused = listeners.filter(|((_, address), (is_held, _))| !is_held && is_refused(*address));
    let told = refused.map(|((name, address), _)| {
        format!(
            "{name}.listen: {address} needs CAP_NET_BIND_SERVICE, as ports below {first} do: let systemd hold it \
             (blobcast-{name}.socket), or choose a higher one"
        )
    });
    told.collect()
}

/// Why the data directory cannot be used. Its content is not read: a broker may be writing it.
fn problem_of_data_dir(
    path: &Path,
    made_by_systemd: &[PathBuf],
    is_ours: impl Fn(&OsStr) -> bool,
) -> Option<String> {
    let (user, is_made_by_systemd) = (geteuid(), made_by_systemd.iter().any(|made| made == path));
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if is_made_by_systemd {
                None
            } else {
                problem_of_making(path)
            };
        }
        Err(error) => {
            let user = accounts::name_of(user.as_raw());
            return Some(format!(
                "data_dir: {}: {error}; user {user} has to reach it",
                path.display()
            ));
        }
        Ok(metadata) => metadata,
    };

    if !metadata.is_dir() {
        return Some(format!(
            "data_dir: {} is no directory; name another",
            path.display()
        ));
    }

    // If the directory belongs to another user, systemd gives all of it to this one at the start.
    if is_made_by_systemd && metadata.uid() != user.as_raw() {
        return None;
    }

    let (refused, count) = refused_below(path, is_ours);
    let (first, error) = refused?;
    let user = accounts::name_of(user.as_raw());
    let others = if count > 1 {
        format!(" and {} more", count - 1)
    } else {
        String::new()
    };
    Some(format!(
        "data_dir: {}{others}: {error}; user {user} has to read and write all of it: chown -R it to that user",
        first.display()
    ))
}

/// Why audit records cannot be written. A missing file is no problem: the start creates it.
fn problem_of_audit_file(path: &Path) -> Option<String> {
    let (place, needed) = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => (path, Access::READ_OK | Access::WRITE_OK),
        Ok(_) => {
            return Some(format!(
                "audit.file: {} is no regular file; name another",
                path.display()
            ));
        }
        Err(_) => (
            audit::directory_of(path),
            Access::WRITE_OK | Access::EXEC_OK,
        ),
    };
    let error = access(place, needed).err()?;
    Some(format!(
        "audit.file: {}: {}: {error}; {}",
        path.display(),
        place.display(),
        audit::remedy(path)
    ))
}

/// Why a missing data directory cannot be created.
fn problem_of_making(path: &Path) -> Option<String> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = absolute
        .ancestors()
        .skip(1)
        .find(|ancestor| ancestor.exists())?;
    let error = access(there, Access::WRITE_OK | Access::EXEC_OK).err()?;
    let user = accounts::name_of(geteuid().as_raw());
    Some(format!(
        "data_dir: {} is not there, and user {user} cannot make it in {}: {error}; make it (`install -d -o {user} -m 700 {}`)",
        path.display(),
        there.display(),
        path.display()
    ))
}

/// The first path in a data directory, itself included, that this user cannot use, and how many there are. Files that are not the
/// broker's are skipped.
fn refused_below(
    directory: &Path,
    is_ours: impl Fn(&OsStr) -> bool,
) -> (Option<(PathBuf, io::Error)>, usize) {
    let (mut first, mut count, mut seen) = (None, 0, 0);
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let is_directory = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        let needed = Access::READ_OK | Access::WRITE_OK;
        let refused = access(
            &path,
            if is_directory {
                needed | Access::EXEC_OK
            } else {
                needed
            },
        );
        match refused {
            // A running broker may have removed it meanwhile.
            Err(error) if error != rustix::io::Errno::NOENT => {
                count += 1;
                first.get_or_insert((path, error.into()));
            }
            _ if is_directory => {
                let entries = fs::read_dir(&path).into_iter().flatten().flatten();
                let ours = entries.filter(|entry| path != directory || is_ours(&entry.file_name()));
                open.extend(
                    ours.map(|entry| entry.path())
                        .take(DATA_FILES_MAX.saturating_sub(seen)),
                );
            }
            _ => {}
        }

        seen += 1;
        if seen >= DATA_FILES_MAX {
            break;
        }
    }
    (first, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(streams: &[&str]) -> Option<SocketUnit> {
        let streams = streams.iter().map(ToString::to_string).collect();
        Some(SocketUnit {
            unit: "blobcast-ingest.socket".to_owned(),
            streams,
        })
    }

    #[test]
    fn a_socket_unit_is_compared_with_the_listener() {
        let configured = ["0.0.0.0:443", "127.0.0.1:50051", "127.0.0.1:9090"]
            .map(|address| address.parse().unwrap());
        let found = |streams: &[&str]| {
            let ([(_, ingest), ..], warnings) = held(configured, &[socket(streams), None, None]);
            (ingest.to_string(), warnings.join("\n"))
        };
        assert_eq!(
            found(&["0.0.0.0:443"]),
            ("0.0.0.0:443".to_owned(), String::new())
        );
        let (address, told) = found(&["127.0.0.1:8080"]);
        assert_eq!(address, "127.0.0.1:8080");
        assert!(
            told.contains(
                "blobcast-ingest.socket listens on 127.0.0.1:8080, and ingest.listen is 0.0.0.0:443"
            ),
            "{told}"
        );
        // The packaged one was not taken away.
        let (address, told) = found(&["127.0.0.1:8080", "0.0.0.0:443"]);
        assert_eq!(address, "0.0.0.0:443");
        assert!(
            told.contains(
                "2 addresses (127.0.0.1:8080, 0.0.0.0:443), of which 0.0.0.0:443 is answered"
            ),
            "{told}"
        );
        for streams in [&["/run/blobcast"][..], &[]] {
            let (address, told) = found(streams);
            assert_eq!(address, "0.0.0.0:443");
            assert!(told.contains("of which none is answered"), "{told}");
        }
    }

    #[test]
    fn an_audit_file_is_checked_without_being_opened() {
        let shelf = tempfile::tempdir().unwrap();
        let told = |path: PathBuf| problem_of_audit_file(&path).unwrap_or_default();
        assert_eq!(told(shelf.path().join("audit.log")), "", "it can be made");
        fs::write(shelf.path().join("audit.log"), "").unwrap();
        assert_eq!(told(shelf.path().join("audit.log")), "");
        assert!(told(shelf.path().to_owned()).contains("is no regular file"));
        assert!(told(shelf.path().join("none/audit.log")).contains("none: No such file"));
        let user = accounts::name_of(geteuid().as_raw());
        let expected = format!(
            "{}/none has to be there, and user {user} has to write in it",
            shelf.path().display()
        );
        assert!(told(shelf.path().join("none/audit.log")).contains(&expected));
    }

    #[test]
    fn a_data_directory_is_checked_without_being_created() {
        let shelf = tempfile::tempdir().unwrap();
        let path = shelf.path().join("data");
        assert_eq!(
            problem_of_data_dir(&path, &[], store::is_part),
            None,
            "it can be made"
        );
        fs::write(&path, "").unwrap();
        assert!(
            problem_of_data_dir(&path, &[], store::is_part)
                .unwrap()
                .contains("is no directory")
        );
        assert!(
            problem_of_data_dir(&path.join("below"), &[], store::is_part)
                .unwrap()
                .contains("Not a directory")
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("segment"), "").unwrap();
        assert_eq!(problem_of_data_dir(&path, &[], store::is_part), None);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "nothing is made");
    }
}
