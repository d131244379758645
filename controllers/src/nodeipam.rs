//! Gives each node its share of the pods' addresses.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::api::core::v1::Node;
use kube::api::Patch;
use serde_json::json;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::Change;

const SOURCE: &str = "cidrAllocator";
/// The size of a node's share, upstream's: 256 IPv4 addresses, or a /64 of IPv6.
const NODE_PREFIX: (u8, u8) = (24, 64);

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u128,
    prefix: u8,
    v6: bool,
}

impl Range {
    /// Reads `10.244.0.0/16`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix: u8 = prefix.parse().ok()?;
        let (base, v6) = match address.parse().ok()? {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), false),
            IpAddr::V6(ip) => (u128::from(ip), true),
        };
        let bits = if v6 { 128 } else { 32 };
        (prefix <= bits).then(|| {
            let host = u32::from(bits - prefix);
            let base = if host >= 128 { 0 } else { base >> host << host };
            Self { base, prefix, v6 }
        })
    }

    /// The prefix of a node's share; no shorter than the range's own.
    fn share(self) -> u8 {
        (if self.v6 { NODE_PREFIX.1 } else { NODE_PREFIX.0 }).max(self.prefix)
    }

    /// How many shares there are, as far as a number of 32 bits goes.
    fn shares(self) -> u32 {
        1u32.checked_shl(u32::from(self.share() - self.prefix)).unwrap_or(u32::MAX)
    }

    fn host_bits(self) -> u32 {
        u32::from(if self.v6 { 128 } else { 32 } - self.share())
    }

    /// The share of this number.
    fn nth(self, n: u32) -> String {
        let base = self.base + (u128::from(n) << self.host_bits());
        let ip = match self.v6 {
            true => IpAddr::V6(Ipv6Addr::from(base)),
            // Below 2^32: the base and the shares of an IPv4 range are.
            false => IpAddr::V4(Ipv4Addr::from(base as u32)),
        };
        format!("{ip}/{}", self.share())
    }

    /// The number of a share; none when it isn't of this range.
    fn number(self, share: &str) -> Option<u32> {
        let share = Self::parse(share).filter(|s| s.v6 == self.v6 && s.base >= self.base)?;
        let n = u32::try_from((share.base - self.base) >> self.host_bits()).ok()?;
        (n < self.shares()).then_some(n)
    }
}

/// Which shares are taken, by node: one of each range.
#[derive(Debug, Default)]
struct Taken {
    by_node: HashMap<String, Vec<u32>>,
    /// By range, then by number: the node.
    nodes: Vec<BTreeMap<u32, String>>,
}

impl Taken {
    fn take(&mut self, node: &str, range: usize, number: u32) {
        self.nodes.resize_with(self.nodes.len().max(range + 1), BTreeMap::new);
        self.nodes[range].insert(number, node.to_owned());
        self.by_node.entry(node.to_owned()).or_default().push(number);
    }

    fn note(&mut self, ranges: &[Range], node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or("");
        if self.by_node.contains_key(name) {
            return;
        }
        for (i, range) in ranges.iter().enumerate() {
            if let Some(number) = cidrs(node).iter().find_map(|c| range.number(c)) {
                self.take(name, i, number);
            }
        }
    }

    /// The shares of a node that has none yet; none when a range is used up.
    fn allot(&mut self, ranges: &[Range], name: &str) -> Option<Vec<String>> {
        if let Some(numbers) = self.by_node.get(name) {
            return Some(ranges.iter().zip(numbers).map(|(range, n)| range.nth(*n)).collect());
        }
        let mut free = Vec::new();
        for (i, range) in ranges.iter().enumerate() {
            let none = BTreeMap::new();
            let taken = self.nodes.get(i).unwrap_or(&none);
            // The number after the last one, until these are used up; then the first gap.
            let next = taken.keys().next_back().map_or(0, |last| last.saturating_add(1));
            let number = if next < range.shares() { next } else { (0..range.shares()).find(|n| !taken.contains_key(n))? };
            free.push(number);
        }
        for (i, number) in free.iter().enumerate() {
            self.take(name, i, *number);
        }
        Some(ranges.iter().zip(free).map(|(range, n)| range.nth(n)).collect())
    }

    fn free(&mut self, name: &str) {
        for (i, number) in self.by_node.remove(name).into_iter().flatten().enumerate() {
            self.nodes[i].remove(&number);
        }
    }
}

fn cidrs(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let mut all = spec.pod_cidrs.clone().unwrap_or_default();
    if all.is_empty() {
        all.extend(spec.pod_cidr.clone().filter(|c| !c.is_empty()));
    }
    all
}

/// Runs the controller; without ranges there is nothing to do.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let ranges: Arc<[Range]> = context.config.pod_cidrs.iter().filter_map(|c| Range::parse(c)).collect();
    let taken: Arc<Mutex<Taken>> = Arc::default();
    let (freed, known) = (taken.clone(), Arc::new(OnceLock::<()>::new()));
    context.kinds.nodes.on_change(move |change: &Change<Node>| {
        if let (Some(old), None) = (&change.old, &change.new) {
            freed.lock().unwrap_or_else(PoisonError::into_inner).free(old.metadata.name.as_deref().unwrap_or(""));
        }
    });
    let controller = Controller::new("node-ipam-controller", &context.kinds.nodes);
    controller.run(context, move |context: Arc<Context>, node: Arc<Node>| {
        let (ranges, taken, known) = (ranges.clone(), taken.clone(), known.clone());
        async move {
            let name = node.metadata.name.as_deref().unwrap_or("");
            if ranges.is_empty() || !cidrs(&node).is_empty() {
                taken.lock().unwrap_or_else(PoisonError::into_inner).note(&ranges, &node);
                return Ok(None);
            }
            let share = {
                let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                // What nodes have from before must be known before the first share is given away.
                known.get_or_init(|| context.kinds.nodes.all().iter().for_each(|n| taken.note(&ranges, n)));
                taken.allot(&ranges, name)
            };
            give(&context, &node, share).await
        }
    })
}

async fn give(context: &Context, node: &Node, share: Option<Vec<String>>) -> Result<Again, Error> {
    let name = node.metadata.name.as_deref().unwrap_or("");
    let Some(share) = share else {
        let why = format!("Node {name} status is now: CIDRNotAvailable");
        context.events.normal(SOURCE, node, "CIDRNotAvailable", why);
        return Err(Error::Impossible(format!("giving node {name} addresses: the pod CIDR is used up")));
    };
    let patch = json!({ "metadata": { "uid": node.metadata.uid }, "spec": { "podCIDR": share.first(), "podCIDRs": share } });
    context
        .kinds
        .nodes
        .patch(&node.metadata, &Patch::Merge(patch))
        .await
        .map_err(Error::on("giving a node addresses"))?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_range() {
        let range = Range::parse("10.244.0.0/16").expect("a range");
        assert_eq!(range.shares(), 256);
        assert_eq!(range.nth(0), "10.244.0.0/24");
        assert_eq!(range.nth(255), "10.244.255.0/24");
        assert_eq!(range.number("10.244.7.0/24"), Some(7));
        assert_eq!(range.number("10.245.0.0/24"), None);
        let six = Range::parse("fd00:10:244::/56").expect("a range");
        assert_eq!(six.nth(2), "fd00:10:244:2::/64");
        assert_eq!(Range::parse("10.0.0.0/33"), None);
        assert_eq!(Range::parse("192.168.1.0/28").expect("a range").shares(), 1);
    }

    #[test]
    fn freed_shares_are_given_again_when_the_others_are_used_up() {
        let ranges = [Range::parse("10.0.0.0/23").expect("a range")];
        let mut taken = Taken::default();
        assert_eq!(taken.allot(&ranges, "a"), Some(vec!["10.0.0.0/24".into()]));
        assert_eq!(taken.allot(&ranges, "a"), Some(vec!["10.0.0.0/24".into()]), "the same again");
        assert_eq!(taken.allot(&ranges, "b"), Some(vec!["10.0.1.0/24".into()]));
        assert_eq!(taken.allot(&ranges, "c"), None);
        taken.free("a");
        assert_eq!(taken.allot(&ranges, "c"), Some(vec!["10.0.0.0/24".into()]));
    }
}
