//! What the broker tells whoever supervises it, by systemd's protocol. Where nobody does, nothing happens.

use std::{
    env,
    sync::{
        Arc, OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::liveness::Liveness;

type Message = Vec<NotifyState<'static>>;

/// Messages that wait for a supervisor that takes none. What exceeds them is dropped: it has enough to catch up with.
const QUEUE_MAX: usize = 16;
/// Keep-alives within the supervisor's time-out: one that is late must not be the end.
const TICKS: u32 = 4;

/// The way to the supervisor: a full socket would block the sender.
static SENDER: OnceLock<SyncSender<Message>> = OnceLock::new();

/// Callbacks are taken.
pub(super) fn ready() {
    tell(vec![NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(vec![NotifyState::Reloading, now]),
        Err(_) => tell(vec![NotifyState::Reloading]),
    }
}

/// Draining.
pub(super) fn stopping() {
    tell(vec![NotifyState::Stopping]);
}

/// Sends keep-alives as long as every serving thread runs what it is given. Whether callbacks become durable does not matter here:
/// a full disk is no reason to be killed, and [`super::admin`] reports it.
pub(super) async fn watchdog(liveness: Arc<Liveness>, stop: CancellationToken) {
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| *timeout > Duration::ZERO) else {
        return stop.cancelled().await;
    };
    let mut ticks = interval(timeout / TICKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match liveness.problem().await {
            None => tell(vec![NotifyState::Watchdog]),
            Some(problem) => tracing::error!(problem, "not alive: the supervisor is not told otherwise"),
        }
    }
}

fn tell(message: Message) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let sender = SENDER.get_or_init(|| {
        let (sender, messages) = sync_channel::<Message>(QUEUE_MAX);
        let send = move || messages.into_iter().for_each(|message| send(&message));
        if let Err(error) = thread::Builder::new().name("supervisor".into()).spawn(send) {
            tracing::warn!(%error, "no thread to tell the supervisor with");
        }
        sender
    });
    if let Err(error) = sender.try_send(message) {
        tracing::warn!(%error, "the supervisor takes no messages");
    }
}

fn send(message: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(message) {
        tracing::warn!(%error, "cannot tell the supervisor");
    }
}
