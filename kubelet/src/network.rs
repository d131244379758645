//! The addresses of a node's pods.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr};

/// A range or an address that can't be had.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not of the form `10.244.0.0/24`.
    #[error("read the address range {0:?}: it must be like 10.244.0.0/24")]
    BadRange(String),
    /// All are taken.
    #[error("no address is free in {0}")]
    Full(Range),
}

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u32,
    bits: u8,
}

impl Range {
    /// Reads `10.244.0.0/24`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadRange(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let bits: u8 = bits.parse().map_err(|_| bad())?;
        if !(1..=30).contains(&bits) {
            return Err(bad());
        }
        Ok(Self { first: u32::from(address) & (u32::MAX << (32 - bits)), bits })
    }

    /// How many addresses it has.
    pub fn size(self) -> u32 {
        1 << (32 - self.bits)
    }

    /// The address at that place, from 0.
    pub fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + n)
    }

    /// Whether the address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address).wrapping_sub(self.first) < self.size()
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.nth(0), self.bits)
    }
}

/// Gives each pod an address, the longest unused first.
#[derive(Debug)]
pub struct Pool {
    range: Range,
    next: u32,
    /// Who has an address, by the address.
    taken: HashMap<Ipv4Addr, String>,
}

impl Pool {
    /// A pool of a range, without its first two addresses (network, gateway) and its last (broadcast).
    pub fn new(range: Range) -> Self {
        Self { range, next: 2, taken: HashMap::new() }
    }

    /// An address for the pod of that uid, the same as long as it isn't released.
    pub fn take(&mut self, uid: &str) -> Result<IpAddr, Error> {
        if let Some((address, _)) = self.taken.iter().find(|(_, owner)| *owner == uid) {
            return Ok(IpAddr::V4(*address));
        }
        let usable = self.range.size() - 3;
        for _ in 0..usable {
            let address = self.range.nth(self.next);
            self.next = if self.next + 2 >= self.range.size() { 2 } else { self.next + 1 };
            if let Entry::Vacant(free) = self.taken.entry(address) {
                free.insert(uid.to_owned());
                return Ok(IpAddr::V4(address));
            }
        }
        Err(Error::Full(self.range))
    }

    /// Marks an address as that of a pod that was here before.
    pub fn adopt(&mut self, uid: &str, address: IpAddr) {
        if let IpAddr::V4(address) = address {
            self.taken.insert(address, uid.to_owned());
        }
    }

    /// Gives back the address of a pod.
    pub fn release(&mut self, uid: &str) {
        self.taken.retain(|_, owner| owner != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let check = |text: &str, expected: Option<(&str, u32)>| {
            let range = Range::parse(text).ok();
            assert_eq!(range.map(|r| (r.to_string(), r.size())), expected.map(|(t, n)| (t.to_owned(), n)), "{text}");
        };
        check("10.244.1.0/24", Some(("10.244.1.0/24", 256)));
        check("10.244.1.77/24", Some(("10.244.1.0/24", 256)));
        check("10.0.0.0/8", Some(("10.0.0.0/8", 1 << 24)));
        check("10.244.1.0", None);
        check("10.244.1.0/31", None);
        check("10.244.1.0/0", None);
        check("fd00::/64", None);
    }

    #[test]
    fn addresses_are_not_reused_at_once_and_run_out() {
        let mut pool = Pool::new(Range::parse("10.0.0.0/29").expect("a range"));
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        assert_eq!(pool.take("a"), Ok(address(2)));
        assert_eq!(pool.take("a"), Ok(address(2)), "the same pod keeps its address");
        pool.release("a");
        assert_eq!(pool.take("b"), Ok(address(3)));
        pool.adopt("c", address(4));
        for (uid, n) in [("d", 5), ("e", 6), ("f", 2)] {
            assert_eq!(pool.take(uid), Ok(address(n)));
        }
        assert!(matches!(pool.take("g"), Err(Error::Full(_))));
        pool.release("c");
        assert_eq!(pool.take("g"), Ok(address(4)));
    }
}
