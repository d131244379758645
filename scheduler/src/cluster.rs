//! The scheduler's picture of the cluster: nodes, the pods on them, and the pods it has just placed.
//!
//! One task owns it; it changes by single events, never by listing again. Pods on a node are counted by *group* (same
//! namespace, same labels), so that a selector is matched once a group and not once a pod.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use skiff_api::labels::Selector;

use crate::pod::{HostPort, Labels, PodFacts};
use crate::resources::Resources;
use crate::volumes::Volumes;

/// What the scheduler needs to know of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Whether it was cordoned.
    pub unschedulable: bool,
    /// What it can give to pods.
    pub allocatable: Resources,
    /// Images it holds, with their sizes in bytes.
    pub images: HashMap<String, i64>,
}

impl NodeFacts {
    /// Takes the facts out of a node.
    pub fn new(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
            allocatable: status.and_then(|s| s.allocatable.as_ref()).map(Resources::from_list).unwrap_or_default(),
            images: status
                .iter()
                .flat_map(|s| s.images.iter().flatten())
                .flat_map(|image| {
                    let size = image.size_bytes.unwrap_or(0);
                    image.names.iter().flatten().map(move |name| (name.clone(), size))
                })
                .collect(),
        }
    }
}

/// A node with what runs on it.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// The node; `None` for one that isn't there (any more) but has pods assigned.
    pub facts: Option<Arc<NodeFacts>>,
    /// Its pods, those just placed there included.
    pub pods: Vec<Arc<PodFacts>>,
    /// What its pods ask for together.
    pub requested: Resources,
    /// What its pods count for in scoring.
    pub nonzero: Resources,
    /// Number of its pods by group.
    pub groups: Vec<(usize, i64)>,
    /// Those of its pods with pod affinity or anti-affinity of any sort; few.
    pub affine: Vec<Arc<PodFacts>>,
    /// Ports that its pods take.
    pub ports: Vec<HostPort>,
}

impl NodeInfo {
    /// Adds a pod.
    pub fn add(&mut self, pod: &Arc<PodFacts>, group: usize) {
        self.requested.add(&pod.requests);
        self.nonzero.add(&pod.nonzero);
        match self.groups.iter_mut().find(|(id, _)| *id == group) {
            Some((_, count)) => *count += 1,
            None => self.groups.push((group, 1)),
        }
        if has_pod_affinity(pod) {
            self.affine.push(pod.clone());
        }
        self.ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod.clone());
    }

    /// Removes a pod that was added.
    pub fn remove(&mut self, pod: &PodFacts, group: usize) {
        let Some(at) = self.pods.iter().position(|p| p.uid == pod.uid) else { return };
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        self.nonzero.subtract(&pod.nonzero);
        if let Some(at) = self.groups.iter().position(|(id, _)| *id == group) {
            self.groups[at].1 -= 1;
            if self.groups[at].1 == 0 {
                self.groups.swap_remove(at);
            }
        }
        self.affine.retain(|p| p.uid != pod.uid);
        for port in &pod.host_ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
    }
}

fn has_pod_affinity(pod: &PodFacts) -> bool {
    !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred_pods.is_empty())
}

/// Pods that no selector can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Their namespace.
    pub namespace: String,
    /// Their labels.
    pub labels: Arc<Labels>,
    /// The uid of who controls them.
    pub controller: Option<Box<str>>,
    /// Whether they are being deleted: such pods don't count for spreading.
    pub terminating: bool,
}

/// Numbers groups; a number is given anew after its last pod left.
#[derive(Debug, Default)]
pub struct Groups {
    ids: HashMap<Group, usize>,
    slots: Vec<(Option<Group>, usize)>,
    free: Vec<usize>,
}

impl Groups {
    fn enter(&mut self, pod: &mut PodFacts) -> usize {
        let group = Group {
            namespace: pod.namespace.clone(),
            labels: pod.labels.clone(),
            controller: pod.controller.as_ref().map(|c| c.uid.as_str().into()),
            terminating: pod.terminating,
        };
        let id = match self.ids.get(&group) {
            Some(&id) => id,
            None => {
                let id = self.free.pop().unwrap_or_else(|| {
                    self.slots.push((None, 0));
                    self.slots.len() - 1
                });
                self.slots[id] = (Some(group.clone()), 0);
                self.ids.insert(group, id);
                id
            }
        };
        self.slots[id].1 += 1;
        if let Some(known) = &self.slots[id].0 {
            pod.labels = known.labels.clone();
        }
        id
    }

    fn leave(&mut self, id: usize) {
        self.slots[id].1 -= 1;
        if self.slots[id].1 == 0
            && let Some(group) = self.slots[id].0.take()
        {
            self.ids.remove(&group);
            self.free.push(id);
        }
    }

    /// For each group number, whether the group satisfies `judge`.
    pub fn matching(&self, judge: impl Fn(&Group) -> bool) -> Vec<bool> {
        self.slots.iter().map(|(group, _)| group.as_ref().is_some_and(&judge)).collect()
    }
}

/// A pod on a node, as the cluster keeps it.
#[derive(Debug)]
struct Placed {
    facts: Arc<PodFacts>,
    node: usize,
    group: usize,
    /// Placed by this scheduler, not yet seen as assigned.
    assumed: bool,
}

/// The picture of the cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Nodes by number. A number whose node is gone and has no pods is reused.
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    free: Vec<usize>,
    /// Numbers of the nodes that are there, in the order in which they are tried.
    present: Vec<usize>,
    pods: HashMap<String, Placed>,
    /// Groups of the pods on nodes.
    pub groups: Groups,
    /// Labels of the namespaces, for namespace selectors.
    pub namespaces: HashMap<String, Labels>,
    /// Selectors of the Services, by namespace and name.
    pub services: HashMap<String, HashMap<String, Selector>>,
    /// Claims, volumes and storage classes.
    pub volumes: Volumes,
    /// On how many nodes an image is, by name.
    image_spread: HashMap<String, i64>,
    /// How many placed pods have pod affinity of any sort.
    affine_pods: usize,
}

impl Cluster {
    /// Numbers of the nodes that are there.
    pub fn present(&self) -> &[usize] {
        &self.present
    }

    /// Names of the nodes that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.present.iter().filter_map(|&id| self.nodes[id].facts.as_ref()).map(|f| f.name.as_str())
    }

    /// A node by number.
    pub fn node(&self, id: usize) -> &NodeInfo {
        &self.nodes[id]
    }

    /// The number of the node of this name, if it is there.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().filter(|&id| self.nodes[id].facts.is_some())
    }

    /// The selectors of the Services that select the pod.
    pub fn services_of<'a>(&'a self, pod: &'a PodFacts) -> impl Iterator<Item = &'a Selector> {
        let all = self.services.get(&pod.namespace).into_iter().flat_map(HashMap::values);
        all.filter(|selector| selector.matches(&*pod.labels))
    }

    /// On how many nodes the image is.
    pub fn image_spread(&self, image: &str) -> i64 {
        self.image_spread.get(image).copied().unwrap_or(0)
    }

    /// Whether any placed pod has pod affinity or anti-affinity.
    pub fn has_affine_pods(&self) -> bool {
        self.affine_pods > 0
    }

    /// A pod on a node.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodFacts>> {
        self.pods.get(uid).map(|placed| &placed.facts)
    }

    /// The group number of a placed pod.
    pub fn group(&self, uid: &str) -> Option<usize> {
        self.pods.get(uid).map(|placed| placed.group)
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(NodeInfo::default());
            self.nodes.len() - 1
        });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// Frees the node's number when neither the node nor a pod needs it.
    fn release(&mut self, name: &str) {
        if let Some(&id) = self.by_name.get(name)
            && self.nodes[id].facts.is_none()
            && self.nodes[id].pods.is_empty()
        {
            self.by_name.remove(name);
            self.nodes[id] = NodeInfo::default();
            self.free.push(id);
        }
    }

    /// Takes in a node. Returns its earlier facts when it was there, and whether anything changed.
    pub fn set_node(&mut self, facts: NodeFacts) -> (Option<Arc<NodeFacts>>, bool) {
        let id = self.slot(&facts.name);
        let old = self.nodes[id].facts.take();
        let changed = old.as_deref() != Some(&facts);
        for image in old.iter().flat_map(|o| o.images.keys()) {
            if let Some(count) = self.image_spread.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.image_spread.remove(image);
                }
            }
        }
        for image in facts.images.keys() {
            *self.image_spread.entry(image.clone()).or_default() += 1;
        }
        if old.is_none() {
            self.present.push(id);
        }
        self.nodes[id].facts = Some(Arc::new(facts));
        (old, changed)
    }

    /// Removes a node.
    pub fn remove_node(&mut self, name: &str) {
        let Some(id) = self.find(name) else { return };
        if let Some(old) = self.nodes[id].facts.take() {
            for image in old.images.keys() {
                if let Some(count) = self.image_spread.get_mut(image) {
                    *count -= 1;
                }
            }
        }
        self.present.retain(|&other| other != id);
        self.release(name);
    }

    /// Takes in an assigned pod, new or changed. Returns its earlier facts if it was known.
    pub fn set_pod(&mut self, pod: PodFacts) -> Option<Arc<PodFacts>> {
        self.place(pod, false)
    }

    /// Counts a pod as assigned to `node` before the API server says so.
    pub fn assume(&mut self, pod: &PodFacts, node: &str) {
        self.place(PodFacts { node: node.to_owned(), ..pod.clone() }, true);
    }

    /// Whether the pod was placed by this scheduler and is not yet seen as assigned.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|p| p.assumed)
    }

    fn place(&mut self, mut pod: PodFacts, assumed: bool) -> Option<Arc<PodFacts>> {
        let old = self.remove_pod(&pod.uid);
        let node = self.slot(&pod.node);
        let group = self.groups.enter(&mut pod);
        let facts = Arc::new(pod);
        self.affine_pods += usize::from(has_pod_affinity(&facts));
        self.nodes[node].add(&facts, group);
        self.pods.insert(facts.uid.clone(), Placed { facts, node, group, assumed });
        old
    }

    /// Removes a pod, assigned or assumed.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodFacts>> {
        let placed = self.pods.remove(uid)?;
        self.nodes[placed.node].remove(&placed.facts, placed.group);
        self.groups.leave(placed.group);
        self.affine_pods -= usize::from(has_pod_affinity(&placed.facts));
        self.release(&placed.facts.node);
        Some(placed.facts)
    }

    /// Uids of the pods that were seen as assigned (not the assumed ones).
    pub fn assigned(&self) -> impl Iterator<Item = &str> {
        self.pods.values().filter(|p| !p.assumed).map(|p| p.facts.uid.as_str())
    }
}
