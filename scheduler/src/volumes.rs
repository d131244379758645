//! What the scheduler needs to know of claims, volumes and storage classes.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use skiff_api::typed::placement::NodeTerm;

use crate::cluster::NodeFacts;

/// A claim.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimFacts {
    /// Namespace and name.
    pub key: (String, String),
    /// Its storage class.
    pub class: String,
    /// The volume it is bound to, or meant for.
    pub volume: String,
    /// Whether it is bound.
    pub bound: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
}

impl ClaimFacts {
    /// Takes the facts out of a claim.
    pub fn new(claim: &PersistentVolumeClaim) -> Self {
        let meta = &claim.metadata;
        let spec = claim.spec.as_ref();
        let volume = spec.and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let completed = meta.annotations.as_ref().is_some_and(|a| a.contains_key("pv.kubernetes.io/bind-completed"));
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        Self {
            key: (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
            class: spec.and_then(|s| s.storage_class_name.clone()).unwrap_or_default(),
            bound: !volume.is_empty() && (completed || phase == Some("Bound")),
            volume,
            terminating: meta.deletion_timestamp.is_some(),
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeFacts {
    /// Its name.
    pub name: String,
    /// Node terms of which one must hold; `None` when every node can reach it.
    terms: Option<Vec<NodeTerm>>,
}

impl VolumeFacts {
    /// Takes the facts out of a volume.
    pub fn new(volume: &PersistentVolume) -> Self {
        let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
        Self {
            name: volume.metadata.name.clone().unwrap_or_default(),
            terms: required.map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect()),
        }
    }

    /// Whether the node can reach it.
    pub fn reachable_from(&self, node: &NodeFacts) -> bool {
        self.terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
    }
}

/// A storage class: its name, and whether it binds claims only when a pod uses them.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassFacts {
    /// Its name.
    pub name: String,
    waits_for_pod: bool,
}

impl ClassFacts {
    /// Takes the facts out of a storage class.
    pub fn new(class: &StorageClass) -> Self {
        Self {
            name: class.metadata.name.clone().unwrap_or_default(),
            waits_for_pod: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
        }
    }
}

/// All claims, volumes and storage classes.
#[derive(Debug, Default)]
pub struct Volumes {
    /// By namespace and name.
    pub claims: HashMap<(String, String), ClaimFacts>,
    /// By name.
    pub volumes: HashMap<String, VolumeFacts>,
    /// By name.
    pub classes: HashMap<String, ClassFacts>,
}

impl Volumes {
    /// A claim.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&ClaimFacts> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// A volume.
    pub fn volume(&self, name: &str) -> Option<&VolumeFacts> {
        self.volumes.get(name)
    }

    /// Whether claims of the class are bound only when a pod uses them.
    pub fn waits_for_pod(&self, class: &str) -> bool {
        self.classes.get(class).is_some_and(|c| c.waits_for_pod)
    }
}
