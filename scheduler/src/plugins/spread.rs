//! PodTopologySpread: pods evenly over zones, hosts, or whatever node label says what counts as one place.

use std::collections::{HashMap, HashSet};

use super::node_affinity::allows;
use super::taints::tolerated;
use super::{Cycle, MAX_SCORE, Plugin, Reject};
use crate::cluster::{Cluster, Group, NodeFacts, NodeInfo};
use crate::pod::{PodFacts, Spread};

const NAME: &str = "PodTopologySpread";
const HOST: &str = "kubernetes.io/hostname";
/// By how much the pods of a workload that says nothing itself may differ, in upstream's default: from host to host, and
/// from zone to zone.
const DEFAULTS: [(&str, i64); 2] = [(HOST, 3), ("topology.kubernetes.io/zone", 5)];
/// The owners whose pods are spread by default.
const WORKLOADS: [&str; 3] = ["ReplicaSet", "ReplicationController", "StatefulSet"];

/// The plugin.
pub struct PodTopologySpread;

/// A constraint that nodes must meet.
#[derive(Clone)]
struct Hard<'a> {
    constraint: &'a Spread,
    /// Pods that count, by place.
    counts: HashMap<String, i64>,
    /// The least of them.
    least: i64,
    /// 1 when the pod itself counts.
    own: i64,
}

/// A constraint that scores nodes.
#[derive(Clone)]
struct Soft<'a> {
    key: &'a str,
    max_skew: i64,
    /// Which groups of pods count.
    matching: Vec<bool>,
    /// The pod's own constraint; none for a default one.
    constraint: Option<&'a Spread>,
}

#[derive(Clone)]
struct Spreading<'a> {
    pod: &'a PodFacts,
    cluster: &'a Cluster,
    hard: Vec<Hard<'a>>,
    soft: Vec<Soft<'a>>,
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        2
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, cluster: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        let hard = hard(pod, cluster);
        let soft = if pod.spread.is_empty() { defaults(pod, cluster) } else { soft(pod, cluster) };
        if hard.is_empty() && soft.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(Spreading { pod, cluster, hard, soft })))
    }
}

/// Whether a group counts for a constraint of the pod.
fn counts(constraint: &Spread, pod: &PodFacts, group: &Group) -> bool {
    !group.terminating && group.namespace == pod.namespace && constraint.selector.matches(&*group.labels)
}

/// Whether a node's pods count for a constraint.
fn includes(constraint: &Spread, pod: &PodFacts, node: &NodeFacts) -> bool {
    (!constraint.honor_affinity || allows(pod, node)) && (!constraint.honor_taints || tolerated(pod, node))
}

fn label<'a>(node: &'a NodeInfo, key: &str) -> Option<&'a str> {
    node.facts.as_deref()?.labels.get(key).map(String::as_str)
}

fn sum(node: &NodeInfo, matching: &[bool]) -> i64 {
    node.groups.iter().filter(|(id, _)| matching.get(*id) == Some(&true)).map(|(_, count)| count).sum()
}

fn hard<'a>(pod: &'a PodFacts, cluster: &'a Cluster) -> Vec<Hard<'a>> {
    let constraints: Vec<&Spread> = pod.spread.iter().filter(|s| s.required).collect();
    constraints
        .iter()
        .map(|constraint| {
            let matching = cluster.groups.matching(|group| counts(constraint, pod, group));
            let mut hard = Hard {
                constraint,
                counts: HashMap::new(),
                least: 0,
                own: i64::from(constraint.selector.matches(&*pod.labels)),
            };
            for node in cluster.present().iter().map(|&id| cluster.node(id)) {
                let Some(facts) = node.facts.as_deref() else { continue };
                let everywhere = constraints.iter().all(|c| facts.labels.contains_key(&c.topology_key));
                if let Some(place) = facts.labels.get(&constraint.topology_key)
                    && everywhere
                    && includes(constraint, pod, facts)
                {
                    *hard.counts.entry(place.clone()).or_default() += sum(node, &matching);
                }
            }
            hard.settle();
            hard
        })
        .collect()
}

impl Hard<'_> {
    fn settle(&mut self) {
        let few = (self.counts.len() as i64) < self.constraint.min_domains;
        self.least = if few { 0 } else { self.counts.values().copied().min().unwrap_or(0) };
    }
}

fn soft<'a>(pod: &'a PodFacts, cluster: &Cluster) -> Vec<Soft<'a>> {
    let own = pod.spread.iter().filter(|s| !s.required);
    own.map(|constraint| Soft {
        key: &constraint.topology_key,
        max_skew: constraint.max_skew,
        matching: cluster.groups.matching(|group| counts(constraint, pod, group)),
        constraint: Some(constraint),
    })
    .collect()
}

/// The constraints of a pod that has none itself: spread the pods of its workload and its Services.
fn defaults<'a>(pod: &PodFacts, cluster: &Cluster) -> Vec<Soft<'a>> {
    let owner = pod.controller.as_ref().filter(|c| WORKLOADS.contains(&c.kind.as_str())).map(|c| c.uid.as_str());
    let services: Vec<_> = cluster.services_of(pod).collect();
    if owner.is_none() && services.is_empty() {
        return Vec::new();
    }
    let matching = cluster.groups.matching(|group| {
        !group.terminating
            && group.namespace == pod.namespace
            && owner.is_none_or(|uid| group.controller.as_deref() == Some(uid))
            && services.iter().all(|selector| selector.matches(&*group.labels))
    });
    DEFAULTS.iter().map(|&(key, max_skew)| Soft { key, max_skew, matching: matching.clone(), constraint: None }).collect()
}

impl Cycle for Spreading<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let Some(facts) = node.facts.as_deref() else { return Ok(()) };
        for hard in &self.hard {
            let Some(place) = facts.labels.get(&hard.constraint.topology_key) else {
                let why = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Reject::always(NAME, why));
            };
            let there = hard.counts.get(place).copied().unwrap_or(0);
            if there + hard.own - hard.least > hard.constraint.max_skew {
                let why = "node(s) didn't match pod topology spread constraints";
                return Err(Reject::while_others_run(NAME, why));
            }
        }
        Ok(())
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.soft.is_empty() {
            return None;
        }
        let own = self.soft.iter().any(|s| s.constraint.is_some());
        // A node without one of the labels of the pod's own constraints scores nothing.
        let ignored: Vec<bool> =
            nodes.iter().map(|node| own && self.soft.iter().any(|s| label(node, s.key).is_none())).collect();
        let mut raw = vec![0.0; nodes.len()];
        for soft in &self.soft {
            let places: HashSet<&str> = match soft.key {
                HOST => HashSet::new(),
                key => nodes.iter().zip(&ignored).filter(|(_, i)| !**i).filter_map(|(n, _)| label(n, key)).collect(),
            };
            let size = if soft.key == HOST { ignored.iter().filter(|i| !**i).count() } else { places.len() };
            let weight = ((size + 2) as f64).ln();
            let by_place = self.by_place(soft, places, own);
            for ((node, score), _) in nodes.iter().zip(&mut raw).zip(&ignored).filter(|(_, i)| !**i) {
                let Some(place) = label(node, soft.key) else { continue };
                let count = match soft.key {
                    HOST => sum(node, &soft.matching),
                    _ => by_place.get(place).copied().unwrap_or(0),
                };
                *score += count as f64 * weight + (soft.max_skew - 1) as f64;
            }
        }
        let scores: Vec<i64> = raw.iter().map(|score| score.round() as i64).collect();
        let counted = || scores.iter().zip(&ignored).filter(|(_, i)| !**i).map(|(s, _)| *s);
        let (least, most) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        let stretch = |(score, ignored): (&i64, &bool)| match (ignored, most) {
            (true, _) => 0,
            (false, 0) => MAX_SCORE,
            (false, _) => MAX_SCORE * (most + least - score) / most,
        };
        Some(scores.iter().zip(&ignored).map(stretch).collect())
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(self.clone())
    }

    fn without(&mut self, pod: &PodFacts, node: &NodeInfo) {
        self.change(pod, node, -1);
    }

    fn with(&mut self, pod: &PodFacts, node: &NodeInfo) {
        self.change(pod, node, 1);
    }
}

impl Spreading<'_> {
    /// How many pods that count are in each of the places, on whatever node.
    fn by_place<'p>(&self, soft: &Soft<'_>, places: HashSet<&'p str>, own: bool) -> HashMap<&'p str, i64> {
        let mut counts: HashMap<&str, i64> = places.into_iter().map(|place| (place, 0)).collect();
        if counts.is_empty() {
            return counts;
        }
        for node in self.cluster.present().iter().map(|&id| self.cluster.node(id)) {
            let Some(facts) = node.facts.as_deref() else { continue };
            let found = sum(node, &soft.matching);
            if found == 0 {
                continue;
            }
            let counted = soft.constraint.is_none_or(|c| includes(c, self.pod, facts))
                && (!own || self.soft.iter().all(|s| facts.labels.contains_key(s.key)));
            let place = facts.labels.get(soft.key).filter(|_| counted);
            if let Some(count) = place.and_then(|place| counts.get_mut(place.as_str())) {
                *count += found;
            }
        }
        counts
    }

    fn change(&mut self, other: &PodFacts, node: &NodeInfo, by: i64) {
        let Some(facts) = node.facts.as_deref() else { return };
        for hard in &mut self.hard {
            let counts = other.namespace == self.pod.namespace
                && !other.terminating
                && hard.constraint.selector.matches(&*other.labels)
                && includes(hard.constraint, self.pod, facts);
            if let Some(place) = facts.labels.get(&hard.constraint.topology_key).filter(|_| counts) {
                *hard.counts.entry(place.clone()).or_default() += by;
                hard.settle();
            }
        }
    }
}
