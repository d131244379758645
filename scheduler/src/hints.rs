//! Which happenings can help a pod that was refused, by the plugin that refused it.

use crate::cluster::NodeFacts;
use crate::plugins;
use crate::pod::PodFacts;

/// Something that happened in the cluster.
#[derive(Debug)]
pub enum Happening<'a> {
    /// A node came or changed; with its earlier facts in the second case.
    Node(Option<&'a NodeFacts>, &'a NodeFacts),
    /// A node went.
    NodeGone,
    /// A pod left its node, or asks for less than before.
    PodGone(&'a PodFacts),
    /// A pod was assigned to a node, or its labels changed.
    PodCame(&'a PodFacts),
    /// A volume, a claim or a storage class came or changed.
    Volume,
    /// A namespace's labels changed.
    Namespace,
}

/// Whether what happened can help `pod`, which the plugin named `plugin` refused.
pub fn helps(happening: &Happening<'_>, pod: &PodFacts, plugin: &str) -> bool {
    let same_namespace = |other: &PodFacts| other.namespace == pod.namespace;
    match (plugin, happening) {
        ("NodeUnschedulable", Happening::Node(old, new)) => !new.unschedulable && old.is_none_or(|o| o.unschedulable),
        ("TaintToleration", Happening::Node(old, new)) => {
            plugins::tolerated(pod, new)
                && old.is_none_or(|o| !plugins::tolerated(pod, o))
        }
        ("NodeAffinity" | "NodeName", Happening::Node(old, new)) => {
            plugins::allows(pod, new) && old.is_none_or(|o| !plugins::allows(pod, o))
        }
        ("NodeResourcesFit", Happening::Node(old, new)) => old.is_none_or(|o| o.allocatable != new.allocatable),
        ("NodeResourcesFit", Happening::PodGone(_)) => true,
        ("NodePorts", Happening::Node(old, _)) => old.is_none(),
        ("NodePorts", Happening::PodGone(gone)) => !gone.host_ports.is_empty(),
        ("PodTopologySpread" | "InterPodAffinity", Happening::Node(old, new)) => old.is_none_or(|o| o.labels != new.labels),
        ("PodTopologySpread", Happening::NodeGone) => true,
        ("PodTopologySpread", Happening::PodGone(other) | Happening::PodCame(other)) => same_namespace(other),
        ("InterPodAffinity", Happening::PodGone(_) | Happening::PodCame(_) | Happening::Namespace) => true,
        ("VolumeBinding", Happening::Volume) => true,
        ("VolumeBinding", Happening::Node(old, new)) => old.is_none_or(|o| o.labels != new.labels),
        _ => false,
    }
}
