//! Pods for which a preemption made room, by the node they are nominated to.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pod::PodFacts;

/// Nominated pods.
#[derive(Debug, Default)]
pub struct Nominated {
    by_node: HashMap<String, Vec<Arc<PodFacts>>>,
    nodes: HashMap<String, String>,
}

impl Nominated {
    /// Notes that the pod is nominated to `node`; no longer to any when that is empty.
    pub fn set(&mut self, pod: &Arc<PodFacts>, node: &str) {
        self.remove(&pod.uid);
        if !node.is_empty() {
            self.by_node.entry(node.to_owned()).or_default().push(pod.clone());
            self.nodes.insert(pod.uid.clone(), node.to_owned());
        }
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) {
        let Some(node) = self.nodes.remove(uid) else { return };
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|p| p.uid != uid);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }

    /// The pods nominated to `node`.
    pub fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodFacts>> {
        self.by_node.get(node).into_iter().flatten()
    }

    /// Whether no pod is nominated to any node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}
