//! Sends the writes of one poll together.
//!
//! h2 writes each frame by itself, and a commit makes a frame for every stream that wants it: a hundred streams, a hundred
//! system calls, each of which also wakes the client. Here frames are copied into one buffer, which is sent when the connection's
//! task is polled next. It is woken for that at once, and what other tasks write until then goes along.

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is kept back. Beyond it a write waits until the buffer is sent.
const BYTES_MAX: usize = 32 * 1024;

/// A write of this size is followed by more.
const BULK_BYTES_MIN: usize = 1024;

/// A stream whose writes are kept back until the next read, or until the buffer is full. It works for any task that reads it each time
/// it is polled, as h2's does.
#[derive(Debug)]
pub(super) struct Corked<S> {
    stream: S,
    /// Without capacity while it is empty, so that idle connections are small.
    kept: Vec<u8>,
    /// How much of it was sent.
    sent: usize,
    /// The task was woken, and reads when it is polled.
    is_due: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Corked<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            kept: Vec::new(),
            sent: 0,
            is_due: false,
        }
    }

    /// What is kept back and was not sent.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.kept[self.sent..]
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_due = true; // also by the stream, if it has no room now
        while self.sent < self.kept.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.kept = Vec::new();
        self.sent = 0;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.is_due = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_due
            && let Poll::Ready(sent) = self.poll_send(cx)
        {
            sent?;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.kept.len() >= BYTES_MAX {
            ready!(self.poll_send(cx))?;
        }
        let before = self.kept.len();
        // All at once, because growing copies; but not for a ping, which idle connections answer.
        if self.kept.capacity() < BYTES_MAX
            && bufs.iter().map(|buf| buf.len()).sum::<usize>() >= BULK_BYTES_MIN
        {
            self.kept.reserve_exact(BYTES_MAX - before);
        }
        for buf in bufs {
            let room = BYTES_MAX - self.kept.len();
            self.kept.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        Poll::Ready(Ok(self.kept.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.kept.is_empty() && !mem::replace(&mut self.is_due, true) {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
    };

    use proptest::{collection, prelude::*};

    use super::*;

    /// A stream on which nothing arrives.
    #[derive(Default)]
    struct Deaf {
        written: Vec<Vec<u8>>,
        /// What it takes before it is full.
        room: usize,
        /// A task waits for room.
        is_waited_for: bool,
        is_broken: bool,
    }

    impl AsyncRead for Deaf {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Deaf {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.is_broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let count = buf.len().min(self.room);
            if count == 0 {
                self.is_waited_for = true;
                return Poll::Pending;
            }
            self.room -= count;
            self.written.push(buf[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn with_room(room: usize) -> Corked<Deaf> {
        Corked::new(Deaf {
            room,
            ..Deaf::default()
        })
    }

    fn read(corked: &mut Corked<Deaf>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(corked).poll_read(cx, &mut ReadBuf::new(&mut [0]))
    }

    fn write(corked: &mut Corked<Deaf>, cx: &mut Context<'_>, bytes: &[u8]) -> Option<usize> {
        match Pin::new(corked).poll_write(cx, bytes) {
            Poll::Ready(count) => Some(count.unwrap()),
            Poll::Pending => None,
        }
    }

    fn flush(corked: &mut Corked<Deaf>, cx: &mut Context<'_>) {
        assert!(Pin::new(corked).poll_flush(cx).is_ready());
    }

    #[test]
    fn writes_of_one_poll_are_sent_together_in_the_next_one() {
        let (mut corked, wakes) = (with_room(1_000), Arc::new(Wakes::default()));
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = &mut Context::from_waker(&waker);
        for turn in 1..4 {
            for bytes in [b"first ", b"second"] {
                assert_eq!(write(&mut corked, cx, bytes), Some(6));
                flush(&mut corked, cx);
            }
            assert_eq!(
                (corked.stream.written.len(), wakes.0.load(Ordering::Relaxed)),
                (turn - 1, turn)
            );
            assert!(read(&mut corked, cx).is_pending());
            assert_eq!(corked.stream.written[turn - 1..], [b"first second"]);
            assert_eq!(corked.kept.capacity(), 0, "idle connections are small");
        }
        flush(&mut corked, cx);
        assert_eq!(
            wakes.0.load(Ordering::Relaxed),
            3,
            "nobody is woken for nothing"
        );
    }

    #[test]
    fn a_stream_that_takes_nothing_is_waited_for_when_so_much_is_kept() {
        let (mut corked, cx) = (with_room(0), &mut Context::from_waker(Waker::noop()));
        assert_eq!(
            write(&mut corked, cx, &[1; BYTES_MAX - 1]),
            Some(BYTES_MAX - 1)
        );
        assert_eq!(write(&mut corked, cx, &[2; 2]), Some(1));
        assert_eq!(write(&mut corked, cx, &[3]), None);
        corked.stream.room = usize::MAX;
        assert_eq!(write(&mut corked, cx, &[3]), Some(1));
        assert_eq!(corked.stream.written.concat().len(), BYTES_MAX);
    }

    #[test]
    fn a_reader_gets_the_error_of_a_failed_send() {
        let (mut corked, cx) = (with_room(0), &mut Context::from_waker(Waker::noop()));
        corked.stream.is_broken = true;
        assert_eq!(write(&mut corked, cx, b"lost"), Some(4));
        flush(&mut corked, cx);
        assert!(
            matches!(read(&mut corked, cx), Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe)
        );
    }

    proptest! {
        #[test]
        fn everything_is_sent_in_its_order_and_nothing_is_forgotten(
            turns in collection::vec((0..BYTES_MAX, collection::vec(0..BYTES_MAX, 0..4)), 1..8),
        ) {
            let (mut corked, wakes) = (with_room(0), Arc::new(Wakes::default()));
            let waker = Waker::from(Arc::clone(&wakes));
            let cx = &mut Context::from_waker(&waker);
            let (mut accepted, mut next) = (Vec::new(), 0_u8);
            for (room, writes) in turns {
                (corked.stream.room, corked.stream.is_waited_for) = (room, false);
                prop_assert!(read(&mut corked, cx).is_pending());
                let before = wakes.0.load(Ordering::Relaxed);
                for length in writes {
                    next = next.wrapping_add(1);
                    let count = write(&mut corked, cx, &vec![next; length]).unwrap_or(0);
                    accepted.extend(vec![next; count]);
                    prop_assert!(corked.kept.len() <= BYTES_MAX);
                    flush(&mut corked, cx);
                }
                let is_woken = wakes.0.load(Ordering::Relaxed) > before;
                prop_assert!(corked.kept.is_empty() || is_woken || corked.stream.is_waited_for, "it would lie there for ever");
            }
            corked.stream.room = usize::MAX;
            prop_assert!(Pin::new(&mut corked).poll_shutdown(cx).is_ready());
            prop_assert_eq!(corked.stream.written.concat(), accepted);
        }
    }
}
