//! What is to be done for a Deployment. All the judgement is here; nothing here does IO.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};
use skiff_api::clock;

use super::{status, template};
use crate::controller::Again;
use crate::scaled::scaled;

/// What a plan is made from.
pub struct Observed<'a> {
    /// The Deployment.
    pub deployment: &'a Deployment,
    /// All its ReplicaSets.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Uids of those sets that have pods which haven't finished, terminating ones included.
    pub running: HashSet<String>,
    /// The time.
    pub now: Timestamp,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub struct Plan {
    /// Make this ReplicaSet.
    pub create: Option<ReplicaSet>,
    /// Merge these patches into ReplicaSets; each names the resource version it was made for.
    pub patches: Vec<(ObjectMeta, Value)>,
    /// Tell of these scalings.
    pub events: Vec<String>,
    /// Delete these old ReplicaSets.
    pub delete: Vec<ObjectMeta>,
    /// Note this revision on the Deployment.
    pub revision: Option<String>,
    /// Write this status, if it is new.
    pub status: DeploymentStatus,
    /// Look again then.
    pub again: Again,
}

/// The replicas that a set's spec asks for.
pub fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// How many pods a rolling update may have above and miss below the wanted number. Surge is rounded up, the rest down;
/// when both come to nothing, one pod may be missing.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if recreates(deployment) {
        return (0, 0);
    }
    let rolling =
        deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let number = |value: Option<&IntOrString>, up| value.map_or(0, |v| scaled(v, wanted(deployment), up));
    let surge = number(rolling.and_then(|r| r.max_surge.as_ref()), true);
    let unavailable = number(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

/// How many pods may be missing.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if wanted(deployment) == 0 { 0 } else { fenceposts(deployment).1.min(wanted(deployment)) }
}

/// The sets as they would be, changed step by step; at last the difference is what is to be written.
struct Draft<'a> {
    deployment: &'a Deployment,
    /// As they are.
    originals: Vec<Arc<ReplicaSet>>,
    /// As they are to be: the same in the same order, then the new one if it must be made.
    sets: Vec<ReplicaSet>,
    /// The set of the present template.
    present: Option<usize>,
    events: Vec<String>,
}

/// Makes the plan.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let deployment = observed.deployment;
    let mut originals = observed.sets.clone();
    originals.sort_by(|a, b| age(a).cmp(&age(b)));
    let own_template = deployment.spec.as_ref().map(|s| &s.template);
    let is_present = |set: &Arc<ReplicaSet>| template::same(set.spec.as_ref().and_then(|s| s.template.as_ref()), own_template);
    let mut draft = Draft {
        deployment,
        present: originals.iter().position(is_present),
        sets: originals.iter().map(|set| (**set).clone()).collect(),
        originals,
        events: Vec::new(),
    };
    let mut base = deployment.status.clone().unwrap_or_default();
    let mut delete = Vec::new();
    let deleted = deployment.metadata.deletion_timestamp.is_some();
    let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
    let mut rollout = false;
    if !deleted {
        status::note_pause(deployment, &mut base, observed.now);
    }
    draft.note_present(&mut base, observed.now);
    if deleted {
    } else if paused || draft.is_rescaled() {
        draft.scale();
        if paused {
            delete = draft.history();
        }
    } else {
        rollout = true;
        let done = if recreates(deployment) { draft.recreate(observed, &mut base) } else { draft.roll(observed, &mut base) };
        if done && status::complete(deployment, &base) {
            delete = draft.history();
        }
    }
    draft.finish(observed, base, delete, rollout)
}

/// Oldest first; by name where ages are the same.
fn age(set: &ReplicaSet) -> (Option<Timestamp>, Option<&String>) {
    (set.metadata.creation_timestamp.as_ref().map(|t| t.0), set.metadata.name.as_ref())
}

impl Draft<'_> {
    fn olds(&self) -> impl Iterator<Item = usize> + use<> {
        let present = self.present;
        (0..self.sets.len()).filter(move |&i| Some(i) != present)
    }

    /// Indexes of old sets that ask for pods.
    fn active_olds(&self) -> Vec<usize> {
        self.olds().filter(|&i| replicas(&self.sets[i]) > 0).collect()
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(replicas).sum()
    }

    fn newest_old_revision(&self) -> i64 {
        self.olds().map(|i| template::revision(&self.sets[i])).max().unwrap_or(0)
    }

    /// Keeps the present set's annotations, revision and readiness time up to date.
    fn note_present(&mut self, base: &mut DeploymentStatus, now: Timestamp) {
        let Some(i) = self.present else { return };
        let newest = self.newest_old_revision();
        template::note_revision(self.deployment, &mut self.sets[i], newest);
        let min_ready = self.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        if let Some(spec) = &mut self.sets[i].spec {
            spec.min_ready_seconds = min_ready;
        }
        let name = self.sets[i].metadata.name.as_deref().unwrap_or("");
        status::note_set(self.deployment, base, name, false, now);
    }

    /// Makes the set of the present template, where it is missing.
    fn ensure_present(&mut self, base: &mut DeploymentStatus, now: Timestamp) -> Option<usize> {
        if self.present.is_some() {
            return self.present;
        }
        let mut set = template::new_set(self.deployment)?;
        let newest = self.newest_old_revision();
        template::note_revision(self.deployment, &mut set, newest);
        let name = set.metadata.name.clone().unwrap_or_default();
        self.sets.push(set);
        let i = self.sets.len() - 1;
        self.present = Some(i);
        let count = self.scale_up_to(i);
        template::note_replicas(&mut self.sets[i], wanted(self.deployment), wanted(self.deployment) + max_surge(self.deployment));
        if let Some(spec) = &mut self.sets[i].spec {
            spec.replicas = Some(count);
        }
        if count > 0 {
            self.events.push(format!("Scaled up replica set {name} from 0 to {count}"));
        }
        status::note_set(self.deployment, base, &name, true, now);
        Some(i)
    }

    /// To how many replicas the present set may go now.
    fn scale_up_to(&self, i: usize) -> i32 {
        let (have, want) = (replicas(&self.sets[i]), wanted(self.deployment));
        if recreates(self.deployment) {
            return want;
        }
        let room = want + max_surge(self.deployment) - self.total();
        if room <= 0 { have } else { have + room.min(want - have) }
    }

    /// Sets the replicas of a set. Whether that changed them. Forced, annotations are brought up to date in any case.
    fn scale_to(&mut self, i: usize, count: i32, force: bool) -> bool {
        let old = replicas(&self.sets[i]);
        if old == count && !force {
            return false;
        }
        let max = wanted(self.deployment) + max_surge(self.deployment);
        template::note_replicas(&mut self.sets[i], wanted(self.deployment), max);
        if old == count {
            return false;
        }
        if let Some(spec) = &mut self.sets[i].spec {
            spec.replicas = Some(count);
        }
        let name = self.sets[i].metadata.name.as_deref().unwrap_or("");
        let way = if old < count { "up" } else { "down" };
        self.events.push(format!("Scaled {way} replica set {name} from {old} to {count}"));
        true
    }

    /// Whether the Deployment's replicas changed since its sets were scaled.
    fn is_rescaled(&self) -> bool {
        let active = self.sets.iter().filter(|s| replicas(s) > 0);
        active.filter_map(template::desired).any(|desired| desired != wanted(self.deployment))
    }

    /// Follows a change of scale: proportionally, when several sets have pods.
    fn scale(&mut self) {
        let want = wanted(self.deployment);
        let active: Vec<usize> = (0..self.sets.len()).filter(|&i| replicas(&self.sets[i]) > 0).collect();
        let only = match active.as_slice() {
            [] => self.present.or_else(|| self.olds().last()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(only) = only {
            self.scale_to(only, want, false);
            return;
        }
        let saturated = self.present.map(|i| &self.sets[i]).is_some_and(|set| {
            replicas(set) == want && template::desired(set) == Some(want) && available(set) == want
        });
        if saturated {
            for i in self.active_olds() {
                self.scale_to(i, 0, false);
            }
        } else if !recreates(self.deployment) {
            self.scale_in_proportion(active);
        }
    }

    fn scale_in_proportion(&mut self, mut active: Vec<usize>) {
        let want = wanted(self.deployment);
        let allowed = if want > 0 { want + max_surge(self.deployment) } else { 0 };
        let to_add = allowed - active.iter().map(|&i| replicas(&self.sets[i])).sum::<i32>();
        // The largest first; of equals the newer grow first and the older shrink first.
        active.sort_by(|&a, &b| {
            let size = replicas(&self.sets[b]).cmp(&replicas(&self.sets[a]));
            let older = age(&self.sets[a]).cmp(&age(&self.sets[b]));
            size.then(if to_add > 0 { older.reverse() } else { older })
        });
        let mut sizes: BTreeMap<usize, i32> = BTreeMap::new();
        let mut added = 0;
        for &i in &active {
            let share = if to_add == 0 || to_add == added { 0 } else { self.share(i) };
            let share = if to_add > 0 { share.min(to_add - added) } else { share.max(to_add - added) };
            sizes.insert(i, replicas(&self.sets[i]) + if to_add == 0 { 0 } else { share });
            added += if to_add == 0 { 0 } else { share };
        }
        if let Some(size) = active.first().and_then(|largest| sizes.get_mut(largest)) {
            *size = (*size + to_add - added).max(0);
        }
        for i in active {
            self.scale_to(i, sizes[&i], true);
        }
    }

    /// By how many replicas a set changes in proportion to its size.
    fn share(&self, i: usize) -> i32 {
        let (want, have) = (wanted(self.deployment), replicas(&self.sets[i]));
        if want == 0 {
            return -have;
        }
        let before = template::max(&self.sets[i]).filter(|&max| max != 0);
        let current = self.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let Some(before) = before.or((current != 0).then_some(current)) else { return 0 };
        let ratio = f64::from(want + max_surge(self.deployment)) / f64::from(before);
        (f64::from(have) * ratio).round() as i32 - have
    }

    /// One step of a rolling update. Whether there was nothing to scale.
    fn roll(&mut self, observed: &Observed<'_>, base: &mut DeploymentStatus) -> bool {
        let Some(present) = self.ensure_present(base, observed.now) else { return false };
        let want = wanted(self.deployment);
        let have = replicas(&self.sets[present]);
        let target = if have > want { want } else { self.scale_up_to(present) };
        if self.scale_to(present, target, false) {
            // Old sets are scaled down once it is known what became of this.
            return false;
        }
        let min_available = want - max_unavailable(self.deployment);
        let unavailable = replicas(&self.sets[present]) - available(&self.sets[present]);
        let mut room = self.total() - min_available - unavailable;
        let olds = self.active_olds();
        if olds.is_empty() || room <= 0 {
            return olds.is_empty();
        }
        let mut scaled = false;
        // First those that aren't available: they are missed by nobody.
        for &i in &olds {
            let unhealthy = (replicas(&self.sets[i]) - available(&self.sets[i])).clamp(0, room);
            room -= unhealthy;
            scaled |= self.scale_to(i, replicas(&self.sets[i]) - unhealthy, false);
        }
        let mut spare = self.sets.iter().map(available).sum::<i32>() - min_available;
        for &i in &olds {
            let less = replicas(&self.sets[i]).min(spare).max(0);
            spare -= less;
            scaled |= self.scale_to(i, replicas(&self.sets[i]) - less, false);
        }
        !scaled
    }

    /// One step of a replacement that first takes all old pods away. Whether there was nothing to scale.
    fn recreate(&mut self, observed: &Observed<'_>, base: &mut DeploymentStatus) -> bool {
        let olds = self.active_olds();
        if !olds.is_empty() {
            for i in olds {
                self.scale_to(i, 0, false);
            }
            return false;
        }
        let runs = |i: usize| {
            let set = &self.sets[i];
            set.status.as_ref().is_some_and(|s| s.replicas > 0)
                || set.metadata.uid.as_ref().is_some_and(|uid| observed.running.contains(uid))
        };
        if self.olds().any(runs) {
            return false;
        }
        let made = self.present.is_none();
        let Some(present) = self.ensure_present(base, observed.now) else { return false };
        !made && !self.scale_to(present, wanted(self.deployment), false)
    }

    /// Old sets beyond the history that is kept, without pods.
    fn history(&self) -> Vec<ObjectMeta> {
        let limit = self.deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        if limit == i32::MAX {
            return Vec::new();
        }
        let mut olds: Vec<&ReplicaSet> =
            self.olds().map(|i| &self.sets[i]).filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
        olds.sort_by_key(|set| (template::revision(set), set.metadata.creation_timestamp.as_ref().map(|t| t.0)));
        let surplus = olds.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let idle = |set: &&&ReplicaSet| {
            replicas(set) == 0
                && set.status.as_ref().is_some_and(|s| s.replicas == 0 && s.observed_generation >= set.metadata.generation)
        };
        olds[..surplus].iter().filter(idle).map(|set| set.metadata.clone()).collect()
    }

    fn finish(self, observed: &Observed<'_>, base: DeploymentStatus, delete: Vec<ObjectMeta>, rollout: bool) -> Plan {
        let Self { deployment, originals, sets, present, events } = self;
        let noted = Deployment { status: Some(base), ..deployment.clone() };
        let present_set = present.map(|i| &sets[i]);
        let mut new = status::count(&noted, &sets, present_set, observed.now);
        let mut again = None;
        if rollout {
            let due = status::progress(deployment, &mut new, &sets, present_set, observed.now);
            // A second more: times in the API are of whole seconds.
            again = due.map(|at| clock::until(at) + std::time::Duration::from_secs(1));
        }
        if new.conditions.as_ref().is_some_and(Vec::is_empty) {
            new.conditions = None;
        }
        let revision = present_set
            .and_then(|set| set.metadata.annotations.as_ref()?.get(template::REVISION).cloned())
            .filter(|r| deployment.metadata.annotations.as_ref().and_then(|a| a.get(template::REVISION)) != Some(r))
            .filter(|_| deployment.metadata.deletion_timestamp.is_none());
        let create = (sets.len() > originals.len()).then(|| sets.last().cloned()).flatten();
        let patches = originals.iter().zip(&sets).filter_map(|(old, new)| difference(old, new)).collect();
        Plan { create, patches, events, delete, revision, status: new, again }
    }
}

/// What changed in a set: annotations, replicas, the readiness time.
fn difference(old: &ReplicaSet, new: &ReplicaSet) -> Option<(ObjectMeta, Value)> {
    let mut patch = json!({});
    let known = old.metadata.annotations.as_ref();
    for (key, value) in new.metadata.annotations.iter().flatten() {
        if known.and_then(|a| a.get(key)) != Some(value) {
            patch["metadata"]["annotations"][key] = value.as_str().into();
        }
    }
    if replicas(old) != replicas(new) {
        patch["spec"]["replicas"] = replicas(new).into();
    }
    let min_ready = |set: &ReplicaSet| set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
    if min_ready(old) != min_ready(new) {
        patch["spec"]["minReadySeconds"] = min_ready(new).into();
    }
    if patch.as_object().is_none_or(|p| p.is_empty()) {
        return None;
    }
    patch["metadata"]["uid"] = old.metadata.uid.clone().into();
    patch["metadata"]["resourceVersion"] = old.metadata.resource_version.clone().into();
    Some((old.metadata.clone(), patch))
}
