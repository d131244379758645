//! The decision: which node a pod goes to, or why it goes to none. No IO.

use std::borrow::Cow;
use std::collections::BTreeMap;

use skiff_api::random;

use crate::cluster::{Cluster, NodeInfo};
use crate::nominated::Nominated;
use crate::plugins::{Cycle, Plugin, Reject};
use crate::pod::PodFacts;

/// With fewer nodes than this all are looked at.
const ALL_BELOW: usize = 100;

/// What came of one look at a pod.
#[derive(Debug)]
pub struct Failure {
    /// Number of nodes there are.
    pub nodes: usize,
    /// Why the pod as such can't go anywhere; then no node was looked at.
    pub pod: Option<Reject>,
    /// Why each node was refused.
    pub rejects: Vec<(usize, Reject)>,
    /// Why nodes were left out unseen, if any were: the names of the plugins that named the nodes.
    pub unseen: Vec<&'static str>,
}

/// The plugins at work for one pod, with the weight of their scores.
pub type Cycles<'a> = Vec<(i64, Box<dyn Cycle + 'a>)>;

/// Has all plugins look at the pod.
pub fn begin<'a>(plugins: &'a [Box<dyn Plugin>], pod: &'a PodFacts, cluster: &'a Cluster) -> Result<Cycles<'a>, Reject> {
    let mut cycles = Vec::with_capacity(plugins.len());
    for plugin in plugins {
        if let Some(cycle) = plugin.begin(pod, cluster)? {
            cycles.push((plugin.weight(), cycle));
        }
    }
    Ok(cycles)
}

/// Whether the node can take the pod, for itself and once the pods nominated to it, that are as important, are there.
pub fn fits(cycles: &Cycles<'_>, pod: &PodFacts, node: &NodeInfo, nominated: &Nominated) -> Result<(), Reject> {
    let filter = |cycles: &Cycles<'_>, node: &NodeInfo| cycles.iter().try_for_each(|(_, cycle)| cycle.filter(node));
    if nominated.is_empty() {
        return filter(cycles, node);
    }
    let name = node.facts.as_ref().map_or("", |f| f.name.as_str());
    let mut expected = nominated.on(name).filter(|p| p.uid != pod.uid && p.priority >= pod.priority).peekable();
    if expected.peek().is_some() {
        let mut full = node.clone();
        let mut forks: Cycles<'_> = cycles.iter().map(|(weight, cycle)| (*weight, cycle.fork())).collect();
        for other in expected {
            full.add(other, usize::MAX);
            forks.iter_mut().for_each(|(_, cycle)| cycle.with(other, &full));
        }
        filter(&forks, &full)?;
    }
    filter(cycles, node)
}

/// How many nodes that fit are enough, as upstream has it: all of few, 5 to 50 % of many.
fn enough(nodes: usize) -> usize {
    if nodes < ALL_BELOW {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(ALL_BELOW)
}

/// Finds the best node for the pod. `start` is where the search begins; it moves on, so that all nodes get their turn.
pub fn place(
    cycles: &Cycles<'_>,
    pod: &PodFacts,
    cluster: &Cluster,
    nominated: &Nominated,
    plugins: &[Box<dyn Plugin>],
    start: &mut usize,
) -> Result<usize, Failure> {
    let all = cluster.present();
    let mut failure = Failure::new(all.len());
    if let Some(id) = cluster.find(&pod.nominated)
        && fits(cycles, pod, cluster.node(id), nominated).is_ok()
    {
        return Ok(id);
    }
    let mut only: Option<Vec<&str>> = None;
    for (_, cycle) in cycles {
        if let Some(names) = cycle.only_nodes() {
            match &mut only {
                Some(kept) => kept.retain(|name| names.contains(name)),
                None => only = Some(names),
            }
        }
    }
    let candidates: Cow<'_, [usize]> = match &only {
        Some(names) => {
            failure.unseen = plugins.iter().map(|p| p.name()).filter(|name| *name == "NodeAffinity").collect();
            Cow::Owned(names.iter().filter_map(|name| cluster.find(name)).collect())
        }
        None => Cow::Borrowed(all),
    };
    let wanted = enough(candidates.len());
    let mut feasible = Vec::new();
    let mut looked = 0;
    for i in 0..candidates.len() {
        let id = candidates[(*start + i) % candidates.len()];
        looked += 1;
        match fits(cycles, pod, cluster.node(id), nominated) {
            Ok(()) => feasible.push(id),
            Err(reject) => failure.rejects.push((id, reject)),
        }
        if feasible.len() == wanted {
            break;
        }
    }
    if !all.is_empty() {
        *start = (*start + looked) % all.len();
    }
    match feasible.as_slice() {
        [] => Err(failure),
        [one] => Ok(*one),
        many => Ok(best(cycles, many, cluster)),
    }
}

/// The node with the highest weighted sum of scores; one of them by lot where several have it.
fn best(cycles: &Cycles<'_>, ids: &[usize], cluster: &Cluster) -> usize {
    let nodes: Vec<&NodeInfo> = ids.iter().map(|&id| cluster.node(id)).collect();
    let mut totals = vec![0i64; ids.len()];
    for (weight, cycle) in cycles {
        if let Some(scores) = cycle.score(&nodes) {
            totals.iter_mut().zip(scores).for_each(|(total, score)| *total += weight * score);
        }
    }
    let top = totals.iter().copied().max().unwrap_or(0);
    let winners: Vec<usize> = ids.iter().zip(&totals).filter(|(_, total)| **total == top).map(|(id, _)| *id).collect();
    winners[random::below(winners.len())]
}

impl Failure {
    /// A failure about which nothing is known yet but the number of nodes.
    pub fn new(nodes: usize) -> Self {
        Self { nodes, pod: None, rejects: Vec::new(), unseen: Vec::new() }
    }

    /// The plugins that refused, for judging which events may help.
    pub fn plugins(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.rejects.iter().map(|(_, r)| r.plugin).chain(self.pod.as_ref().map(|r| r.plugin)).collect();
        names.extend(&self.unseen);
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Upstream's sentence, without what preemption came to.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        if let Some(reject) = &self.pod {
            return sentence(self.nodes, &reject.reasons.join(", "));
        }
        let mut reasons: Vec<(Cow<'_, str>, usize)> = Vec::new();
        let unseen = self.nodes.saturating_sub(self.rejects.len());
        if !self.unseen.is_empty() && unseen > 0 {
            reasons.push((format!("node(s) didn't satisfy plugin(s) [{}]", self.unseen.join(" ")).into(), unseen));
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.rejects.iter().flat_map(|(_, reject)| &reject.reasons) {
            *counts.entry(reason).or_default() += 1;
        }
        reasons.extend(counts.into_iter().map(|(reason, count)| (Cow::Borrowed(reason), count)));
        histogram(self.nodes, reasons)
    }
}

fn sentence(nodes: usize, rest: &str) -> String {
    if rest.is_empty() {
        return format!("0/{nodes} nodes are available:");
    }
    format!("0/{nodes} nodes are available: {rest}.")
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) ...`, with the reasons in upstream's order, which is that of
/// the finished texts.
pub fn histogram(nodes: usize, reasons: Vec<(Cow<'_, str>, usize)>) -> String {
    let mut texts: Vec<String> = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    sentence(nodes, &texts.join(", "))
}
