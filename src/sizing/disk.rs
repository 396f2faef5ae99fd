//! The disk that a broker needs, and how long its limits keep events.
//!
//! ```text
//! event      2 × body + 96                           as `log.retention_bytes_max` and `blobcast_log_bytes` count it, at most
//! on disk    event + 201 (its commit) + 2 × 110 (index)
//! directory  events × on disk + 2 × quarantine + 224 MiB (preallocated and expiring segments, the
//! database's journals)
//! disk       directory ÷ (1 − log.disk_free_min_percent)
//! ```
//!
//! The constants were measured with 300,000 of the vendor's examples (tests/data/vendor), and with
//! 2,000 and 4,000 of them with prompts of 2,800 characters. `cargo test --test it sizing` measures
//! again, and fails if they are wrong.

use std::time::Duration;

use crate::config::Config;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The raw body, and the fields read from it: about as many bytes again if prompt and URLs make up
/// most of the body.
const EVENT_PER_BODY: u64 = 2;
/// Size of an event beside these: ids, product, times, tags of fields. Measured: 55 bytes for
/// bodies of 210 bytes, 48 for bodies of 3,006. The rest is for some labels and the name of a
/// credential.
const EVENT_BYTES_BESIDE: u64 = 96;
/// An entry of the log (73), and the header of a commit (128), which the events of one commit
/// share. Measured: 201 with one event in each commit, 99 with five.
const FRAME_BYTES: u64 = 201;
/// An entry of the task index. Measured: 108 for 300,000 tasks, after compaction.
const INDEX_BYTES: u64 = 110;
/// During a compaction the database has its old and its new tables. Measured: 217 bytes for a task.
const INDEX_COPIES: u64 = 2;
/// A quarantined callback is in the log once, and for a moment twice. As much forgotten content may
/// lie beside it; with more, it is written again, and its old segment is removed.
const QUARANTINE_COPIES: u64 = 2;
/// Three segments of 32 MiB (the active one, a preallocated one, one about to be removed), and two
/// journals of the database of 64 MiB.
const FIXED_BYTES: u64 = 3 * 32 * MIB + 2 * 64 * MIB;
/// Assumed body size if none is known. The vendor's examples have 200 to 350 bytes; with a long
/// prompt, 3 kB.
pub(crate) const TYPICAL_BODY_BYTES: u64 = 3_000;

/// The callbacks that a broker receives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Traffic {
    /// Callbacks per second that become an event, so without duplicates.
    pub(crate) per_second: f64,
    /// Bytes of a body, on average.
    pub(crate) body_bytes: u64,
}

impl Traffic {
    /// Bytes of events per second, as retention counts them.
    pub(crate) fn bytes_per_second(self) -> f64 {
        self.per_second * event_bytes(self.body_bytes) as f64
    }

    /// How long it takes until so many bytes of events have come.
    pub(crate) fn time_to_bring(self, bytes: u64) -> Duration {
        // A time beyond the range of a duration counts as for ever.
        Duration::try_from_secs_f64(bytes as f64 / self.bytes_per_second()).unwrap_or(Duration::MAX)
    }

    /// Bytes of the events that come in this time.
    pub(crate) fn bytes_in(self, time: Duration) -> u64 {
        (self.bytes_per_second() * time.as_secs_f64()).ceil() as u64
    }
}

/// Most bytes of an event with such a body, as retention counts them.
pub fn event_bytes(body_bytes: u64) -> u64 {
    body_bytes
        .saturating_mul(EVENT_PER_BODY)
        .saturating_add(EVENT_BYTES_BESIDE)
}

/// Bytes of the data directory, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Events, as retention counts them.
    pub events: u64,
    /// Framing of these events in the log.
    pub frames: u64,
    /// The task index.
    pub index: u64,
    /// Quarantined callbacks, and forgotten ones beside them.
    pub quarantine: u64,
    /// Independent of the traffic.
    pub fixed: u64,
}

impl Directory {
    /// For `bytes` of events of `event_bytes` each, and `quarantine_bytes` of quarantined
    /// callbacks.
    pub fn of(bytes: u64, event_bytes: u64, quarantine_bytes: u64) -> Self {
        let events = bytes.div_ceil(event_bytes.max(1));
        Self {
            events: bytes,
            frames: events.saturating_mul(FRAME_BYTES),
            index: events.saturating_mul(INDEX_BYTES * INDEX_COPIES),
            quarantine: quarantine_bytes.saturating_mul(QUARANTINE_COPIES),
            fixed: FIXED_BYTES,
        }
    }

    /// The sum of the parts.
    pub fn bytes(&self) -> u64 {
        let Self {
            events,
            frames,
            index,
            quarantine,
            fixed,
        } = *self;
        [frames, index, quarantine, fixed]
            .into_iter()
            .fold(events, u64::saturating_add)
    }
}

/// Size of a disk on which such a directory leaves `log.disk_free_min_percent` free; `None` if no
/// size is enough.
pub(crate) fn disk_bytes(directory_bytes: u64, free_min_percent: u64) -> Option<u64> {
    let used_percent = 100_u64
        .checked_sub(free_min_percent)
        .filter(|&percent| percent > 0)?;
    let bytes = (u128::from(directory_bytes) * 100).div_ceil(used_percent.into());
    Some(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// The current state of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) total: u64,
    /// Free for the broker's user.
    pub(crate) free: u64,
    /// Used by the data directory.
    pub(crate) own: u64,
}

impl Space {
    /// Size to which the data directory can grow before callbacks are refused.
    fn available(self, free_min_percent: u64) -> u64 {
        // Rounded as the store's writer does it.
        let kept_free = (self.total / 100).saturating_mul(free_min_percent);
        self.free.saturating_add(self.own).saturating_sub(kept_free)
    }
}

/// The limits allow more than the disk holds, so callbacks are refused before retention removes
/// events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge {
    /// Size of the data directory with a full log and a full quarantine.
    pub(crate) needed: u64,
    /// Size that the disk allows.
    pub(crate) available: u64,
    /// The largest `log.retention_bytes_max` that fits; `None` if that is below its minimum.
    pub(crate) retention_bytes_max: Option<u64>,
}

/// Checks whether the disk has room for everything that the configuration allows, with events of
/// `event_bytes`.
pub(crate) fn too_large(config: &Config, space: Space, event_bytes: u64) -> Option<TooLarge> {
    let (log, quarantine) = (&config.log, &config.quarantine);
    let needed = Directory::of(
        log.retention_bytes_max,
        event_bytes,
        quarantine.retention_bytes_max,
    )
    .bytes();

    let available = space.available(log.disk_free_min_percent);
    if needed <= available {
        return None;
    }

    let beside = Directory::of(0, event_bytes, quarantine.retention_bytes_max).bytes();
    let for_events = u128::from(available.saturating_sub(beside));
    let on_disk = u128::from(event_bytes) + u128::from(FRAME_BYTES + INDEX_BYTES * INDEX_COPIES);

    // One event less, since the number of events is rounded up.
    let fits = for_events * u128::from(event_bytes) / on_disk.max(1);
    let fits = u64::try_from(fits)
        .unwrap_or(u64::MAX)
        .saturating_sub(event_bytes);
    let unit = if fits >= GIB { GIB } else { MIB };
    let retention_bytes_max =
        Some(fits / unit * unit).filter(|&bytes| bytes >= retention_bytes_min(config));

    Some(TooLarge {
        needed,
        available,
        retention_bytes_max,
    })
}

/// The minimum of `log.retention_bytes_max`.
pub(crate) fn retention_bytes_min(config: &Config) -> u64 {
    event_bytes_max(config).max(MIB)
}

/// Size of an event with the largest body, as `config/check` computes it.
fn event_bytes_max(config: &Config) -> u64 {
    config
        .ingest
        .body_bytes_max
        .saturating_mul(2)
        .saturating_add(64 * 1024)
}

/// A `log.retention_bytes_max` that keeps `bytes`, in whole MiB or GiB, and at least its minimum.
pub(crate) fn retention_bytes_for(config: &Config, bytes: u64) -> u64 {
    let unit = if bytes >= GIB { GIB } else { MIB };
    let whole = bytes.div_ceil(unit).saturating_mul(unit);
    whole.max(
        retention_bytes_min(config)
            .div_ceil(MIB)
            .saturating_mul(MIB),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, ConfigSources};

    fn defaults() -> Config {
        config::load(&ConfigSources::default()).unwrap()
    }

    #[test]
    fn ten_gib_are_less_than_half_a_day_of_fifty_a_second() {
        let traffic = Traffic {
            per_second: 50.0,
            body_bytes: 3_000,
        };
        let hours = traffic.time_to_bring(10 * GIB).as_secs_f64() / 3600.0;
        assert!(
            (9.0..9.9).contains(&hours),
            "measured were 9.9 h with an event that is twice its body: {hours}"
        );
    }

    #[test]
    fn the_free_percentage_is_of_the_disk_and_not_of_the_directory() {
        assert_eq!(disk_bytes(95 * GIB, 5), Some(100 * GIB));
        assert_eq!(disk_bytes(95 * GIB, 0), Some(95 * GIB));
        assert_eq!(disk_bytes(GIB, 99), Some(100 * GIB));
        assert_eq!((disk_bytes(1, 100), disk_bytes(1, u64::MAX)), (None, None));
        assert_eq!(disk_bytes(u64::MAX, 5), Some(u64::MAX));
    }

    #[test]
    fn a_log_is_too_large_for_a_disk_from_one_byte_on() {
        let config = defaults();
        let event = event_bytes(TYPICAL_BODY_BYTES);
        let needed = Directory::of(10 * GIB, event, GIB).bytes();
        let total = 100 * needed;
        let kept_free = total / 100 * 5;
        let space = |free| Space {
            total,
            free,
            own: 0,
        };
        assert_eq!(too_large(&config, space(kept_free + needed), event), None);
        let told = too_large(&config, space(kept_free + needed - 1), event).unwrap();
        assert_eq!((told.needed, told.available), (needed, needed - 1));
        assert_eq!(told.retention_bytes_max, Some(9 * GIB));
        // Space that the log uses already counts as available.
        let own = 7 * GIB;
        assert_eq!(
            too_large(
                &config,
                Space {
                    total,
                    free: kept_free + needed - own,
                    own
                },
                event
            ),
            None
        );
    }

    #[test]
    fn a_disk_without_room_for_any_log_names_no_size() {
        let config = defaults();
        for free in [0, GIB, 3 * GIB / 2] {
            let told = too_large(
                &config,
                Space {
                    total: 10 * GIB,
                    free,
                    own: 0,
                },
                1_000,
            )
            .unwrap();
            assert_eq!(told.retention_bytes_max, None, "{free}");
        }
    }

    proptest! {
        #[test]
        fn a_suggested_size_fits(
            free in 0..200 * GIB, more in 0..200 * GIB, own in 0..100 * GIB, percent in 0..100_u64,
            event in 100..3_000_000_u64, quarantine in MIB..10 * GIB, retention in 3 * MIB..1024 * GIB,
        ) {
            let mut config = defaults();
            config.log.retention_bytes_max = retention;
            config.log.disk_free_min_percent = percent;
            config.quarantine.retention_bytes_max = quarantine;
            let space = Space { total: free + own + more, free, own };
            if let Some(told) = too_large(&config, space, event) {
                prop_assert!(told.needed > told.available);
                if let Some(bytes) = told.retention_bytes_max {
                    prop_assert!(bytes < retention, "{} is not lower", bytes);
                    config.log.retention_bytes_max = bytes;
                    prop_assert_eq!(too_large(&config, space, event), None);
                }
            }
        }

        #[test]
        fn no_number_is_too_large(
            free: u64, total: u64, own: u64, percent: u64, event: u64, quarantine: u64, retention: u64, body: u64,
            per_second in 0.000_001..1e9_f64, seconds: u64,
        ) {
            let mut config = defaults();
            config.log.retention_bytes_max = retention;
            config.log.disk_free_min_percent = percent;
            config.quarantine.retention_bytes_max = quarantine;
            config.ingest.body_bytes_max = body;
            let _ = too_large(&config, Space { total, free, own }, event);
            let traffic = Traffic { per_second, body_bytes: body };
            let _ = (traffic.time_to_bring(retention), retention_bytes_for(&config, retention));
            let bytes = traffic.bytes_in(Duration::from_secs(seconds));
            prop_assert!(Directory::of(bytes, event_bytes(body), quarantine).bytes() >= bytes);
        }

        #[test]
        fn a_retention_for_some_bytes_keeps_them(bytes in 0..u64::MAX / 2) {
            let set = retention_bytes_for(&defaults(), bytes);
            prop_assert!(set >= bytes && set <= bytes.max(3 * MIB) + GIB);
        }
    }
}
