//! EndpointSlices: the addresses behind a Service in slices of up to a hundred, changed as little as can be.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skiff_api::typed::pods::is_ready;

use crate::Context;
use crate::claim::controller_ref;
use crate::controller::{Again, owners};
use crate::error::Error;
use crate::kind::{is_gone, is_namespace_terminating, message};
use crate::services::{self, HEADLESS, TRIGGER_TIME, ZONE};

const SOURCE: &str = "endpoint-slice-controller";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The most endpoints of a slice.
const SLICE: usize = 100;

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let controller = services::controller(SOURCE, &context).on(&*context.kinds.endpoint_slices, owners);
    controller.run(context, reconcile)
}

/// Endpoints with the same ports and address family.
#[derive(Debug)]
struct Wanted {
    family: String,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<EndpointSlice>,
}

async fn reconcile(context: Arc<Context>, service: Arc<Service>) -> Result<Again, Error> {
    let Some(spec) = service.spec.as_ref().filter(|spec| services::is_selecting(spec)) else { return Ok(None) };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let kinds = &context.kinds;
    let pods = services::pods_behind(&context, &service);
    let existing = kinds.endpoint_slices.controlled_by(&service.metadata);
    let managed = |s: &EndpointSlice| s.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == CONTROLLER);
    let existing: Vec<EndpointSlice> = existing.iter().filter(|s| managed(s)).map(|s| (**s).clone()).collect();
    let wanted = wanted(&service, spec, &pods, |name| kinds.nodes.get("", name));
    let at = services::trigger_time(&service, &pods);
    let plan = plan(&service, spec, wanted, existing);
    match act(&context, plan, at).await {
        Err(error) if is_namespace_terminating(&error) => Ok(None),
        Err(error) => {
            let (namespace, name) =
                (service.metadata.namespace.as_deref().unwrap_or(""), service.metadata.name.as_deref().unwrap_or(""));
            let why = format!("Error updating Endpoint Slices for Service {namespace}/{name}: {}", message(&error));
            context.events.warning(SOURCE, &*service, "FailedToUpdateEndpointSlices", why);
            Err(Error::on("updating endpoint slices")(error))
        }
        Ok(()) => Ok(None),
    }
}

/// Carries a plan out. `at` is when what led to it happened.
pub(crate) async fn act(context: &Context, plan: Plan, at: Option<String>) -> Result<(), kube::Error> {
    let kind = &context.kinds.endpoint_slices;
    let timed = |mut slice: EndpointSlice| {
        if let Some(at) = &at {
            slice.metadata.annotations.get_or_insert_default().insert(TRIGGER_TIME.into(), at.clone());
        }
        slice
    };
    for slice in plan.create {
        kind.create(&timed(slice)).await?;
    }
    for slice in plan.update {
        match kind.replace(&timed(slice)).await {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    for slice in plan.delete {
        kind.delete(&slice.metadata, None).await?;
    }
    Ok(())
}

/// The endpoints as they should be, by address family and ports.
fn wanted(service: &Service, spec: &ServiceSpec, pods: &[Arc<Pod>], node: impl Fn(&str) -> Option<Arc<Node>>) -> Vec<Wanted> {
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);
    let mut all: Vec<Wanted> = Vec::new();
    for family in services::families(spec) {
        for pod in pods {
            let ips: Vec<String> = services::addresses(pod)
                .into_iter()
                .filter(|ip| ip.is_ipv6() == (family == "IPv6"))
                .map(|ip| ip.to_string())
                .collect();
            let name = services::node_of(pod);
            let node = name.as_deref().and_then(&node);
            // A pod on a node that isn't there gets no traffic: it will soon be cleared away.
            if ips.is_empty() || (node.is_none() && !publish) {
                continue;
            }
            let serving = is_ready(pod);
            let terminating = pod.metadata.deletion_timestamp.is_some();
            let mut endpoint = Endpoint {
                addresses: ips,
                conditions: Some(EndpointConditions {
                    ready: Some(publish || (serving && !terminating)),
                    serving: Some(serving),
                    terminating: Some(terminating),
                }),
                hostname: services::hostname(pod, service),
                zone: node.as_ref().and_then(|n| n.metadata.labels.as_ref()?.get(ZONE).cloned()).filter(|z| !z.is_empty()),
                node_name: name,
                target_ref: Some(services::target(pod)),
                ..Endpoint::default()
            };
            endpoint.hints = hints(spec, &endpoint);
            let ports = ports(spec, pod);
            match all.iter_mut().find(|w| w.family == family && w.ports == ports) {
                Some(group) => group.endpoints.push(endpoint),
                None => all.push(Wanted { family: family.to_owned(), ports, endpoints: vec![endpoint] }),
            }
        }
    }
    all
}

/// For which zones or nodes the endpoint is meant, where the Service prefers near ones.
fn hints(spec: &ServiceSpec, endpoint: &Endpoint) -> Option<EndpointHints> {
    let near = spec.traffic_distribution.as_deref()?;
    if !matches!(near, "PreferClose" | "PreferSameZone" | "PreferSameNode") {
        return None;
    }
    if endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(true) {
        return None;
    }
    let zone = endpoint.zone.iter().map(|name| ForZone { name: name.clone() }).collect::<Vec<_>>();
    let node = endpoint.node_name.iter().filter(|_| near == "PreferSameNode");
    let node = node.map(|name| ForNode { name: name.clone() }).collect::<Vec<_>>();
    if zone.is_empty() && node.is_empty() {
        return None;
    }
    Some(EndpointHints {
        for_zones: (!zone.is_empty()).then_some(zone),
        for_nodes: (!node.is_empty()).then_some(node),
    })
}

fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<EndpointPort> {
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(services::find_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

fn labels(service: &Service, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if services::is_headless(spec) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    labels
}

/// Who an endpoint is, whatever its state: addresses, host name, uid of the pod.
type Identity = (Vec<String>, Option<String>, Option<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone());
    (endpoint.addresses.clone(), endpoint.hostname.clone(), uid)
}

fn plan(service: &Service, spec: &ServiceSpec, wanted: Vec<Wanted>, existing: Vec<EndpointSlice>) -> Plan {
    let labels = labels(service, spec);
    let fresh = |family: &str, ports: Vec<EndpointPort>| EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or(""))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![controller_ref(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: Some(ports),
        endpoints: Some(Vec::new()),
    };
    let mut plan = Plan::default();
    let mut rest = existing;
    let covered: Vec<String> = wanted.iter().map(|group| group.family.clone()).collect();
    for group in wanted {
        let fits = |s: &EndpointSlice| s.address_type == group.family && same_ports(s.ports.as_deref(), &group.ports);
        let (own, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(fits);
        rest = others;
        fill(&mut plan, &labels, SLICE, own, group.endpoints, || fresh(&group.family, group.ports.clone()));
    }
    // A family without any endpoint keeps one empty slice without ports.
    for family in services::families(spec).into_iter().filter(|family| !covered.iter().any(|c| c == family)) {
        let empty = rest.iter().position(|s| {
            s.address_type == family
                && s.ports.as_ref().is_none_or(Vec::is_empty)
                && s.endpoints.as_ref().is_none_or(Vec::is_empty)
        });
        match empty.map(|at| rest.remove(at)) {
            Some(slice) if slice.metadata.labels.as_ref() == Some(&labels) => {}
            Some(slice) => {
                let metadata = ObjectMeta { labels: Some(labels.clone()), ..slice.metadata };
                plan.update.push(EndpointSlice { metadata, ..slice });
            }
            None => plan.create.push(fresh(family, Vec::new())),
        }
    }
    plan.delete.extend(rest);
    plan
}

/// Brings endpoints of the same ports into slices, so that few slices change: endpoints stay where they are; new ones
/// go into slices that change anyway, then into one with room for all of them, then into new ones. `most` is a slice's room.
pub(crate) fn fill(
    plan: &mut Plan,
    labels: &BTreeMap<String, String>,
    most: usize,
    own: Vec<EndpointSlice>,
    wanted: Vec<Endpoint>,
    fresh: impl Fn() -> EndpointSlice,
) {
    let len = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
    let mut missing: HashMap<Identity, (usize, Endpoint)> =
        wanted.into_iter().enumerate().map(|(i, endpoint)| (identity(&endpoint), (i, endpoint))).collect();
    let mut changed = Vec::new();
    let mut unchanged = Vec::new();
    for mut slice in own {
        let before = slice.endpoints.take().unwrap_or_default();
        let mut after = Vec::with_capacity(before.len());
        for endpoint in &before {
            after.extend(missing.remove(&identity(endpoint)).map(|(_, endpoint)| endpoint));
        }
        let same = before == after && slice.metadata.labels.as_ref() == Some(labels);
        slice.metadata.labels = Some(labels.clone());
        if after.is_empty() {
            plan.delete.push(slice);
            continue;
        }
        slice.endpoints = Some(after);
        if same { unchanged.push(slice) } else { changed.push(slice) }
    }
    changed.sort_by_key(|slice| std::cmp::Reverse(len(slice)));
    let mut missing: Vec<(usize, Endpoint)> = missing.into_values().collect();
    missing.sort_by_key(|(i, _)| *i);
    let mut missing = missing.into_iter().map(|(_, endpoint)| endpoint);
    for slice in &mut changed {
        let room = most.saturating_sub(len(slice));
        slice.endpoints.get_or_insert_default().extend(missing.by_ref().take(room));
    }
    let rest = missing.len();
    if rest > 0 && rest < most {
        let with_room = (0..unchanged.len()).filter(|&i| len(&unchanged[i]) + rest <= most);
        if let Some(at) = with_room.max_by_key(|&i| len(&unchanged[i])) {
            let mut slice = unchanged.swap_remove(at);
            slice.endpoints.get_or_insert_default().extend(missing.by_ref());
            changed.push(slice);
        }
    }
    plan.update.extend(changed);
    while missing.len() > 0 {
        let mut slice = fresh();
        slice.endpoints = Some(missing.by_ref().take(most).collect());
        plan.create.push(slice);
    }
}

/// Whether the ports are the same, in whatever order.
pub(crate) fn same_ports(have: Option<&[EndpointPort]>, want: &[EndpointPort]) -> bool {
    let have = have.unwrap_or_default();
    have.len() == want.len() && want.iter().all(|port| have.contains(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Service {
        let value = json!({
            "metadata": { "name": "web", "namespace": "default", "uid": "s" },
            "spec": { "selector": { "app": "web" }, "clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "ports": [{ "port": 80 }] },
        });
        serde_json::from_value(value).expect("a service")
    }

    fn pods(range: std::ops::Range<usize>) -> Vec<Arc<Pod>> {
        let pod = |i: usize| {
            let value = json!({
                "metadata": { "name": format!("p{i}"), "namespace": "default", "uid": i.to_string() },
                "spec": { "nodeName": "n", "containers": [] },
                "status": { "podIP": format!("10.1.{}.{}", i / 250, i % 250), "conditions": [{ "type": "Ready", "status": "True" }] },
            });
            Arc::new(serde_json::from_value(value).expect("a pod"))
        };
        range.map(pod).collect()
    }

    /// The slices after a plan, and how many were made, changed and deleted.
    fn step(have: Vec<EndpointSlice>, pods: &[Arc<Pod>]) -> (Vec<EndpointSlice>, [usize; 3]) {
        let service = service();
        let spec = service.spec.clone().expect("a spec");
        let node = |_: &str| Some(Arc::new(Node::default()));
        let plan = plan(&service, &spec, wanted(&service, &spec, pods, node), have.clone());
        let counts = [plan.create.len(), plan.update.len(), plan.delete.len()];
        let touched: Vec<_> = plan.update.iter().chain(&plan.delete).map(|s| s.metadata.name.clone()).collect();
        let mut after: Vec<_> = have.into_iter().filter(|s| !touched.contains(&s.metadata.name)).collect();
        after.extend(plan.update);
        for (i, mut slice) in plan.create.into_iter().enumerate() {
            slice.metadata.name = Some(format!("s{}-{i}", after.len()));
            after.push(slice);
        }
        (after, counts)
    }

    #[test]
    fn slices_change_as_little_as_can_be() {
        let (slices, counts) = step(Vec::new(), &[]);
        assert_eq!(counts, [1, 0, 0], "an empty slice");
        let (slices, counts) = step(slices, &[]);
        assert_eq!(counts, [0, 0, 0]);
        let (slices, counts) = step(slices, &pods(0..150));
        assert_eq!(counts, [2, 0, 1], "a hundred and fifty, and the empty one goes");
        let (slices, counts) = step(slices, &pods(0..150));
        assert_eq!(counts, [0, 0, 0]);
        let (slices, counts) = step(slices, &pods(0..160));
        assert_eq!(counts, [0, 1, 0], "ten more fit into the second");
        let (slices, counts) = step(slices, &pods(5..165));
        assert_eq!(counts, [0, 1, 0], "the places that became free are taken");
        let (_, counts) = step(slices, &[]);
        assert_eq!(counts, [1, 0, 2]);
    }
}
