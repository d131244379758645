//! The scheduler's loop: takes in what the watches tell, places one pod after the other, has the placements carried out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{self as core, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher;
use kube::{Api, Client};
use skiff_api::labels::Selector;
use skiff_api::typed::selector;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::act::{Hands, Waits, is_gone};
use crate::cluster::{Cluster, NodeFacts};
use crate::decide::{self, Failure};
use crate::feed::{Change, feed};
use crate::hints::{Happening, helps};
use crate::nominated::Nominated;
use crate::plugins::{self, Plugin};
use crate::pod::{Labels, PodFacts};
use crate::preempt::{Budget, Outcome, preempt};
use crate::queue::Queue;
use crate::volumes::{ClaimFacts, ClassFacts, VolumeFacts};
use crate::{Config, Error};

/// How many inputs may wait before the watches do.
const INPUTS: usize = 4096;
/// How many pods are placed before other tasks get their turn.
const TURN: usize = 16;

/// What the loop is told.
enum Input {
    Pods(Change<PodFacts>),
    Nodes(Change<NodeFacts>),
    Namespaces(Change<(String, Labels)>),
    Services(Change<Service>),
    Claims(Change<ClaimFacts>),
    Volumes(Change<VolumeFacts>),
    Classes(Change<ClassFacts>),
    Budgets(Change<Budget>),
    /// Room for this pod (its uid) could not be made.
    NoRoom(String),
    /// How the binding of a pod went.
    Bound(Arc<PodFacts>, Result<(), Error>),
}

struct Scheduler {
    config: Config,
    hands: Hands,
    plugins: Vec<Box<dyn Plugin>>,
    cluster: Cluster,
    queue: Queue,
    nominated: Nominated,
    /// By namespace and name.
    budgets: HashMap<(String, String), Budget>,
    /// Where the next search for nodes begins.
    start: usize,
    /// Which first lists are still missing; before they are there, nothing can be judged.
    pending: HashSet<&'static str>,
    inputs: mpsc::Sender<Input>,
}

/// Schedules for ever.
pub async fn run(config: Config, client: Client) -> Result<(), Error> {
    let (sender, mut inputs) = mpsc::channel(INPUTS);
    let mut feeds = JoinSet::new();
    let unfinished = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    feeds.spawn(feed(Api::<Pod>::all(client.clone()), unfinished, |p| Some(PodFacts::new(p)), Input::Pods, sender.clone()));
    let all = watcher::Config::default;
    feeds.spawn(feed(Api::<Node>::all(client.clone()), all(), |n| Some(NodeFacts::new(n)), Input::Nodes, sender.clone()));
    let namespaces = Api::<Namespace>::all(client.clone());
    feeds.spawn(feed(namespaces, all(), |n| Some(namespace(n)), Input::Namespaces, sender.clone()));
    let services = Api::<core::Service>::all(client.clone());
    feeds.spawn(feed(services, all(), |s| Some(service(s)), Input::Services, sender.clone()));
    let claims = Api::<PersistentVolumeClaim>::all(client.clone());
    feeds.spawn(feed(claims, all(), |c| Some(ClaimFacts::new(c)), Input::Claims, sender.clone()));
    let volumes = Api::<PersistentVolume>::all(client.clone());
    feeds.spawn(feed(volumes, all(), |v| Some(VolumeFacts::new(v)), Input::Volumes, sender.clone()));
    let classes = Api::<StorageClass>::all(client.clone());
    feeds.spawn(feed(classes, all(), |c| Some(ClassFacts::new(c)), Input::Classes, sender.clone()));
    let budgets = Api::<PodDisruptionBudget>::all(client.clone());
    feeds.spawn(feed(budgets, all(), |b| Some(Budget::new(b)), Input::Budgets, sender.clone()));

    let mut scheduler = Scheduler {
        hands: Hands::new(client, &config.name, config.parallel_requests),
        config,
        plugins: plugins::all(),
        cluster: Cluster::default(),
        queue: Queue::default(),
        nominated: Nominated::default(),
        start: 0,
        budgets: HashMap::new(),
        pending: HashSet::from(["pods", "nodes", "namespaces", "services", "claims", "volumes", "classes", "budgets"]),
        inputs: sender,
    };
    loop {
        while let Ok(input) = inputs.try_recv() {
            scheduler.take_in(input);
        }
        if scheduler.pending.is_empty() && scheduler.place_some() {
            tokio::task::yield_now().await;
            continue;
        }
        let timer = match scheduler.queue.next_timer().filter(|_| scheduler.pending.is_empty()) {
            Some(at) => sleep_until(at).left_future(),
            None => std::future::pending().right_future(),
        };
        tokio::select! {
            input = inputs.recv() => match input {
                Some(input) => scheduler.take_in(input),
                None => return Err(Error::WatchesEnded),
            },
            () = timer => {}
        }
    }
}

/// A Service: namespace, name, and which pods it selects.
type Service = (String, String, Selector);

fn service(service: &core::Service) -> Service {
    let meta = &service.metadata;
    let selected = selector::of_map(service.spec.as_ref().and_then(|s| s.selector.as_ref()));
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default(), selected)
}

fn namespace(namespace: &Namespace) -> (String, Labels) {
    let meta = &namespace.metadata;
    (meta.name.clone().unwrap_or_default(), meta.labels.clone().unwrap_or_default())
}

/// Takes a change into a map. Whether anything came or changed.
fn keep<K: std::hash::Hash + Eq, T: PartialEq>(map: &mut HashMap<K, T>, change: Change<T>, key: impl Fn(&T) -> K) -> bool {
    match change {
        Change::All(all) => {
            *map = all.into_iter().map(|item| (key(&item), item)).collect();
            true
        }
        Change::Set(item) => {
            let changed = map.get(&key(&item)) != Some(&item);
            map.insert(key(&item), item);
            changed
        }
        Change::Gone(item) => {
            map.remove(&key(&item));
            false
        }
    }
}

impl Scheduler {
    fn take_in(&mut self, input: Input) {
        match input {
            Input::Pods(Change::All(pods)) => {
                let there: HashSet<&str> = pods.iter().filter(|p| !p.finished).map(|p| p.uid.as_str()).collect();
                let known = self.cluster.assigned().chain(self.queue.uids());
                let gone: Vec<String> = known.filter(|uid| !there.contains(uid)).map(str::to_owned).collect();
                gone.iter().for_each(|uid| self.pod_gone(uid));
                pods.into_iter().for_each(|pod| self.pod(pod));
                self.pending.remove("pods");
            }
            Input::Pods(Change::Set(pod)) => self.pod(pod),
            Input::Pods(Change::Gone(pod)) => self.pod_gone(&pod.uid),
            Input::Nodes(Change::All(nodes)) => {
                let there: HashSet<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
                let gone: Vec<String> =
                    self.cluster.names().filter(|name| !there.contains(name)).map(str::to_owned).collect();
                gone.iter().for_each(|name| self.node_gone(name));
                nodes.into_iter().for_each(|node| self.node(node));
                self.pending.remove("nodes");
            }
            Input::Nodes(Change::Set(node)) => self.node(node),
            Input::Nodes(Change::Gone(node)) => self.node_gone(&node.name),
            Input::Namespaces(Change::All(all)) => {
                self.cluster.namespaces = all.into_iter().collect();
                self.happened(&Happening::Namespace);
                self.pending.remove("namespaces");
            }
            Input::Namespaces(Change::Set((name, labels))) => {
                if self.cluster.namespaces.get(&name) != Some(&labels) {
                    self.cluster.namespaces.insert(name, labels);
                    self.happened(&Happening::Namespace);
                }
            }
            Input::Namespaces(Change::Gone((name, _))) => {
                self.cluster.namespaces.remove(&name);
            }
            Input::Services(change) => self.service(change),
            Input::Claims(change) => {
                if keep(&mut self.cluster.volumes.claims, change, |c| c.key.clone()) {
                    self.happened(&Happening::Volume);
                }
                self.pending.remove("claims");
            }
            Input::Volumes(change) => {
                if keep(&mut self.cluster.volumes.volumes, change, |v| v.name.clone()) {
                    self.happened(&Happening::Volume);
                }
                self.pending.remove("volumes");
            }
            Input::Classes(change) => {
                if keep(&mut self.cluster.volumes.classes, change, |c| c.name.clone()) {
                    self.happened(&Happening::Volume);
                }
                self.pending.remove("classes");
            }
            Input::Budgets(change) => {
                keep(&mut self.budgets, change, |b| b.key.clone());
                self.pending.remove("budgets");
            }
            Input::NoRoom(uid) => self.queue.failed(&uid),
            Input::Bound(pod, outcome) => self.bound(&pod, outcome),
        }
    }

    fn service(&mut self, change: Change<Service>) {
        let all = &mut self.cluster.services;
        match change {
            Change::All(services) => {
                all.clear();
                for (namespace, name, selector) in services {
                    all.entry(namespace).or_default().insert(name, selector);
                }
                self.pending.remove("services");
            }
            Change::Set((namespace, name, selector)) => {
                all.entry(namespace).or_default().insert(name, selector);
            }
            Change::Gone((namespace, name, _)) => {
                if let Some(own) = all.get_mut(&namespace) {
                    own.remove(&name);
                }
            }
        }
    }

    fn happened(&mut self, happening: &Happening<'_>) {
        self.queue.happened(|pod, plugin| helps(happening, pod, plugin));
    }

    fn pod(&mut self, pod: PodFacts) {
        if pod.finished {
            return self.pod_gone(&pod.uid);
        }
        if !pod.node.is_empty() {
            self.queue.remove(&pod.uid);
            self.nominated.remove(&pod.uid);
            let uid = pod.uid.clone();
            let old = self.cluster.set_pod(pod);
            let Some(new) = self.cluster.pod(&uid).cloned() else { return };
            if old.as_ref().is_none_or(|o| o.labels != new.labels) {
                self.happened(&Happening::PodCame(&new));
            }
            if let Some(old) = old.filter(|o| o.requests != new.requests) {
                self.happened(&Happening::PodGone(&old));
            }
            return;
        }
        if pod.scheduler != self.config.name || pod.terminating {
            self.nominated.remove(&pod.uid);
            return self.queue.remove(&pod.uid);
        }
        let uid = pod.uid.clone();
        let node = pod.nominated.clone();
        let known = self.queue.get(&uid).is_some();
        self.queue.set(pod);
        // A nomination of our own, not yet in the object, stays.
        if let Some(facts) = self.queue.get(&uid).filter(|_| !node.is_empty() || !known) {
            self.nominated.set(facts, &node);
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.nominated.remove(uid);
        if let Some(pod) = self.cluster.remove_pod(uid) {
            self.happened(&Happening::PodGone(&pod));
        }
    }

    fn node(&mut self, node: NodeFacts) {
        let name = node.name.clone();
        let (old, changed) = self.cluster.set_node(node);
        if !changed {
            return;
        }
        if let Some(new) = self.cluster.find(&name).and_then(|id| self.cluster.node(id).facts.clone()) {
            self.happened(&Happening::Node(old.as_deref(), &new));
        }
    }

    fn node_gone(&mut self, name: &str) {
        self.cluster.remove_node(name);
        self.happened(&Happening::NodeGone);
    }

    /// Places pods until it is others' turn. Whether there was any.
    fn place_some(&mut self) -> bool {
        for placed in 0..TURN {
            let Some(pod) = self.queue.pop(Instant::now()) else { return placed > 0 };
            self.place(&pod);
        }
        true
    }

    fn place(&mut self, pod: &Arc<PodFacts>) {
        let (plugins, cluster, nominated) = (&self.plugins, &self.cluster, &self.nominated);
        let mut room = None;
        let found = match decide::begin(plugins, pod, cluster) {
            Ok(cycles) => decide::place(&cycles, pod, cluster, nominated, plugins, &mut self.start).inspect_err(|failure| {
                if failure.nodes > 0 {
                    let budgets: Vec<Budget> = self.budgets.values().cloned().collect();
                    room = Some(preempt(&cycles, pod, cluster, nominated, &budgets, failure));
                }
            }),
            Err(reject) => {
                let failure = Failure { pod: Some(reject), ..Failure::new(cluster.present().len()) };
                room = (failure.nodes > 0).then(|| preempt(&Vec::new(), pod, cluster, nominated, &[], &failure));
                Err(failure)
            }
        };
        match found {
            Ok(id) => {
                let Some(facts) = self.cluster.node(id).facts.clone() else { return };
                self.nominated.remove(&pod.uid);
                self.cluster.assume(pod, &facts.name);
                self.bind(pod.clone(), facts.name.clone());
            }
            Err(failure) => self.refused(pod, &failure, room),
        }
    }

    /// Puts a pod back that fits nowhere, and has room made for it where that is possible.
    fn refused(&mut self, pod: &Arc<PodFacts>, failure: &Failure, room: Option<Outcome>) {
        let mut message = failure.message();
        let nominate = match room {
            Some(Outcome::Victims(id, victims)) => {
                let node = self.cluster.node(id).facts.as_ref().map(|f| f.name.clone()).unwrap_or_default();
                self.make_room(pod, &node, victims);
                Some(node)
            }
            Some(Outcome::Nobody { message: why, keeps_nomination }) => {
                message = format!("{message} {why}");
                (!keeps_nomination).then(String::new)
            }
            None => Some(String::new()),
        };
        if let Some(node) = &nominate {
            self.nominated.set(pod, node);
        }
        self.queue.unschedulable(&pod.uid, failure.plugins(), Instant::now());
        self.refuse(pod.clone(), Waits { reason: "Unschedulable", message }, nominate);
    }

    /// Has the victims evicted beside the loop. Pods of lower priority that hoped for the node look elsewhere.
    fn make_room(&mut self, pod: &Arc<PodFacts>, node: &str, victims: Vec<Arc<PodFacts>>) {
        let lesser: Vec<_> = self.nominated.on(node).filter(|p| p.priority < pod.priority).cloned().collect();
        for other in &lesser {
            self.nominated.remove(&other.uid);
            self.queue.failed(&other.uid);
        }
        let (hands, inputs, pod, node) = (self.hands.clone(), self.inputs.clone(), pod.clone(), node.to_owned());
        tokio::spawn(async move {
            for other in lesser {
                if let Err(error) = hands.clear_nomination(&other).await {
                    tracing::warn!(%error, pod = other.key(), "nomination not cleared");
                }
            }
            for victim in victims.iter().filter(|v| !v.terminating) {
                if let Err(error) = hands.evict(victim, &pod, &node).await {
                    tracing::warn!(%error, victim = victim.key(), "making room failed");
                    // The pod tries again; when the loop has ended nobody does.
                    let _ = inputs.send(Input::NoRoom(pod.uid.clone())).await;
                    return;
                }
            }
        });
    }

    /// Has the binding carried out beside the loop.
    fn bind(&self, pod: Arc<PodFacts>, node: String) {
        let hands = self.hands.clone();
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let outcome = hands.bind(&pod, &node).await;
            let bound = outcome.is_ok();
            // The loop lives as long as its scheduler; when it is gone there is nobody to tell.
            let _ = inputs.send(Input::Bound(pod.clone(), outcome)).await;
            if bound {
                hands.scheduled(&pod, &node).await;
            }
        });
    }

    fn bound(&mut self, pod: &Arc<PodFacts>, outcome: Result<(), Error>) {
        let Err(error) = outcome else { return };
        // Forget the placing, unless the watch has confirmed it meanwhile.
        if self.cluster.is_assumed(&pod.uid)
            && let Some(back) = self.cluster.remove_pod(&pod.uid)
        {
            self.happened(&Happening::PodGone(&back));
        }
        if let Error::Bind(cause) = &error
            && is_gone(cause)
        {
            return self.queue.remove(&pod.uid);
        }
        self.queue.failed(&pod.uid);
        self.refuse(pod.clone(), Waits { reason: "SchedulerError", message: error.to_string() }, Some(String::new()));
    }

    /// Tells, in an event and in the pod's status, why the pod waits.
    fn refuse(&self, pod: Arc<PodFacts>, waits: Waits, nominate: Option<String>) {
        let hands = self.hands.clone();
        let (told, why) = (pod.clone(), waits.message.clone());
        tokio::spawn(async move { hands.failed(&told, &why).await });
        self.report(pod, waits, nominate);
    }

    fn report(&self, pod: Arc<PodFacts>, waits: Waits, nominate: Option<String>) {
        let hands = self.hands.clone();
        tokio::spawn(async move {
            if let Err(error) = hands.report(&pod, &waits, nominate.as_deref()).await {
                tracing::warn!(%error, pod = pod.key(), "why it waits could not be written");
            }
        });
    }
}
