//! Reads what systemd's units say of the listeners and of the data directory, from where systemd reads them and with the additions of
//! `systemctl edit`. For `check-config`, which has no sockets to look at.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::listeners::{NAMES, unit_of};
use crate::files;

/// Where systemd looks for units, in order of precedence.
const DIRECTORIES: [&str; 4] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];
/// The variable by which systemd's own tools look elsewhere: directories, separated by colons.
const DIRECTORIES_VARIABLE: &str = "SYSTEMD_UNIT_PATH";
const SERVICE: &str = "blobcast.service";
/// The directory in which `systemctl enable` puts links to socket units.
const ENABLED: &str = "sockets.target.wants";
/// The directory that `StateDirectory=` is relative to.
const STATE_DIRECTORIES: &str = "/var/lib";
/// Largest unit that is read. The shipped ones have 3 KiB.
const UNIT_BYTES_MAX: u64 = 64 << 10;

/// What the installed ones of the shipped units say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Units {
    /// In the order of the listeners; `None` if systemd has no socket for it. It has those that the service names in `Sockets=`, which
    /// are started with it, and those that are enabled.
    pub sockets: [Option<SocketUnit>; 3],
    /// Directories that systemd creates for the broker's user before it starts.
    pub state_directories: Vec<PathBuf>,
}

/// A socket unit that belongs to a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketUnit {
    pub unit: String,
    /// The values of `ListenStream=`, in order.
    pub streams: Vec<String>,
}

impl Units {
    /// Reads the units of this machine.
    pub(super) fn read() -> Self {
        let directories = env::var_os(DIRECTORIES_VARIABLE).filter(|paths| !paths.is_empty());
        let directories: Vec<_> = match &directories {
            Some(paths) => env::split_paths(paths).collect(),
            None => DIRECTORIES.iter().map(PathBuf::from).collect(),
        };
        Self::read_in(&directories)
    }

    fn read_in(directories: &[PathBuf]) -> Self {
        let service = text(directories, SERVICE).unwrap_or_default();
        let pulled_in = values(&service, "Service", "Sockets").join(" ");
        let sockets = NAMES.map(|name| {
            let unit = unit_of(name);
            let text = text(directories, &unit)?;
            let is_started = pulled_in.split_whitespace().any(|name| name == unit)
                || is_enabled(directories, &unit);
            is_started.then(|| SocketUnit {
                streams: values(&text, "Socket", "ListenStream"),
                unit,
            })
        });
        let states = values(&service, "Service", "StateDirectory").join(" ");
        let state_directories = states
            .split_whitespace()
            .map(|name| Path::new(STATE_DIRECTORIES).join(name));
        Self {
            sockets,
            state_directories: state_directories.collect(),
        }
    }
}

impl SocketUnit {
    /// The address that is served: the first, unless another one is where the configuration says.
    pub(super) fn address(&self, is_meant: impl Fn(SocketAddr) -> bool) -> Option<SocketAddr> {
        let addresses: Vec<_> = self
            .streams
            .iter()
            .filter_map(|stream| address(stream))
            .collect();
        addresses
            .iter()
            .copied()
            .find(|&address| is_meant(address))
            .or(addresses.first().copied())
    }
}

/// An address as systemd reads it: a port alone is every address, both of IPv4 and of IPv6.
fn address(stream: &str) -> Option<SocketAddr> {
    let of_port = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    stream
        .parse()
        .ok()
        .or_else(|| stream.parse().ok().map(of_port))
}

/// The text of a unit with all additions; `None` if there is none, or if it is masked.
fn text(directories: &[PathBuf], unit: &str) -> Option<String> {
    let read = |path: &Path| files::read_text(path, UNIT_BYTES_MAX).unwrap_or_default();
    let path = directories
        .iter()
        .map(|directory| directory.join(unit))
        .find(|path| path.exists())?;
    let mut text = read(&path);
    if text.is_empty() {
        return None;
    }

    // Of several with the same name the first counts. They are added in the order of their names, whatever their directory.
    let mut additions = BTreeMap::new();
    for directory in directories {
        let entries = fs::read_dir(directory.join(format!("{unit}.d")))
            .into_iter()
            .flatten()
            .flatten();
        for entry in
            entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "conf"))
        {
            additions
                .entry(entry.file_name())
                .or_insert_with(|| entry.path());
        }
    }
    for path in additions.values() {
        text.push('\n');
        text.push_str(&read(path));
    }
    Some(text)
}

/// Whether systemd holds a socket although no service asks for it.
fn is_enabled(directories: &[PathBuf], unit: &str) -> bool {
    directories
        .iter()
        .any(|directory| directory.join(ENABLED).join(unit).is_symlink())
}

/// The values of a setting in a section. An empty value removes those before it.
fn values(text: &str, section: &str, key: &str) -> Vec<String> {
    let (mut values, mut is_inside) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            is_inside = name == section;
        } else if let Some((_, value)) = line
            .split_once('=')
            .filter(|(name, _)| is_inside && name.trim() == key)
        {
            match value.trim() {
                "" => values.clear(),
                value => values.push(value.to_owned()),
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../deploy/systemd/blobcast-ingest.socket");
    const SERVICE_TEXT: &str = include_str!("../../deploy/systemd/blobcast.service");

    /// Units below two directories, of which the first goes first.
    fn units(files: &[(&str, &str)]) -> Units {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Units::read_in(&["etc", "usr"].map(|directory| root.path().join(directory)))
    }

    fn streams(files: &[(&str, &str)]) -> Option<Vec<String>> {
        let [ingest, ..] = units(files).sockets;
        ingest.map(|unit| unit.streams)
    }

    #[test]
    fn the_shipped_units_are_read() {
        let found = units(&[
            ("usr/blobcast-ingest.socket", SHIPPED),
            ("usr/blobcast.service", SERVICE_TEXT),
        ]);
        let [ingest, grpc, admin] = found.sockets;
        let (unit, streams) = (
            "blobcast-ingest.socket".to_owned(),
            vec!["127.0.0.1:8080".to_owned()],
        );
        assert_eq!(ingest, Some(SocketUnit { unit, streams }));
        assert_eq!((grpc, admin), (None, None));
        assert_eq!(
            found.state_directories,
            [PathBuf::from("/var/lib/blobcast")]
        );
    }

    #[test]
    fn additions_to_a_unit_count_as_systemd_counts_them() {
        let shipped = ("usr/blobcast-ingest.socket", SHIPPED);
        let added = "[Socket]\nListenStream=443\n";
        let replaced =
            "# mine\n[Socket]\nListenStream=\nListenStream=443\n[Install]\nListenStream=1\n";
        let service = ("usr/blobcast.service", SERVICE_TEXT);
        let of = |more: &[(&str, &str)]| streams(&[&[shipped, service], more].concat()).unwrap();
        assert_eq!(
            of(&[("etc/blobcast-ingest.socket.d/override.conf", added)]),
            ["127.0.0.1:8080", "443"]
        );
        assert_eq!(
            of(&[("etc/blobcast-ingest.socket.d/override.conf", replaced)]),
            ["443"]
        );
        assert_eq!(
            of(&[("etc/blobcast-ingest.socket.d/override.bak", replaced)]),
            ["127.0.0.1:8080"]
        );
        assert_eq!(of(&[("etc/blobcast-ingest.socket", added)]), ["443"]);
        let (first, second) = (
            "etc/blobcast-ingest.socket.d/10.conf",
            "usr/blobcast-ingest.socket.d/20.conf",
        );
        assert_eq!(
            of(&[(first, replaced), (second, "[Socket]\nListenStream=444\n")]),
            ["443", "444"]
        );
        assert_eq!(
            of(&[
                (first, replaced),
                ("usr/blobcast-ingest.socket.d/10.conf", added)
            ]),
            ["443"]
        );
        assert_eq!(
            streams(&[shipped, service, ("etc/blobcast-ingest.socket", "")]),
            None,
            "masked"
        );
        assert_eq!(streams(&[]), None);
    }

    #[test]
    fn a_socket_that_nothing_starts_is_not_held() {
        let shipped = ("usr/blobcast-ingest.socket", SHIPPED);
        assert_eq!(streams(&[shipped]), None);
        let other = (
            "usr/blobcast.service",
            "[Service]\nSockets=blobcast-ingest.socket\nSockets=\nSockets=a.socket\n",
        );
        assert_eq!(streams(&[shipped, other]), None);
        assert!(
            streams(&[shipped, ("usr/blobcast.service", SERVICE_TEXT)]).is_some(),
            "the service takes it along"
        );

        let directory = tempfile::tempdir().unwrap();
        let wants = directory.path().join(ENABLED);
        fs::create_dir(&wants).unwrap();
        std::os::unix::fs::symlink(
            "../blobcast-ingest.socket",
            wants.join("blobcast-ingest.socket"),
        )
        .unwrap();
        fs::write(directory.path().join("blobcast-ingest.socket"), SHIPPED).unwrap();
        let [ingest, ..] = Units::read_in(&[directory.path().to_owned()]).sockets;
        assert_eq!(
            ingest.map(|unit| unit.streams),
            Some(vec!["127.0.0.1:8080".to_owned()]),
            "it is enabled"
        );
    }

    #[test]
    fn an_address_is_read_as_systemd_reads_it() {
        let read = |text: &str| {
            address(text)
                .map(|address| address.to_string())
                .unwrap_or_default()
        };
        for (text, found) in [
            ("443", "[::]:443"),
            ("0.0.0.0:443", "0.0.0.0:443"),
            ("[::1]:443", "[::1]:443"),
            ("/run/blobcast.sock", ""),
            ("vsock:2:1234", ""),
        ] {
            assert_eq!(read(text), found, "{text}");
        }
    }
}
