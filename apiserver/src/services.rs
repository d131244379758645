//! Where a Service leads, without DNS: to one of its ready endpoints.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use skiff_api::status::GroupResource;
use skiff_api::{Status, random, value};

use crate::cache::{Cache, Filter};

/// Where a service may lead to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    /// Wherever its endpoints are: who configures the server said so.
    Any,
    /// To pods alone: who writes endpoints must not lead the server elsewhere.
    Pods,
}

const SERVICES: GroupResource<'static> = GroupResource { group: "", resource: "services" };

/// An endpoint of the service's port that goes by the name or number `port` (empty: the only one). A service without
/// endpoints is reached by its cluster IP when somebody else's endpoints may be behind it: when it has no selector.
pub(crate) fn endpoint(cache: &Cache, namespace: &str, name: &str, port: &str, to: To) -> Result<SocketAddr, Status> {
    let key = format!("/registry/services/specs/{namespace}/{name}");
    let service = cache.resource("/registry/services/specs/").and_then(|c| c.get(&key));
    let service = service.ok_or_else(|| Status::not_found(SERVICES, name))?.value().map_err(Status::internal)?;
    let unavailable = |why: String| Status::new(503, "ServiceUnavailable", why);
    let ports = value::items(&service, &["spec", "ports"]);
    let wanted = ports.iter().find(|p| match port {
        "" => ports.len() == 1,
        port => p["name"] == port || p["port"].as_u64().is_some_and(|n| n.to_string() == port),
    });
    let wanted = wanted.ok_or_else(|| unavailable(format!("no service port {port:?} found for service {name:?}")))?;
    let slices = cache.resource("/registry/endpointslices/").ok_or_else(Status::no_such_resource)?;
    let filter = Filter { namespace: namespace.to_owned(), ..Filter::default() };
    for slice in slices.list(&filter, 0).objects {
        if slice.labels.get("kubernetes.io/service-name").map(String::as_str) != Some(name) {
            continue;
        }
        let slice = slice.value().map_err(Status::internal)?;
        let same_name = |p: &&Value| p["name"].as_str().unwrap_or("") == wanted["name"].as_str().unwrap_or("");
        let number = value::items(&slice, &["ports"]).iter().find(same_name).and_then(|p| p["port"].as_u64());
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        let ready: Vec<IpAddr> = value::items(&slice, &["endpoints"])
            .iter()
            .filter(|e| value::at(e, &["conditions", "ready"]).as_bool() != Some(false))
            .filter(|e| to == To::Any || is_pod(cache, namespace, e))
            .filter_map(|e| value::items(e, &["addresses"]).first()?.as_str()?.parse().ok())
            .collect();
        if !ready.is_empty() {
            return Ok(SocketAddr::new(ready[random::below(ready.len())], number));
        }
    }
    let no_selector = value::at(&service, &["spec", "selector"]).as_object().is_none_or(serde_json::Map::is_empty) && to == To::Any;
    let address = value::text(&service, &["spec", "clusterIP"]).parse().ok().filter(|_| no_selector);
    let number = wanted["port"].as_u64().and_then(|n| u16::try_from(n).ok());
    match (address, number) {
        (Some(address), Some(number)) => Ok(SocketAddr::new(address, number)),
        _ => Err(unavailable(format!("no endpoints available for service {name:?}"))),
    }
}

/// Whether the endpoint is the pod that it says it is.
fn is_pod(cache: &Cache, namespace: &str, endpoint: &Value) -> bool {
    let target = value::at(endpoint, &["targetRef"]);
    let key = format!("/registry/pods/{namespace}/{}", value::text(target, &["name"]));
    let pod = cache.resource("/registry/pods/").and_then(|c| c.get(&key)).and_then(|pod| pod.value().ok());
    let address = value::items(endpoint, &["addresses"]).first();
    target["kind"] == "Pod"
        && pod.is_some_and(|pod| value::items(&pod, &["status", "podIPs"]).iter().any(|ip| address.is_some_and(|address| ip["ip"] == *address)))
}
