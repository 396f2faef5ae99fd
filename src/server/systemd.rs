//! Reports the broker's state to systemd by its notification protocol. Without systemd nothing happens.

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

enum Notification {
    States(Vec<NotifyState<'static>>),
    Status(String),
    ReadyAndStatus(String),
}

/// Notifications that wait while systemd takes none. More are dropped: systemd has enough to catch up with.
const QUEUE_MAX: usize = 16;
/// Keep-alives within the watchdog's timeout: a late one must not get the process killed.
const TICKS: u32 = 4;

/// The queue to the thread that sends: a full socket blocks.
static SENDER: OnceLock<SyncSender<Notification>> = OnceLock::new();

/// A start that gets on is given so much more time, each time that it says so.
const START_EXTENSION: Duration = Duration::from_secs(60);

/// Reports that a long start gets on: neither the start's timeout nor the watchdog, which runs already where the process has
/// executed itself anew, may end it.
pub(super) fn starts_on() {
    tell(Notification::States(starting_on().into()));
}

fn starting_on() -> [NotifyState<'static>; 2] {
    let micros = u32::try_from(START_EXTENSION.as_micros()).unwrap_or(u32::MAX);
    [
        NotifyState::ExtendTimeoutUsec(micros),
        NotifyState::Watchdog,
    ]
}

/// Reports that the configuration has been read again.
pub(super) fn ready() {
    tell(Notification::States(vec![NotifyState::Ready]));
}

/// Reports that the broker is ready, and its [`status`], in one message. Returns whether that is queued.
pub(super) fn ready_and_status(line: String) -> bool {
    queue(Notification::ReadyAndStatus(line))
}

/// Reports that the configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(Notification::States(vec![NotifyState::Reloading, now])),
        Err(_) => tell(Notification::States(vec![NotifyState::Reloading])),
    }
}

/// Sets the line that `systemctl status` shows of the broker. Returns whether it is queued.
pub(super) fn status(line: String) -> bool {
    queue(Notification::Status(line))
}

/// Reports that the broker drains.
pub(super) fn stopping() {
    tell(Notification::States(vec![NotifyState::Stopping]));
}

/// Sends keep-alives as long as every serving thread runs. Whether callbacks become durable does not matter here: a full disk must not
/// get the process killed, and the admin listener reports it.
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
            None => tell(Notification::States(vec![NotifyState::Watchdog])),
            Some(problem) => {
                tracing::error!(problem, "not alive: the supervisor is not told otherwise");
            }
        }
    }
}

/// Queues a notification that may be lost: it is repeated in a while, or not needed any more.
fn tell(notification: Notification) {
    queue(notification);
}

/// Queues a notification. Returns whether it is queued, or there is no systemd.
fn queue(notification: Notification) -> bool {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return true;
    }
    let sender = SENDER.get_or_init(|| {
        let (sender, queued) = sync_channel::<Notification>(QUEUE_MAX);
        let send = move || queued.into_iter().for_each(|it| send(&it));
        if let Err(error) = thread::Builder::new().name("supervisor".into()).spawn(send) {
            tracing::warn!(%error, "no thread to tell the supervisor with");
        }
        sender
    });
    let sent = sender.try_send(notification);
    if let Err(error) = &sent {
        tracing::warn!(%error, "the supervisor takes no messages");
    }
    sent.is_ok()
}

fn send(notification: &Notification) {
    let sent = match notification {
        Notification::States(states) => sd_notify::notify(states),
        Notification::Status(line) => sd_notify::notify(&[NotifyState::Status(line)]),
        Notification::ReadyAndStatus(line) => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(line)])
        }
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the supervisor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_gets_on_asks_for_a_minute_more_and_keeps_the_watchdog_quiet() {
        let said = starting_on().map(|state| state.to_string());
        assert_eq!(said, ["EXTEND_TIMEOUT_USEC=60000000", "WATCHDOG=1"]);
    }
}
