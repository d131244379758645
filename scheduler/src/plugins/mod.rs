//! The plugins: each holds one rule of where a pod may go (filter) or would best go (score).
//!
//! For each pod the framework asks every plugin to [`begin`](Plugin::begin): a plugin that has nothing to say of this
//! pod answers with none and costs nothing further. The others give a [`Cycle`], which holds what they worked out once
//! for the pod, and judges single nodes.

use std::borrow::Cow;

use crate::cluster::{Cluster, NodeInfo};
use crate::pod::PodFacts;

mod images;
mod node_affinity;
mod node_basics;
mod node_ports;
mod pod_affinity;
mod resources_fit;
mod spread;
mod taints;
mod volumes;

pub use node_affinity::allows;
pub use taints::tolerated;

/// The best score of a node from one plugin.
pub const MAX_SCORE: i64 = 100;

/// Why a node can't take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The plugin that says so.
    pub plugin: &'static str,
    /// Whether evicting other pods could help.
    pub resolvable: bool,
    /// Upstream's sentences.
    pub reasons: Vec<Cow<'static, str>>,
}

impl Reject {
    /// A refusal that no eviction helps against.
    pub fn always(plugin: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, resolvable: false, reasons: vec![reason.into()] }
    }

    /// A refusal that lasts while other pods are there.
    pub fn while_others_run(plugin: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, resolvable: true, reasons: vec![reason.into()] }
    }
}

/// A rule.
pub trait Plugin: Send + Sync {
    /// Upstream's name of it.
    fn name(&self) -> &'static str;

    /// How much its score weighs.
    fn weight(&self) -> i64 {
        1
    }

    /// Works out what it needs to judge nodes for `pod`. None when it has nothing to say of this pod; an error when the
    /// pod can't go anywhere.
    fn begin<'a>(&'a self, pod: &'a PodFacts, cluster: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject>;
}

/// A plugin at work for one pod.
pub trait Cycle {
    /// The only nodes worth a look, by name, if the pod names them.
    fn only_nodes(&self) -> Option<Vec<&str>> {
        None
    }

    /// Whether the node can take the pod.
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let _ = node;
        Ok(())
    }

    /// Scores the nodes, 0 to [`MAX_SCORE`]. None when it makes no difference.
    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let _ = nodes;
        None
    }

    /// A copy to try "what if" on.
    fn fork(&self) -> Box<dyn Cycle + '_>;

    /// What if `pod` were gone from `node` (of which this is the state without it)?
    fn without(&mut self, pod: &PodFacts, node: &NodeInfo) {
        let _ = (pod, node);
    }

    /// What if `pod` were on `node` as well?
    fn with(&mut self, pod: &PodFacts, node: &NodeInfo) {
        let _ = (pod, node);
    }
}

/// All plugins, in the order in which they judge.
pub fn all() -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(node_basics::NodeUnschedulable),
        Box::new(node_basics::NodeName),
        Box::new(taints::TaintToleration),
        Box::new(node_affinity::NodeAffinity),
        Box::new(node_ports::NodePorts),
        Box::new(resources_fit::NodeResourcesFit),
        Box::new(volumes::VolumeBinding),
        Box::new(spread::PodTopologySpread),
        Box::new(pod_affinity::InterPodAffinity),
        Box::new(resources_fit::BalancedAllocation),
        Box::new(images::ImageLocality),
    ]
}

/// Stretches scores so that the largest becomes [`MAX_SCORE`]; `reverse` turns them around.
fn normalize(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        if max > 0 {
            *score = MAX_SCORE * *score / max;
        }
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
    scores
}
