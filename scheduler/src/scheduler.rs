//! The scheduler's loop: takes in what the watches tell, places one pod after the other, has the placements carried out.

use std::collections::HashSet;
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::runtime::watcher;
use kube::{Api, Client};
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
use crate::queue::Queue;
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

    let mut scheduler = Scheduler {
        hands: Hands::new(client, &config.name, config.parallel_requests),
        config,
        plugins: plugins::all(),
        cluster: Cluster::default(),
        queue: Queue::default(),
        nominated: Nominated::default(),
        start: 0,
        pending: HashSet::from(["pods", "nodes", "namespaces"]),
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

fn namespace(namespace: &Namespace) -> (String, Labels) {
    let meta = &namespace.metadata;
    (meta.name.clone().unwrap_or_default(), meta.labels.clone().unwrap_or_default())
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
            Input::Bound(pod, outcome) => self.bound(&pod, outcome),
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
        let found = match decide::begin(&self.plugins, pod, &self.cluster) {
            Ok(cycles) => {
                decide::place(&cycles, pod, &self.cluster, &self.nominated, &self.plugins, &mut self.start)
            }
            Err(reject) => {
                Err(Failure { nodes: self.cluster.present().len(), pod: Some(reject), rejects: Vec::new(), unseen: Vec::new() })
            }
        };
        match found {
            Ok(id) => {
                let Some(facts) = self.cluster.node(id).facts.clone() else { return };
                self.nominated.remove(&pod.uid);
                self.cluster.assume(pod, &facts.name);
                self.bind(pod.clone(), facts.name.clone());
            }
            Err(failure) => {
                let message = failure.message();
                self.queue.unschedulable(&pod.uid, failure.plugins(), Instant::now());
                self.refuse(pod.clone(), Waits { reason: "Unschedulable", message }, None);
            }
        }
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
