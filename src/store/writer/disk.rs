//! Whether the disk has room: below a share of free space the store takes no callbacks, and close to none it writes nothing at all.

use std::{io, mem};

use crate::store::{Health, Store, lock};

/// With less free disk retention forgets nothing either: forgetting writes, and a write that fails closes the store.
pub(super) const FORGET_FREE_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Free and total bytes of the store's disk. A value, so that tests can fill the disk.
pub(super) type DiskBytes = Box<dyn Fn(&Store) -> io::Result<(u64, u64)> + Send>;

/// Notes in the store whether its disk has room. A store that has failed stays failed.
pub(super) fn check(store: &Store, disk_bytes: &DiskBytes, free_min_percent: u64) {
    let mut health = lock(&store.health);
    if matches!(*health, Health::Failed(_)) {
        return;
    }
    if !store.is_in_place() {
        let problem = "the data directory was removed or replaced".to_owned();
        tracing::error!(problem, "refusing callbacks until a restart");
        *health = Health::Failed(problem);
        return;
    }

    // If the file system gives no answer, the next write will tell whether it works.
    let Ok((free_bytes, total_bytes)) = disk_bytes(store) else {
        return;
    };
    let now = disk_health(free_bytes, total_bytes, free_min_percent);
    if mem::discriminant(&now) != mem::discriminant(&*health) {
        match &now {
            Health::DiskLow { needed_bytes, .. } => {
                tracing::error!(
                    free_bytes,
                    needed_bytes,
                    "too little disk is free: refusing callbacks"
                );
            }
            _ => tracing::info!(free_bytes, "enough disk is free again: writing"),
        }
    }
    *health = now;
}

fn disk_health(free_bytes: u64, total_bytes: u64, free_min_percent: u64) -> Health {
    // Divides first, so that no disk is too large; the rounding loses less than a hundred bytes.
    let needed_bytes = total_bytes / 100 * free_min_percent;
    if free_bytes < needed_bytes {
        Health::DiskLow {
            free_bytes,
            needed_bytes,
        }
    } else {
        Health::Writable
    }
}

/// Whether there is room for the commit that forgets or deletes something.
pub(super) fn may_forget(health: &Health) -> bool {
    match health {
        Health::Writable => true,
        Health::DiskLow { free_bytes, .. } => *free_bytes >= FORGET_FREE_BYTES_MIN,
        Health::Failed(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_low_below_its_share_and_not_at_it() {
        let low = |free_bytes, needed_bytes| Health::DiskLow {
            free_bytes,
            needed_bytes,
        };
        assert_eq!(disk_health(49, 1_000, 5), low(49, 50));
        assert_eq!(disk_health(50, 1_000, 5), Health::Writable);
        assert_eq!(disk_health(0, 1_000, 0), Health::Writable, "0 is off");
        assert_eq!(
            disk_health(999, 1_000, 100),
            low(999, 1_000),
            "100 takes nothing on a disk that holds anything"
        );
        assert_eq!(
            disk_health(u64::MAX, u64::MAX, 100),
            Health::Writable,
            "no disk is too large"
        );
    }
}
