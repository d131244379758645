//! Decisions on small clusters.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NodeFacts};
use crate::decide::{self, Failure};
use crate::hints::{Happening, helps};
use crate::nominated::Nominated;
use crate::plugins::{self, Plugin};
use crate::pod::PodFacts;
use crate::preempt::{Budget, Outcome, preempt};
use crate::volumes::{ClaimFacts, VolumeFacts};

struct World {
    plugins: Vec<Box<dyn Plugin>>,
    cluster: Cluster,
    nominated: Nominated,
    budgets: Vec<Budget>,
    start: usize,
}

/// A node of 4 cores, 8 GiB and 110 pods, changed by `extra`.
fn node(name: &str, extra: Value) -> NodeFacts {
    let mut value = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": {}, "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" } },
    });
    json_patch::merge(&mut value, &extra);
    NodeFacts::new(&serde_json::from_value::<Node>(value).expect("a node"))
}

/// A pod in `default`, labelled with its name's part before the dash, changed by `extra`.
fn pod(name: &str, extra: Value) -> PodFacts {
    let app = name.split('-').next();
    let mut value = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name, "labels": { "app": app } },
        "spec": { "schedulerName": "default-scheduler", "containers": [{ "name": "c", "image": "i" }] },
        "status": { "startTime": "2026-01-01T00:00:00Z" },
    });
    json_patch::merge(&mut value, &extra);
    PodFacts::new(&serde_json::from_value::<Pod>(value).expect("a pod"))
}

fn asks(cpu: &str) -> Value {
    json!({ "spec": { "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } } }] } })
}

fn merged(mut a: Value, b: Value) -> Value {
    json_patch::merge(&mut a, &b);
    a
}

impl World {
    fn new(nodes: Vec<NodeFacts>) -> Self {
        let mut world =
            Self { plugins: plugins::all(), cluster: Cluster::default(), nominated: Nominated::default(), budgets: Vec::new(), start: 0 };
        nodes.into_iter().for_each(|n| drop(world.cluster.set_node(n)));
        world
    }

    fn with(mut self, node: &str, pod: PodFacts) -> Self {
        self.cluster.assume(&pod, node);
        self
    }

    fn failure(&mut self, pod: &PodFacts) -> Result<usize, Failure> {
        let cycles = decide::begin(&self.plugins, pod, &self.cluster);
        match cycles {
            Ok(cycles) => decide::place(&cycles, pod, &self.cluster, &self.nominated, &self.plugins, &mut self.start),
            Err(reject) => Err(Failure { pod: Some(reject), ..Failure::new(self.cluster.present().len()) }),
        }
    }

    /// Where the pod goes, or why nowhere.
    fn place(&mut self, pod: &PodFacts) -> String {
        match self.failure(pod) {
            Ok(id) => self.cluster.node(id).facts.as_ref().map(|f| f.name.clone()).unwrap_or_default(),
            Err(failure) => failure.message(),
        }
    }

    fn check(&mut self, pod: PodFacts, expected: &str) {
        assert_eq!(self.place(&pod), expected, "{}", pod.name);
    }

    /// Places so many pods one after the other; how many each node got, in the order of names.
    fn spread(&mut self, make: impl Fn(usize) -> PodFacts, count: usize) -> Vec<usize> {
        for i in 0..count {
            let pod = make(i);
            let node = self.place(&pod);
            self.cluster.assume(&pod, &node);
        }
        let mut names: Vec<_> = self.cluster.names().map(str::to_owned).collect();
        names.sort();
        names.iter().filter_map(|n| self.cluster.find(n)).map(|id| self.cluster.node(id).pods.len()).collect()
    }

    /// The node and the victims that make room for the pod, or why there are none.
    fn make_room(&mut self, pod: &PodFacts) -> String {
        let Err(failure) = self.failure(pod) else { return "fits".into() };
        let cycles = match decide::begin(&self.plugins, pod, &self.cluster) {
            Ok(cycles) => cycles,
            Err(reject) => return reject.reasons.join(", "),
        };
        match preempt(&cycles, pod, &self.cluster, &self.nominated, &self.budgets, &failure) {
            Outcome::Victims(id, victims) => {
                let node = self.cluster.node(id).facts.as_ref().map(|f| f.name.clone()).unwrap_or_default();
                format!("{node}: {}", victims.iter().map(|v| v.name.clone()).collect::<Vec<_>>().join(", "))
            }
            Outcome::Nobody { message, .. } => format!("{} {message}", failure.message()),
        }
    }
}

#[test]
fn a_small_cluster_refuses_in_upstreams_words() {
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } });
    let small = json!({ "status": { "allocatable": { "cpu": "1" } } });
    let mut world = World::new(vec![node("a", tainted), node("b", small.clone()), node("c", small)]);
    world.check(pod("p", asks("2")), "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu.");
    let tolerant = json!({ "spec": { "tolerations": [{ "key": "k", "operator": "Exists" }] } });
    world.check(pod("p", merged(asks("2"), tolerant)), "a");
    World::new(Vec::new()).check(pod("p", json!({})), "no nodes available to schedule pods");
    let cordoned = json!({ "spec": { "unschedulable": true } });
    World::new(vec![node("a", cordoned)]).check(pod("p", json!({})), "0/1 nodes are available: 1 node(s) were unschedulable.");
    let full = json!({ "status": { "allocatable": { "pods": "0", "example.com/gpu": "1" } } });
    let greedy = json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "example.com/gpu": "2", "memory": "9Gi" } } }] } });
    World::new(vec![node("a", full)]).check(
        pod("p", greedy),
        "0/1 nodes are available: 1 Insufficient example.com/gpu, 1 Insufficient memory, 1 Too many pods.",
    );
}

#[test]
fn node_selectors_affinity_and_ports() {
    let ssd = || json!({ "metadata": { "labels": { "disk": "ssd" } } });
    let mut world = World::new(vec![node("a", json!({})), node("b", ssd())]);
    world.check(pod("p", json!({ "spec": { "nodeSelector": { "disk": "ssd" } } })), "b");
    let why = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
    world.check(pod("p", json!({ "spec": { "nodeSelector": { "disk": "hdd" } } })), why);
    let required = |terms: Value| json!({ "spec": { "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } } });
    let field = |name: &str| json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] }]);
    world.check(pod("p", required(field("a"))), "a");
    world.check(pod("p", required(field("z"))), "0/2 nodes are available: 2 node(s) didn't satisfy plugin(s) [NodeAffinity].");
    let conflict = json!([{ "matchFields": [
        { "key": "metadata.name", "operator": "In", "values": ["a"] }, { "key": "metadata.name", "operator": "In", "values": ["b"] }] }]);
    world.check(pod("p", required(conflict)), "0/2 nodes are available: pod affinity terms conflict.");
    let preference = json!([{ "weight": 10, "preference": { "matchExpressions": [{ "key": "disk", "operator": "Exists" }] } }]);
    let preferred = json!({ "spec": { "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": preference } } } });
    world.check(pod("p", preferred), "b");
    let port = || json!({ "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] } });
    let mut world = World::new(vec![node("a", json!({}))]).with("a", pod("first", port()));
    world.check(pod("p", port()), "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.");
}

#[test]
fn the_emptier_node_is_better() {
    let mut world = World::new(vec![node("a", json!({})), node("b", json!({}))]).with("a", pod("big", asks("2")));
    world.check(pod("p", asks("100m")), "b");
    let mut even = World::new(vec![node("a", json!({})), node("b", json!({})), node("c", json!({}))]);
    assert_eq!(even.spread(|i| pod(&format!("p-{i}"), asks("100m")), 9), [3, 3, 3]);
}

#[test]
fn pods_of_a_workload_spread_by_default() {
    // The larger node is emptier all along: only spreading sends pods elsewhere.
    let large = json!({ "status": { "allocatable": { "cpu": "64", "memory": "256Gi" } } });
    let owned = |i: usize| {
        let owner = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true }]);
        pod(&format!("web-{i}"), json!({ "metadata": { "ownerReferences": owner } }))
    };
    let mut world = World::new(vec![node("a", large), node("b", json!({}))]);
    assert_eq!(world.spread(owned, 4), [2, 2]);
    let mut world = World::new(vec![node("a", json!({})), node("b", json!({}))]);
    let all = skiff_api::typed::selector::of_labels([(&"app".to_owned(), &"lone".to_owned())]);
    world.cluster.services.entry("default".into()).or_default().insert("lone".into(), all);
    assert_eq!(world.spread(|i| pod(&format!("lone-{i}"), json!({})), 4), [2, 2]);
}

#[test]
fn spread_constraints() {
    let zone = |name: &str, zone: &str| node(name, json!({ "metadata": { "labels": { "zone": zone } } }));
    let spread = |skew: i32, extra: Value| {
        let constraint = merged(
            json!({ "maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "p" } } }),
            extra,
        );
        json!({ "spec": { "topologySpreadConstraints": [constraint] } })
    };
    let world = || World::new(vec![zone("a", "1"), zone("b", "2"), node("c", json!({}))]).with("a", pod("p-1", json!({})));
    world().check(pod("p-2", spread(1, json!({}))), "b");
    let mut one = World::new(vec![zone("a", "1"), node("c", json!({}))]).with("a", pod("p-1", json!({})));
    one.check(pod("p-2", spread(1, json!({}))), "a");
    one.check(
        pod("p-2", spread(1, json!({ "minDomains": 2 }))),
        "0/2 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) didn't match pod topology spread constraints (missing required label).",
    );
    let soft = json!({ "whenUnsatisfiable": "ScheduleAnyway" });
    let mut world = World::new(vec![zone("a", "1"), zone("b", "1"), zone("c", "2")]);
    let counts = world.spread(|i| pod(&format!("p-{i}"), spread(1, soft.clone())), 8);
    assert_eq!((counts[0] + counts[1], counts[2]), (4, 4));
}

#[test]
fn pods_near_and_far() {
    let zone = |name: &str, zone: &str| node(name, json!({ "metadata": { "labels": { "zone": zone } } }));
    let term = |app: &str| json!([{ "labelSelector": { "matchLabels": { "app": app } }, "topologyKey": "zone" }]);
    let required = |kind: &str, app: &str| json!({ "spec": { "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": term(app) } } } });
    let world = || World::new(vec![zone("a", "1"), zone("b", "2")]).with("a", pod("db-1", json!({})));
    world().check(pod("p", required("podAffinity", "db")), "a");
    world().check(pod("p", required("podAntiAffinity", "db")), "b");
    world().check(pod("p", required("podAffinity", "none")), "0/2 nodes are available: 2 node(s) didn't match pod affinity rules.");
    let first = world().place(&pod("p", required("podAffinity", "p")));
    assert!(["a", "b"].contains(&first.as_str()), "the first of its kind may go anywhere");
    let mut both = world().with("b", pod("db-2", json!({})));
    both.check(pod("p", required("podAntiAffinity", "db")), "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.");
    let mut shy = World::new(vec![zone("a", "1")]).with("a", pod("shy", required("podAntiAffinity", "p")));
    shy.check(pod("p", json!({})), "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules.");
    let weighted = json!([{ "weight": 100, "podAffinityTerm": { "labelSelector": { "matchLabels": { "app": "db" } }, "topologyKey": "zone" } }]);
    let preferred = |kind: &str| json!({ "spec": { "affinity": { kind: { "preferredDuringSchedulingIgnoredDuringExecution": weighted } } } });
    world().check(pod("p", preferred("podAffinity")), "a");
    world().check(pod("p", preferred("podAntiAffinity")), "b");
}

#[test]
fn images_that_are_there() {
    let images = json!({ "status": { "images": [{ "names": ["i:latest"], "sizeBytes": 900_000_000 }] } });
    let mut world = World::new(vec![node("a", json!({})), node("b", images)]);
    world.check(pod("p", json!({})), "b");
}

#[test]
fn claims_and_volumes() {
    let claims = |name: &str| json!({ "spec": { "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": name } }] } });
    let claim = |name: &str, volume: &str| {
        let value = json!({ "metadata": { "name": name, "namespace": "default" }, "spec": { "volumeName": volume },
                            "status": { "phase": if volume.is_empty() { "Pending" } else { "Bound" } } });
        ClaimFacts::new(&serde_json::from_value(value).expect("a claim"))
    };
    let affinity = json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": ["b"] }] }] } });
    let volume = json!({ "metadata": { "name": "pv" }, "spec": { "nodeAffinity": affinity } });
    let mut world = World::new(vec![node("a", json!({})), node("b", json!({}))]);
    let volume = VolumeFacts::new(&serde_json::from_value(volume).expect("a volume"));
    world.cluster.volumes.volumes.insert("pv".into(), volume);
    for (name, volume) in [("bound", "pv"), ("loose", ""), ("lost", "gone")] {
        world.cluster.volumes.claims.insert(("default".into(), name.into()), claim(name, volume));
    }
    world.check(pod("p", claims("bound")), "b");
    world.check(pod("p", claims("absent")), "0/2 nodes are available: persistentvolumeclaim \"absent\" not found.");
    world.check(pod("p", claims("loose")), "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.");
    let why = "0/2 nodes are available: 2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).";
    world.check(pod("p", claims("lost")), why);
}

fn of_priority(priority: i32, cpu: &str) -> Value {
    merged(asks(cpu), json!({ "spec": { "priority": priority } }))
}

#[test]
fn who_makes_room() {
    let small = || json!({ "status": { "allocatable": { "cpu": "2" } } });
    let mut world = World::new(vec![node("a", small()), node("b", small())])
        .with("a", pod("low", of_priority(1, "2")))
        .with("b", pod("middle", of_priority(5, "2")));
    assert_eq!(world.make_room(&pod("p", of_priority(10, "1"))), "a: low");
    assert_eq!(
        world.make_room(&pod("p", of_priority(3, "1"))),
        "a: low",
        "the other node's pod is more important"
    );
    assert_eq!(
        world.make_room(&pod("p", of_priority(0, "1"))),
        "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: \
         2 No preemption victims found for incoming pod."
    );
    assert_eq!(
        world.make_room(&pod("p", of_priority(10, "3"))),
        "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: \
         2 Preemption is not helpful for scheduling."
    );
    let humble = json!({ "spec": { "preemptionPolicy": "Never" } });
    assert_eq!(
        world.make_room(&pod("p", merged(of_priority(10, "1"), humble))),
        "0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    );
}

#[test]
fn as_few_as_can_be_make_room() {
    let mut world = World::new(vec![node("a", json!({}))])
        .with("a", pod("one", of_priority(1, "1")))
        .with("a", pod("two", of_priority(2, "1")))
        .with("a", pod("three", of_priority(3, "2")));
    assert_eq!(world.make_room(&pod("p", of_priority(10, "1"))), "a: one");
    assert_eq!(world.make_room(&pod("p", of_priority(10, "2"))), "a: two, one");
    let budget = json!({ "metadata": { "name": "b", "namespace": "default" }, "spec": { "selector": { "matchLabels": { "app": "one" } } } });
    world.budgets.push(Budget::new(&serde_json::from_value::<PodDisruptionBudget>(budget).expect("a budget")));
    assert_eq!(world.make_room(&pod("p", of_priority(10, "1"))), "a: two", "the budget protects the other");
    let shy = json!([{ "labelSelector": { "matchLabels": { "app": "two" } }, "topologyKey": "kubernetes.io/hostname" }]);
    let apart = json!({ "spec": { "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": shy } } } });
    let picky = merged(json!({ "spec": { "priority": 10 } }), apart);
    assert_eq!(world.make_room(&pod("p", picky)), "a: two");
}

#[test]
fn nominated_pods_keep_their_place() {
    let mut world = World::new(vec![node("a", json!({}))]);
    let waiting = Arc::new(pod("waiting", of_priority(10, "4")));
    world.nominated.set(&waiting, "a");
    world.check(pod("p", of_priority(1, "1")), "0/1 nodes are available: 1 Insufficient cpu.");
    world.check(pod("p", of_priority(20, "1")), "a");
    let mut own = pod("waiting", of_priority(10, "4"));
    own.nominated = "a".into();
    world.check(own, "a");
}

#[test]
fn what_helps_whom() {
    let cordoned = node("a", json!({ "spec": { "unschedulable": true } }));
    let (plain, big) = (node("a", json!({})), node("a", json!({ "status": { "allocatable": { "cpu": "8" } } })));
    let p = pod("p", json!({ "spec": { "nodeSelector": { "disk": "ssd" } } }));
    let check = |plugin: &str, happening: Happening<'_>, expected: bool| assert_eq!(helps(&happening, &p, plugin), expected, "{plugin} {happening:?}");
    check("NodeUnschedulable", Happening::Node(Some(&cordoned), &plain), true);
    check("NodeUnschedulable", Happening::Node(None, &cordoned), false);
    check("NodeResourcesFit", Happening::Node(Some(&plain), &big), true);
    check("NodeResourcesFit", Happening::Node(Some(&cordoned), &plain), false);
    check("NodeResourcesFit", Happening::PodGone(&p), true);
    check("NodeAffinity", Happening::Node(None, &plain), false);
    check("NodeAffinity", Happening::PodGone(&p), false);
}

#[test]
fn many_nodes_are_searched_in_turns() {
    let nodes = (0..1000).map(|i| node(&format!("n{i}"), json!({}))).collect();
    let mut world = World::new(nodes);
    let counts = world.spread(|i| pod(&format!("p-{i}"), asks("3")), 1000);
    assert!(counts.iter().all(|n| *n == 1), "every node has room for one");
}
