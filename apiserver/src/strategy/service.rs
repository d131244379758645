//! Services: their cluster IPs and node ports, each a claim that only one Service can have.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use skiff_api::{Status, field, random, value};

use super::{Claims, Strategy};
use crate::cache::encode;
use crate::verbs::{Call, Write};

/// Upstream's default range.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
const NODE_PORT_PREFIX: &str = "/registry/ranges/servicenodeports/";
const IP_PREFIX: &str = "/registry/ipaddresses/";
/// How many random addresses are tried before the range is gone through.
const RANDOM_TRIES: usize = 32;

/// Where cluster IPs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocator {
    first: u32,
    /// How many addresses there are from `first`, the network's own and the broadcast address left out.
    size: u32,
}

impl FromStr for Allocator {
    type Err = String;

    fn from_str(cidr: &str) -> Result<Self, String> {
        let parsed = cidr.split_once('/').and_then(|(ip, bits)| Some((ip.parse::<Ipv4Addr>().ok()?, bits.parse::<u32>().ok()?)));
        match parsed {
            Some((ip, bits)) if (12..=28).contains(&bits) => {
                let mask = u32::MAX << (32 - bits);
                Ok(Self { first: (u32::from(ip) & mask) + 1, size: (1 << (32 - bits)) - 2 })
            }
            _ => Err(format!("{cidr:?} is no IPv4 range of between /12 and /28")),
        }
    }
}

impl Allocator {
    /// The range's first address: the `kubernetes` Service has it.
    pub fn first(self) -> Ipv4Addr {
        self.first.into()
    }

    fn contains(self, ip: Ipv4Addr) -> bool {
        (self.first..self.first + self.size).contains(&u32::from(ip))
    }

    /// How many of the lowest addresses are left to those who ask for one by name; upstream's formula.
    fn reserved(self) -> u32 {
        (self.size / 16).clamp(16, 256).min(self.size / 2)
    }

    /// The whole range: `10.96.0.0/16`.
    pub fn range(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.first - 1), 32 - (self.size + 2).trailing_zeros())
    }

    /// Addresses to try, in the order in which to try them: some drawn, then all.
    fn candidates(self) -> impl Iterator<Item = Ipv4Addr> {
        let (reserved, free) = (self.reserved(), self.size - self.reserved());
        let drawn = (0..RANDOM_TRIES).map(move |_| reserved + random::below(free as usize) as u32);
        drawn.chain(reserved..self.size).chain(0..reserved).map(move |offset| Ipv4Addr::from(self.first + offset))
    }
}

/// The strategy.
pub(super) struct Services;

fn kind_of(service: &Value) -> &str {
    match value::text(service, &["spec", "type"]) {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn needs_ip(service: &Value) -> bool {
    kind_of(service) != "ExternalName"
}

fn needs_ports(service: &Value) -> bool {
    match kind_of(service) {
        "NodePort" => true,
        "LoadBalancer" => value::at(service, &["spec", "allocateLoadBalancerNodePorts"]).as_bool() != Some(false),
        _ => false,
    }
}

fn ips(service: &Value) -> Vec<Ipv4Addr> {
    let list = value::items(service, &["spec", "clusterIPs"]);
    let first = value::text(service, &["spec", "clusterIP"]);
    let texts: Vec<&str> = if list.is_empty() { vec![first] } else { list.iter().filter_map(Value::as_str).collect() };
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// The node ports that the Service has, its health check's too.
fn node_ports(service: &Value) -> BTreeSet<u16> {
    let ports = value::items(service, &["spec", "ports"]).iter().map(|p| &p["nodePort"]);
    let health = std::iter::once(value::at(service, &["spec", "healthCheckNodePort"]));
    ports.chain(health).filter_map(Value::as_u64).filter_map(|p| u16::try_from(p).ok()).filter(|p| *p != 0).collect()
}

fn ip_key(ip: Ipv4Addr) -> String {
    format!("{IP_PREFIX}{ip}")
}

fn port_key(port: u16) -> String {
    format!("{NODE_PORT_PREFIX}{port}")
}

fn is_balanced(service: &Value) -> bool {
    kind_of(service) == "LoadBalancer"
}

fn needs_health_check(service: &Value) -> bool {
    is_balanced(service) && value::text(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn is_external(service: &Value) -> bool {
    let by_address = kind_of(service) == "ClusterIP" && !value::items(service, &["spec", "externalIPs"]).is_empty();
    by_address || matches!(kind_of(service), "NodePort" | "LoadBalancer")
}

type Has = fn(&Value) -> bool;

/// The fields of `spec` that only some Services have, and which; and whether one that a client left out stays as it was.
const OF_SOME: [(&str, Has, bool); 8] = [
    ("clusterIP", needs_ip, true),
    ("clusterIPs", needs_ip, true),
    ("ipFamilies", needs_ip, true),
    ("ipFamilyPolicy", needs_ip, true),
    ("healthCheckNodePort", needs_health_check, true),
    ("allocateLoadBalancerNodePorts", is_balanced, false),
    ("loadBalancerClass", is_balanced, false),
    ("externalTrafficPolicy", is_external, false),
];

/// Keeps of the old Service what a client left out of the new one, and drops what only the old type had and nobody changed.
fn carry_over(new: &mut Value, old: &Value) {
    for (key, has, kept) in OF_SOME {
        let (before, after) = (value::at(old, &["spec", key]), value::at(new, &["spec", key]));
        let left_out = match after {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            number => number.as_u64() == Some(0),
        };
        match (has(old), has(new)) {
            (true, true) if kept && left_out && !before.is_null() => new["spec"][key] = before.clone(),
            (true, false) if before == after => drop(value::remove(new, &["spec", key])),
            _ => {}
        }
    }
    if !is_balanced(new) && !value::at(new, &["status", "loadBalancer"]).is_null() {
        new["status"]["loadBalancer"] = json!({});
    }
    let old_ports = value::items(old, &["spec", "ports"]).to_vec();
    let (wants, had) = (needs_ports(new), needs_ports(old));
    let Some(ports) = new.get_mut("spec").and_then(|s| s.get_mut("ports")).and_then(Value::as_array_mut) else { return };
    let kept: Vec<Value> = ports.iter().map(|port| port["nodePort"].clone()).collect();
    for port in ports {
        // Of several with one name the last counts.
        let before = old_ports.iter().rfind(|o| o["name"] == port["name"]).map_or(&Value::Null, |o| &o["nodePort"]).clone();
        if wants && had && port["nodePort"].as_u64().unwrap_or(0) == 0 && !before.is_null() && !kept.contains(&before) {
            port["nodePort"] = before;
        } else if !wants && had && port["nodePort"] == before {
            value::remove(port, &["nodePort"]);
        }
    }
}

#[async_trait]
impl Strategy for Services {
    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
        skiff_api::service::normalize_cluster_ips(object, None);
    }

    fn prepare_update(&self, _call: &Call, new: &mut Value, old: &Value) {
        skiff_api::service::normalize_cluster_ips(new, Some(old));
        carry_over(new, old);
    }

    fn shows_deleted(&self) -> bool {
        true
    }

    async fn claim(&self, write: &Write<'_>, new: &mut Value, old: Option<&Value>) -> Result<Claims, Status> {
        let mut claims = Claims::default();
        let result = claim_all(write, &mut claims, new, old).await;
        match result {
            Ok(()) => Ok(claims),
            Err(status) => {
                claims.cancel(&write.call.server).await;
                Err(status)
            }
        }
    }

    fn claims(&self) -> bool {
        true
    }

    fn claims_of(&self, service: &Value) -> Vec<String> {
        ips(service).into_iter().map(ip_key).chain(node_ports(service).into_iter().map(port_key)).collect()
    }
}

async fn claim_all(write: &Write<'_>, claims: &mut Claims, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let (old_ips, old_ports) = old.map_or((Vec::new(), BTreeSet::new()), |o| (ips(o), node_ports(o)));
    claim_ip(write, claims, new, &old_ips).await?;
    claim_ports(write, claims, new, &old_ports).await?;
    let (ips, ports) = (ips(new), node_ports(new));
    old_ips.iter().filter(|ip| !ips.contains(ip)).for_each(|ip| claims.release(ip_key(*ip)));
    old_ports.difference(&ports).for_each(|port| claims.release(port_key(*port)));
    Ok(())
}

fn invalid(service: &Value, error: field::Error) -> Status {
    Status::invalid("", "Service", value::text(service, &["metadata", "name"]), &[error])
}

async fn claim_ip(write: &Write<'_>, claims: &mut Claims, new: &mut Value, old: &[Ipv4Addr]) -> Result<(), Status> {
    let server = &write.call.server;
    if !needs_ip(new) {
        return Ok(());
    }
    // Without a selector the endpoints of a headless Service are somebody else's, of any family.
    let foreign = value::text(new, &["spec", "clusterIP"]) == "None" && value::at(new, &["spec", "selector"]).as_object().is_none_or(Map::is_empty);
    if value::text(new, &["spec", "ipFamilyPolicy"]) == "RequireDualStack" && !foreign {
        let detail = "this cluster is not configured for dual-stack services";
        return Err(invalid(new, field::Error::invalid("spec.ipFamilyPolicy", "RequireDualStack", detail)));
    }
    let families = value::items(new, &["spec", "ipFamilies"]);
    if let Some(at) = families.iter().position(|family| family != "IPv4" && !foreign) {
        let path = format!("spec.ipFamilies[{at}]");
        return Err(invalid(new, field::Error::invalid(path, families[at].clone(), "not configured on this cluster")));
    }
    let asked = value::text(new, &["spec", "clusterIP"]).to_owned();
    let chosen = match asked.as_str() {
        "None" => "None".to_owned(),
        "" => {
            let mut chosen = None;
            for ip in server.allocator.candidates() {
                if claims.take(server, ip_key(ip), ip_object(new, ip), write.options.dry_run).await? {
                    chosen = Some(ip);
                    break;
                }
            }
            let ip = chosen.ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?;
            ip.to_string()
        }
        text => {
            let fail = |why: String| {
                let detail = format!("failed to allocate IP {text}: {why}");
                invalid(new, field::Error::invalid("spec.clusterIPs", vec![text], detail))
            };
            let Ok(ip) = text.parse::<Ipv4Addr>() else {
                return Err(fail("only IPv4 is served".into()));
            };
            if !old.contains(&ip) {
                if !server.allocator.contains(ip) {
                    let range = format!("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}", server.allocator.range());
                    let dry = write.options.dry_run;
                    return Err(fail(if dry { range } else { "the provided network does not match the current range".into() }));
                }
                if !claims.take(server, ip_key(ip), ip_object(new, ip), write.options.dry_run).await? {
                    return Err(fail("provided IP is already allocated".into()));
                }
            }
            ip.to_string()
        }
    };
    let spec = value::object_mut(new, &["spec"]);
    spec.insert("clusterIPs".into(), json!([chosen]));
    spec.insert("clusterIP".into(), chosen.into());
    let policy = spec.entry("ipFamilyPolicy").or_insert_with(|| if foreign { "RequireDualStack" } else { "SingleStack" }.into());
    let both = foreign && policy != "SingleStack";
    if !(foreign && spec.get("ipFamilies").and_then(Value::as_array).is_some_and(|given| given.len() == if both { 2 } else { 1 })) {
        spec.insert("ipFamilies".into(), if both { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) });
    }
    Ok(())
}

/// The IPAddress object that stands for the claim.
fn ip_object(service: &Value, ip: Ipv4Addr) -> bytes::Bytes {
    let mut object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": ip.to_string(),
            "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": value::text(service, &["metadata", "namespace"]), "name": value::text(service, &["metadata", "name"]),
        }},
    });
    crate::verbs::stamp(&mut object, "", false);
    encode(&object).into()
}

async fn claim_ports(write: &Write<'_>, claims: &mut Claims, new: &mut Value, old: &BTreeSet<u16>) -> Result<(), Status> {
    let server = &write.call.server;
    let name = value::text(new, &["metadata", "name"]).to_owned();
    let wanted = needs_ports(new);
    let owner: bytes::Bytes = format!("{}/{name}", write.call.info.namespace).into();
    let refuse = |index: usize, port: u64, detail: &str| {
        let error = field::Error::invalid(format!("spec.ports[{index}].nodePort"), port, detail);
        Status::invalid("", "Service", &name, &[error])
    };
    let mut mine: BTreeSet<u16> = old.clone();
    let ports = value::items(new, &["spec", "ports"]).to_vec();
    for (index, port) in ports.iter().enumerate() {
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if asked == 0 {
            continue;
        }
        // Upstream's dry runs don't ask whether the port is one of those for nodes.
        let Some(number) = u16::try_from(asked).ok().filter(|p| write.options.dry_run || NODE_PORTS.contains(p)) else {
            let detail = format!("provided port is not in the valid range. The range of valid ports is {}-{}", NODE_PORTS.start(), NODE_PORTS.end());
            return Err(refuse(index, asked, &detail));
        };
        // One Service may have the same port for several protocols.
        if !mine.contains(&number) && !claims.take(server, port_key(number), owner.clone(), write.options.dry_run).await? {
            return Err(refuse(index, asked, "provided port is already allocated"));
        }
        mine.insert(number);
    }
    for (index, port) in ports.iter().enumerate() {
        if wanted && port["nodePort"].as_u64().unwrap_or(0) == 0 {
            let number = free_port(write, claims, &owner).await?;
            new["spec"]["ports"][index]["nodePort"] = json!(number);
        }
    }
    if needs_health_check(new) && value::at(new, &["spec", "healthCheckNodePort"]).as_u64().unwrap_or(0) == 0 {
        new["spec"]["healthCheckNodePort"] = json!(free_port(write, claims, &owner).await?);
    }
    Ok(())
}

async fn free_port(write: &Write<'_>, claims: &mut Claims, owner: &bytes::Bytes) -> Result<u16, Status> {
    let (first, size) = (*NODE_PORTS.start(), NODE_PORTS.len());
    let drawn = (0..RANDOM_TRIES).map(|_| random::below(size));
    for offset in drawn.chain(0..size) {
        let port = first + offset as u16;
        if claims.take(&write.call.server, port_key(port), owner.clone(), write.options.dry_run).await? {
            return Ok(port);
        }
    }
    Err(Status::internal("failed to allocate a nodePort: range is full"))
}

/// Keys of claims that no Service has: what a crash between a claim and its write left behind.
pub(crate) fn orphaned<'a>(claims: impl Iterator<Item = &'a str>, services: &[Value]) -> Vec<String> {
    let held: BTreeSet<String> = services.iter().flat_map(|s| Services.claims_of(s)).collect();
    claims.filter(|key| !held.contains(*key)).map(str::to_owned).collect()
}

/// The key prefixes that claims live under.
pub(crate) const CLAIM_PREFIXES: [&str; 2] = [IP_PREFIX, NODE_PORT_PREFIX];


#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_spare_the_reserved_band_until_last() {
        let allocator: Allocator = "10.96.0.0/24".parse().expect("a range");
        assert_eq!((allocator.first(), allocator.range().as_str()), (Ipv4Addr::new(10, 96, 0, 1), "10.96.0.0/24"));
        assert!(!allocator.contains(Ipv4Addr::new(10, 96, 0, 255)) && !allocator.contains(Ipv4Addr::new(10, 96, 0, 0)));
        let all: Vec<_> = allocator.candidates().collect();
        assert!(all[..RANDOM_TRIES].iter().all(|ip| ip.octets()[3] > 16));
        assert_eq!(all.len(), RANDOM_TRIES + 254);
        assert_eq!(all.last().map(|ip| ip.octets()[3]), Some(16));
        assert!("10.0.0.0/33".parse::<Allocator>().is_err());
    }

    #[test]
    fn what_a_client_leaves_out_is_carried_over() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80, "nodePort": 30080}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        carry_over(&mut new, &old);
        assert_eq!(new, old);
        let mut new = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30080}]}});
        carry_over(&mut new, &old);
        assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
    }

    #[test]
    fn what_only_the_old_type_had_goes() {
        let balanced = |status: Value| {
            json!({"status": {"loadBalancer": status}, "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001, "loadBalancerClass": "a/b",
                "allocateLoadBalancerNodePorts": true, "ports": [{"port": 80, "nodePort": 30080}],
            }})
        };
        let old = balanced(json!({"ingress": [{"ip": "1.2.3.4"}]}));
        let check = |change: Value, expected: Value| {
            let mut new = old.clone();
            change.as_object().expect("fields").iter().for_each(|(key, value)| new["spec"][key] = value.clone());
            carry_over(&mut new, &old);
            assert_eq!(new, expected, "{change}");
        };
        check(json!({"type": "ClusterIP"}), json!({"status": {"loadBalancer": {}}, "spec": {"type": "ClusterIP", "ports": [{"port": 80}]}}));
        let of_address = json!({"type": "ClusterIP", "externalIPs": ["1.2.3.4"], "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        check(json!({"type": "ClusterIP", "externalIPs": ["1.2.3.4"]}), json!({"status": {"loadBalancer": {}}, "spec": of_address}));
        check(json!({"healthCheckNodePort": 0}), old.clone());
        // What the client changed too is left for validation to refuse.
        let refused = json!({"type": "ClusterIP", "loadBalancerClass": "c/d", "ports": [{"port": 80}]});
        check(json!({"type": "ClusterIP", "loadBalancerClass": "c/d"}), json!({"status": {"loadBalancer": {}}, "spec": refused}));
    }
}
