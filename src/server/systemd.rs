//! What the broker tells its supervisor, by systemd's protocol. Without a supervisor nothing happens.

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

enum Message {
    States(Vec<NotifyState<'static>>),
    Status(String),
    ReadyAndStatus(String),
}

/// Messages that wait for a supervisor that takes none. What exceeds them is dropped: it has enough to catch up with.
const QUEUE_MAX: usize = 16;
/// Keep-alives within the supervisor's time-out: one that is late must not be the end.
const TICKS: u32 = 4;

/// The way to the supervisor: a full socket would block the sender.
static SENDER: OnceLock<SyncSender<Message>> = OnceLock::new();

/// The configuration has been read again.
pub(super) fn ready() {
    tell(Message::States(vec![NotifyState::Ready]));
}

/// Callbacks are taken; and what [`status`] says, in one message. Returns whether that is on its way.
pub(super) fn ready_and_status(line: String) -> bool {
    take(Message::ReadyAndStatus(line))
}

/// The configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(Message::States(vec![NotifyState::Reloading, now])),
        Err(_) => tell(Message::States(vec![NotifyState::Reloading])),
    }
}

/// What `systemctl status` says of the broker: one line. Returns whether it is on its way.
pub(super) fn status(line: String) -> bool {
    take(Message::Status(line))
}

/// Draining.
pub(super) fn stopping() {
    tell(Message::States(vec![NotifyState::Stopping]));
}

/// Sends keep-alives as long as every serving thread runs what it is given. Whether callbacks become durable does not matter here:
/// a full disk is no reason to be killed, and [`super::operations`] reports it.
pub(super) async fn watchdog(liveness: Arc<Liveness>, stop: CancellationToken) {
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| *timeout > Duration::ZERO)
    else {
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
            None => tell(Message::States(vec![NotifyState::Watchdog])),
            Some(problem) => {
                tracing::error!(problem, "not alive: the supervisor is not told otherwise")
            }
        }
    }
}

/// What gets lost is told again in a while, or is not needed any more.
fn tell(message: Message) {
    take(message);
}

/// Whether it is on its way, if there is anybody to tell.
fn take(message: Message) -> bool {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return true;
    }
    let sender = SENDER.get_or_init(|| {
        let (sender, messages) = sync_channel::<Message>(QUEUE_MAX);
        let send = move || messages.into_iter().for_each(|message| send(&message));
        if let Err(error) = thread::Builder::new().name("supervisor".into()).spawn(send) {
            tracing::warn!(%error, "no thread to tell the supervisor with");
        }
        sender
    });
    let sent = sender.try_send(message);
    if let Err(error) = &sent {
        tracing::warn!(%error, "the supervisor takes no messages");
    }
    sent.is_ok()
}

fn send(message: &Message) {
    let sent = match message {
        Message::States(states) => sd_notify::notify(states),
        Message::Status(line) => sd_notify::notify(&[NotifyState::Status(line)]),
        Message::ReadyAndStatus(line) => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(line)])
        }
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the supervisor");
    }
}
