//! TaintToleration: keeps pods from nodes whose taints they don't tolerate.

use skiff_api::typed::placement::{tolerates, untolerated};

use super::{Cycle, Plugin, Reject, normalize};
use crate::cluster::{Cluster, NodeFacts, NodeInfo};
use crate::pod::PodFacts;

/// Whether every taint of the node that keeps pods from being placed there is tolerated.
pub fn tolerated(pod: &PodFacts, node: &NodeFacts) -> bool {
    untolerated(&pod.tolerations, &node.taints, &["NoSchedule", "NoExecute"]).is_none()
}

/// The plugin.
pub struct TaintToleration;

struct Taints<'a>(&'a PodFacts);

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, _: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        Ok(Some(Box::new(Taints(pod))))
    }
}

impl Cycle for Taints<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match node.facts.as_ref().is_none_or(|f| tolerated(self.0, f)) {
            true => Ok(()),
            false => Err(Reject::always("TaintToleration", "node(s) had untolerated taint(s)")),
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let count = |node: &&NodeInfo| {
            let taints = node.facts.iter().flat_map(|f| &f.taints);
            taints.filter(|t| t.effect == "PreferNoSchedule" && !tolerates(&self.0.tolerations, t)).count() as i64
        };
        let counts: Vec<i64> = nodes.iter().map(count).collect();
        counts.iter().any(|&c| c > 0).then(|| normalize(counts, true))
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Taints(self.0))
    }
}
