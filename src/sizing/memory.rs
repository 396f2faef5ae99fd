//! The most memory that the broker uses when every limit is reached at once: the sum that
//! SECURITY.md shows.
//!
//! Also lowers caches until that sum fits a limit of the machine. Measures nothing: the constants
//! were measured before.

use crate::config::Config;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A commit takes commands up to 8 MiB (`store/writer`), and one more, with the raw body and the
/// fields read from it.
const COMMIT_BYTES_BESIDE_BODY: u64 = 8 * MIB;
/// The queue of commands that wait for the writer (`store/writer`).
const QUEUE_BYTES: u64 = 64 * MIB;
/// What the events of the newest two segments have, and one summary of that (`store/log/summary`): sets of 65,536 hashes at
/// most, of which one grows.
const SUMMARY_BYTES: u64 = 4 * MIB;
/// Open backups. Each reads one commit while it sends another (`rpc/answers`).
const BACKUPS: u64 = 4;
/// Concurrent reads of more than 512 KiB, each of a commit (`store/log`).
const LARGE_READS: u64 = 4;
/// Other concurrent reads of the log: one for each of the runtime's threads for reads.
const READS: u64 = 16;
const READ_BYTES: u64 = MIB;
/// A subscription that waits for a task: its state, and the bytes that may always be sent to it.
/// Measured with 100,000 of them. Other subscriptions take 5 KiB.
const SUBSCRIPTION_BYTES: u64 = 17 * KIB;
/// A task id of a filter, in the index of the live path.
const TASK_ID_BYTES: u64 = 320;
/// The task index in memory, 250,000 tasks (`store/tasks`), and the database beside its cache.
const INDEX_BYTES: u64 = 168 * MIB;
/// Number, credential, product, time and size of one quarantined callback (`store/shares`), and its
/// place in the log (`store/quarantine_index`).
const QUARANTINED_BYTES: u64 = 250;
/// Tasks that are expected, if the vendor is asked (`store/expectation`), or waited for
/// (`reconcile/waiting`): with as many labels and as long names as there may be, and with their places
/// in the schedule, which may have a third more. One with a UUID and two labels takes 1,100 bytes.
const EXPECTATIONS: u64 = 110_000;
const EXPECTATION_BYTES: u64 = 4 * KIB;
/// Requests to the vendor's API at the same time, and the largest answer (`reconcile/vendor_api`): as it
/// arrives, in one piece, and twice as events that are made of it.
const VENDOR_ANSWERS: u64 = 4;
const VENDOR_ANSWER_BYTES: u64 = 4 * MIB;
/// A connection of the gRPC listener with TLS; without TLS, 71 KiB. In HTTP/1.1 it takes 35 KiB without TLS, with a stream, too.
const GRPC_CONNECTION_BYTES: u64 = 92 * KIB;
/// A connection of the public listener.
const INGEST_CONNECTION_BYTES: u64 = 100 * KIB;
/// Health checks of unauthenticated clients (`server/grpc/admission`).
const HEALTH_BYTES: u64 = 5 * MIB;
/// `Watch` streams of unauthenticated clients and of clients, and an eighth that is ending.
const WATCHES: u64 = (1_024 + 8_192) / 8 * 9;
const WATCH_BYTES: u64 = 6 * KIB;
/// Calls of reflection, and as many that are ending.
const REFLECTIONS: u64 = 2 * 32;
const REFLECTION_BYTES: u64 = 384 * KIB;
/// Answers of any size that clients have not read.
const UNREAD_ANSWERS: u64 = 16_384;
const UNREAD_ANSWER_BYTES: u64 = 7 * KIB;
/// Callbacks that were refused (`refused`), each with a path of 200 characters.
const REFUSALS: u64 = 1_000;
const REFUSAL_BYTES: u64 = 2 * KIB;
/// Streams that have ended (`subscription/ended`), each with a large filter.
const ENDED_STREAMS: u64 = 1_000;
const ENDED_STREAM_BYTES: u64 = 12 * KIB;
/// Code, stacks, tables, and free memory that the allocator keeps.
const PROCESS_BYTES: u64 = 40 * MIB;

/// One line of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) what: &'static str,
    /// The keys of the configuration that limit it, and how.
    pub(crate) limit: &'static str,
    /// The most it takes.
    pub(crate) bytes: u64,
}

/// A row of the table: what takes memory, its limit, and the bytes that a configuration allows.
type Row = (&'static str, &'static str, fn(&Config) -> u64);

/// What takes memory, in the order of SECURITY.md.
const ROWS: [Row; 18] = [
    (
        "events read for streams",
        "grpc.reading_bytes_max",
        |config| config.grpc.reading_bytes_max,
    ),
    (
        "streams, with their filters",
        "grpc.subscriptions_max × 17 KiB, task_ids_in_all_max × 320 B",
        |config| {
            let streams = times(config.grpc.subscriptions_max, SUBSCRIPTION_BYTES);
            streams.saturating_add(times(config.grpc.task_ids_in_all_max, TASK_ID_BYTES))
        },
    ),
    ("answers", "grpc.answers_bytes_max", |config| {
        config.grpc.answers_bytes_max
    }),
    (
        "open backups",
        "4 of two commits (each 8 MiB + 2 × ingest.body_bytes_max)",
        |config| times(2 * BACKUPS, commit_bytes(config)),
    ),
    (
        "reads of the log",
        "4 of two commits, 16 of 1 MiB",
        |config| times(2 * LARGE_READS, commit_bytes(config)).saturating_add(READS * READ_BYTES),
    ),
    (
        "recent events",
        "hub.ring_bytes_max, two commits",
        |config| times(2, commit_bytes(config)).saturating_add(config.hub.ring_bytes_max),
    ),
    (
        "requests on their way in",
        "ingest.inflight_bytes_max, grpc.inflight_bytes_max",
        |config| {
            let ingest = config.ingest.inflight_bytes_max;
            ingest.saturating_add(config.grpc.inflight_bytes_max)
        },
    ),
    (
        "the writer and its queue",
        "68 MiB, two commits",
        |config| times(2, commit_bytes(config)).saturating_add(QUEUE_BYTES + SUMMARY_BYTES),
    ),
    (
        "the database and the task index",
        "store.cache_bytes, 168 MiB",
        |config| config.store.cache_bytes.saturating_add(INDEX_BYTES),
    ),
    (
        "owners of quarantined callbacks",
        "quarantine.retention_count_max × 250 B",
        |config| times(config.quarantine.retention_count_max, QUARANTINED_BYTES),
    ),
    (
        "expected tasks, with reconcile.enabled",
        "110,000 × 4 KiB",
        |config| {
            if config.reconcile.enabled {
                EXPECTATIONS * EXPECTATION_BYTES
            } else {
                0
            }
        },
    ),
    (
        "answers of the vendor's API, with reconcile.enabled",
        "4 of 4 MiB",
        |config| {
            if config.reconcile.enabled {
                VENDOR_ANSWERS * VENDOR_ANSWER_BYTES
            } else {
                0
            }
        },
    ),
    (
        "connections",
        "grpc.connections_max × 92 KiB, ingest.connections_max × 100 KiB",
        |config| {
            let grpc = times(config.grpc.connections_max, GRPC_CONNECTION_BYTES);
            grpc.saturating_add(times(
                config.ingest.connections_max,
                INGEST_CONNECTION_BYTES,
            ))
        },
    ),
    (
        "health checks and Watch streams",
        "5 MiB, 9,216 of 6 KiB, and an eighth of those",
        |_| HEALTH_BYTES + WATCHES * WATCH_BYTES,
    ),
    ("calls of reflection", "64 of 384 KiB", |_| {
        REFLECTIONS * REFLECTION_BYTES
    }),
    (
        "answers that clients have not taken",
        "16,384 of 7 KiB",
        |_| UNREAD_ANSWERS * UNREAD_ANSWER_BYTES,
    ),
    (
        "refusals and ended streams that are remembered",
        "1,000 of 2 KiB, 1,000 of 12 KiB",
        |_| REFUSALS * REFUSAL_BYTES + ENDED_STREAMS * ENDED_STREAM_BYTES,
    ),
    ("the process itself", "", |_| PROCESS_BYTES),
];

/// The lines of the sum for a configuration.
pub(crate) fn parts(config: &Config) -> Vec<Part> {
    ROWS.iter()
        .map(|&(what, limit, bytes)| Part {
            what,
            limit,
            bytes: bytes(config),
        })
        .collect()
}

fn commit_bytes(config: &Config) -> u64 {
    times(2, config.ingest.body_bytes_max).saturating_add(COMMIT_BYTES_BESIDE_BODY)
}

fn times(count: u64, bytes: u64) -> u64 {
    count.saturating_mul(bytes)
}

/// The most memory that the broker uses.
pub(crate) fn bytes_max(config: &Config) -> u64 {
    ROWS.iter()
        .fold(0, |sum, (_, _, bytes)| sum.saturating_add(bytes(config)))
}

/// A limit that only affects speed. With a lower one nothing is refused: streams read the log in
/// turns, or read events from the log that the ring no longer has. All other limits are promises to
/// clients, or refuse something when lowered.
struct Cache {
    key: &'static str,
    /// A smaller cache would be of little use.
    bytes_min: u64,
    of: fn(&mut Config) -> &mut u64,
}

/// In the order in which they are lowered: first the one whose size matters only when it is full.
const CACHES: [Cache; 3] = [
    // About forty wide reads at once.
    Cache {
        key: "grpc.reading_bytes_max",
        bytes_min: 64 * MIB,
        of: |config| &mut config.grpc.reading_bytes_max,
    },
    // Seconds of a busy broker: a stream that is just behind needs no file.
    Cache {
        key: "hub.ring_bytes_max",
        bytes_min: 8 * MIB,
        of: |config| &mut config.hub.ring_bytes_max,
    },
    // The blocks of the index that every lookup reads.
    Cache {
        key: "store.cache_bytes",
        bytes_min: 8 * MIB,
        of: |config| &mut config.store.cache_bytes,
    },
];

/// A configuration with caches that fit the memory of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fitted {
    pub(crate) config: Config,
    pub(crate) lowered: Vec<Lowered>,
    /// The most memory that the broker uses with it.
    pub(crate) bytes_max: u64,
}

/// A cache that is smaller than configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lowered {
    pub(crate) key: &'static str,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Lowers caches until the sum is at most `limit`, or no cache can be lowered further. Never raises
/// one.
pub(crate) fn fitted(config: &Config, limit: u64) -> Fitted {
    let (mut config, mut lowered) = (config.clone(), Vec::new());
    for Cache { key, bytes_min, of } in CACHES {
        let excess = bytes_max(&config).saturating_sub(limit);
        let bytes = of(&mut config);
        let from = *bytes;
        // Whole MiB are easier to read.
        let to = (from.saturating_sub(excess) / MIB * MIB).max(bytes_min);
        if excess == 0 || to >= from {
            continue;
        }
        *bytes = to;
        lowered.push(Lowered { key, from, to });
    }
    let bytes_max = bytes_max(&config);
    Fitted {
        config,
        lowered,
        bytes_max,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, ConfigSources};

    fn defaults() -> Config {
        config::load(&ConfigSources::default()).unwrap()
    }

    /// The cells of a Markdown table, without its marks.
    fn rows(text: &str) -> Vec<Vec<String>> {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with('|'));
        let cells = |line: &str| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().replace('`', ""))
                .collect()
        };
        lines.map(cells).collect()
    }

    /// A part as a row of that table.
    fn row(part: &Part) -> Vec<String> {
        let mib = part.bytes.div_ceil(MIB);
        let mib = if mib >= 1_000 {
            format!("{},{:03}", mib / 1_000, mib % 1_000)
        } else {
            mib.to_string()
        };
        vec![part.what.to_owned(), part.limit.to_owned(), mib]
    }

    #[test]
    fn security_md_shows_the_sum_of_the_defaults() {
        let text = include_str!("../../SECURITY.md");
        let table = text
            .split_once("most, MiB |")
            .and_then(|(_, rest)| rest.split_once("together"))
            .expect("the table")
            .0;
        let expected: Vec<_> = parts(&defaults()).iter().map(row).collect();
        assert_eq!(rows(table)[1..], expected, "SECURITY.md, \"Memory\"");

        let total = format!(
            "together {:.1} GiB, below `MemoryMax=5G`",
            bytes_max(&defaults()) as f64 / f64::from(1 << 30)
        );
        assert!(text.contains(&total), "SECURITY.md has to say: {total}");
    }

    #[test]
    fn the_unit_allows_what_the_defaults_take() {
        let unit = include_str!("../../deploy/systemd/blobcast.service");
        let limit = unit
            .lines()
            .find_map(|line| line.strip_prefix("MemoryMax=")?.strip_suffix('G'))
            .unwrap();
        let limit = limit.parse::<u64>().unwrap() << 30;
        assert!(
            bytes_max(&defaults()) < limit && limit < bytes_max(&defaults()) / 2 * 3,
            "MemoryMax={limit}"
        );
    }

    #[test]
    fn a_limit_that_is_enough_lowers_nothing() {
        let config = defaults();
        let enough = bytes_max(&config);
        assert_eq!(
            fitted(&config, enough),
            Fitted {
                config: config.clone(),
                lowered: vec![],
                bytes_max: enough
            }
        );
        // One byte less lowers the first cache, and by no more than necessary.
        let fitted = fitted(&config, enough - 1);
        let from = config.grpc.reading_bytes_max;
        assert_eq!(
            fitted.lowered,
            [Lowered {
                key: "grpc.reading_bytes_max",
                from,
                to: from - MIB
            }]
        );
    }

    #[test]
    fn caches_are_lowered_one_after_the_other_and_never_below_their_minimum() {
        let config = defaults();
        let lowered = |limit| {
            fitted(&config, limit)
                .lowered
                .iter()
                .map(|it| (it.key, it.to / MIB))
                .collect::<Vec<_>>()
        };
        let all = bytes_max(&config);
        assert_eq!(lowered(all - 448 * MIB), [("grpc.reading_bytes_max", 64)]);
        assert_eq!(
            lowered(all - 449 * MIB),
            [("grpc.reading_bytes_max", 64), ("hub.ring_bytes_max", 63)]
        );
        let least = [
            ("grpc.reading_bytes_max", 64),
            ("hub.ring_bytes_max", 8),
            ("store.cache_bytes", 8),
        ];
        for limit in [all - 528 * MIB, 768 * MIB, MIB, 0] {
            assert_eq!(lowered(limit), least, "{limit}");
        }
    }

    #[test]
    fn a_cache_below_its_minimum_is_not_changed() {
        let mut config = defaults();
        (
            config.grpc.reading_bytes_max,
            config.hub.ring_bytes_max,
            config.store.cache_bytes,
        ) = (8 * MIB, MIB, MIB);
        assert_eq!(fitted(&config, 0).lowered, []);
    }

    #[test]
    fn no_sum_overflows() {
        let mut config = defaults();
        config.grpc.reading_bytes_max = u64::MAX;
        config.hub.ring_bytes_max = u64::MAX;
        config.grpc.subscriptions_max = u64::MAX;
        config.ingest.body_bytes_max = u64::MAX;
        assert_eq!(bytes_max(&config), u64::MAX);
        assert_eq!(fitted(&config, 1 << 30).lowered.len(), 3);
    }

    proptest! {
        #[test]
        fn only_caches_are_lowered_and_only_as_far_as_it_helps(
            limit in 0..8 * 1024 * MIB, reading in MIB..4096 * MIB, ring in MIB..1024 * MIB, cache in MIB..1024 * MIB,
        ) {
            let mut config = defaults();
            (config.grpc.reading_bytes_max, config.hub.ring_bytes_max, config.store.cache_bytes) = (reading, ring, cache);
            let fitted = fitted(&config, limit);
            prop_assert_eq!(fitted.bytes_max, bytes_max(&fitted.config));

            let lowered: Vec<_> = fitted.lowered.iter().map(|it| it.key).collect();
            let mut changed = config::needs_restart(&config, &fitted.config);
            changed.sort_by_key(|key| CACHES.iter().position(|cache| cache.key == *key));
            prop_assert_eq!(&changed, &lowered, "nothing else");
            prop_assert!(fitted.lowered.iter().all(|it| it.to < it.from));

            // Either it fits, and with no more than a MiB to spare if anything was lowered, or nothing is left to lower.
            let mut in_force = fitted.config.clone();
            let is_least = CACHES.iter().all(|cache| *(cache.of)(&mut in_force) <= cache.bytes_min);
            prop_assert!(fitted.bytes_max <= limit || is_least);
            prop_assert!(lowered.is_empty() || is_least || fitted.bytes_max + MIB > limit);
        }
    }
}
