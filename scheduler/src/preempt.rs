//! Preemption: whose eviction would make room for a pod that fits nowhere.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use skiff_api::labels::Selector;
use skiff_api::{random, typed::selector};

use crate::cluster::{Cluster, NodeInfo};
use crate::decide::{Cycles, Failure, fits, histogram};
use crate::nominated::Nominated;
use crate::pod::PodFacts;

/// At least so many nodes are tried, where there are as many, before the best of them is chosen.
const CANDIDATES: usize = 100;
/// And at least this share of them.
const CANDIDATES_PERCENT: usize = 10;

/// What the scheduler needs to know of a disruption budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Namespace and name.
    pub key: (String, String),
    selector: Selector,
    allowed: i32,
    /// Pods whose eviction was granted and is under way.
    disrupted: HashSet<String>,
}

impl Budget {
    /// Takes the facts out of a disruption budget.
    pub fn new(budget: &PodDisruptionBudget) -> Self {
        let meta = &budget.metadata;
        let status = budget.status.as_ref();
        Self {
            key: (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()),
            selector: selector::of(budget.spec.as_ref().and_then(|s| s.selector.as_ref())),
            allowed: status.and_then(|s| s.disruptions_allowed).unwrap_or(0),
            disrupted: status.iter().flat_map(|s| s.disrupted_pods.iter().flatten()).map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// What came of looking for victims.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// On this node, these pods.
    Victims(usize, Vec<Arc<PodFacts>>),
    /// Nobody's eviction helps: why, in upstream's words. The pod keeps its nomination when it waits for victims that
    /// are on their way.
    Nobody {
        /// Upstream's sentence.
        message: String,
        /// Whether the pod's nomination stays.
        keeps_nomination: bool,
    },
}

struct Candidate {
    node: usize,
    victims: Vec<Arc<PodFacts>>,
    violations: usize,
}

/// Looks for the pods to evict for `pod`, which `failure` says fits nowhere.
pub fn preempt(
    cycles: &Cycles<'_>,
    pod: &PodFacts,
    cluster: &Cluster,
    nominated: &Nominated,
    budgets: &[Budget],
    failure: &Failure,
) -> Outcome {
    let nobody = |message: String, keeps_nomination| Outcome::Nobody { message: format!("preemption: {message}"), keeps_nomination };
    if !pod.preempts {
        return nobody("not eligible due to preemptionPolicy=Never.".into(), true);
    }
    if waits_for_victims(pod, cluster, failure) {
        return nobody("not eligible due to a terminating pod on the nominated node.".into(), true);
    }
    let hopeful: Vec<usize> = failure.rejects.iter().filter(|(_, reject)| reject.resolvable).map(|(id, _)| *id).collect();
    let enough = (hopeful.len() * CANDIDATES_PERCENT / 100).max(CANDIDATES);
    let offset = random::below(hopeful.len());
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut reasons: BTreeMap<Cow<'static, str>, usize> = BTreeMap::new();
    for i in 0..hopeful.len() {
        let node = hopeful[(offset + i) % hopeful.len()];
        match victims_on(cycles, pod, cluster, nominated, budgets, node) {
            Ok((victims, violations)) => candidates.push(Candidate { node, victims, violations }),
            Err(why) => why.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
        if candidates.len() >= enough && candidates.iter().any(|c| c.violations == 0) {
            break;
        }
    }
    match candidates.into_iter().min_by_key(cost) {
        Some(best) => Outcome::Victims(best.node, best.victims),
        None => {
            let hopeless = failure.nodes.saturating_sub(hopeful.len());
            if hopeless > 0 {
                reasons.insert("Preemption is not helpful for scheduling".into(), hopeless);
            }
            nobody(histogram(failure.nodes, reasons.into_iter().collect()), false)
        }
    }
}

/// Whether victims of an earlier preemption for this pod are still on their way out.
fn waits_for_victims(pod: &PodFacts, cluster: &Cluster, failure: &Failure) -> bool {
    let Some(id) = cluster.find(&pod.nominated) else { return false };
    let hopeless = failure.rejects.iter().any(|(node, reject)| *node == id && !reject.resolvable);
    let leaving = |p: &Arc<PodFacts>| p.priority < pod.priority && p.terminating && p.preempted;
    !hopeless && cluster.node(id).pods.iter().any(leaving)
}

/// By what candidates are compared; the least is the best. Fewer broken budgets, then a lower highest priority, then a
/// lower sum of priorities, then fewer victims, then more recently started ones.
fn cost(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Option<Timestamp>>) {
    let highest = candidate.victims.iter().map(|v| v.priority).max().unwrap_or(i32::MIN);
    // Shifted so that many pods of negative priority don't count for less than few.
    let sum = candidate.victims.iter().map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1).sum();
    let earliest = candidate.victims.iter().filter(|v| v.priority == highest).map(|v| v.started).min().flatten();
    (candidate.violations, highest, sum, candidate.victims.len(), Reverse(earliest))
}

/// More important pods first.
fn importance(pod: &Arc<PodFacts>) -> (Reverse<i32>, bool, Option<Timestamp>) {
    (Reverse(pod.priority), pod.started.is_none(), pod.started)
}

/// Pods to evict from a node and how many of them break a budget; or why that makes no room.
type Victims = Result<(Vec<Arc<PodFacts>>, usize), Vec<Cow<'static, str>>>;

/// The fewest pods whose eviction makes room on the node.
fn victims_on(
    cycles: &Cycles<'_>,
    pod: &PodFacts,
    cluster: &Cluster,
    nominated: &Nominated,
    budgets: &[Budget],
    id: usize,
) -> Victims {
    let mut node = cluster.node(id).clone();
    let mut trial: Cycles<'_> = cycles.iter().map(|(weight, cycle)| (*weight, cycle.fork())).collect();
    let mut lesser: Vec<Arc<PodFacts>> = node.pods.iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if lesser.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".into()]);
    }
    let group = |p: &PodFacts| cluster.group(&p.uid).unwrap_or(usize::MAX);
    for victim in &lesser {
        take(&mut node, &mut trial, victim, group(victim));
    }
    fits(&trial, pod, &node, nominated).map_err(|reject| reject.reasons)?;
    lesser.sort_by_key(importance);
    let (protected, free) = by_budget(lesser, budgets);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (victim, is_protected) in protected.into_iter().map(|v| (v, true)).chain(free.into_iter().map(|v| (v, false))) {
        // Whoever may stay beside the pod stays, the most important first.
        node.add(&victim, group(&victim));
        trial.iter_mut().for_each(|(_, cycle)| cycle.with(&victim, &node));
        if fits(&trial, pod, &node, nominated).is_err() {
            take(&mut node, &mut trial, &victim, group(&victim));
            violations += usize::from(is_protected);
            victims.push(victim);
        }
    }
    if victims.is_empty() {
        return Err(Vec::new());
    }
    victims.sort_by_key(importance);
    Ok((victims, violations))
}

fn take(node: &mut NodeInfo, trial: &mut Cycles<'_>, victim: &PodFacts, group: usize) {
    node.remove(victim, group);
    trial.iter_mut().for_each(|(_, cycle)| cycle.without(victim, node));
}

/// Sorts pods by whether their eviction breaks a budget, in the order in which they come.
fn by_budget(pods: Vec<Arc<PodFacts>>, budgets: &[Budget]) -> (Vec<Arc<PodFacts>>, Vec<Arc<PodFacts>>) {
    let mut left: Vec<i32> = budgets.iter().map(|b| b.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut broken = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            let covers = budget.key.0 == pod.namespace && !budget.selector.is_empty() && !pod.labels.is_empty();
            if covers && budget.selector.matches(&*pod.labels) && !budget.disrupted.contains(&pod.name) {
                *left -= 1;
                broken |= *left < 0;
            }
        }
        broken
    })
}
