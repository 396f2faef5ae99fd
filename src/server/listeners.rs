//! The three listening sockets: inherited from systemd or from the process before, or bound. They stay open beside the sockets that are
//! accepted from, so that a process which starts itself anew hands them on. Clients that connect meanwhile wait in the kernel's queue.

use std::{
    env, io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    process::Command,
};

use command_fds::{CommandFdExt, FdMapping};
use listenfd::ListenFd;
use tokio::net::{TcpListener, TcpSocket};

use super::{addresses::Addresses, error::StartError};
use crate::config::Config;

/// The sockets' names in `LISTEN_FDNAMES`, in the order in which they are handed on.
pub(super) const NAMES: [&str; 3] = ["ingest", "grpc", "admin"];
/// The first descriptor that is handed on, by systemd's protocol.
const FIRST_DESCRIPTOR: i32 = 3;
/// Connections that wait in the kernel to be accepted: the most that Linux allows by default. Beyond it a burst ends in SYN cookies, and
/// those in resets instead of a 503 (tokio's default of 1,024 did so from 2,000 connections at once).
const ACCEPT_QUEUE_MAX: u32 = 4_096;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Listeners([StdListener; 3]);

impl Listeners {
    /// Takes the inherited socket of each name, and binds those that were not inherited.
    pub(super) fn open(config: &Config) -> Result<Self, StartError> {
        let mut inherited = inherited().map_err(StartError::Socket)?;
        let mut open =
            |name: &str, address: SocketAddr, key: &'static str, flag: &'static str| match take(
                &mut inherited,
                name,
                address,
            )
            .map_err(StartError::Socket)?
            {
                Some(socket) => Ok(socket),
                None => bind(address).map_err(|source| StartError::Listen {
                    address,
                    key,
                    flag,
                    source,
                }),
            };

        let listeners = Self([
            open(
                NAMES[0],
                config.ingest.listen,
                "ingest.listen",
                "--ingest-listen",
            )?,
            open(NAMES[1], config.grpc.listen, "grpc.listen", "--grpc-listen")?,
            open(
                NAMES[2],
                config.admin.listen,
                "admin.listen",
                "--admin-listen",
            )?,
        ]);

        for (name, socket) in &inherited {
            warn_unused(name, socket);
        }
        Ok(listeners)
    }

    /// The sockets' addresses.
    pub(super) fn addresses(&self) -> io::Result<Addresses> {
        let [ingest, grpc, admin] = &self.0;
        Ok(Addresses {
            ingest: ingest.local_addr()?,
            grpc: grpc.local_addr()?,
            admin: admin.local_addr()?,
        })
    }

    /// Duplicates of the sockets, to accept from.
    pub(super) fn to_accept_from(&self) -> io::Result<[TcpListener; 3]> {
        let once_more = |listener: &StdListener| {
            let listener = listener.try_clone()?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let [ingest, grpc, admin] = &self.0;
        Ok([once_more(ingest)?, once_more(grpc)?, once_more(admin)?])
    }

    /// Starts this program anew in this process, with the same arguments and these sockets; returns only if that fails.
    pub(crate) fn start_anew(self) -> io::Error {
        // An upgrade may have replaced the file. The program that runs is still reached by its other name.
        let program = env::current_exe().ok().filter(|program| program.exists());
        let program = program.unwrap_or_else(|| "/proc/self/exe".into());
        let descriptors = self.0.into_iter().zip(FIRST_DESCRIPTOR..);
        let mappings = descriptors.map(|(listener, child_fd)| FdMapping {
            parent_fd: OwnedFd::from(listener),
            child_fd,
        });

        let mut command = Command::new(program);
        command.args(env::args_os().skip(1));
        command.env("LISTEN_FDS", NAMES.len().to_string());
        command.env("LISTEN_PID", std::process::id().to_string());
        command.env("LISTEN_FDNAMES", NAMES.join(":"));
        match command.fd_mappings(mappings.collect()) {
            Ok(command) => command.exec(),
            Err(error) => io::Error::other(error),
        }
    }
}

/// Takes the socket with a name; of several, the one that listens where the configuration says.
fn take(
    inherited: &mut Vec<(String, StdListener)>,
    name: &str,
    configured: SocketAddr,
) -> io::Result<Option<StdListener>> {
    let named = |(inherited, _): &(String, StdListener)| inherited == name;
    let fits = |(_, socket): &(String, StdListener)| {
        socket.local_addr().is_ok_and(|at| is_meant(configured, at))
    };
    let fitting = inherited
        .iter()
        .position(|socket| named(socket) && fits(socket));
    let Some(position) = fitting.or_else(|| inherited.iter().position(named)) else {
        return Ok(None);
    };

    let (_, socket) = inherited.remove(position);
    if fitting.is_none() {
        let (unit, inherited) = (unit_of(name), socket.local_addr()?);
        tracing::warn!(
            listener = name,
            unit,
            %inherited,
            %configured,
            "listening where the socket of the unit does, and not where the configuration says: set {name}.listen to the same, or \
             change the unit with `systemctl edit {unit}`, an empty ListenStream= before the new one"
        );
    }
    Ok(Some(socket))
}

/// Whether a socket is where the configuration says. Port 0 is any port.
pub(super) fn is_meant(configured: SocketAddr, found: SocketAddr) -> bool {
    let is_port_meant = configured.port() == 0 || configured.port() == found.port();
    configured.ip().to_canonical() == found.ip().to_canonical() && is_port_meant
}

/// The shipped unit of the socket with this name.
pub(super) fn unit_of(name: &str) -> String {
    format!("blobcast-{name}.socket")
}

/// Warns of a socket that systemd keeps open and nothing accepts from: clients that connect to it wait for ever.
fn warn_unused(name: &str, socket: &StdListener) {
    let address = socket
        .local_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    if NAMES.contains(&name) {
        let unit = unit_of(name);
        tracing::warn!(
            listener = name,
            unit,
            address,
            "this socket is not served: the unit has more than one address, and only one is served; take the others away with \
             `systemctl edit {unit}`, an empty ListenStream= before the one that is meant"
        );
    } else {
        tracing::warn!(
            name,
            address,
            "this socket is not served: its name is none of ingest, grpc and admin; set FileDescriptorName= in its unit"
        );
    }
}

/// Inherited sockets with their names. Without names they are in the order of [`NAMES`].
fn inherited() -> io::Result<Vec<(String, StdListener)>> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let mut names: Vec<_> = names.split(':').filter(|name| !name.is_empty()).collect();
    if names.len() != sockets.len() {
        names = NAMES.to_vec();
    }
    let mut take = |(index, name): (usize, &&str)| {
        // An error, not a second bind: a descriptor that was handed on and is no socket is a mistake of whatever has handed it on.
        let socket = sockets
            .take_tcp_listener(index)
            .map_err(|error| io::Error::other(format!("{name}: {error}")))?;
        Ok(socket.map(|socket| ((*name).to_owned(), socket)))
    };
    names
        .iter()
        .enumerate()
        .filter_map(|named| take(named).transpose())
        .collect()
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // So that a restart can bind while connections of the process before are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(ACCEPT_QUEUE_MAX)?.into_std()
}
