//! NodeAffinity: the pod's node selector and node affinity.

use super::{Cycle, Plugin, Reject, normalize};
use crate::cluster::{Cluster, NodeFacts, NodeInfo};
use crate::pod::PodFacts;

const NAME: &str = "NodeAffinity";

/// Whether the pod's node selector and required node affinity allow the node.
pub fn allows(pod: &PodFacts, node: &NodeFacts) -> bool {
    pod.node_rules.allow(&node.name, &node.labels)
}

/// The plugin.
pub struct NodeAffinity;

struct Affinity<'a>(&'a PodFacts);

impl Affinity<'_> {
    /// The nodes that the terms name, if every term names some.
    fn named(&self) -> Option<Vec<&str>> {
        let terms = self.0.node_rules.terms.as_ref().filter(|terms| !terms.is_empty())?;
        let mut names = Vec::new();
        for term in terms {
            names.extend(term.names()?);
        }
        names.sort_unstable();
        names.dedup();
        Some(names)
    }
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        2
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, _: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        if pod.node_rules.is_empty() && pod.preferred_nodes.is_empty() {
            return Ok(None);
        }
        let affinity = Affinity(pod);
        if affinity.named().is_some_and(|names| names.is_empty()) {
            return Err(Reject::always(NAME, "pod affinity terms conflict"));
        }
        Ok(Some(Box::new(affinity)))
    }
}

impl Cycle for Affinity<'_> {
    fn only_nodes(&self) -> Option<Vec<&str>> {
        self.named()
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match node.facts.as_ref().is_some_and(|f| allows(self.0, f)) {
            true => Ok(()),
            false => Err(Reject::always(NAME, "node(s) didn't match Pod's node affinity/selector")),
        }
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if self.0.preferred_nodes.is_empty() {
            return None;
        }
        let sum = |node: &&NodeInfo| -> i64 {
            let Some(facts) = &node.facts else { return 0 };
            let held = self.0.preferred_nodes.iter().filter(|(_, term)| term.matches(&facts.name, &facts.labels));
            held.map(|(weight, _)| weight).sum()
        };
        Some(normalize(nodes.iter().map(sum).collect(), false))
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Affinity(self.0))
    }
}
