//! The groups of operations that are not answered yet: who waits for each, since when, and what is known of its end. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    cluster::{Group, GroupId},
    nats::RequestId,
    store::WriteError,
};

/// Most groups of this node that wait at a time while all is well: as many as are handed to a writer at once. Operations that come
/// meanwhile fill the next group in the store's queue, as they do during an fsync.
const OWN_MAX: usize = 4;
/// Most operations that wait while nothing can be written: as many as the store's queue holds. Their callers get an error when their
/// time is up; beyond it the queue fills, and refuses.
const STUCK_DRAFTS_MAX: usize = 4_096;
/// The same in bytes.
const STUCK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most groups of other nodes. Each node hands over four at a time, so only hundreds of nodes would need more; then they do not get
/// an answer, and write themselves.
const OF_PEERS_MAX: usize = 256;
/// The same in bytes.
const OF_PEERS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct OpenGroups {
    /// In the order in which they came.
    groups: BTreeMap<GroupId, Open>,
    own: Sum,
    of_peers: Sum,
}

/// A group that is not answered yet.
#[derive(Debug)]
pub(super) struct Open {
    group: Group,
    /// The request of the node that handed it over; `None`: it is this node's own.
    pub request: Option<RequestId>,
    since: Instant,
    /// Its time was up.
    is_late: bool,
    /// What the writer said became of it.
    pub results: Option<Bytes>,
    /// Why it cannot be written here.
    pub error: Option<WriteError>,
}

#[derive(Debug, Default)]
struct Sum {
    groups: usize,
    drafts: usize,
    bytes: usize,
}

impl Sum {
    fn add(&mut self, group: &Group) {
        self.groups += 1;
        self.drafts += group.drafts;
        self.bytes += group.bytes;
    }

    fn remove(&mut self, group: &Group) {
        self.groups -= 1;
        self.drafts -= group.drafts;
        self.bytes -= group.bytes;
    }
}

impl OpenGroups {
    pub(super) fn add(&mut self, group: Group, request: Option<RequestId>, now: Instant) {
        self.sum(request.is_some()).add(&group);
        let open = Open {
            group,
            request,
            since: now,
            is_late: false,
            results: None,
            error: None,
        };
        self.groups.insert(group.id, open);
    }

    fn sum(&mut self, is_from_peer: bool) -> &mut Sum {
        if is_from_peer {
            &mut self.of_peers
        } else {
            &mut self.own
        }
    }

    pub(super) fn get_mut(&mut self, id: GroupId) -> Option<&mut Open> {
        self.groups.get_mut(&id)
    }

    /// Takes out a group that is answered now.
    pub(super) fn remove(&mut self, id: GroupId) -> Option<Open> {
        let open = self.groups.remove(&id)?;
        self.sum(open.request.is_some()).remove(&open.group);
        Some(open)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether the next group is taken from the store's queue.
    pub(super) fn takes_own(&self, is_stuck: bool) -> bool {
        if is_stuck {
            self.own.drafts < STUCK_DRAFTS_MAX && self.own.bytes < STUCK_BYTES_MAX
        } else {
            self.own.groups < OWN_MAX
        }
    }

    /// Whether another node's group is taken.
    pub(super) fn takes_of_peers(&self) -> bool {
        self.of_peers.groups < OF_PEERS_MAX && self.of_peers.bytes < OF_PEERS_BYTES_MAX
    }

    /// Those whose time is up, each once.
    pub(super) fn late(&mut self, now: Instant, patience: Duration) -> Vec<GroupId> {
        self.groups
            .iter_mut()
            .filter(|(_, open)| !open.is_late && now >= open.since + patience)
            .map(|(id, open)| {
                open.is_late = true;
                *id
            })
            .collect()
    }

    /// When the time of the next one is up.
    pub(super) fn next_late(&self, patience: Duration) -> Option<Instant> {
        let mut waiting = self.groups.values().filter(|open| !open.is_late);
        waiting.next().map(|oldest| oldest.since + patience)
    }

    /// All of them.
    pub(super) fn ids(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(id: u64) -> Group {
        Group {
            id: GroupId(id),
            drafts: 512,
            bytes: 1_000,
            is_from_peer: false,
        }
    }

    #[test]
    fn four_groups_wait_while_all_is_well_and_a_bounded_number_of_operations_while_nothing_can_be_written()
     {
        let (mut groups, now) = (OpenGroups::default(), Instant::now());
        let mut id = 0;
        while groups.takes_own(false) {
            id += 1;
            groups.add(group(id), None, now);
        }
        assert_eq!(id, 4);
        while groups.takes_own(true) {
            id += 1;
            groups.add(group(id), None, now);
        }
        assert_eq!(id, 8);
        groups.remove(GroupId(3)).unwrap();
        assert!(groups.takes_own(true) && !groups.takes_own(false));
        assert!(groups.takes_of_peers(), "they have room of their own");
    }

    #[test]
    fn a_group_is_late_once() {
        let (mut groups, now) = (OpenGroups::default(), Instant::now());
        let patience = Duration::from_secs(4);
        groups.add(group(1), None, now);
        groups.add(group(2), None, now + patience);
        assert_eq!(groups.next_late(patience), Some(now + patience));
        assert_eq!(groups.late(now + patience, patience), [GroupId(1)]);
        assert_eq!(groups.next_late(patience), Some(now + 2 * patience));
        assert_eq!(groups.late(now + patience, patience), []);
    }
}
