//! NodeResourcesFit (enough left; the emptier the better) and NodeResourcesBalancedAllocation (CPU and memory used in
//! like shares).

use std::borrow::Cow;

use super::{Cycle, MAX_SCORE, Plugin, Reject};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod::PodFacts;

/// Whether the node has room; scores the node with the larger share left higher.
pub struct NodeResourcesFit;

struct Fit<'a>(&'a PodFacts);

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, _: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        Ok(Some(Box::new(Fit(pod))))
    }
}

impl Cycle for Fit<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let Some(facts) = &node.facts else { return Ok(()) };
        let has = &facts.allocatable;
        let wants = &self.0.requests;
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        let mut resolvable = true;
        if node.pods.len() as i64 + 1 > has.pods {
            reasons.push("Too many pods".into());
        }
        let fixed = [
            ("Insufficient cpu", wants.cpu, has.cpu, node.requested.cpu),
            ("Insufficient memory", wants.memory, has.memory, node.requested.memory),
            ("Insufficient ephemeral-storage", wants.storage, has.storage, node.requested.storage),
        ];
        for (reason, wanted, capacity, used) in fixed {
            if wanted > 0 && wanted > capacity - used {
                reasons.push(reason.into());
                resolvable &= wanted <= capacity;
            }
        }
        for (name, &wanted) in &wants.scalars {
            let (capacity, used) = (has.get(name), node.requested.get(name));
            if wanted > 0 && wanted > capacity - used {
                reasons.push(format!("Insufficient {name}").into());
                resolvable &= wanted <= capacity;
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(Reject { plugin: "NodeResourcesFit", resolvable, reasons }) }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let left = |capacity: i64, used: i64| match capacity {
            0 => None,
            _ if used > capacity => Some(0),
            _ => Some((i128::from(capacity - used) * i128::from(MAX_SCORE) / i128::from(capacity)) as i64),
        };
        let score = |node: &&NodeInfo| {
            let Some(facts) = &node.facts else { return 0 };
            let shares = [
                left(facts.allocatable.cpu, node.nonzero.cpu + self.0.nonzero.cpu),
                left(facts.allocatable.memory, node.nonzero.memory + self.0.nonzero.memory),
            ];
            let known = shares.iter().flatten().count() as i64;
            if known == 0 { 0 } else { shares.iter().flatten().sum::<i64>() / known }
        };
        Some(nodes.iter().map(score).collect())
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Fit(self.0))
    }
}

/// Scores nodes higher whose CPU and memory would be used in like shares.
pub struct BalancedAllocation;

struct Balance<'a>(&'a PodFacts);

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, _: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        // What asks for nothing can't tip a balance.
        let nothing = pod.requests.cpu == 0 && pod.requests.memory == 0;
        Ok(if nothing { None } else { Some(Box::new(Balance(pod))) })
    }
}

impl Cycle for Balance<'_> {
    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let balance = |node: &NodeInfo, cpu: i64, memory: i64| -> i64 {
            let Some(facts) = &node.facts else { return 0 };
            let has = &facts.allocatable;
            if has.cpu == 0 || has.memory == 0 {
                return MAX_SCORE;
            }
            let share = |used: i64, capacity: i64| (used as f64 / capacity as f64).min(1.0);
            let deviation = (share(cpu, has.cpu) - share(memory, has.memory)).abs() / 2.0;
            ((1.0 - deviation) * MAX_SCORE as f64) as i64
        };
        let score = |node: &&NodeInfo| {
            let used = &node.requested;
            let before = balance(node, used.cpu, used.memory);
            let after = balance(node, used.cpu + self.0.requests.cpu, used.memory + self.0.requests.memory);
            MAX_SCORE / 2 + (MAX_SCORE / 2 + after - before) / 2
        };
        Some(nodes.iter().map(score).collect())
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Balance(self.0))
    }
}
