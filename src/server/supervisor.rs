//! What the broker tells whoever supervises it, by systemd's protocol. Where nobody does, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Callbacks are taken.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Draining.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says as often as it is asked to that the process is alive. Whether it does anything is for [`super::admin`] to say: a full disk
/// is no reason to be killed.
pub(super) async fn watchdog(stop: CancellationToken) {
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| *timeout > Duration::ZERO) else {
        return stop.cancelled().await;
    };
    let mut ticks = interval(timeout / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the supervisor");
    }
}
