//! The accept loop of a listener: takes connections out of the kernel's queue, turns away those of an address that has its share,
//! and owns the places that connections need.
//!
//! What happens when all places are taken is not decided here, because protocols differ: HTTP answers 503, gRPC waits.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdStream},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    entrance::{Entrance, Opened},
    floods::Floods,
    per_address::Share,
    places::{Counted, Patience, Place, Places},
    turned_away::TurnedAway,
};
use crate::metrics::Metrics;

/// Pause after a failed accept.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often it is logged that accepts fail.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(5);

/// What a listener counts of its connections.
#[derive(Clone, Debug)]
pub(in crate::server) struct Counters {
    pub places: Counted,
    pub turned_away: TurnedAway,
    pub floods: Floods,
}

impl Counters {
    pub(in crate::server) fn of(listener: &'static str, metrics: &Metrics) -> Self {
        Self {
            places: Counted::of(listener, metrics),
            turned_away: TurnedAway::of(listener, metrics),
            floods: Floods::of(listener, metrics),
        }
    }
}

/// Accepts the connections of one listener. Dropping it closes the socket.
#[derive(Debug)]
pub(in crate::server) struct Acceptor {
    listener: TcpListener,
    places: Places,
    door: Arc<Door>,
}

/// What every connection of a listener has to pass.
#[derive(Debug)]
struct Door {
    entrance: Entrance,
    turned_away: TurnedAway,
}

impl Acceptor {
    pub(in crate::server) fn new(
        listener: TcpListener,
        entrance: Entrance,
        connections_max: usize,
        patience: Patience,
        counters: &Counters,
    ) -> Self {
        Self {
            listener,
            places: Places::new(connections_max, patience, counters.places.clone()),
            door: Arc::new(Door {
                entrance,
                turned_away: counters.turned_away.clone(),
            }),
        }
    }

    /// The next connection; `None` once `stop` is cancelled.
    pub(in crate::server) async fn next(&self, stop: &CancellationToken) -> Option<Arrival> {
        tokio::select! {
            () = stop.cancelled() => None,
            arrival = self.accept() => Some(arrival),
        }
    }

    async fn accept(&self) -> Arrival {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    accept_failed(&error).await;
                    continue;
                }
            };
            // Answers and events are small and wanted now: waiting to fill a packet only delays them. If the client is gone
            // already, the next read says so.
            let _ = stream.set_nodelay(true).is_ok();

            // Before a place: an address that has its share must not take one, nor wait for one in front of others.
            match self.door.entrance.share(peer) {
                Ok(share) => {
                    return Arrival {
                        stream,
                        peer,
                        share,
                        door: Arc::clone(&self.door),
                    };
                }
                Err(refused) => self.door.turned_away.note(&refused, peer),
            }
        }
    }

    /// The places of the listener's connections.
    pub(in crate::server) fn places(&self) -> &Places {
        &self.places
    }

    pub(in crate::server) fn has_tls(&self) -> bool {
        self.door.entrance.has_tls()
    }
}

/// A connection that was accepted and has its address' share. Nothing was read of it yet.
#[derive(Debug)]
pub(in crate::server) struct Arrival {
    stream: TcpStream,
    peer: SocketAddr,
    share: Option<Share>,
    door: Arc<Door>,
}

impl Arrival {
    /// Brings the connection to the point where it can be served: PROXY header, TLS, preface. `None` if it was turned away, or
    /// has to give up its place meanwhile.
    pub(in crate::server) async fn open(self, place: &Place) -> Option<Opened> {
        let Self {
            stream,
            peer,
            share,
            door,
        } = self;
        let opened = tokio::select! {
            opened = door.entrance.open(stream, peer, share) => opened,
            () = place.standing().until_shed() => return None,
        };
        opened
            .inspect_err(|refused| door.turned_away.note(refused, peer))
            .ok()
    }

    /// The connection alone, to be refused.
    pub(in crate::server) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Detaches it from this runtime.
    pub(in crate::server) fn detach(self) -> io::Result<Detached> {
        Ok(Detached {
            stream: self.stream.into_std()?,
            peer: self.peer,
            share: self.share,
            door: self.door,
        })
    }
}

/// An [`Arrival`] on its way from one runtime to another.
#[derive(Debug)]
pub(in crate::server) struct Detached {
    stream: StdStream,
    peer: SocketAddr,
    share: Option<Share>,
    door: Arc<Door>,
}

impl Detached {
    /// Attaches it to the runtime that this is called on.
    pub(in crate::server) fn attach(self) -> io::Result<Arrival> {
        Ok(Arrival {
            stream: TcpStream::from_std(self.stream)?,
            peer: self.peer,
            share: self.share,
            door: self.door,
        })
    }
}

/// Logs why no connection could be accepted, and waits: usually there are no file descriptors left, and the next attempt would
/// fail at once.
async fn accept_failed(error: &io::Error) {
    /// Of all listeners: they run out of file descriptors together.
    static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
    let is_due = |logged: &mut Option<Instant>| {
        let due = logged.is_none_or(|logged| logged.elapsed() >= COMPLAINT_INTERVAL);
        due.then(|| logged.replace(Instant::now())).is_some()
    };
    if is_due(&mut LOGGED.lock()) {
        tracing::warn!(%error, "cannot accept connections: check the limit of open files");
    }

    sleep(RETRY_PAUSE).await;
}
