//! Groups client addresses for limits per address, and matches addresses against networks. Pure.
//!
//! One place, so that all listeners count the same: an IPv6 /64 is one client, and an IPv4 address
//! inside IPv6 is that IPv4 address.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// A subscriber to IPv6 gets a whole /64 and can use any address in it.
const IPV6_PREFIX_BITS: u32 = 64;

/// The key under which `address` is counted: its /64 for IPv6, the address itself for IPv4.
pub(crate) fn of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (128 - IPV6_PREFIX_BITS);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
        v4 => v4,
    }
}

/// Whether one of `networks` contains `address`.
pub(crate) fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_subscriber_is_one_address_and_so_is_each_ipv4_address() {
        let of = |text: &str| of(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2::1"), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:2:ffff:ffff:ffff:ffff"), "2001:db8:1:2::");
        assert_eq!(of("2001:db8:1:3::1"), "2001:db8:1:3::");
        assert_eq!(of("198.51.100.7"), "198.51.100.7");
        assert_eq!(of("::ffff:198.51.100.7"), "198.51.100.7");
    }

    #[test]
    fn a_network_holds_its_addresses_however_they_are_written() {
        let networks = ["198.51.100.0/24", "2001:db8::/32"].map(|network| network.parse().unwrap());
        let contains = |text: &str| contains(&networks, text.parse().unwrap());
        assert!(
            contains("198.51.100.0")
                && contains("198.51.100.255")
                && contains("::ffff:198.51.100.7")
        );
        assert!(contains("2001:db8::") && contains("2001:db8:ffff::1"));
        assert!(!contains("198.51.99.255") && !contains("198.51.101.0") && !contains("2001:db9::"));
    }
}
