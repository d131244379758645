//! What the controllers of Endpoints and EndpointSlices share: which pods stand behind a Service, with which addresses
//! and ports.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::runtime::reflector::ObjectRef;
use skiff_api::typed::pods::{is_finished, is_ready, node_name};
use skiff_api::typed::selector;

use crate::Context;
use crate::claim::selects;
use crate::controller::Controller;
use crate::kind::{By, Change, Key, Kind};

/// The label of the zone that a node is in.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Marks endpoints of a Service without an address of its own.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// When the change happened that led to this write.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A controller of Services that looks again when pods behind them, or the nodes of these, change.
pub fn controller(name: &'static str, context: &Context) -> Controller<Service> {
    let kinds = &context.kinds;
    let (of_pods, of_nodes, pods) = (kinds.services.clone(), kinds.services.clone(), kinds.pods.clone());
    Controller::new(name, &kinds.services)
        .on(&*kinds.pods, move |change: &Change<Pod>| if matters(change) { selecting(&of_pods, change.states()) } else { Vec::new() })
        .on(&*kinds.nodes, move |change: &Change<Node>| {
            let zone = |node: &Arc<Node>| node.metadata.labels.as_ref().and_then(|l| l.get(ZONE).cloned());
            let moved = change.old.as_ref().map(zone) != change.new.as_ref().map(zone);
            let node = change.states().next().filter(|_| moved).and_then(|n| n.metadata.name.clone());
            let on_node = node.map(|name| pods.find(&By::Node(name))).unwrap_or_default();
            selecting(&of_nodes, on_node.iter())
        })
}

/// Whether a pod changed in what endpoints tell of it.
fn matters(change: &Change<Pod>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let facts = |pod: &Pod| {
        let status = pod.status.as_ref();
        (
            pod.metadata.labels.clone(),
            pod.metadata.deletion_timestamp.is_some(),
            (is_ready(pod), is_finished(pod)),
            status.and_then(|s| s.pod_ips.clone()),
            status.and_then(|s| s.pod_ip.clone()),
            pod.spec.as_ref().map(|s| (s.hostname.clone(), s.subdomain.clone(), s.node_name.clone())),
        )
    };
    facts(old) != facts(new)
}

/// The Services that select any of the pods.
fn selecting<'a>(services: &Kind<Service>, pods: impl Iterator<Item = &'a Arc<Pod>>) -> Vec<ObjectRef<Service>> {
    let mut keys: Vec<Key> = Vec::new();
    for pod in pods {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        for service in services.find(&By::Namespace(namespace)) {
            let key = Key::of(&service.metadata);
            if !keys.contains(&key) && selects(&selector::of_map(service_selector(&service)), &**pod) {
                keys.push(key);
            }
        }
    }
    keys.iter().map(Key::reference).collect()
}

/// The selector, which a Service of outside endpoints doesn't have.
pub fn service_selector(service: &Service) -> Option<&std::collections::BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref()
}

/// Whether its endpoints are made from pods.
pub fn is_selecting(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName") && spec.selector.as_ref().is_some_and(|s| !s.is_empty())
}

/// Whether the Service has no address of its own.
pub fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"))
}

/// The pods behind a Service that have an address, by name.
pub fn pods_behind(context: &Context, service: &Service) -> Vec<Arc<Pod>> {
    let wanted = selector::of_map(service_selector(service));
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let mut pods = context.kinds.pods.find(&By::Namespace(namespace));
    pods.retain(|p| !is_finished(p) && !addresses(p).is_empty() && selects(&wanted, &**p));
    pods
}

/// The pod's addresses.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut all: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|p| p.ip.parse().ok()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    all
}

/// The address families of a Service, `IPv4` or `IPv6`; what its address is of when it doesn't say.
pub fn families(spec: &ServiceSpec) -> Vec<&str> {
    let said: Vec<&str> = spec.ip_families.iter().flatten().map(String::as_str).collect();
    if !said.is_empty() {
        return said;
    }
    let v6 = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_ipv6());
    vec![if v6 { "IPv6" } else { "IPv4" }]
}

/// The number of the pod's port that the Service's port stands for. A named one may be missing in the pod.
pub fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
        .map(|p| p.container_port)
}

/// The host name that DNS gives the pod under this Service.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let name = spec.hostname.as_ref().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then(|| name.clone())
}

/// A reference to the pod, as endpoints carry it.
pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The node's name, if the pod has one.
pub fn node_of(pod: &Pod) -> Option<String> {
    Some(node_name(pod).to_owned()).filter(|name| !name.is_empty())
}

/// When the latest change among the Service and its pods happened, as the annotation has it.
pub fn trigger_time(service: &Service, pods: &[Arc<Pod>]) -> Option<String> {
    let ready = |pod: &Arc<Pod>| {
        skiff_api::typed::pods::condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0)
    };
    let made = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
    pods.iter().filter_map(ready).chain(made).max().map(|at| at.to_string())
}
