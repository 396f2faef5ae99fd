//! The last callbacks that were refused, as operators see them. In memory only, bounded in number and in size.
//!
//! Written on refusals only, which anybody can cause as fast as the network takes them. So one refusal costs a bounded look at
//! [`KEPT_MAX`] addresses, and an address that is refused all the time displaces its own refusals, not those of others.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::{network, printable::printable_beginning, trace::RequestId};

/// Refusals that are kept: those of a day, if one callback in a minute and a half is refused.
pub(crate) const KEPT_MAX: usize = 1_000;
/// One address, or one IPv6 /64, displaces the refusals of others only until it has this many.
const OF_ONE_ADDRESS: usize = KEPT_MAX / 2;

/// One request to the public listener that was not kept. It has no secret: no query, no header and no body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedCallback {
    /// When it was answered, by the log's clock.
    pub at: Timestamp,
    /// The `x-request-id` of the answer.
    pub request_id: RequestId,
    /// What the metrics count it as, and what the sender was answered.
    pub outcome: &'static str,
    /// The status of the answer.
    pub http_status: u16,
    /// Why it was refused; the sender does not learn it.
    pub cause: &'static str,
    /// What the operator can do about it.
    pub explanation: &'static str,
    /// The product that the URL names; `other` if it is malformed, empty if there is none.
    pub product: Box<str>,
    /// The path of the URL, printable and cut.
    pub path: Box<str>,
    /// The client, behind trusted proxies.
    pub address: IpAddr,
    /// Kind and name of the credential, if that is proved.
    pub credential: Box<str>,
    /// The key that the URL names, which is not proved.
    pub key_id: Box<str>,
}

/// The last refusals.
#[derive(Debug, Default)]
pub(crate) struct RefusedCallbacks(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// How many were noted so far.
    noted: u64,
    /// The oldest first. The addresses lie side by side, so that counting those of one is cheap.
    rows: VecDeque<Row>,
}

#[derive(Debug)]
struct Row {
    /// As limits count it.
    address: IpAddr,
    /// Its place in the order, from 1.
    number: u64,
    refused: Arc<RefusedCallback>,
}

impl RefusedCallbacks {
    /// Keeps a refusal, in place of an older one if there is no room.
    pub(crate) fn note(&self, mut refused: RefusedCallback) {
        refused.path = printable_beginning(&refused.path).into();
        let (address, refused) = (network::of(refused.address), Arc::new(refused));

        let mut kept = self.0.lock();
        kept.noted += 1;
        let number = kept.noted;
        let displaced = kept.make_room(address);
        kept.rows.push_back(Row {
            address,
            number,
            refused,
        });
        drop(kept);
        drop(displaced); // outside the lock
    }

    /// The newest `count_max` of those before number `before`, the newest first, with their numbers.
    pub(crate) fn newest(&self, before: u64, count_max: usize) -> Vec<(u64, Arc<RefusedCallback>)> {
        let kept = self.0.lock();
        kept.rows
            .iter()
            .rev()
            .filter(|row| row.number < before)
            .take(count_max)
            .map(|row| (row.number, Arc::clone(&row.refused)))
            .collect()
    }
}

impl Kept {
    fn make_room(&mut self, address: IpAddr) -> Option<Row> {
        if self.rows.len() < KEPT_MAX {
            return None;
        }
        let is_own = |row: &Row| row.address == address;
        if self.rows.iter().filter(|row| is_own(row)).count() < OF_ONE_ADDRESS {
            return self.rows.pop_front();
        }
        let oldest = self.rows.iter().position(is_own)?;
        self.rows.remove(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(address: &str, path: &str) -> RefusedCallback {
        RefusedCallback {
            at: Timestamp::UNIX_EPOCH,
            request_id: RequestId::new(),
            outcome: "unauthorized",
            http_status: 401,
            cause: "missing",
            explanation: "",
            product: "veo".into(),
            path: path.into(),
            address: address.parse().unwrap(),
            credential: "".into(),
            key_id: "".into(),
        }
    }

    fn paths(kept: &RefusedCallbacks) -> Vec<String> {
        let all = kept.newest(u64::MAX, usize::MAX);
        all.iter().map(|(_, one)| one.path.to_string()).collect()
    }

    #[test]
    fn the_last_thousand_are_kept_and_read_page_by_page() {
        let kept = RefusedCallbacks::default();
        for number in 0..KEPT_MAX + 3 {
            kept.note(refused("198.51.100.7", &number.to_string()));
        }
        let all = paths(&kept);
        assert_eq!(all.len(), KEPT_MAX);
        assert_eq!((&*all[0], &*all[KEPT_MAX - 1]), ("1002", "3"));

        let first = kept.newest(u64::MAX, 2);
        let second = kept.newest(first[1].0, 2);
        let shown: Vec<_> = second.iter().map(|(_, one)| &*one.path).collect();
        assert_eq!(shown, ["1000", "999"]);
    }

    #[test]
    fn a_flood_from_one_network_displaces_at_most_half_of_the_others() {
        let kept = RefusedCallbacks::default();
        for number in 0..KEPT_MAX {
            kept.note(refused("198.51.100.7", &format!("vendor {number}")));
        }
        for number in 0..3 * KEPT_MAX {
            let address = format!("2001:db8::{number:x}");
            kept.note(refused(&address, &format!("flood {number}")));
        }
        let all = paths(&kept);
        let of_vendor: Vec<_> = all.iter().filter(|it| it.starts_with("vendor")).collect();
        assert_eq!((all.len(), of_vendor.len()), (KEPT_MAX, OF_ONE_ADDRESS));
        assert_eq!((&*all[0], &**of_vendor[0]), ("flood 2999", "vendor 999"));
    }

    #[test]
    fn a_path_is_printable_and_short() {
        let kept = RefusedCallbacks::default();
        kept.note(refused("::1", &"\u{202e}x".repeat(1 << 16)));
        let shown = &paths(&kept)[0];
        assert!(
            shown.starts_with("\\u{202e}x") && shown.len() < 300,
            "{shown}"
        );
    }
}
