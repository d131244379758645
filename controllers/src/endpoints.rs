//! Endpoints: the addresses behind a Service in one object; the older form of EndpointSlices.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use skiff_api::typed::pods::is_ready;

use crate::Context;
use crate::controller::Again;
use crate::error::Error;
use crate::kind::{Change, is_namespace_terminating, message};
use crate::services::{self, HEADLESS, TRIGGER_TIME};

/// The name that events and the label carry.
const SOURCE: &str = "endpoint-controller";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// The most addresses that one object holds.
const CAPACITY: usize = 1000;

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let controller = services::controller(SOURCE, &context);
    // Endpoints have no owner reference: what a deleted Service leaves behind is cleared away here.
    let gone = context.kinds.services.changes(|change: &Change<Service>| match (&change.old, &change.new) {
        (Some(old), None) => vec![old.metadata.clone()],
        _ => Vec::new(),
    });
    let sweeper = sweep(context.clone(), gone);
    async move {
        futures::join!(controller.run(context, reconcile), sweeper);
    }
}

async fn sweep(context: Arc<Context>, mut gone: impl futures::Stream<Item = ObjectMeta> + Unpin) {
    context.kinds.ready().await;
    let ours = |e: &Endpoints| e.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|by| by == SOURCE);
    let leftover = context.kinds.endpoints.all();
    for endpoints in leftover.iter().filter(|e| ours(e)) {
        remove(&context, &endpoints.metadata).await;
    }
    while let Some(service) = gone.next().await {
        remove(&context, &service).await;
    }
}

/// Deletes the Endpoints of this name, unless there is a Service of the name (again).
async fn remove(context: &Context, of: &ObjectMeta) {
    let (namespace, name) = (of.namespace.as_deref().unwrap_or(""), of.name.as_deref().unwrap_or(""));
    if context.kinds.services.get(namespace, name).is_some() {
        return;
    }
    if let Some(endpoints) = context.kinds.endpoints.get(namespace, name)
        && let Err(error) = context.kinds.endpoints.delete(&endpoints.metadata, None).await
    {
        tracing::warn!(%error, namespace, name, "endpoints of a deleted service are left over");
    }
}

async fn reconcile(context: Arc<Context>, service: Arc<Service>) -> Result<Again, Error> {
    let Some(spec) = service.spec.as_ref().filter(|spec| services::is_selecting(spec)) else { return Ok(None) };
    let kind = &context.kinds.endpoints;
    let pods = services::pods_behind(&context, &service);
    let meta = service.meta();
    let current = kind.get(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    let Some(wanted) = plan(&service, spec, &pods, current.as_deref()) else { return Ok(None) };
    let written = match current {
        Some(_) => kind.replace(&wanted).await,
        None => kind.create(&wanted).await,
    };
    match written {
        Err(error) if is_namespace_terminating(&error) => Ok(None),
        Err(error) => {
            let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
            let (reason, what) = match wanted.metadata.resource_version {
                Some(_) => ("FailedToUpdateEndpoint", format!("Failed to update endpoint {namespace}/{name}")),
                None => ("FailedToCreateEndpoint", format!("Failed to create endpoint for service {namespace}/{name}")),
            };
            context.events.warning(SOURCE, &wanted, reason, format!("{what}: {}", message(&error)));
            Err(Error::on("writing endpoints")(error))
        }
        Ok(_) => Ok(None),
    }
}

/// The Endpoints as they should be; none when they are.
fn plan(service: &Service, spec: &ServiceSpec, pods: &[Arc<Pod>], current: Option<&Endpoints>) -> Option<Endpoints> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(MANAGED_BY.into(), SOURCE.into());
    if services::is_headless(spec) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let (subsets, truncated) = truncate(subsets(service, spec, pods));
    let mut annotations = current.and_then(|c| c.metadata.annotations.clone()).unwrap_or_default();
    match truncated {
        true => annotations.insert(OVER_CAPACITY.into(), "truncated".into()),
        false => annotations.remove(OVER_CAPACITY),
    };
    if let Some(current) = current
        && current.subsets.as_deref().unwrap_or_default() == subsets
        && current.metadata.labels.as_ref() == Some(&labels)
        && current.metadata.annotations.clone().unwrap_or_default() == annotations
    {
        return None;
    }
    if let Some(at) = services::trigger_time(service, pods) {
        annotations.insert(TRIGGER_TIME.into(), at);
    }
    let base = current.map(|c| c.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        ..ObjectMeta::default()
    });
    Some(Endpoints {
        metadata: ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..base },
        subsets: (!subsets.is_empty()).then_some(subsets),
    })
}

/// An address and whether it is ready, in an order of its own.
type Members = BTreeMap<(String, Option<String>), (EndpointAddress, bool)>;

/// The addresses, those together that have the same ports.
fn subsets(service: &Service, spec: &ServiceSpec, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let family = services::families(spec).first().copied().unwrap_or("IPv4");
    let tolerant = spec.publish_not_ready_addresses.unwrap_or(false);
    // By port, then by address; a headless Service may have no ports at all.
    let mut by_port: BTreeMap<(i32, String, String), (Option<EndpointPort>, Members)> = BTreeMap::new();
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_some() && !tolerant {
            continue;
        }
        let Some(ip) = services::addresses(pod).into_iter().find(|ip| ip.is_ipv6() == (family == "IPv6")) else { continue };
        let address = EndpointAddress {
            ip: ip.to_string(),
            hostname: services::hostname(pod, service),
            node_name: services::node_of(pod),
            target_ref: Some(services::target(pod)),
        };
        let ready = tolerant || is_ready(pod);
        let identity = (address.ip.clone(), pod.metadata.uid.clone());
        let none = Vec::new();
        let ports = spec.ports.as_ref().unwrap_or(&none);
        if ports.is_empty() && services::is_headless(spec) {
            let (_, members) = by_port.entry(Default::default()).or_default();
            members.insert(identity.clone(), (address.clone(), ready));
        }
        for port in ports {
            let Some(number) = services::find_port(pod, port) else { continue };
            let own = EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: number,
                protocol: port.protocol.clone().or_else(|| Some("TCP".into())),
            };
            let key = (number, own.protocol.clone().unwrap_or_default(), own.name.clone().unwrap_or_default());
            let (_, members) = by_port.entry(key).or_insert_with(|| (Some(own), Members::new()));
            members.insert(identity.clone(), (address.clone(), ready));
        }
    }
    let mut groups: Vec<(Vec<EndpointPort>, Members)> = Vec::new();
    for (port, members) in by_port.into_values() {
        match groups.iter_mut().find(|(_, other)| *other == members) {
            Some((ports, _)) => ports.extend(port),
            None => groups.push((port.into_iter().collect(), members)),
        }
    }
    let some = |list: Vec<EndpointAddress>| (!list.is_empty()).then_some(list);
    groups
        .into_iter()
        .map(|(ports, members)| {
            let (ready, not_ready): (Vec<_>, Vec<_>) = members.into_values().partition(|(_, ready)| *ready);
            EndpointSubset {
                addresses: some(ready.into_iter().map(|(address, _)| address).collect()),
                not_ready_addresses: some(not_ready.into_iter().map(|(address, _)| address).collect()),
                ports: (!ports.is_empty()).then_some(ports),
            }
        })
        .collect()
}

/// Cuts the addresses to the capacity, in proportion to the subsets' sizes; those not ready go first.
fn truncate(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let len = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let ready: usize = subsets.iter().map(|s| len(&s.addresses)).sum();
    let rest: usize = subsets.iter().map(|s| len(&s.not_ready_addresses)).sum();
    if ready + rest <= CAPACITY {
        return (subsets, false);
    }
    let cut_ready = ready > CAPACITY;
    let (room, total) = if cut_ready { (CAPACITY, ready) } else { (CAPACITY - ready, rest) };
    let mut left = room;
    for subset in &mut subsets {
        let list = if cut_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        let share = (len(list) * room).div_ceil(total).min(left);
        left -= share.min(len(list));
        if let Some(list) = list {
            list.truncate(share);
        }
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
        if cut_ready {
            subset.not_ready_addresses = None;
        }
    }
    (subsets, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, ip: &str, ready: bool, ports: Value) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let value = json!({
            "metadata": { "name": name, "namespace": "default", "uid": name, "labels": { "app": "web" } },
            "spec": { "nodeName": "n1", "containers": [{ "name": "c", "ports": ports }] },
            "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                        "conditions": [{ "type": "Ready", "status": status }] },
        });
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn check(spec: Value, pods: &[Arc<Pod>], expected: Value) {
        let mut all = json!({ "selector": { "app": "web" }, "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"] });
        json_patch::merge(&mut all, &spec);
        let service: Service =
            serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": all })).expect("a service");
        let spec = service.spec.clone().expect("a spec");
        let short: Vec<Value> = subsets(&service, &spec, pods)
            .iter()
            .map(|s| {
                let ips = |list: &Option<Vec<EndpointAddress>>| list.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>();
                let ports: Vec<i32> = s.ports.iter().flatten().map(|p| p.port).collect();
                json!([ips(&s.addresses), ips(&s.not_ready_addresses), ports])
            })
            .collect();
        assert_eq!(Value::from(short), expected);
        let made = plan(&service, &spec, pods, None).expect("new endpoints");
        assert_eq!(plan(&service, &spec, pods, Some(&made)), None, "the second time nothing changes");
    }

    #[test]
    fn addresses_by_ports() {
        let both = json!([{ "name": "http", "containerPort": 80 }, { "name": "metrics", "containerPort": 90 }]);
        let one = json!([{ "name": "http", "containerPort": 8080 }]);
        let pods = [pod("a", "10.1.0.1", true, both.clone()), pod("b", "10.1.0.2", false, both), pod("c", "10.1.0.3", true, one)];
        let number = json!({ "ports": [{ "port": 80, "targetPort": 80, "protocol": "TCP" }] });
        check(number, &pods, json!([[["10.1.0.1", "10.1.0.3"], ["10.1.0.2"], [80]]]));
        let named = json!({ "ports": [{ "name": "h", "port": 80, "targetPort": "http" }, { "name": "m", "port": 90, "targetPort": "metrics" }] });
        check(named, &pods, json!([[["10.1.0.1"], ["10.1.0.2"], [80, 90]], [["10.1.0.3"], [], [8080]]]));
        check(json!({ "clusterIP": "None" }), &pods, json!([[["10.1.0.1", "10.1.0.3"], ["10.1.0.2"], []]]));
        let tolerant = json!({ "clusterIP": "None", "publishNotReadyAddresses": true });
        check(tolerant, &pods, json!([[["10.1.0.1", "10.1.0.2", "10.1.0.3"], [], []]]));
        check(json!({ "ports": [{ "port": 80 }] }), &[], json!([]));
    }

    #[test]
    fn too_many_addresses_are_cut() {
        let list = |n: usize| Some((0..n).map(|i| EndpointAddress { ip: i.to_string(), ..Default::default() }).collect());
        let subset = |ready, not| EndpointSubset { addresses: list(ready), not_ready_addresses: list(not), ports: None };
        let (cut, truncated) = truncate(vec![subset(600, 10), subset(600, 10)]);
        let sizes: Vec<_> = cut.iter().map(|s| (s.addresses.as_ref().map(Vec::len), s.not_ready_addresses.is_some())).collect();
        assert!(truncated);
        assert_eq!(sizes, [(Some(500), false), (Some(500), false)]);
    }
}
