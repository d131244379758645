//! What rules there should be: a pure function of the Services and EndpointSlices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::Config;
use crate::conntrack::Ports;

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Services with this label are somebody else's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The mark of packets that are to be masqueraded; upstream's bit.
const MASQUERADE: &str = "0x4000";
/// How long a client stays with its endpoint unless the Service says otherwise, in seconds; upstream's three hours.
const AFFINITY_SECONDS: i32 = 10_800;

/// The rules of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Chains by name, with their rules. The base chains are not among them.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Elements of the maps and sets that the base chains look into: by map, key to value (empty for a set).
    pub elements: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Sets of clients that stay with an endpoint: name and timeout in seconds.
    pub affinity: BTreeMap<String, i32>,
    /// Where UDP goes: no rules, but what the kernel remembers of conversations is held against it.
    pub udp: Ports,
}

/// One endpoint of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    ip: Ipv4Addr,
    port: u16,
}

/// One port of a Service, as it is to be served.
struct Port<'a> {
    service: String,
    spec: &'a ServiceSpec,
    port: &'a ServicePort,
    protocol: &'static str,
}

fn protocol(port: &ServicePort) -> &'static str {
    match port.protocol.as_deref() {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

/// Part of a chain's name: what nft takes in names, from what Kubernetes has in them.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

impl Port<'_> {
    fn chain(&self, kind: &str) -> String {
        let port = self.port.name.as_deref().filter(|n| !n.is_empty()).map_or_else(|| self.port.port.to_string(), str::to_owned);
        // The hash tells `a-b/c` from `a/b-c`.
        let exact = format!("{}/{port}/{}", self.service, self.protocol);
        let hash = exact.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let short: String = clean(&exact).chars().take(64).collect();
        format!("{kind}_{short}_{hash:08x}")
    }
}

/// All rules.
pub fn plan<'a>(config: &Config, services: impl Iterator<Item = &'a Service>, slices: impl Iterator<Item = &'a EndpointSlice>) -> Rules {
    let mut by_service: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.filter(|s| s.address_type == "IPv4") {
        let (namespace, labels) = (slice.metadata.namespace.clone().unwrap_or_default(), slice.metadata.labels.as_ref());
        if let Some(name) = labels.and_then(|l| l.get(SERVICE_NAME)) {
            by_service.entry((namespace, name.clone())).or_default().push(slice);
        }
    }
    let mut rules = Rules::default();
    for map in ["service_ips", "node_ports", "no_endpoints", "no_endpoint_ports"] {
        rules.elements.insert(map, BTreeMap::new());
    }
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let elsewhere = service.metadata.labels.as_ref().is_some_and(|l| l.contains_key(PROXY_NAME));
        if kind == "ExternalName" || elsewhere || spec.cluster_ip.as_deref().is_none_or(|ip| ip.is_empty() || ip == "None") {
            continue;
        }
        let key = (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone().unwrap_or_default());
        let slices = by_service.get(&key).map_or(&[][..], Vec::as_slice);
        for port in spec.ports.iter().flatten() {
            let port = Port { service: format!("{}/{}", key.0, key.1), spec, port, protocol: protocol(port) };
            port_rules(&mut rules, config, service, &port, slices);
        }
    }
    rules
}

/// The endpoints of a port: those that are ready, or when none is, those that still serve while they end.
fn targets(config: &Config, port: &Port<'_>, slices: &[&EndpointSlice], local: bool) -> BTreeSet<Target> {
    let wanted = port.port.name.as_deref().unwrap_or("");
    let all: Vec<(&Endpoint, u16)> = slices
        .iter()
        .flat_map(|slice| {
            let same = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or("") == wanted);
            let number = same.and_then(|p| p.port).and_then(number);
            slice.endpoints.iter().flatten().filter_map(move |e| Some((e, number?)))
        })
        .filter(|(endpoint, _)| !local || endpoint.node_name.as_deref() == Some(&config.node_name))
        .collect();
    let chosen = |pass: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<Target> {
        let passing = all.iter().filter(|(endpoint, _)| pass(endpoint));
        passing.filter_map(|(e, port)| Some(Target { ip: e.addresses.first()?.parse().ok()?, port: *port })).collect()
    };
    let condition = |e: &Endpoint, get: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>, unset: bool| {
        e.conditions.as_ref().and_then(get).unwrap_or(unset)
    };
    let ready = chosen(&|e| condition(e, |c| c.ready, true));
    if !ready.is_empty() {
        return ready;
    }
    chosen(&|e| condition(e, |c| c.serving, false) && condition(e, |c| c.terminating, false))
}

fn port_rules(rules: &mut Rules, config: &Config, service: &Service, port: &Port<'_>, slices: &[&EndpointSlice]) {
    let Some(number_in) = number(port.port.port) else { return };
    let inner_local = port.spec.internal_traffic_policy.as_deref() == Some("Local");
    let outer_local = port.spec.external_traffic_policy.as_deref() == Some("Local");
    let inner = targets(config, port, slices, inner_local);
    let outer = if outer_local == inner_local { inner.clone() } else { targets(config, port, slices, outer_local) };
    let chain = port.chain("svc");
    let outer_chain = port.chain("ext");
    // The cluster's own address: what doesn't come from a pod is masqueraded, so that the answer comes back this way.
    let from_outside = format!("ip saddr != {} meta mark set meta mark or {MASQUERADE}", config.pod_cidr);
    let cluster_ip = port.spec.cluster_ip.clone().unwrap_or_default();
    note_udp(rules, port, cluster_ip.parse().ok(), number_in, &inner);
    let has_outer = add_outer(rules, service, port, number_in, &outer, &outer_chain);
    if inner.is_empty() {
        insert(rules, "no_endpoints", format!("{cluster_ip} . {} . {number_in}", port.protocol), "goto refuse".into());
    } else {
        insert(rules, "service_ips", format!("{cluster_ip} . {} . {number_in}", port.protocol), format!("goto {chain}"));
        let mut body = vec![from_outside];
        body.extend(balance(rules, port, &inner));
        rules.chains.insert(chain, body);
    }
    if has_outer && !outer.is_empty() {
        // With the policy Local, endpoints see who asks; otherwise the answer must come back through this node.
        let mut body = Vec::new();
        if !outer_local {
            body.push(format!("meta mark set meta mark or {MASQUERADE}"));
        }
        body.extend(balance(rules, port, &outer));
        rules.chains.insert(outer_chain, body);
    }
}

/// What is reached from outside: node ports, external addresses, load balancers. Whether there is anything.
fn add_outer(rules: &mut Rules, service: &Service, port: &Port<'_>, number_in: u16, targets: &BTreeSet<Target>, chain: &str) -> bool {
    let mut any = false;
    let verdict = if targets.is_empty() { "goto refuse".to_owned() } else { format!("goto {chain}") };
    if let Some(node_port) = port.port.node_port.and_then(number) {
        let map = if targets.is_empty() { "no_endpoint_ports" } else { "node_ports" };
        insert(rules, map, format!("{} . {node_port}", port.protocol), verdict.clone());
        note_udp(rules, port, None, node_port, targets);
        any = true;
    }
    let balancers = service.status.iter().filter_map(|s| s.load_balancer.as_ref()).flat_map(|b| b.ingress.iter().flatten()).filter_map(|i| i.ip.clone());
    for ip in port.spec.external_ips.iter().flatten().cloned().chain(balancers).filter(|ip| ip.parse::<Ipv4Addr>().is_ok()) {
        let map = if targets.is_empty() { "no_endpoints" } else { "service_ips" };
        insert(rules, map, format!("{ip} . {} . {number_in}", port.protocol), verdict.clone());
        note_udp(rules, port, ip.parse().ok(), number_in, targets);
        any = true;
    }
    any
}

/// Notes where a UDP port leads; without an address it is one of the node's.
fn note_udp(rules: &mut Rules, port: &Port<'_>, ip: Option<Ipv4Addr>, number: u16, targets: &BTreeSet<Target>) {
    if port.protocol == "udp" {
        rules.udp.entry((ip, number)).or_insert_with(|| targets.iter().map(|t| (t.ip, t.port)).collect());
    }
}

fn insert(rules: &mut Rules, map: &'static str, key: String, value: String) {
    // Of two that claim the same, the first in the order of names has it.
    rules.elements.entry(map).or_default().entry(key).or_insert(value);
}

/// The rules that choose one of the endpoints; makes the endpoints' own chains.
fn balance(rules: &mut Rules, port: &Port<'_>, targets: &BTreeSet<Target>) -> Vec<String> {
    let sticky = (port.spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured = port.spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds);
        configured.unwrap_or(AFFINITY_SECONDS)
    });
    let base = port.chain("ep");
    let mut body = Vec::new();
    let mut choices = Vec::new();
    for (index, Target { ip, port: number }) in targets.iter().enumerate() {
        let suffix = format!("{}_{number}", ip.to_string().replace('.', "_"));
        let chain = format!("{base}_{suffix}");
        // A pod that reaches itself must see another's address, or it would answer itself directly.
        let mut own = vec![format!("ip saddr {ip} meta mark set meta mark or {MASQUERADE}")];
        if let Some(seconds) = sticky {
            let set = format!("{}_{suffix}", port.chain("aff"));
            body.push(format!("ip saddr @{set} goto {chain}"));
            own.push(format!("update @{set} {{ ip saddr }}"));
            rules.affinity.insert(set, seconds);
        }
        own.push(format!("meta l4proto {} dnat to {ip}:{number}", port.protocol));
        rules.chains.insert(chain.clone(), own);
        choices.push(format!("{index} : goto {chain}"));
    }
    body.push(match choices.as_slice() {
        [one] => one.trim_start_matches("0 : ").to_owned(),
        several => format!("numgen random mod {} vmap {{ {} }}", several.len(), several.join(", ")),
    });
    body
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config() -> Config {
        Config { node_name: "n0".into(), cluster: "default".into(), pod_cidr: "10.244.0.0/16".into() }
    }

    fn rules(spec: Value, endpoints: Value) -> Rules {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})).expect("a service");
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-x", "namespace": "ns", "labels": {SERVICE_NAME: "web"}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        }))
        .expect("a slice");
        plan(&config(), [&service].into_iter(), [&slice].into_iter())
    }

    fn dnats(rules: &Rules) -> Vec<&str> {
        rules.chains.values().flatten().filter_map(|r| r.split_once("dnat to ")).map(|(_, to)| to).collect()
    }

    #[test]
    fn ready_endpoints_share_the_load() {
        let found = rules(
            json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80, "protocol": "TCP"}]}),
            json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"], "conditions": {"ready": true}}, {"addresses": ["10.244.0.4"], "conditions": {"ready": false}}]),
        );
        assert_eq!(dnats(&found), ["10.244.0.2:8080", "10.244.0.3:8080"]);
        let (key, verdict) = found.elements["service_ips"].first_key_value().expect("an element");
        assert_eq!(key, "10.96.0.9 . tcp . 80");
        let body = &found.chains[verdict.trim_start_matches("goto ")];
        assert!(body[0].starts_with("ip saddr != 10.244.0.0/16") && body[1].starts_with("numgen random mod 2 vmap"), "{body:?}");
    }

    #[test]
    fn without_endpoints_connections_are_refused() {
        let spec = json!({"clusterIP": "10.96.0.9", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
        let found = rules(spec, json!([]));
        assert_eq!(found.elements["no_endpoints"]["10.96.0.9 . tcp . 80"], "goto refuse");
        assert_eq!(found.elements["no_endpoint_ports"]["tcp . 30080"], "goto refuse");
        assert!(found.chains.is_empty());
    }

    #[test]
    fn endpoints_that_end_serve_when_no_other_does() {
        let ending = json!([{"addresses": ["10.244.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        assert_eq!(dnats(&rules(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}), ending)), ["10.244.0.2:8080"]);
    }

    #[test]
    fn headless_and_external_names_have_no_rules() {
        let one = json!([{"addresses": ["10.244.0.2"]}]);
        for spec in [json!({"clusterIP": "None", "ports": [{"port": 80}]}), json!({"type": "ExternalName", "externalName": "a.b", "ports": [{"port": 80}]})] {
            let found = rules(spec, one.clone());
            assert!(found.chains.is_empty() && found.elements.values().all(BTreeMap::is_empty));
        }
    }

    #[test]
    fn local_policies_keep_to_the_node() {
        let spec = json!({"clusterIP": "10.96.0.9", "type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]});
        let found = rules(spec, json!([{"addresses": ["10.244.0.2"], "nodeName": "n0"}, {"addresses": ["10.244.1.2"], "nodeName": "n1"}]));
        let outer = found.elements["node_ports"]["tcp . 30080"].trim_start_matches("goto ").to_owned();
        assert_eq!(found.chains[&outer].len(), 1, "no masquerade, one endpoint: {:?}", found.chains[&outer]);
        assert!(found.chains[&outer][0].contains("10_244_0_2"));
    }

    #[test]
    fn clients_stay_with_their_endpoint() {
        let spec = json!({"clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}], "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
        let found = rules(spec, json!([{"addresses": ["10.244.0.2"]}]));
        assert_eq!(found.affinity.values().collect::<Vec<_>>(), [&60]);
        assert!(found.chains.values().flatten().any(|r| r.starts_with("update @aff_")));
    }
}
