//! EndpointSlices of Endpoints that people (or their controllers) write themselves, for Services without a selector.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::ObjectRef;

use crate::Context;
use crate::claim::controller_ref;
use crate::controller::{Again, Controller, owners};
use crate::endpointslice::{MANAGED_BY, Plan, SERVICE_NAME, act, fill, same_ports};
use crate::error::Error;
use crate::kind::{Change, is_namespace_terminating, message};
use crate::services;

const SOURCE: &str = "endpointslicemirroring-controller";
const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
/// Endpoints that are not to be mirrored, and those that are a lock of old elections.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that stay with the Endpoints.
const NOT_MIRRORED: [&str; 2] = ["kubectl.kubernetes.io/last-applied-configuration", services::TRIGGER_TIME];
/// The most addresses of a subset that are mirrored, and of a slice.
const MOST: usize = 1000;

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let same_name = |change: &Change<Service>| -> Vec<ObjectRef<Endpoints>> {
        let meta = change.states().last().map(|service| &service.metadata);
        meta.map(|m| ObjectRef::new(m.name.as_deref().unwrap_or("")).within(m.namespace.as_deref().unwrap_or(""))).into_iter().collect()
    };
    Controller::new(SOURCE, &context.kinds.endpoints)
        .on(&*context.kinds.services, same_name)
        .on(&*context.kinds.endpoint_slices, owners)
        .run(context, reconcile)
}

/// Whether the Endpoints are ones to mirror: not skipped, not a lock, and of a Service that selects no pods itself.
fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let skipped = endpoints.metadata.labels.as_ref().and_then(|l| l.get(SKIP)).is_some_and(|v| v == "true");
    let lock = endpoints.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    let spec = service.and_then(|s| s.spec.as_ref());
    !skipped && !lock && spec.is_some_and(|spec| spec.selector.as_ref().is_none_or(BTreeMap::is_empty))
}

async fn reconcile(context: Arc<Context>, endpoints: Arc<Endpoints>) -> Result<Again, Error> {
    let kinds = &context.kinds;
    let (namespace, name) = (endpoints.metadata.namespace.as_deref().unwrap_or(""), endpoints.metadata.name.as_deref().unwrap_or(""));
    let managed = |s: &EndpointSlice| s.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == CONTROLLER);
    let existing = kinds.endpoint_slices.controlled_by(&endpoints.metadata);
    let existing: Vec<EndpointSlice> = existing.iter().filter(|s| managed(s)).map(|s| (**s).clone()).collect();
    let service = kinds.services.get(namespace, name);
    let mirrored = endpoints.metadata.deletion_timestamp.is_none() && is_mirrored(&endpoints, service.as_deref());
    let plan = if mirrored { plan(&endpoints, existing) } else { Plan { delete: existing, ..Plan::default() } };
    let at = endpoints.metadata.annotations.as_ref().and_then(|a| a.get(services::TRIGGER_TIME).cloned());
    match act(&context, plan, at).await {
        Err(error) if !is_namespace_terminating(&error) => {
            let why = format!("Error updating Endpoint Slices for Endpoints {namespace}/{name}: {}", message(&error));
            context.events.warning(SOURCE, &*endpoints, "FailedToUpdateEndpointSlices", why);
            Err(Error::on("mirroring endpoints")(error))
        }
        _ => Ok(None),
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn plan(endpoints: &Endpoints, existing: Vec<EndpointSlice>) -> Plan {
    let meta = &endpoints.metadata;
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), meta.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_MIRRORED.contains(&key.as_str()));
    let mut plan = Plan::default();
    let mut rest = existing;
    for subset in endpoints.subsets.iter().flatten() {
        let ready = subset.addresses.iter().flatten().map(|a| endpoint(a, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|a| endpoint(a, false));
        let (six, four): (Vec<_>, Vec<_>) = ready.chain(not_ready).take(MOST).partition(|e| e.addresses.iter().any(|a| a.contains(':')));
        let ports = ports(subset);
        for (family, wanted) in [("IPv4", four), ("IPv6", six)] {
            if wanted.is_empty() {
                continue;
            }
            let fits = |s: &EndpointSlice| s.address_type == family && same_ports(s.ports.as_deref(), &ports);
            let (own, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(fits);
            rest = others;
            fill(&mut plan, &labels, MOST, own, wanted, || EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", meta.name.as_deref().unwrap_or(""))),
                    namespace: meta.namespace.clone(),
                    labels: Some(labels.clone()),
                    annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                    owner_references: Some(vec![controller_ref(endpoints)]),
                    ..ObjectMeta::default()
                },
                address_type: family.into(),
                ports: Some(ports.clone()),
                endpoints: Some(Vec::new()),
            });
        }
    }
    plan.delete.extend(rest);
    plan
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(metadata: Value) -> Endpoints {
        let mut value = json!({"metadata": {"name": "db", "namespace": "default", "uid": "e"}, "subsets": [{
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}],
            "ports": [{"name": "sql", "port": 5432}],
        }]});
        for (key, member) in metadata.as_object().into_iter().flatten() {
            value["metadata"][key] = member.clone();
        }
        serde_json::from_value(value).expect("endpoints")
    }

    #[test]
    fn slices_say_what_the_endpoints_say() {
        let plan = plan(&endpoints(json!({"labels": {"a": "b"}})), Vec::new());
        let shown: Vec<_> = plan.create.iter().map(|s| (s.address_type.as_str(), s.endpoints.as_ref().map_or(0, Vec::len))).collect();
        assert_eq!(shown, [("IPv4", 2), ("IPv6", 1)]);
        let slice = serde_json::to_value(&plan.create[0]).expect("JSON");
        assert_eq!(slice["metadata"]["labels"], json!({"a": "b", SERVICE_NAME: "db", MANAGED_BY: CONTROLLER}));
        assert_eq!(slice["ports"], json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]));
        assert_eq!(slice["endpoints"][1], json!({"addresses": ["10.0.0.2"], "conditions": {"ready": false}}));
        let again = super::plan(&endpoints(json!({"labels": {"a": "b"}})), plan.create);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty(), "{again:?}");
    }

    #[test]
    fn which_are_mirrored() {
        let check = |metadata: Value, service: Option<Value>, expected: bool| {
            let service = service.map(|spec| serde_json::from_value::<Service>(json!({"spec": spec})).expect("a service"));
            assert_eq!(is_mirrored(&endpoints(metadata), service.as_ref()), expected);
        };
        check(json!({}), Some(json!({"ports": []})), true);
        check(json!({}), Some(json!({"selector": {"a": "b"}})), false);
        check(json!({}), None, false);
        check(json!({"labels": {SKIP: "true"}}), Some(json!({})), false);
        check(json!({"annotations": {LEADER: "x"}}), Some(json!({})), false);
    }
}
