//! What happens on one connection, and when it has been quiet for too long.
//!
//! hyper has one timeout for the silence before a head and the head itself. Here a head has its own time, from its first byte, and
//! a connection that was used may be idle for longer: proxies keep pooled connections for a minute.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

pub(super) const LINE_END: &[u8] = b"\r\n";

/// How long a connection may be quiet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    /// From the first byte of a head to its end, and from the connection's beginning to the end of its first head.
    pub header_timeout: Duration,
    /// Between an answer and the next request.
    pub idle_timeout: Duration,
}

/// The requests that are being answered on one connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<InFlight>);

#[derive(Debug)]
struct InFlight {
    count: usize,
    /// When `count` changed last, or some of an answer was written.
    since: Instant,
    /// When the first byte of a head arrived that is not complete yet.
    head_since: Option<Instant>,
    /// No head has been complete yet.
    is_unasked: bool,
    is_closed: bool,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(InFlight {
            count: 0,
            since: Instant::now(),
            head_since: None,
            is_unasked: true,
            is_closed: false,
        }))
    }
}

impl Activity {
    /// Counts a request until the result is dropped. `None` once closed: a client that keeps sending requests is not waited for.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Busy> {
        let mut state = self.lock();
        (state.is_unasked, state.head_since) = (false, None);
        if state.is_closed {
            return None;
        }

        state.count += 1;
        Some(Busy(Arc::clone(self)))
    }

    /// From now on only requests already in flight are waited for. If there are none, the connection is quiet from now on.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        (state.is_closed, state.since) = (true, Instant::now());
    }

    /// Counts the quiet from now on.
    pub(super) fn begin_quiet(&self) {
        self.lock().since = Instant::now();
    }

    pub(super) fn is_unasked(&self) -> bool {
        self.lock().is_unasked
    }

    /// `None` while something is being answered.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.count == 0).then_some(state.since)
    }

    /// Waits until the connection has been quiet for so long.
    pub(super) async fn quiet_for(&self, patience: Duration) {
        loop {
            let quiet_until = self
                .quiet_since()
                .and_then(|since| since.checked_add(patience));
            match quiet_until {
                Some(until) if until <= Instant::now() => return,
                Some(until) => sleep_until(until).await,
                None => sleep(patience).await,
            }
        }
    }

    /// When it will have been quiet for too long; `None` while something is being answered, or when it is closing anyway.
    fn due(&self, quiet: Quiet) -> Option<Instant> {
        let state = self.lock();
        let (since, patience) = match state.head_since {
            _ if state.count > 0 || state.is_closed => return None,
            Some(since) => (since, quiet.header_timeout),
            None if state.is_unasked => (state.since, quiet.header_timeout),
            None => (state.since, quiet.idle_timeout),
        };
        since.checked_add(patience)
    }

    /// Ready when it has been quiet for too long. `timer` wakes the task at the latest then. It is seldom set, because requests
    /// only move the time further away.
    pub(super) fn poll_overdue(
        &self,
        quiet: Quiet,
        mut timer: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(due) = self.due(quiet) else {
            return Poll::Pending;
        };
        loop {
            if timer.deadline() > due || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            ready!(timer.as_mut().poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
        }
    }

    /// Waits until it has been quiet for too long, where no [`Tracked`] notes the bytes.
    pub(super) async fn overdue(&self, quiet: Quiet) {
        loop {
            match self.due(quiet) {
                Some(due) if due <= Instant::now() => return,
                Some(due) => sleep_until(due).await,
                None => sleep(quiet.idle_timeout).await,
            }
        }
    }

    fn has_read(&self) {
        let mut state = self.lock();
        if state.count == 0 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Once closed, a client that takes an answer slowly is not waited for either.
    fn has_written(&self) {
        let mut state = self.lock();
        if !state.is_closed {
            state.since = Instant::now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.0.lock()
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.count -= 1;
        state.since = Instant::now();
    }
}

/// A connection whose reads and writes are noted.
#[derive(Debug)]
pub(super) struct Tracked<S> {
    pub stream: S,
    pub activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tracked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        // Some clients send a line end after a body: that does not begin a head.
        if buf.filled()[before..]
            .iter()
            .any(|byte| !LINE_END.contains(byte))
        {
            this.activity.has_read();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> Tracked<S> {
    fn noted(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(polled, Poll::Ready(Ok(_))) {
            self.activity.has_written();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tracked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.noted(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.noted(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
