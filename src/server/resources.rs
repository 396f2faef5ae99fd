//! Compares what the configuration allows the broker to take with what the machine has: disk for the data directory, and memory of the
//! cgroup. A start warns of what does not fit, and lowers its own caches where memory is short.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{
    aside::{self, START_TIMEOUT},
    cgroup,
    numbers::signed,
};
use crate::{
    config::{Config, Loaded, Settings},
    metrics::Metrics,
    size::size_text,
    sizing::{
        bytes_text,
        disk::{self, Space, TYPICAL_BODY_BYTES},
        memory::{self, Fitted, Lowered},
    },
    store::Summary,
};

/// Files of the data directory that are counted: a log of 300 GiB has so many.
const DATA_FILES_MAX: usize = 10_000;
/// Parts of the sum of memory that are named: they are nearly all of it.
const PARTS_NAMED: usize = 3;
/// Bytes of what `stat` calls a block, on every file system.
const BLOCK_BYTES: u64 = 512;

/// The configuration to be put into force: with lower caches if the cgroup has less memory than the broker may take. Warns of that.
pub(super) fn fitted_to_memory(config: &Config, metrics: &Metrics) -> Config {
    let limit = cgroup::memory_limit();
    let limit_bytes = limit.as_ref().map_or(0, |limit| limit.bytes);
    metrics.memory_limit_bytes.set(signed(limit_bytes));

    let fitted = limit
        .as_ref()
        .map(|limit| memory::fitted(config, limit.bytes));
    let bytes_max = fitted
        .as_ref()
        .map_or_else(|| memory::bytes_max(config), |fitted| fitted.bytes_max);
    metrics.memory_bytes_max.set(signed(bytes_max));

    let (Some(limit), Some(fitted)) = (limit, fitted) else {
        return config.clone();
    };
    if let Some(problem) = too_much_memory(config, &limit) {
        tracing::warn!(limit = limit.bytes, file = %limit.file.display(), problem, "the cgroup has too little memory");
    }
    for Lowered { key, from, to } in &fitted.lowered {
        let (from, to) = (size_text(*from), size_text(*to));
        tracing::warn!(
            key,
            from,
            to,
            "a cache is lower than it was set, because of the cgroup's limit"
        );
    }
    fitted.config
}

/// The configuration as it is written, with the caches that [`fitted_to_memory`] lowers.
pub(super) fn described(loaded: &Loaded) -> Settings {
    let mut settings = loaded.settings.clone();
    let fitted = |limit: cgroup::Limit| memory::fitted(&loaded.config, limit.bytes);
    let lowered = cgroup::memory_limit().map(|limit| fitted(limit).lowered);
    for Lowered { key, to, .. } in lowered.unwrap_or_default() {
        settings.lower(key, size_text(to));
    }
    settings
}

/// Warns of a disk that has no room for the log that the configuration allows.
pub(super) async fn warn_of_disk(config: &Config, summary: Summary) {
    let (copy, event_bytes) = (config.clone(), event_bytes(summary));
    // Aside: the file system may hang, although the store could be opened.
    let looked = aside::within(START_TIMEOUT, move || too_little_disk(&copy, event_bytes)).await;
    match looked {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(problem))) => {
            tracing::warn!(data_dir = %config.data_dir.display(), problem, "the log is larger than its disk");
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot tell how large the disk of the data directory is");
        }
        Err(error) => tracing::warn!(
            error,
            "cannot tell how large the disk of the data directory is"
        ),
    }
}

/// The warnings for a rehearsal. It must not open the log, which a broker may have open, so it assumes events of typical size.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let memory = cgroup::memory_limit().and_then(|limit| too_much_memory(config, &limit));
    let disk = too_little_disk(config, disk::event_bytes(TYPICAL_BODY_BYTES))
        .ok()
        .flatten();
    disk.into_iter().chain(memory).collect()
}

/// Average bytes of an event of this log; of an empty log those of a typical event.
fn event_bytes(summary: Summary) -> u64 {
    let average = summary.event_bytes.checked_div(summary.event_count);
    average
        .filter(|&bytes| bytes > 0)
        .unwrap_or_else(|| disk::event_bytes(TYPICAL_BODY_BYTES))
}

/// A warning with the next step if the sum of the limits is more than the cgroup's limit; `None` if it fits.
fn too_much_memory(config: &Config, limit: &cgroup::Limit) -> Option<String> {
    let needed = memory::bytes_max(config);
    if needed <= limit.bytes {
        return None;
    }

    let Fitted {
        lowered, bytes_max, ..
    } = memory::fitted(config, limit.bytes);
    let caches = lowered
        .iter()
        .map(|it| format!("{} to {}", it.key, size_text(it.to)))
        .collect::<Vec<_>>()
        .join(", ");
    let caches = if caches.is_empty() {
        String::new()
    } else {
        format!("; a start lowers {caches}")
    };
    let (file, has) = (limit.file.display(), bytes_text(limit.bytes));
    let all = format!(
        "the limits allow {} of memory, and {file} allows {has}{caches}",
        bytes_text(needed)
    );
    if bytes_max <= limit.bytes {
        return Some(format!(
            "{all}, and then they allow {}",
            bytes_text(bytes_max)
        ));
    }

    let mut parts = memory::parts(config);
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    let parts = parts
        .iter()
        .filter(|part| part.limit.contains('_'))
        .take(PARTS_NAMED);
    let parts: Vec<_> = parts
        .map(|part| format!("{} ({})", bytes_text(part.bytes), part.limit))
        .collect();
    Some(format!(
        "{all}, which leaves {}: beyond the cgroup's limit the kernel kills the broker. Give it {} (MemoryMax=), or lower what takes \
         most: {}; `blobcast size` shows the sum",
        bytes_text(bytes_max),
        bytes_text(needed),
        parts.join(", ")
    ))
}

/// A warning with the next step if the disk of the data directory has no room for log and quarantine; `None` if it has.
fn too_little_disk(config: &Config, event_bytes: u64) -> io::Result<Option<String>> {
    let space = space_of(&config.data_dir)?;
    let Some(told) = disk::too_large(config, space, event_bytes) else {
        return Ok(None);
    };

    let remedy = match told.retention_bytes_max {
        Some(bytes) => format!(
            "set log.retention_bytes_max = \"{}\", or give it",
            size_text(bytes)
        ),
        None => "lower log.retention_bytes_max and quarantine.retention_bytes_max, or give it"
            .to_owned(),
    };
    let percent = config.log.disk_free_min_percent;
    let larger = disk::disk_bytes(told.needed, percent);
    let larger = larger.map_or_else(
        || "a lower log.disk_free_min_percent".to_owned(),
        |bytes| format!("a disk of {} of its own", bytes_text(bytes)),
    );
    Ok(Some(format!(
        "with log.retention_bytes_max = {} and the quarantine {} takes {}, and its disk has {} for it ({} in all, {percent} % of it \
         kept free): callbacks are refused before the log is full; {remedy} {larger}",
        size_text(config.log.retention_bytes_max),
        config.data_dir.display(),
        bytes_text(told.needed),
        bytes_text(told.available),
        bytes_text(space.total),
    )))
}

/// The disk that a data directory is on, or will be on.
fn space_of(data_dir: &Path) -> io::Result<Space> {
    let absolute = std::path::absolute(data_dir)?;
    let there = absolute
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space {
        total: bytes(stat.f_blocks),
        free: bytes(stat.f_bavail),
        own: own_bytes(&absolute),
    })
}

/// What a data directory takes of its disk. Files that are removed meanwhile are not counted.
fn own_bytes(data_dir: &Path) -> u64 {
    // The directory itself may be a link. Links within it lead to files that are not its own.
    let data_dir = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let (mut open, mut bytes, mut seen) = (vec![data_dir], 0_u64, 0);
    while let Some(path) = open.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        seen += 1;
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(
                entries
                    .map(|entry| entry.path())
                    .take(DATA_FILES_MAX.saturating_sub(seen)),
            );
        }
        bytes = bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
        if seen >= DATA_FILES_MAX {
            break;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, ConfigSources};

    const MIB: u64 = 1 << 20;

    fn defaults() -> Config {
        config::load(&ConfigSources::default()).unwrap()
    }

    fn limit(bytes: u64) -> cgroup::Limit {
        cgroup::Limit {
            bytes,
            file: "/sys/fs/cgroup/memory.max".into(),
        }
    }

    #[test]
    fn a_cgroup_with_enough_memory_is_no_problem() {
        let config = defaults();
        assert_eq!(
            too_much_memory(&config, &limit(memory::bytes_max(&config))),
            None
        );
    }

    #[test]
    fn where_lower_caches_are_enough_they_are_named() {
        let config = defaults();
        let told =
            too_much_memory(&config, &limit(memory::bytes_max(&config) - 100 * MIB)).unwrap();
        assert!(
            told.contains("/sys/fs/cgroup/memory.max allows 4."),
            "{told}"
        );
        assert!(
            told.contains(
                "; a start lowers grpc.reading_bytes_max to 412MiB, and then they allow 4."
            ),
            "{told}"
        );
        assert!(!told.contains("kernel"), "{told}");
    }

    #[test]
    fn where_lower_caches_are_not_enough_the_largest_parts_are_named_with_their_keys() {
        let config = defaults();
        let told = too_much_memory(&config, &limit(768 * MIB)).unwrap();
        for part in [
            "allows 768 MiB",
            "grpc.reading_bytes_max to 64MiB, hub.ring_bytes_max to 8MiB, store.cache_bytes to 8MiB",
            "the kernel kills the broker",
            "(MemoryMax=)",
            "GiB (grpc.subscriptions_max",
            "MiB (grpc.connections_max",
        ] {
            assert!(told.contains(part), "no {part:?} in {told}");
        }
    }

    #[test]
    fn an_event_of_an_empty_log_is_a_typical_one() {
        let summary = |event_count, event_bytes| Summary {
            event_count,
            event_bytes,
            quarantine_count: 0,
            quarantine_bytes: 0,
        };
        assert_eq!(
            event_bytes(summary(0, 0)),
            disk::event_bytes(TYPICAL_BODY_BYTES)
        );
        assert_eq!(event_bytes(summary(3, 3_000)), 1_000);
    }

    #[test]
    fn a_warning_of_a_disk_without_room_says_what_to_set() {
        let shelf = tempfile::tempdir().unwrap();
        let mut config = defaults();
        config.data_dir = shelf.path().join("none/yet");
        config.log.disk_free_min_percent = 0;
        (
            config.log.retention_bytes_max,
            config.quarantine.retention_bytes_max,
        ) = (3 * MIB, MIB);
        assert_eq!(
            too_little_disk(&config, 6_000).unwrap(),
            None,
            "this disk has half a GiB free"
        );

        config.log.retention_bytes_max = 1 << 62;
        let told = too_little_disk(&config, 6_000).unwrap().unwrap();
        assert!(
            told.contains("with log.retention_bytes_max = 4194304TiB and the quarantine"),
            "{told}"
        );
        let set = told
            .split("set log.retention_bytes_max = \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        config.log.retention_bytes_max = config::parse_size(set.unwrap()).unwrap();
        assert_eq!(too_little_disk(&config, 6_000).unwrap(), None, "{told}");

        config.log.disk_free_min_percent = 100;
        let told = too_little_disk(&config, 6_000).unwrap().unwrap();
        assert!(
            told.contains("lower log.retention_bytes_max and quarantine.retention_bytes_max"),
            "{told}"
        );
        assert!(
            told.ends_with("or give it a lower log.disk_free_min_percent"),
            "{told}"
        );
    }

    #[test]
    fn files_in_the_directory_are_its_own() {
        let shelf = tempfile::tempdir().unwrap();
        fs::create_dir(shelf.path().join("log")).unwrap();
        let before = own_bytes(shelf.path());
        fs::write(shelf.path().join("log/1"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/", shelf.path().join("link")).unwrap();
        let grown = own_bytes(shelf.path()) - before;
        assert!((MIB..2 * MIB).contains(&grown), "{grown}");
        assert_eq!(own_bytes(&shelf.path().join("missing")), 0);

        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("data");
        std::os::unix::fs::symlink(shelf.path(), &link).unwrap();
        assert_eq!(
            own_bytes(&link),
            own_bytes(shelf.path()),
            "the data directory may be a link"
        );
    }
}
