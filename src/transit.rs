//! Flow control between streams and the transport (HTTP/2): limits the bytes that the transport
//! buffers for each stream.
//!
//! Bytes handed to the transport cannot be taken back if their client does not read, so the limit
//! of one stream shrinks as all streams together hold more. Never blocks, and takes no lock while a
//! client keeps up.
//!
//! ```text
//! Transit ── Flow      one stream: how much it may hand on now, counted until the transport drops
//! the bytes
//!         └─ Charge    bytes that several streams share, counted once
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

/// Most bytes that are handed to the transport at once: two frames of HTTP/2's default size.
pub(crate) const CHUNK_BYTES: usize = 32 * 1024;
/// Every stream may have this much in the transport, however much the others have: 200 MB for
/// 100,000 streams.
pub(crate) const FLOOR_BYTES: usize = 2 * 1024;
/// Most bytes of one stream in the transport: enough to keep a fast reader's connection busy.
const STREAM_BYTES_MAX: usize = 256 * 1024;
/// One stream gets at most this fraction (1/256) of the free bytes, so that some are left for the
/// next one.
const SHARE: usize = 256;

/// The bytes of all streams in the transport.
#[derive(Debug)]
pub(crate) struct Transit {
    bytes_max: usize,
    held: AtomicUsize,
}

impl Transit {
    /// A limit of `bytes_max`, beside the [`FLOOR_BYTES`] of each stream.
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes_max,
            held: AtomicUsize::new(0),
        })
    }

    /// Bytes in the transport, without the first [`FLOOR_BYTES`] of each stream.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Counts bytes that many streams share until the charge is dropped.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Charge {
            transit: Arc::clone(self),
            bytes,
        }
    }

    /// The current limit of one stream.
    fn share(&self) -> usize {
        (self.bytes_max.saturating_sub(self.held()) / SHARE).clamp(FLOOR_BYTES, STREAM_BYTES_MAX)
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub struct Charge {
    transit: Arc<Transit>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.transit.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bytes of one stream in the transport.
#[derive(Debug)]
pub(crate) struct Flow {
    transit: Arc<Transit>,
    held: Arc<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: AtomicUsize,
    is_waited_for: AtomicBool,
    waker: AtomicWaker,
}

impl Flow {
    pub(crate) fn new(transit: &Arc<Transit>) -> Self {
        Self {
            transit: Arc::clone(transit),
            held: Arc::default(),
        }
    }

    /// The total that this stream counts towards.
    pub(crate) fn transit(&self) -> &Arc<Transit> {
        &self.transit
    }

    /// How many bytes may be handed on now: 1 to [`CHUNK_BYTES`]. Pending while the stream is at
    /// its limit.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let room = || {
            let (held, most) = (self.held.bytes.load(Ordering::SeqCst), self.transit.share());
            let has_room = held == 0 || held + FLOOR_BYTES <= most;
            has_room.then(|| most.saturating_sub(held).min(CHUNK_BYTES))
        };
        if let Some(room) = room() {
            return Poll::Ready(room);
        }
        self.held.waker.register(cx.waker());
        self.held.is_waited_for.store(true, Ordering::SeqCst);
        // Again: bytes may have been dropped before the waker was registered.
        room().map_or(Poll::Pending, Poll::Ready)
    }

    /// Counts the bytes until the transport drops them.
    pub(crate) fn hand<B: AsRef<[u8]> + Send + 'static>(&self, bytes: B) -> Bytes {
        self.count(bytes, true)
    }

    /// Like [`Flow::hand`], for bytes whose [`Charge`] several streams share.
    pub(crate) fn hand_shared<B: AsRef<[u8]> + Send + 'static>(&self, bytes: B) -> Bytes {
        self.count(bytes, false)
    }

    fn count<B: AsRef<[u8]> + Send + 'static>(&self, bytes: B, is_own: bool) -> Bytes {
        let length = bytes.as_ref().len();
        let before = self.held.bytes.fetch_add(length, Ordering::SeqCst);
        let charge = (is_own && before + length > FLOOR_BYTES).then(|| self.transit.charge(length));
        Bytes::from_owner(Handed {
            bytes,
            length,
            held: Arc::clone(&self.held),
            _charge: charge,
        })
    }
}

/// Bytes in the transport, given back when dropped.
struct Handed<B> {
    bytes: B,
    length: usize,
    held: Arc<Held>,
    _charge: Option<Charge>,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Handed<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B> Drop for Handed<B> {
    fn drop(&mut self) {
        self.held.bytes.fetch_sub(self.length, Ordering::SeqCst);
        if self.held.is_waited_for.load(Ordering::SeqCst)
            && self.held.is_waited_for.swap(false, Ordering::SeqCst)
        {
            self.held.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicU32,
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_stream_at_its_limit_waits_until_the_transport_drops_bytes() {
        let (transit, wakes) = (Transit::new(1024 * 1024 * 1024), Arc::new(Wakes::default()));
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = &mut Context::from_waker(&waker);
        let flow = Flow::new(&transit);
        let mut held = Vec::new();
        while let Poll::Ready(room) = flow.poll_room(cx) {
            assert!((FLOOR_BYTES..=CHUNK_BYTES).contains(&room), "{room}");
            held.push(flow.hand(vec![0; room]));
        }
        assert_eq!(held.iter().map(Bytes::len).sum::<usize>(), STREAM_BYTES_MAX);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        held.pop();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(flow.poll_room(cx), Poll::Ready(CHUNK_BYTES));
        held.clear();
        assert_eq!(transit.held(), 0);
    }

    #[test]
    fn many_stalled_streams_stay_near_the_limit_and_each_makes_progress() {
        const BYTES_MAX: usize = 16 * 1024 * 1024;
        let (transit, cx) = (
            Transit::new(BYTES_MAX),
            &mut Context::from_waker(Waker::noop()),
        );
        let streams: Vec<_> = (0..5_000)
            .map(|_| {
                let (flow, mut held) = (Flow::new(&transit), Vec::new());
                while let Poll::Ready(room) = flow.poll_room(cx) {
                    held.push(flow.hand(vec![0; room]));
                }
                assert!(!held.is_empty());
                (flow, held)
            })
            .collect();
        let held: usize = streams
            .iter()
            .flat_map(|(_, held)| held)
            .map(Bytes::len)
            .sum();
        assert!(transit.held() <= BYTES_MAX, "{}", transit.held());
        assert!(held <= BYTES_MAX + streams.len() * FLOOR_BYTES, "{held}");
    }

    #[test]
    fn small_pieces_are_counted_like_large_ones() {
        let (transit, cx) = (
            Transit::new(1024 * 1024 * 1024),
            &mut Context::from_waker(Waker::noop()),
        );
        let flow = Flow::new(&transit);
        let mut held = Vec::new();
        while flow.poll_room(cx).is_ready() {
            held.push(flow.hand([0; 700]));
        }
        let bytes = held.len() * 700;
        assert!(
            bytes <= STREAM_BYTES_MAX && transit.held() + FLOOR_BYTES >= bytes,
            "{bytes} {}",
            transit.held()
        );
    }
}
