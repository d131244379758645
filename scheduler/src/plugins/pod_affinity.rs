//! InterPodAffinity: pods that want to be near others, or far from them; and others that want this pod near or far.

use std::collections::HashMap;

use super::{Cycle, MAX_SCORE, Plugin, Reject};
use crate::cluster::{Cluster, NodeInfo};
use crate::pod::{AffinityTerm, Labels, PodFacts};

const NAME: &str = "InterPodAffinity";
/// What a placed pod's required affinity to this pod weighs in scoring, upstream's default.
const REQUIRED_WEIGHT: i64 = 1;

/// The plugin.
pub struct InterPodAffinity;

/// Numbers by place: node label and value.
#[derive(Clone, Default)]
struct Places(HashMap<String, HashMap<String, i64>>);

impl Places {
    fn add(&mut self, key: &str, node: &NodeInfo, by: i64) {
        let Some(value) = node.facts.as_deref().and_then(|f| f.labels.get(key)) else { return };
        if by != 0 {
            *self.0.entry(key.to_owned()).or_default().entry(value.clone()).or_default() += by;
        }
    }

    fn get(&self, key: &str, labels: &Labels) -> i64 {
        labels.get(key).and_then(|value| self.0.get(key)?.get(value)).copied().unwrap_or(0)
    }

    fn is_empty(&self) -> bool {
        self.0.values().all(|values| values.values().all(|count| *count == 0))
    }
}

#[derive(Clone)]
struct Affinity<'a> {
    pod: &'a PodFacts,
    cluster: &'a Cluster,
    /// Placed pods that all of the pod's affinity terms select, for each term by its place.
    near: Places,
    /// Placed pods that the pod's anti-affinity terms select.
    far: Places,
    /// Placed pods whose anti-affinity selects the pod.
    shunned: Places,
}

/// Whether the term is about a pod of this namespace and with these labels.
fn covers(term: &AffinityTerm, namespace: &str, labels: &Labels, cluster: &Cluster) -> bool {
    let none = Labels::new();
    let named = term.namespaces.iter().any(|n| n == namespace);
    let selected = || term.namespace_selector.matches(cluster.namespaces.get(namespace).unwrap_or(&none));
    (named || selected()) && term.selector.matches(labels)
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        2
    }

    fn begin<'a>(&'a self, pod: &'a PodFacts, cluster: &'a Cluster) -> Result<Option<Box<dyn Cycle + 'a>>, Reject> {
        let own = !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.preferred_pods.is_empty());
        if !own && !cluster.has_affine_pods() {
            return Ok(None);
        }
        let (near, far, shunned) = (Places::default(), Places::default(), Places::default());
        let mut affinity = Affinity { pod, cluster, near, far, shunned };
        affinity.count();
        Ok(Some(Box::new(affinity)))
    }
}

impl Affinity<'_> {
    fn count(&mut self) {
        let (pod, cluster) = (self.pod, self.cluster);
        let selects_all = |terms: &[AffinityTerm]| {
            cluster.groups.matching(|g| !terms.is_empty() && terms.iter().all(|t| covers(t, &g.namespace, &g.labels, cluster)))
        };
        let near = selects_all(&pod.affinity);
        let far: Vec<_> = pod.anti_affinity.iter().map(|term| selects_all(std::slice::from_ref(term))).collect();
        for node in cluster.present().iter().map(|&id| cluster.node(id)) {
            for (group, count) in &node.groups {
                if near.get(*group) == Some(&true) {
                    pod.affinity.iter().for_each(|term| self.near.add(&term.topology_key, node, *count));
                }
                for (term, matching) in pod.anti_affinity.iter().zip(&far) {
                    if matching.get(*group) == Some(&true) {
                        self.far.add(&term.topology_key, node, *count);
                    }
                }
            }
            for other in &node.affine {
                self.note_shunning(other, node, 1);
            }
        }
    }

    fn note_shunning(&mut self, other: &PodFacts, node: &NodeInfo, by: i64) {
        for term in other.anti_affinity.iter().filter(|t| covers(t, &self.pod.namespace, &self.pod.labels, self.cluster)) {
            self.shunned.add(&term.topology_key, node, by);
        }
    }

    fn change(&mut self, other: &PodFacts, node: &NodeInfo, by: i64) {
        let covers = |term: &AffinityTerm| covers(term, &other.namespace, &other.labels, self.cluster);
        if !self.pod.affinity.is_empty() && self.pod.affinity.iter().all(covers) {
            self.pod.affinity.iter().for_each(|term| self.near.add(&term.topology_key, node, by));
        }
        for term in self.pod.anti_affinity.iter().filter(|t| covers(t)) {
            self.far.add(&term.topology_key, node, by);
        }
        self.note_shunning(other, node, by);
    }

    /// Whether the node is near pods that the affinity asks for. The first pod of a group that wants to be together
    /// may go anywhere.
    fn is_near(&self, labels: &Labels) -> bool {
        let terms = &self.pod.affinity;
        if !terms.iter().all(|term| labels.contains_key(&term.topology_key)) {
            return false;
        }
        let first = || {
            self.near.is_empty() && terms.iter().all(|t| covers(t, &self.pod.namespace, &self.pod.labels, self.cluster))
        };
        terms.iter().all(|term| self.near.get(&term.topology_key, labels) > 0) || first()
    }
}

impl Cycle for Affinity<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Reject> {
        let Some(facts) = node.facts.as_deref() else { return Ok(()) };
        if !self.is_near(&facts.labels) {
            return Err(Reject::always(NAME, "node(s) didn't match pod affinity rules"));
        }
        if self.pod.anti_affinity.iter().any(|term| self.far.get(&term.topology_key, &facts.labels) > 0) {
            return Err(Reject::while_others_run(NAME, "node(s) didn't match pod anti-affinity rules"));
        }
        if self.shunned.0.keys().any(|key| self.shunned.get(key, &facts.labels) > 0) {
            return Err(Reject::while_others_run(NAME, "node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let (pod, cluster) = (self.pod, self.cluster);
        let mut places = Places::default();
        let own: Vec<(&AffinityTerm, Vec<bool>)> = pod
            .preferred_pods
            .iter()
            .map(|term| (term, cluster.groups.matching(|g| covers(term, &g.namespace, &g.labels, cluster))))
            .collect();
        for node in cluster.present().iter().map(|&id| cluster.node(id)) {
            for (term, matching) in &own {
                let groups = node.groups.iter().filter(|(id, _)| matching.get(*id) == Some(&true));
                places.add(&term.topology_key, node, term.weight * groups.map(|(_, count)| count).sum::<i64>());
            }
            for other in &node.affine {
                let towards = |terms: &[AffinityTerm], weight: Option<i64>, places: &mut Places| {
                    for term in terms.iter().filter(|t| covers(t, &pod.namespace, &pod.labels, cluster)) {
                        places.add(&term.topology_key, node, weight.unwrap_or(term.weight));
                    }
                };
                towards(&other.affinity, Some(REQUIRED_WEIGHT), &mut places);
                towards(&other.preferred_pods, None, &mut places);
            }
        }
        if places.is_empty() {
            return None;
        }
        let sum = |node: &&NodeInfo| -> i64 {
            let Some(facts) = node.facts.as_deref() else { return 0 };
            places.0.keys().map(|key| places.get(key, &facts.labels)).sum()
        };
        let sums: Vec<i64> = nodes.iter().map(sum).collect();
        let (least, most) = (sums.iter().copied().min().unwrap_or(0), sums.iter().copied().max().unwrap_or(0));
        let stretch = |sum: &i64| if most == least { 0 } else { MAX_SCORE * (sum - least) / (most - least) };
        Some(sums.iter().map(stretch).collect())
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
