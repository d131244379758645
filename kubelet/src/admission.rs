//! Whether a pod may run on this node at all. The scheduler has seen to that for most; pods that name their node have only us.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use serde_json::Value;
use skiff_api::pod::{self as rules, Resources};
use skiff_api::quantity::Quantity;

use crate::context::Context;
use crate::node;
use crate::pod;
use crate::status::Verdict;

/// What a pod takes of the node.
#[derive(Clone, Debug, Default, PartialEq)]
struct Share {
    requests: Resources,
    /// Ports of the host, by address (empty for all), port and protocol.
    ports: Vec<(String, i32, String)>,
}

impl Share {
    fn of(pod: &Pod, value: &Value) -> Self {
        let mut requests = rules::requests(value);
        requests.insert("pods".into(), Quantity::from_value(1));
        let all = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c)).chain(pod::containers(pod));
        let ports = all.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let number = port.host_port.filter(|n| *n > 0)?;
            let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0").unwrap_or_default();
            Some((ip, number, port.protocol.clone().unwrap_or_else(|| "TCP".into())))
        });
        Self { requests, ports: ports.collect() }
    }

    fn conflicts(&self, other: &Self) -> bool {
        let same = |(ip, port, protocol): &(String, i32, String)| {
            other.ports.iter().any(|(i, p, pr)| p == port && pr == protocol && (i == ip || i.is_empty() || ip.is_empty()))
        };
        self.ports.iter().any(same)
    }
}

/// What the node's pods take of it.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    pods: HashMap<String, Share>,
    used: Resources,
}

/// Why a pod is rejected: upstream's reason and sentence.
fn rejection(reason: impl Into<String>, message: impl Into<String>) -> Verdict {
    Verdict { reason: reason.into(), message: message.into() }
}

impl Admission {
    fn insert(&mut self, uid: &str, share: Share) {
        self.release(uid);
        rules::add(&mut self.used, &share.requests);
        self.pods.insert(uid.to_owned(), share);
    }

    fn admit(&mut self, uid: &str, share: Share, allocatable: &Resources) -> Result<(), Verdict> {
        for (name, wanted) in share.requests.iter().filter(|(_, q)| !q.is_zero()) {
            let have = allocatable.get(name).copied().unwrap_or_default();
            let used = self.used.get(name).copied().unwrap_or_default();
            let count = |q: Quantity| if name == "cpu" { q.milli_value() } else { q.value() };
            let (wanted, used, have) = (count(*wanted), count(used), count(have));
            if wanted.saturating_add(used) > have {
                let message = format!("Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {have}");
                return Err(rejection(format!("OutOf{name}"), message));
            }
        }
        if self.pods.values().any(|other| share.conflicts(other)) {
            return Err(rejection("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"));
        }
        self.insert(uid, share);
        Ok(())
    }

    /// Gives back what a pod took.
    pub(crate) fn release(&mut self, uid: &str) {
        let Some(share) = self.pods.remove(uid) else { return };
        for (name, amount) in share.requests {
            self.used.entry(name).and_modify(|used| *used -= amount);
        }
    }
}

/// Counts a pod that runs here since before.
pub(crate) fn adopt(ctx: &Context, pod: &Pod) {
    let share = Share::of(pod, &serde_json::to_value(pod).unwrap_or_default());
    ctx.admission().insert(pod::uid(pod), share);
}

/// Why the pod can't run on this node, if so; else it is counted.
pub(crate) async fn admit(ctx: &Context, pod: &Pod) -> Option<Verdict> {
    let value = serde_json::to_value(pod).unwrap_or_default();
    let allocatable: BTreeMap<_, _> = node::allocatable(ctx).into_iter().filter_map(|(name, q)| Some((name, Quantity::parse(&q.0).ok()?))).collect();
    if let Err(verdict) = ctx.admission().admit(pod::uid(pod), Share::of(pod, &value), &allocatable) {
        return Some(verdict);
    }
    let spec = pod::spec(pod);
    let choosy = spec.is_some_and(|s| s.node_selector.is_some() || s.affinity.as_ref().is_some_and(|a| a.node_affinity.is_some()));
    if choosy {
        // Labels change, so they are asked for; a node that can't be read is taken for fit, as the scheduler took it.
        let node = Api::<Node>::all(ctx.client.clone()).get(&ctx.config.node_name).await;
        let fits = match node.map(|node| serde_json::to_value(node).unwrap_or_default()) {
            Ok(node) => rules::matches_node(&value, &node),
            Err(error) => {
                tracing::warn!(pod = pod::shown(pod), %error, "reading the node for a pod's affinity failed");
                true
            }
        };
        if !fits {
            ctx.admission().release(pod::uid(pod));
            return Some(rejection("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_taken_is_not_given_twice() {
        let allocatable: Resources = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")].iter().map(|(n, q)| ((*n).to_owned(), Quantity::parse(q).expect("a quantity"))).collect();
        let mut admission = Admission::default();
        let mut check = |uid: &str, cpu: &str, port: i32, expected: Result<(), &str>| {
            let pod = crate::testing::pod(json!({"containers": [
                {"name": "a", "resources": {"requests": {"cpu": cpu}}, "ports": [{"containerPort": 80, "hostPort": port}]}]}));
            let share = Share::of(&pod, &serde_json::to_value(&pod).expect("JSON"));
            let admitted = admission.admit(uid, share, &allocatable).map_err(|v| format!("{}: {}", v.reason, v.message));
            assert_eq!(admitted, expected.map_err(str::to_owned));
            if uid == "released" {
                admission.release(uid);
            }
        };
        check("a", "1500m", 80, Ok(()));
        check("b", "600m", 0, Err("OutOfcpu: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000"));
        check("c", "100m", 80, Err("NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"));
        check("released", "500m", 81, Ok(()));
        check("d", "500m", 81, Ok(()));
        check("e", "0", 0, Ok(()));
        check("f", "0", 0, Err("OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"));
    }
}
