//! What the scheduler needs to know of a pod. The rest of the object is dropped on arrival.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

use skiff_api::labels::{Operator, Selector};
use skiff_api::typed::placement::{NodeRules, NodeTerm};
use skiff_api::typed::{pods, selector};

use crate::resources::{self, Resources};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A port of the node that a pod takes for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The address; empty and `0.0.0.0` mean all.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number.
    pub port: i32,
}

/// The owner that controls a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// `ReplicaSet` and so on.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// One term of pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffinityTerm {
    /// Which pods it is about.
    pub selector: Selector,
    /// The namespaces it names (the pod's own when it names none).
    pub namespaces: Vec<String>,
    /// Which further namespaces it is about.
    pub namespace_selector: Selector,
    /// The node label that says what counts as one place.
    pub topology_key: String,
    /// What it weighs in scoring; 0 for a required term.
    pub weight: i64,
}

/// One constraint on how pods spread over the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// By how many pods places may differ.
    pub max_skew: i64,
    /// The node label that says what counts as one place.
    pub topology_key: String,
    /// Whether a node that breaks it is refused, or only scored lower.
    pub required: bool,
    /// Which pods count.
    pub selector: Selector,
    /// The least number of places; with fewer the least filled place counts as empty.
    pub min_domains: i64,
    /// Whether only nodes count that the pod's node affinity allows.
    pub honor_affinity: bool,
    /// Whether only nodes count whose taints the pod tolerates.
    pub honor_taints: bool,
}

/// A volume by way of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The claim's name.
    pub name: String,
    /// Whether it is an ephemeral volume, whose claim is made for this pod.
    pub ephemeral: bool,
}

/// What the scheduler needs to know of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid: a pod made anew under the same name is another pod.
    pub uid: String,
    /// Labels; shared by all pods that have the same.
    pub labels: Arc<Labels>,
    /// The node it is assigned to, empty when it waits for one.
    pub node: String,
    /// Where a preemption made room for it, or empty.
    pub nominated: String,
    /// The scheduler that it asks for.
    pub scheduler: String,
    /// Priority.
    pub priority: i32,
    /// Whether it may have others evicted for it.
    pub preempts: bool,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// When its start was reported, for choosing victims.
    pub started: Option<Timestamp>,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether it is being deleted to make room for another pod.
    pub preempted: bool,
    /// Whether it ran to its end: then it holds nothing any more.
    pub finished: bool,
    /// Gates that hold it back.
    pub gates: Vec<String>,
    /// What it asks for.
    pub requests: Resources,
    /// What it counts for in scoring.
    pub nonzero: Resources,
    /// Ports of the node that it takes.
    pub host_ports: Vec<HostPort>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Its node selector and required node affinity.
    pub node_rules: NodeRules,
    /// Node terms that score when they hold.
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    /// Required pod affinity.
    pub affinity: Vec<AffinityTerm>,
    /// Required pod anti-affinity.
    pub anti_affinity: Vec<AffinityTerm>,
    /// Preferred pod affinity (positive weights) and anti-affinity (negative ones).
    pub preferred_pods: Vec<AffinityTerm>,
    /// Topology spread constraints.
    pub spread: Vec<Spread>,
    /// Images of its containers.
    pub images: Vec<String>,
    /// Its volumes of claims.
    pub claims: Vec<Claim>,
    /// Who controls it.
    pub controller: Option<Controller>,
    /// Generation, which the condition about scheduling names as observed.
    pub generation: Option<i64>,
    /// The PodScheduled condition as it stands: status, reason, message.
    pub scheduled: Option<(String, String, String)>,
}

impl PodFacts {
    /// Takes the facts out of a pod. Absent fields read as their defaults.
    pub fn new(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let labels = Arc::new(meta.labels.clone().unwrap_or_default());
        let namespace = meta.namespace.clone().unwrap_or_default();
        let affinity = spec.and_then(|s| s.affinity.as_ref());
        let controller = pods::controller_of(meta);
        let condition = |type_: &str| pods::condition(pod, type_);
        let (affine, anti, preferred) = pod_affinity(affinity, &namespace, &labels);
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
            nominated: status.and_then(|s| s.nominated_node_name.clone()).unwrap_or_default(),
            scheduler: spec.and_then(|s| s.scheduler_name.clone()).unwrap_or_default(),
            priority: spec.and_then(|s| s.priority).unwrap_or(0),
            preempts: spec.and_then(|s| s.preemption_policy.as_deref()) != Some("Never"),
            created: meta.creation_timestamp.as_ref().map(|t| t.0),
            started: status.and_then(|s| s.start_time.as_ref()).map(|t| t.0),
            terminating: meta.deletion_timestamp.is_some(),
            preempted: condition("DisruptionTarget")
                .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler")),
            finished: pods::is_finished(pod),
            gates: spec.iter().flat_map(|s| s.scheduling_gates.iter().flatten()).map(|g| g.name.clone()).collect(),
            requests: resources::requests(pod, false),
            nonzero: resources::requests(pod, true),
            host_ports: host_ports(pod),
            tolerations: spec.and_then(|s| s.tolerations.clone()).unwrap_or_default(),
            node_rules: NodeRules::new(pod),
            preferred_nodes: affinity
                .and_then(|a| a.node_affinity.as_ref())
                .iter()
                .flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten())
                .map(|p| (i64::from(p.weight), NodeTerm::new(&p.preference)))
                .collect(),
            affinity: affine,
            anti_affinity: anti,
            preferred_pods: preferred,
            spread: spec
                .iter()
                .flat_map(|s| s.topology_spread_constraints.iter().flatten())
                .map(|c| Spread::new(c, &labels))
                .collect(),
            images: spec
                .iter()
                .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers))
                .filter_map(|c| c.image.as_deref().map(with_tag))
                .collect(),
            claims: claims(pod),
            controller: controller.map(|o| Controller { kind: o.kind.clone(), name: o.name.clone(), uid: o.uid.clone() }),
            generation: meta.generation,
            scheduled: condition("PodScheduled").map(|c| {
                (c.status.clone(), c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())
            }),
            namespace,
            labels,
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether what decides about its scheduling is the same in `other`: everything but the status that the scheduler
    /// itself writes.
    pub fn schedules_like(&self, other: &Self) -> bool {
        let strip = |pod: &Self| Self { scheduled: None, nominated: String::new(), generation: None, ..pod.clone() };
        strip(self) == strip(other)
    }
}

impl AffinityTerm {
    fn new(term: &PodAffinityTerm, namespace: &str, labels: &Labels, weight: i64) -> Self {
        let mut selected = selector::of(term.label_selector.as_ref());
        for (keys, how) in [(&term.match_label_keys, Operator::In), (&term.mismatch_label_keys, Operator::NotIn)] {
            for key in keys.iter().flatten() {
                // The API server merges these keys into the selector on create; older objects may lack that.
                if let Some(value) = labels.get(key) {
                    selected.require(selector::is(key, how, value));
                }
            }
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        Self {
            selector: selected,
            namespaces,
            namespace_selector: selector::of(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let mut selected = selector::of(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selected.require(selector::is(key, Operator::In, value));
            }
        }
        Self {
            max_skew: i64::from(constraint.max_skew),
            topology_key: constraint.topology_key.clone(),
            required: constraint.when_unsatisfiable == "DoNotSchedule",
            selector: selected,
            min_domains: constraint.min_domains.map_or(1, i64::from),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

type Terms = Vec<AffinityTerm>;

fn pod_affinity(affinity: Option<&Affinity>, namespace: &str, labels: &Labels) -> (Terms, Terms, Terms) {
    let required = |terms: Option<&Vec<PodAffinityTerm>>| -> Terms {
        terms.into_iter().flatten().map(|t| AffinityTerm::new(t, namespace, labels, 0)).collect()
    };
    let preferred = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Terms {
        let weighted = terms.into_iter().flatten();
        weighted.map(|t| AffinityTerm::new(&t.pod_affinity_term, namespace, labels, sign * i64::from(t.weight))).collect()
    };
    let towards = affinity.and_then(|a| a.pod_affinity.as_ref());
    let away = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    let mut scored = preferred(towards.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), 1);
    scored.extend(preferred(away.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), -1));
    (
        required(towards.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
        required(away.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
        scored,
    )
}

/// The image's name with its tag: `latest` where it has none, as nodes list it.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// The host ports of containers and sidecars.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|&port| port > 0)?;
            Some(HostPort {
                ip: p.host_ip.clone().unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port,
            })
        })
        .collect()
}

fn claims(pod: &Pod) -> Vec<Claim> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|v| {
            if let Some(claim) = &v.persistent_volume_claim {
                return Some(Claim { name: claim.claim_name.clone(), ephemeral: false });
            }
            v.ephemeral.as_ref().map(|_| Claim { name: format!("{pod_name}-{}", v.name), ephemeral: true })
        })
        .collect()
}
