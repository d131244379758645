//! Services.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::check::{At, Errors};
use super::container::PROTOCOLS;
use super::{address, meta};
use crate::names;

/// A Service to be created.
pub(super) fn create(e: &mut Errors, service: &At) {
    if addresses_are_bad(e, service) {
        return;
    }
    meta::object_meta(e, service, true, meta::label);
    rules(e, service);
}

/// A Service to replace another.
pub(super) fn update(e: &mut Errors, service: &At, old: &Value) {
    if addresses_are_bad(e, service) {
        return;
    }
    meta::meta_update(e, service, old);
    let (spec, was) = (service.at("spec"), At::root(&old["spec"]));
    if kind(&spec) != "ExternalName" && kind(&was) != "ExternalName" {
        addresses_update(e, &spec, &was);
        families_update(e, &spec, &was);
    }
    if kind(&spec) == "LoadBalancer" && kind(&was) == "LoadBalancer" && spec.at("loadBalancerClass").value != was.at("loadBalancerClass").value {
        e.invalid(&spec.at("loadBalancerClass"), "may not change once set");
    }
    balancer_class(e, &spec);
    if needs_health_check(&spec) && needs_health_check(&was) && spec.at("healthCheckNodePort").value != was.at("healthCheckNodePort").value {
        e.forbidden(&spec.at("healthCheckNodePort"), "field is immutable");
    }
    rules(e, service);
}

/// A Service whose status is to replace another's.
pub(super) fn status(e: &mut Errors, service: &At) {
    let entries = service.at("status.loadBalancer.ingress");
    if kind(&service.at("spec")) != "LoadBalancer" && !entries.is_empty() {
        return e.forbidden(&entries, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for entry in entries.items() {
        let (ip, mode, host) = (entry.at("ip"), entry.at("ipMode"), entry.at("hostname"));
        if !ip.is_empty() {
            address::ip(e, &ip);
        }
        match (mode.is_set(), ip.is_empty()) {
            (false, false) => e.required(&mode, "must be specified when `ip` is set"),
            (true, true) => e.forbidden(&mode, "may not be specified when `ip` is not set"),
            _ => e.maybe_one_of(&mode, &["Proxy", "VIP"]),
        }
        host_name(e, &host);
    }
}

/// The host under which a load balancer is reached.
pub(super) fn host_name(e: &mut Errors, host: &At) {
    e.optional_form(host, names::dns_subdomain);
    if address::parse(host.str()).is_some() {
        e.invalid(host, "must be a DNS name, not an IP address");
    }
}

/// Addresses are looked at before all else, when they are to be allocated: their faults stand alone.
fn addresses_are_bad(e: &mut Errors, service: &At) -> bool {
    let before = e.0.len();
    cluster_ips(e, &service.at("spec"));
    e.has_since(before)
}

fn kind<'a>(spec: &At<'a>) -> &'a str {
    spec.at("type").str()
}

fn is_headless(spec: &At) -> bool {
    spec.at("clusterIPs").texts() == ["None"]
}

fn is_external(spec: &At) -> bool {
    matches!(kind(spec), "NodePort" | "LoadBalancer") || kind(spec) == "ClusterIP" && !spec.at("externalIPs").is_empty()
}

fn needs_health_check(spec: &At) -> bool {
    kind(spec) == "LoadBalancer" && spec.at("externalTrafficPolicy").str() == "Local"
}

fn rules(e: &mut Errors, service: &At) {
    let spec = service.at("spec");
    let ports = spec.at("ports");
    if ports.is_empty() && !is_headless(&spec) && kind(&spec) != "ExternalName" {
        e.required(&ports, "");
    }
    by_type(e, &spec);
    let mut names = HashSet::new();
    ports.items().for_each(|port| service_port(e, &port, ports.len() > 1, &mut names));
    meta::labels(e, &spec.at("selector"));
    affinity(e, &spec);
    for ip in spec.at("externalIPs").items() {
        let before = e.0.len();
        address::ip(e, &ip);
        if !e.has_since(before) {
            address::endpoint_ip(e, &ip);
        }
    }
    e.one_of(&spec.at("type"), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    ports_together(e, &spec);
    source_ranges(e, service);
    let allocate = spec.at("allocateLoadBalancerNodePorts");
    if allocate.is_set() && kind(&spec) != "LoadBalancer" {
        e.forbidden(&allocate, "may only be used when `type` is 'LoadBalancer'");
    }
    balancer_class(e, &spec);
    traffic(e, &spec);
}

fn by_type(e: &mut Errors, spec: &At) {
    let (ips, name) = (spec.at("clusterIPs"), spec.at("externalName"));
    match kind(spec) {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(spec) => {
            let first = ips.called(format!("{}[0]", ips.path));
            e.invalid_value(&first, "None", format!("may not be set to 'None' for {kind} services"));
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"].map(|f| spec.at(f)).iter().filter(|f| !f.is_empty()) {
                e.forbidden(field, "may not be set for ExternalName services");
            }
            let cname = name.str().strip_suffix('.').unwrap_or(name.str());
            if cname.is_empty() {
                e.required(&name, "");
            }
            for fault in names::dns_subdomain(cname).into_iter().filter(|_| !cname.is_empty()) {
                e.invalid_value(&name, cname, fault);
            }
        }
        _ => {}
    }
}

fn service_port<'a>(e: &mut Errors, port: &At<'a>, needs_name: bool, seen: &mut HashSet<&'a str>) {
    let name = port.at("name");
    if needs_name && name.is_empty() {
        e.required(&name, "");
    } else if !name.is_empty() {
        e.form(&name, names::dns_label);
        e.once(&name, seen);
    }
    e.port_number(&port.at("port"));
    e.one_of(&port.at("protocol"), &PROTOCOLS);
    e.port(&port.at("targetPort"));
    e.given_form(&port.at("appProtocol"), names::qualified_name);
}

fn affinity(e: &mut Errors, spec: &At) {
    let (affinity, config) = (spec.at("sessionAffinity"), spec.at("sessionAffinityConfig"));
    e.one_of(&affinity, &["ClientIP", "None"]);
    match affinity.str() {
        "ClientIP" => {
            for field in [&config, &config.at("clientIP"), &config.at("clientIP.timeoutSeconds")] {
                if !field.is_set() {
                    return e.required(field, "when session affinity type is ClientIP");
                }
            }
            let timeout = config.at("clientIP.timeoutSeconds");
            if !(1..=86_400).contains(&timeout.number()) {
                e.invalid(&timeout, "must be greater than 0 and less than 86400");
            }
        }
        "None" if config.is_set() => e.forbidden(&config, "must not be set when session affinity is None"),
        _ => {}
    }
}

fn cluster_ips(e: &mut Errors, spec: &At) {
    if kind(spec) == "ExternalName" {
        return;
    }
    let (ip, ips, families, policy) = (spec.at("clusterIP"), spec.at("clusterIPs"), spec.at("ipFamilies"), spec.at("ipFamilyPolicy"));
    match (ip.is_empty(), ips.texts().first()) {
        (false, None) => e.required(&ips, ""),
        (false, Some(first)) if *first != ip.str() => e.invalid(&ips, "first value must match `clusterIP`"),
        (true, Some(_)) => e.invalid(&ips, "must be empty when `clusterIP` is not specified"),
        _ => {}
    }
    families.items().for_each(|family| e.maybe_one_of(&family, &["IPv4", "IPv6"]));
    e.unique(families.items());
    e.maybe_one_of(&policy, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let before = e.0.len();
    for (i, ip) in ips.items().enumerate() {
        if i == 0 && ip.str() == "None" {
            if ips.len() > 1 {
                e.invalid(&ips, "'None' must be the first and only value");
            }
        } else {
            address::ip(e, &ip);
        }
    }
    let bad = e.has_since(before);
    if ips.len() > 2 {
        e.invalid(&ips, "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    address::one_of_each_family(e, &ips, |ip| ip.str(), "may specify no more than one IP for each IP family");
    if is_headless(spec) {
        return;
    }
    for (i, (ip, family)) in ips.items().zip(families.texts()).enumerate() {
        if (family == "IPv6") != ip.str().contains(':') && matches!(family, "IPv4" | "IPv6") {
            e.invalid(&ip, format!("expected an {family} value as indicated by `ipFamilies[{i}]`"));
        }
    }
}

fn ports_together(e: &mut Errors, spec: &At) {
    let ports: Vec<At> = spec.at("ports").items().collect();
    let number = |port: &At, field: &str| (port.at("protocol").str().to_owned(), port.at(field).number());
    for port in ports.iter().filter(|p| kind(spec) == "ClusterIP" && p.at("nodePort").number() != 0) {
        e.forbidden(&port.at("nodePort"), "may not be used when `type` is 'ClusterIP'");
    }
    let (mut node_ports, mut own_ports) = (HashSet::new(), HashSet::new());
    for port in ports.iter().filter(|p| p.at("nodePort").number() != 0) {
        if !node_ports.insert(number(port, "nodePort")) {
            e.duplicate(&port.at("nodePort"));
        }
    }
    for port in &ports {
        if !own_ports.insert(number(port, "port")) {
            let key = json!({"protocol": port.at("protocol").value, "port": port.at("port").value});
            e.duplicate(&At { value: &key, ..port.clone() });
        }
    }
}

fn source_ranges(e: &mut Errors, service: &At) {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let spec = service.at("spec");
    let ranges = spec.at("loadBalancerSourceRanges").called(spec.below("LoadBalancerSourceRanges"));
    let only = "may only be used when `type` is 'LoadBalancer'";
    if !ranges.is_empty() {
        if kind(&spec) != "LoadBalancer" {
            e.forbidden(&ranges, only);
        }
        for range in ranges.items() {
            if address::parse_range(range.str().trim()).is_none() {
                address::range(e, &range);
            }
        }
    } else if let Some(list) = meta::annotation(service, ANNOTATION) {
        let at = service.at("metadata.annotations").key(ANNOTATION);
        if kind(&spec) != "LoadBalancer" {
            e.forbidden(&at, only);
        }
        for range in list.split(',').map(str::trim).filter(|r| !r.is_empty()) {
            let value = Value::from(range);
            address::range(e, &At::root(&value).called(&at.path));
        }
    }
}

fn balancer_class(e: &mut Errors, spec: &At) {
    let class = spec.at("loadBalancerClass");
    if class.is_set() {
        if kind(spec) == "LoadBalancer" {
            e.form(&class, names::qualified_name);
        } else {
            e.forbidden(&class, "may only be used when `type` is 'LoadBalancer'");
        }
    }
}

fn traffic(e: &mut Errors, spec: &At) {
    let (external, health) = (spec.at("externalTrafficPolicy"), spec.at("healthCheckNodePort"));
    if is_external(spec) {
        e.one_of(&external, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        e.invalid(&external, "may only be set for externally-accessible services");
    }
    if !needs_health_check(spec) {
        if health.number() != 0 {
            e.invalid(&health, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'");
        }
    } else if health.number() != 0 {
        // Without one the allocator gives one.
        e.port_number(&health);
    }
    let internal = spec.at("internalTrafficPolicy");
    if !internal.is_set() && matches!(kind(spec), "NodePort" | "LoadBalancer" | "ClusterIP") {
        e.required(&internal, "");
    }
    e.maybe_one_of(&internal, &["Cluster", "Local"]);
    e.maybe_one_of(&spec.at("trafficDistribution"), &["PreferClose", "PreferSameZone", "PreferSameNode"]);
}

fn addresses_update(e: &mut Errors, new: &At, old: &At) {
    let (ips, was) = (new.at("clusterIPs"), old.at("clusterIPs").texts());
    if is_headless(new) && is_headless(old) {
        return;
    }
    let now = ips.texts();
    let first = ips.called(format!("{}[0]", ips.path));
    if now.len() < was.len() && now.is_empty() {
        return e.invalid(&first, "primary clusterIP can not be unset");
    }
    let compared = if now.len() == was.len() { now.len() } else { now.len().min(was.len()).min(1) };
    for i in (0..compared).filter(|i| now[*i] != was[*i]) {
        e.invalid(&ips.called(format!("{}[{i}]", ips.path)), "may not change once set");
    }
    released(e, new, now.len() == 1 && was.len() > 1, "clusterIP");
}

fn families_update(e: &mut Errors, new: &At, old: &At) {
    let (families, was) = (new.at("ipFamilies"), old.at("ipFamilies").texts());
    if is_headless(new) || is_headless(old) {
        return;
    }
    let now = families.texts();
    let first = families.called(format!("{}[0]", families.path));
    if now.first().zip(was.first()).is_some_and(|(a, b)| a != b) {
        e.invalid(&first, "may not change once set");
    }
    released(e, new, now.len() == 1 && was.len() > 1, "ipFamily");
}

fn released(e: &mut Errors, new: &At, released: bool, what: &str) {
    let policy = new.at("ipFamilyPolicy");
    if released && policy.str() != "SingleStack" {
        e.invalid(&policy, format!("must be set to 'SingleStack' when releasing the secondary {what}"));
    }
}
