//! NodeUnschedulable and NodeName.

use skiff_api::typed::placement::{taint, tolerates};

use super::{Cycle, Plugin, Reject};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod::PodFacts;

/// Keeps pods from cordoned nodes.
pub struct NodeUnschedulable;

struct Cordon;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, _: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        let tolerated = tolerates(&pod.tolerations, &taint("node.kubernetes.io/unschedulable", "NoSchedule"));
        Ok(if tolerated { None } else { Some(Box::new(Cordon)) })
    }
}

impl Cycle for Cordon {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match node.facts.as_ref().is_some_and(|f| f.unschedulable) {
            true => Err(Reject::always("NodeUnschedulable", "node(s) were unschedulable")),
            false => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Cordon)
    }
}

/// Keeps a pod to the node that its spec names. Pods with a node name don't wait for the scheduler, so it judges only
/// in simulations.
pub struct NodeName;

struct Named<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, _: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        Ok(if pod.node.is_empty() { None } else { Some(Box::new(Named(&pod.node))) })
    }
}

impl Cycle for Named<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        match node.facts.as_ref().is_some_and(|f| f.name == self.0) {
            true => Ok(()),
            false => Err(Reject::always("NodeName", "node(s) didn't match the requested node name")),
        }
    }

    fn fork(&self) -> Box<dyn Cycle + '_> {
        Box::new(Named(self.0))
    }
}
