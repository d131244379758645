//! TaintToleration: keeps pods from nodes whose taints they don't tolerate.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{Cycle, Plugin, Reject, normalize};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod::PodFacts;

/// Whether one of the tolerations tolerates a taint of this key, value and effect.
pub fn tolerates(tolerations: &[Toleration], key: &str, value: &str, effect: &str) -> bool {
    tolerations.iter().any(|t| {
        let any = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|w| w.is_empty() || w == have);
        any(&t.effect, effect)
            && any(&t.key, key)
            && match t.operator.as_deref() {
                Some("Exists") => true,
                None | Some("" | "Equal") => t.value.as_deref().unwrap_or("") == value,
                Some(_) => false,
            }
    })
}

fn tolerates_taint(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerates(tolerations, &taint.key, taint.value.as_deref().unwrap_or(""), &taint.effect)
}

/// Whether every taint that keeps pods from being placed is tolerated.
pub fn tolerates_all(tolerations: &[Toleration], taints: &[Taint]) -> bool {
    taints.iter().all(|t| t.effect == "PreferNoSchedule" || tolerates_taint(tolerations, t))
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
        match node.facts.as_ref().is_none_or(|f| tolerates_all(&self.0.tolerations, &f.taints)) {
            true => Ok(()),
            false => Err(Reject::always("TaintToleration", "node(s) had untolerated taint(s)")),
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let count = |node: &&NodeInfo| {
            let taints = node.facts.iter().flat_map(|f| &f.taints);
            taints.filter(|t| t.effect == "PreferNoSchedule" && !tolerates_taint(&self.0.tolerations, t)).count() as i64
        };
        let counts: Vec<i64> = nodes.iter().map(count).collect();
        counts.iter().any(|&c| c > 0).then(|| normalize(counts, true))
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Taints(self.0))
    }
}
