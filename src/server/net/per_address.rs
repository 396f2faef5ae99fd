//! Limits the connections of each address, for IPv6 of each /64. The table is as large as the number of open connections at most.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use crate::network;

/// The open connections of each address.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    each_max: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of its address' share; given back when dropped.
#[derive(Debug)]
pub(in crate::server) struct Share {
    shares: Shares,
    /// The address that it counts for; `None` if it is not counted.
    address: Option<IpAddr>,
}

impl Shares {
    pub(super) fn new(each_max: usize) -> Self {
        Self {
            each_max,
            open: Arc::default(),
        }
    }

    /// One more connection, or `None` if the address has its share. Connections over loopback are not counted: a process on this machine
    /// can do worse, and a proxy beside the broker stands for all clients.
    pub(super) fn take(&self, address: IpAddr) -> Option<Share> {
        let is_here = address.to_canonical().is_loopback();
        let address = network::of(address);
        if !is_here {
            let mut open = self.open.lock();
            let count = open.get(&address).copied().unwrap_or(0);
            if count >= self.each_max {
                return None;
            }
            open.insert(address, count + 1);
        }
        Some(Share {
            shares: self.clone(),
            address: (!is_here).then_some(address),
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(address) = &self.address else { return };
        let mut open = self.shares.open.lock();
        if let Some(count) = open.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                open.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_share_and_gets_it_back() {
        let shares = Shares::new(2);
        let take = |address: &str| shares.take(address.parse().unwrap());
        let (one, two, other) = (
            take("198.51.100.7"),
            take("::ffff:198.51.100.7"),
            take("198.51.100.8"),
        );
        assert!(one.is_some() && two.is_some() && other.is_some());
        assert!(take("198.51.100.7").is_none());
        drop(one);
        assert!(take("198.51.100.7").is_some());
        drop((two, other));
        assert!(
            shares.open.lock().is_empty(),
            "nothing is left of those who are gone"
        );
    }

    #[test]
    fn an_ipv6_subscriber_has_one_share_whichever_addresses_it_chooses() {
        let shares = Shares::new(2);
        let take = |address: &str| shares.take(address.parse().unwrap());
        let held = [take("2001:db8:1:2::1"), take("2001:db8:1:2:ffff::9")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("2001:db8:1:2::3").is_none());
        assert!(
            take("2001:db8:1:3::1").is_some(),
            "its neighbour has its own"
        );
        drop(held);
        assert!(shares.open.lock().is_empty());
    }

    #[test]
    fn this_machine_is_not_counted() {
        let shares = Shares::new(1);
        let addresses = ["127.0.0.1", "::1", "::ffff:127.0.0.1"].into_iter().cycle();
        let all: Vec<_> = addresses
            .take(9)
            .map(|address| shares.take(address.parse().unwrap()))
            .collect();
        assert!(all.iter().all(Option::is_some));
    }
}
