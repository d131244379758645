//! DaemonSet: a pod on every node that it is meant for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Toleration,
};
use kube::api::Patch;
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use skiff_api::clock;
use skiff_api::typed::placement::{NodeRules, NodeTerm, untolerated};
use skiff_api::typed::pods::{available_at, controller_of, is_available, is_ready, node_name, phase};
use skiff_api::typed::selector;

use crate::Context;
use crate::claim::{claim, controller_ref, selects};
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::history::{self, DAEMON_HASH, Outcome};
use crate::kind::{By, Change, Key, Kind};
use crate::pods;
use crate::scaled::scaled;

/// The name that events carry.
const SOURCE: &str = "daemonset-controller";
/// The number of the template of old, by which pods made before revisions are known.
const GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
/// The wait before the second failed pod of a node is replaced; it doubles from pod to pod.
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(1);
/// The longest wait.
const LAST_BACKOFF: SignedDuration = SignedDuration::from_mins(15);
/// What every pod of a DaemonSet endures.
const ENDURED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// What those in the node's network endure as well.
const ENDURED_BY_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// How often pods have failed on a node, and when last; by uid and node.
type Failures = Arc<Mutex<HashMap<(String, String), (u32, Timestamp)>>>;

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let (of_nodes, of_pods) = (context.kinds.daemon_sets.clone(), context.kinds.daemon_sets.clone());
    let failures = Failures::default();
    Controller::new(SOURCE, &context.kinds.daemon_sets)
        .owns(&*context.kinds.pods)
        .owns(&*context.kinds.controller_revisions)
        .on(&*context.kinds.pods, move |change: &Change<Pod>| would_adopt(&of_pods, change))
        .on(&*context.kinds.nodes, move |change: &Change<Node>| concerned(&of_nodes, change))
        .run(context, move |context: Arc<Context>, set: Arc<DaemonSet>| {
            let failures = failures.clone();
            async move { reconcile(&context, &set, &failures).await }
        })
}

fn would_adopt(all: &Kind<DaemonSet>, change: &Change<Pod>) -> Vec<ObjectRef<DaemonSet>> {
    let Some(pod) = change.new.as_ref().filter(|p| controller_of(&p.metadata).is_none()) else { return Vec::new() };
    let mut found = all.find(&By::Namespace(pod.metadata.namespace.clone().unwrap_or_default()));
    found.retain(|d| selects(&selector::of(d.spec.as_ref().map(|s| &s.selector)), &**pod));
    found.iter().map(|d| Key::of(&d.metadata).reference()).collect()
}

/// The DaemonSets that a change of a node matters to.
fn concerned(all: &Kind<DaemonSet>, change: &Change<Node>) -> Vec<ObjectRef<DaemonSet>> {
    let facts = |node: &Arc<Node>| {
        let spec = node.spec.as_ref();
        (node.metadata.labels.clone(), spec.and_then(|s| s.taints.clone()))
    };
    if change.old.as_ref().map(facts) == change.new.as_ref().map(facts) {
        return Vec::new();
    }
    let mut found = all.all();
    found.retain(|set| {
        let Some(spec) = &set.spec else { return false };
        let rules = Rules::new(spec);
        change.old.as_ref().map(|n| rules.judge(n)) != change.new.as_ref().map(|n| rules.judge(n))
    });
    found.iter().map(|set| Key::of(&set.metadata).reference()).collect()
}

/// Where the pods of a DaemonSet may be.
struct Rules {
    node: NodeRules,
    only: Option<String>,
    tolerations: Vec<Toleration>,
}

/// What a DaemonSet wants on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// A pod.
    Run,
    /// No new pod, but one that is there may stay.
    Keep,
    /// No pod.
    Leave,
}

impl Rules {
    fn new(spec: &DaemonSetSpec) -> Self {
        let pod = spec.template.spec.clone().unwrap_or_default();
        let required = pod.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let required = required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let terms = required.map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect());
        Self {
            node: NodeRules { selector: pod.node_selector.clone().unwrap_or_default(), terms },
            only: pod.node_name.clone().filter(|name| !name.is_empty()),
            tolerations: tolerations(pod.tolerations.unwrap_or_default(), pod.host_network.unwrap_or(false)),
        }
    }

    fn judge(&self, node: &Node) -> Wish {
        let name = node.metadata.name.as_deref().unwrap_or("");
        let none = BTreeMap::new();
        if self.only.as_deref().is_some_and(|only| only != name)
            || !self.node.allow(name, node.metadata.labels.as_ref().unwrap_or(&none))
        {
            return Wish::Leave;
        }
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
        if untolerated(&self.tolerations, taints, &["NoSchedule", "NoExecute"]).is_none() {
            Wish::Run
        } else if untolerated(&self.tolerations, taints, &["NoExecute"]).is_none() {
            Wish::Keep
        } else {
            Wish::Leave
        }
    }
}

/// The tolerations of a DaemonSet's pods: their own, and what all endure.
fn tolerations(mut own: Vec<Toleration>, host_network: bool) -> Vec<Toleration> {
    for (key, effect) in ENDURED.into_iter().chain(host_network.then_some(ENDURED_BY_HOST)) {
        let endured = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !own.contains(&endured) {
            own.push(endured);
        }
    }
    own
}

/// What a plan is made from.
struct Observed<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    nodes: &'a [Arc<Node>],
    pods: &'a [Arc<Pod>],
    /// The hash of the present template.
    hash: &'a str,
    /// Until when a failed pod on a node stays.
    held: &'a dyn Fn(&str) -> Option<Timestamp>,
    now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default)]
struct Plan {
    /// Nodes that get a pod.
    create: Vec<String>,
    /// Pods that go.
    delete: Vec<Arc<Pod>>,
    /// Those of them that had failed: name of the node.
    failed: Vec<String>,
    /// Events: whether a warning, reason, message.
    events: Vec<(bool, &'static str, String)>,
    /// When to look again.
    again: Option<Duration>,
}

impl Observed<'_> {
    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready(), self.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |key: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(key));
        let generation = self.set.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION));
        (!self.hash.is_empty() && label(DAEMON_HASH).is_some_and(|h| h == self.hash))
            || generation.is_some_and(|g| label(GENERATION_LABEL) == Some(g))
    }

    /// The pods by the node they are on, or made for.
    fn by_node(&self) -> BTreeMap<String, Vec<Arc<Pod>>> {
        let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in self.pods {
            by_node.entry(target(pod)).or_default().push(pod.clone());
        }
        for pods in by_node.values_mut() {
            pods.sort_by_key(|p| {
                let made = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
                (node_name(p).is_empty(), made, p.metadata.name.clone())
            });
        }
        by_node
    }

    fn surge(&self, desired: i32) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().filter(|s| s.type_.as_deref() != Some("OnDelete"));
        let surge = rolling.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.max_surge.as_ref());
        surge.map_or(0, |s| scaled(s, desired, true))
    }

    fn unavailable(&self, desired: i32) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let most = rolling.and_then(|r| r.max_unavailable.as_ref()).map_or(1, |m| scaled(m, desired, true));
        if most == 0 && self.surge(desired) == 0 { 1 } else { most }
    }
}

/// The node that a pod is on, or made for.
fn target(pod: &Pod) -> String {
    let on = node_name(pod);
    if !on.is_empty() {
        return on.to_owned();
    }
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fields = required.iter().flat_map(|r| &r.node_selector_terms).flat_map(|t| t.match_fields.iter().flatten());
    let named = fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first().cloned());
    named.unwrap_or_default()
}

/// Decides where pods are missing, and which are too many, failed or out of place.
fn manage(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let rules = Rules::new(observed.spec);
    let mut by_node = observed.by_node();
    let surges = observed.surge(1) > 0;
    for node in observed.nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let pods = by_node.remove(&name);
        match (rules.judge(node), pods) {
            (Wish::Run, None) => plan.create.push(name),
            (Wish::Leave, Some(pods)) => {
                plan.delete.extend(pods.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()));
            }
            (wish, Some(pods)) => on_node(observed, &mut plan, name, wish, pods, surges),
            (_, None) => {}
        }
    }
    // Pods for nodes that aren't there, and never got to one.
    let stranded = by_node.into_values().flatten().filter(|p| node_name(p).is_empty());
    plan.delete.extend(stranded.filter(|p| p.metadata.deletion_timestamp.is_none()));
    plan
}

fn on_node(observed: &Observed<'_>, plan: &mut Plan, node: String, wish: Wish, pods: Vec<Arc<Pod>>, surges: bool) {
    let mut running = Vec::new();
    for pod in pods.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let (namespace, name) =
            (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
        match phase(&pod) {
            "Failed" => {
                if let Some(until) = (observed.held)(&node).filter(|until| *until > observed.now) {
                    plan.again = plan.again.into_iter().chain([clock::until(until)]).min();
                    continue;
                }
                let text = format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
                plan.events.push((true, "FailedDaemonPod", text));
                plan.failed.push(node.clone());
                plan.delete.push(pod);
            }
            "Succeeded" => {
                let text = format!("Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it");
                plan.events.push((false, "SucceededDaemonPod", text));
                plan.delete.push(pod);
            }
            _ => running.push(pod),
        }
    }
    if !surges {
        plan.delete.extend(running.into_iter().skip(1));
        return;
    }
    if running.is_empty() && wish == Wish::Run {
        plan.create.push(node);
        return;
    }
    // One old pod may stand beside one new one, until the new one is there or the old one is of no use.
    let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|p| observed.is_updated(p));
    if let (Some(new), Some(old)) = (new.first(), old.first())
        && (!is_ready(old) || observed.is_available(new))
    {
        plan.delete.push(old.clone());
    }
    plan.delete.extend(new.into_iter().skip(1).chain(old.into_iter().skip(1)));
}

/// Decides which pods of earlier templates are replaced now.
fn roll(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let rules = Rules::new(observed.spec);
    let wishes: BTreeMap<&str, Wish> =
        observed.nodes.iter().map(|n| (n.metadata.name.as_deref().unwrap_or(""), rules.judge(n))).collect();
    let desired = wishes.values().filter(|w| **w == Wish::Run).count() as i32;
    let mut by_node = observed.by_node();
    for (name, _) in wishes.iter().filter(|(_, wish)| **wish == Wish::Run) {
        by_node.entry((*name).to_owned()).or_default();
    }
    let surge = observed.surge(desired);
    let (mut down, mut extra, mut available) = (0, 0, 0);
    let (mut useless, mut candidates, mut sunset, mut fresh) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (node, pods) in by_node {
        let live = pods.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none());
        let (new, old): (Vec<_>, Vec<_>) = live.partition(|p| observed.is_updated(p));
        if new.len() > 1 || old.len() > 1 {
            down += 1;
            extra += 1;
            continue;
        }
        let (new, old) = (new.into_iter().next(), old.into_iter().next());
        if old.as_ref().or(new.as_ref()).is_some_and(|p| observed.is_available(p)) {
            available += 1;
        }
        match (new, old) {
            (None, None) => down += 1,
            (Some(new), None) => down += i32::from(!observed.is_available(&new)),
            (Some(new), Some(old)) => {
                down += 1;
                if observed.is_available(&new) {
                    fresh.push(old);
                } else {
                    extra += 1;
                }
            }
            (None, Some(old)) if !observed.is_available(&old) => {
                down += 1;
                useless.push((node, old));
            }
            (None, Some(old)) if surge > 0 && wishes.get(node.as_str()) != Some(&Wish::Run) => sunset.push(old),
            (None, Some(old)) => candidates.push((node, old)),
        }
    }
    if surge == 0 {
        let room = usize::try_from(observed.unavailable(desired) - down).unwrap_or(0);
        plan.delete = useless.into_iter().chain(candidates.into_iter().take(room)).map(|(_, pod)| pod).collect();
        return plan;
    }
    let room = usize::try_from(surge - extra).unwrap_or(0);
    let (wanted, gone): (Vec<_>, Vec<_>) =
        useless.into_iter().partition(|(node, _)| wishes.get(node.as_str()) == Some(&Wish::Run));
    plan.create = wanted.into_iter().chain(candidates.into_iter().take(room)).map(|(node, _)| node).collect();
    plan.delete = fresh;
    plan.delete.extend(gone.into_iter().map(|(_, pod)| pod));
    let spare = usize::try_from(available - desired).unwrap_or(0);
    plan.delete.extend(sunset.into_iter().take(spare));
    plan
}

/// The status, and when it will change by itself.
fn status(observed: &Observed<'_>) -> (DaemonSetStatus, Again) {
    let rules = Rules::new(observed.spec);
    let by_node = observed.by_node();
    let mut status = observed.set.status.clone().unwrap_or_default();
    let (mut desired, mut current, mut astray, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
    let mut again: Again = None;
    for node in observed.nodes {
        let pod = by_node.get(node.metadata.name.as_deref().unwrap_or("")).and_then(|pods| pods.first());
        if rules.judge(node) != Wish::Run {
            astray += i32::from(pod.is_some());
            continue;
        }
        desired += 1;
        let Some(pod) = pod else { continue };
        current += 1;
        updated += i32::from(observed.is_updated(pod));
        ready += i32::from(is_ready(pod));
        match available_at(pod, observed.min_ready()) {
            Some(at) if at <= observed.now => available += 1,
            Some(at) => again = again.into_iter().chain([clock::until(at)]).min(),
            None => {}
        }
    }
    let unless_zero = |count: i32| (count != 0).then_some(count);
    status.desired_number_scheduled = desired;
    status.current_number_scheduled = current;
    status.number_misscheduled = astray;
    status.number_ready = ready;
    status.updated_number_scheduled = unless_zero(updated);
    status.number_available = unless_zero(available);
    status.number_unavailable = unless_zero(desired - available);
    status.observed_generation = observed.set.metadata.generation;
    (status, again)
}

/// A pod for a node, not yet made.
fn pod(set: &DaemonSet, spec: &DaemonSetSpec, hash: &str, node: &str) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or("");
    let mut pod = pods::from_template(&spec.template, namespace, controller_ref(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(DAEMON_HASH.into(), hash.to_owned());
    let generation = set.metadata.annotations.as_ref().and_then(|a| a.get(GENERATION));
    if let Some(generation) = generation.filter(|g| g.parse::<i64>().is_ok()) {
        labels.insert(GENERATION_LABEL.into(), generation.clone());
    }
    if let Some(spec) = &mut pod.spec {
        spec.tolerations =
            Some(tolerations(spec.tolerations.take().unwrap_or_default(), spec.host_network.unwrap_or(false)));
        bind_to(spec.affinity.get_or_insert_default(), node);
    }
    pod
}

/// Has the scheduler choose just this node.
fn bind_to(affinity: &mut Affinity, node: &str) {
    let name = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![name]), match_expressions: None };
    let own: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    own.required_during_scheduling_ignored_during_execution = Some(NodeSelector { node_selector_terms: vec![term] });
}

async fn reconcile(context: &Arc<Context>, set: &Arc<DaemonSet>, failures: &Failures) -> Result<Again, Error> {
    let Some(spec) = &set.spec else { return Ok(None) };
    let wants = selector::of(Some(&spec.selector));
    if wants.is_empty() {
        let why = "This daemon set is selecting all pods. A non-empty selector is required.";
        context.events.warning(SOURCE, &**set, "SelectingAll", why);
        return Ok(None);
    }
    if set.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let kinds = &context.kinds;
    let collisions = set.status.as_ref().and_then(|s| s.collision_count);
    let history = match history::sync(context, &**set, &spec.template, &wants, DAEMON_HASH, collisions).await? {
        Outcome::Current(history) => history,
        Outcome::Collision => {
            let patch = json!({ "status": { "collisionCount": collisions.unwrap_or(0) + 1 } });
            let noted = kinds.daemon_sets.patch_status(&set.metadata, &Patch::Merge(patch)).await;
            return noted.map(|_| None).map_err(Error::on("noting a name collision"));
        }
    };
    let hash = history::hash_of(&history.present, DAEMON_HASH).to_owned();
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let held = |node: &str| -> Option<Timestamp> {
        let failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last) = failures.get(&(uid.clone(), node.to_owned()))?;
        Some(*last + (FIRST_BACKOFF * (1 << (count - 1).min(10))).min(LAST_BACKOFF))
    };
    let nodes = kinds.nodes.all();
    let claimed = claim(&**set, &kinds.pods, |pod| selects(&wants, pod), |_| true).await?;
    let observe = |pods| Observed { set, spec, nodes: &nodes, pods, hash: &hash, held: &held, now: clock::now() };

    let plan = manage(&observe(&claimed));
    let mut outcome = act(context, set, spec, &hash, &plan).await;
    {
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        for node in plan.failed {
            let (count, last) = failures.entry((uid.clone(), node)).or_insert((0, clock::now()));
            (*count, *last) = (*count + 1, clock::now());
        }
    }
    let rolls = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    let managed = kinds.pods.controlled_by(&set.metadata);
    if outcome.is_ok() && rolls {
        let plan = roll(&observe(&managed));
        outcome = act(context, set, spec, &hash, &plan).await;
    }

    let after = kinds.pods.controlled_by(&set.metadata);
    let lives = |r: &k8s_openapi::api::apps::v1::ControllerRevision| {
        let hash = history::hash_of(r, DAEMON_HASH);
        after.iter().any(|p| p.metadata.labels.as_ref().and_then(|l| l.get(DAEMON_HASH)).is_some_and(|h| h == hash))
    };
    history::prune(context, &history, spec.revision_history_limit.unwrap_or(10), lives).await?;
    let (status, again) = status(&observe(&after));
    if Some(&status) != set.status.as_ref() {
        let updated = DaemonSet { status: Some(status), ..(**set).clone() };
        kinds.daemon_sets.replace_status(&updated).await.map_err(Error::on("updating the status of a daemon set"))?;
    }
    outcome.map(|()| again.into_iter().chain(plan.again).min())
}

async fn act(context: &Arc<Context>, set: &DaemonSet, spec: &DaemonSetSpec, hash: &str, plan: &Plan) -> Result<(), Error> {
    for (warning, reason, text) in &plan.events {
        match warning {
            true => context.events.warning(SOURCE, set, reason, text),
            false => context.events.normal(SOURCE, set, reason, text),
        }
    }
    let made = plan.create.iter().take(pods::BURST).map(|node| pod(set, spec, hash, node)).collect();
    pods::create(context, SOURCE, set, made).await?;
    pods::delete(context, SOURCE, set, plan.delete.iter().take(pods::BURST).cloned().collect()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn node(name: &str, labels: Value, taints: Value) -> Arc<Node> {
        let value = json!({ "metadata": { "name": name, "labels": labels }, "spec": { "taints": taints } });
        Arc::new(serde_json::from_value(value).expect("a node"))
    }

    fn pod_on(name: &str, node: &str, hash: &str, state: &str) -> Arc<Pod> {
        let ready = if state == "ready" { "True" } else { "False" };
        let phase = if state == "failed" { "Failed" } else { "Running" };
        let value = json!({
            "metadata": { "name": name, "uid": name, "labels": { "controller-revision-hash": hash } },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
        });
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn set(spec: Value) -> DaemonSet {
        let mut all = json!({ "selector": { "matchLabels": { "app": "d" } }, "template": { "spec": { "containers": [] } },
                              "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } } });
        json_patch::merge(&mut all, &spec);
        serde_json::from_value(json!({ "metadata": { "name": "d" }, "spec": all })).expect("a daemon set")
    }

    /// Nodes that get a pod, and pods that go.
    fn check(decide: fn(&Observed<'_>) -> Plan, spec: Value, nodes: &[Arc<Node>], pods: &[Arc<Pod>], expected: (&[&str], &[&str])) {
        let set = set(spec);
        let spec = set.spec.clone().expect("a spec");
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        let observed = Observed { set: &set, spec: &spec, nodes, pods, hash: "new", held: &|_| None, now };
        let plan = decide(&observed);
        let gone: Vec<_> = plan.delete.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        assert_eq!((plan.create.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), gone.as_slice()), expected);
    }

    #[test]
    fn where_pods_belong() {
        let taint = |key: &str, effect: &str| json!([{ "key": key, "effect": effect }]);
        let nodes = [
            node("plain", json!({}), json!([])),
            node("ssd", json!({ "disk": "ssd" }), json!([])),
            node("tainted", json!({}), taint("own", "NoSchedule")),
            node("driven", json!({}), taint("own", "NoExecute")),
            node("cordoned", json!({}), taint("node.kubernetes.io/unschedulable", "NoSchedule")),
        ];
        check(manage, json!({}), &nodes, &[], (&["plain", "ssd", "cordoned"], &[]));
        let selector = json!({ "template": { "spec": { "nodeSelector": { "disk": "ssd" } } } });
        check(manage, selector, &nodes, &[pod_on("p", "plain", "new", "ready")], (&["ssd"], &["p"]));
        let there: Vec<_> = ["plain", "ssd", "cordoned", "tainted", "driven"].iter().map(|n| pod_on(n, n, "new", "ready")).collect();
        check(manage, json!({}), &nodes, &there, (&[], &["driven"]));
        let twice = [pod_on("a", "plain", "new", "ready"), pod_on("b", "plain", "new", "ready"), pod_on("c", "ssd", "new", "failed")];
        check(manage, json!({}), &nodes[..2], &twice, (&[], &["b", "c"]));
    }

    #[test]
    fn pods_are_replaced_a_few_at_a_time() {
        let nodes: Vec<_> = ["n1", "n2", "n3"].iter().map(|n| node(n, json!({}), json!([]))).collect();
        let pods = |states: [(&str, &str); 3]| -> Vec<Arc<Pod>> {
            states.iter().zip(["n1", "n2", "n3"]).map(|((hash, state), n)| pod_on(n, n, hash, state)).collect()
        };
        let (old, new, broken) = (("old", "ready"), ("new", "ready"), ("new", "starting"));
        check(roll, json!({}), &nodes, &pods([old, old, old]), (&[], &["n1"]));
        check(roll, json!({}), &nodes, &pods([new, old, old]), (&[], &["n2"]));
        check(roll, json!({}), &nodes, &pods([broken, old, old]), (&[], &[]));
        check(roll, json!({}), &nodes, &pods([new, ("old", "starting"), old]), (&[], &["n2"]));
        let two = json!({ "updateStrategy": { "rollingUpdate": { "maxUnavailable": "50%" } } });
        check(roll, two, &nodes, &pods([old, old, old]), (&[], &["n1", "n2"]));
    }

    #[test]
    fn a_surge_makes_the_new_pod_first() {
        let nodes: Vec<_> = ["n1", "n2"].iter().map(|n| node(n, json!({}), json!([]))).collect();
        let surge = || json!({ "updateStrategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } } });
        let old = [pod_on("o1", "n1", "old", "ready"), pod_on("o2", "n2", "old", "ready")];
        check(roll, surge(), &nodes, &old, (&["n1"], &[]));
        let mut both = old.to_vec();
        both.push(pod_on("new1", "n1", "new", "starting"));
        check(roll, surge(), &nodes, &both, (&[], &[]));
        check(manage, surge(), &nodes, &both, (&[], &[]));
        both[2] = pod_on("new1", "n1", "new", "ready");
        check(manage, surge(), &nodes, &both, (&[], &["o1"]));
    }

    #[test]
    fn a_pod_is_bound_to_its_node() {
        let set = set(json!({}));
        let made = pod(&set, &set.spec.clone().expect("a spec"), "h", "n1");
        assert_eq!(target(&made), "n1");
        assert_eq!(made.spec.and_then(|s| s.tolerations).map(|t| t.len()), Some(6));
    }
}
