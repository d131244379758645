//! Ingresses, network policies, endpoints, addresses.

use std::collections::HashSet;

use serde_json::Value;

use super::check::{At, Errors};
use super::container::PROTOCOLS;
use super::jobs::domain_path;
use super::{address, meta};
use crate::names;

pub(super) fn ingress(e: &mut Errors, ingress: &At) {
    ingress_rules(e, ingress);
    const ANNOTATION: &str = "kubernetes.io/ingress.class";
    let class = ingress.at("spec.ingressClassName");
    if let Some(annotated) = meta::annotation(ingress, ANNOTATION).filter(|a| class.is_set() && *a != class.str()) {
        let at = class.called(format!("annotations.{ANNOTATION}"));
        e.invalid_value(&at, annotated, "must match `ingressClassName` when both are specified");
    }
}

/// What holds of an update too, which may leave the annotation as it is.
pub(super) fn ingress_rules(e: &mut Errors, ingress: &At) {
    let spec = ingress.at("spec");
    let (default, rules) = (spec.at("defaultBackend"), spec.at("rules"));
    if !default.is_set() && rules.is_empty() {
        e.invalid_value(&spec, Value::Null, "either `defaultBackend` or `rules` must be specified");
    }
    if default.is_set() {
        backend(e, &default);
    }
    for rule in rules.items() {
        let (host, http) = (rule.at("host"), rule.at("http"));
        if address::parse(host.str()).is_some() {
            e.invalid(&host, "must be a DNS name, not an IP address");
        } else {
            host_name(e, &host);
        }
        if http.is_set() {
            e.filled(&http.at("paths"));
            http.at("paths").items().for_each(|path| http_path(e, &path));
        }
    }
    for tls in spec.at("tls").items() {
        tls.at("hosts").items().for_each(|host| host_name(e, &host));
        e.optional_form(&tls.at("secretName"), names::dns_subdomain);
    }
    e.given_form(&spec.at("ingressClassName"), names::dns_subdomain);
}

fn host_name(e: &mut Errors, host: &At) {
    if host.str().contains('*') { e.form(host, names::wildcard_subdomain) } else { e.optional_form(host, names::dns_subdomain) }
}

fn http_path(e: &mut Errors, at: &At) {
    let (path, kind) = (at.at("path"), at.at("pathType"));
    if !kind.is_set() {
        return e.required(&kind, "pathType must be specified");
    }
    match kind.str() {
        "Exact" | "Prefix" => {
            if !path.str().starts_with('/') {
                e.invalid_value(&path, path.str(), "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|bad| path.str().contains(**bad)) {
                e.invalid(&path, format!("must not contain '{bad}'"));
            }
            for bad in ["/..", "/."].iter().filter(|bad| path.str().ends_with(**bad)) {
                e.invalid(&path, format!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" if !path.is_empty() && !path.str().starts_with('/') => e.invalid(&path, "must be an absolute path"),
        "ImplementationSpecific" => {}
        _ => e.unsupported(&kind, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    backend(e, &at.at("backend"));
}

fn backend(e: &mut Errors, at: &At) {
    let (service, resource) = (at.at("service"), at.at("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => return e.invalid_value(at, "", "cannot set both resource and service backends"),
        (false, false) => return e.invalid_value(at, "", "resource or service backend is required"),
        (false, true) => {
            e.optional_form(&resource.at("apiGroup"), names::dns_subdomain);
            ["kind", "name"].iter().for_each(|f| e.required_form(&resource.at(f), names::path_segment));
            return;
        }
        (true, false) => {}
    }
    e.required_form(&service.at("name"), names::dns_label);
    let (name, number) = (service.at("port.name"), service.at("port.number"));
    match (name.is_empty(), number.number() == 0) {
        (true, true) => e.required(at, "port name or number is required"),
        (false, false) => e.invalid_value(at, "", "cannot set both port name & port number"),
        (false, true) => e.form(&name, names::port_name),
        (true, false) => e.port_number(&number),
    }
}

/// An Ingress whose status is to replace another's. Addresses that were bad before may stay.
pub(super) fn ingress_status(e: &mut Errors, new: &At, old: &Value) {
    let was = At::root(old).at("status.loadBalancer.ingress");
    for entry in new.at("status.loadBalancer.ingress").items() {
        let ip = entry.at("ip");
        if !ip.is_empty() && !was.items().any(|before| before.at("ip").str() == ip.str()) {
            address::ip(e, &ip);
        }
        super::service::host_name(e, &entry.at("hostname"));
    }
}

pub(super) fn ingress_class(e: &mut Errors, class: &At) {
    let (controller, parameters) = (class.at("spec.controller"), class.at("spec.parameters"));
    e.no_longer(&controller, 250);
    domain_path(e, &controller);
    if !parameters.is_set() {
        return;
    }
    e.given_form(&parameters.at("apiGroup"), names::dns_subdomain);
    ["kind", "name"].iter().for_each(|f| e.required_form(&parameters.at(f), names::path_segment));
    let (scope, namespace) = (parameters.at("scope"), parameters.at("namespace"));
    match scope.str() {
        "" => e.required(&scope, ""),
        "Namespace" if namespace.is_empty() => e.required(&namespace, "`parameters.scope` is set to 'Namespace'"),
        "Namespace" => e.form(&namespace, names::dns_label),
        "Cluster" if namespace.is_set() => e.forbidden(&namespace, "`parameters.scope` is set to 'Cluster'"),
        _ => e.maybe_one_of(&scope, &["Cluster", "Namespace"]),
    }
}

pub(super) fn network_policy(e: &mut Errors, object: &At) {
    let spec = object.at("spec");
    meta::label_selector(e, &spec.at("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.at(direction).items() {
            rule.at("ports").items().for_each(|port| policy_port(e, &port));
            rule.at(peers).items().for_each(|peer| policy_peer(e, &peer));
        }
    }
    let types = spec.at("policyTypes");
    if types.len() > 2 {
        return e.invalid(&types, "may not specify more than two policyTypes");
    }
    types.items().for_each(|kind| e.maybe_one_of(&kind, &["Ingress", "Egress"]));
}

fn policy_port(e: &mut Errors, at: &At) {
    let (port, end) = (at.at("port"), at.at("endPort"));
    e.maybe_one_of(&at.at("protocol"), &["TCP", "UDP", "SCTP"]);
    if !port.is_set() {
        if end.is_set() {
            e.invalid(&end, "may not be specified when `port` is not specified");
        }
        return;
    }
    if end.is_set() && port.value.is_string() {
        e.invalid(&end, "may not be specified when `port` is non-numeric");
    }
    e.port(&port);
    if !end.is_set() || port.value.is_string() {
        return;
    }
    if end.number() < port.number() {
        // Upstream shows the port here.
        e.invalid_value(&end, port.number(), "must be greater than or equal to `port`");
    }
    e.port_number(&end);
}

fn policy_peer(e: &mut Errors, peer: &At) {
    let block = peer.at("ipBlock");
    let selectors = ["podSelector", "namespaceSelector"].map(|name| peer.at(name));
    for selector in &selectors {
        meta::label_selector(e, selector);
    }
    let others = selectors.iter().filter(|s| s.is_set()).count();
    if block.is_set() {
        ip_block(e, &block);
        if others > 0 {
            e.forbidden(peer, "may not specify both ipBlock and another peer");
        }
    } else if others == 0 {
        e.required(peer, "must specify a peer");
    }
}

fn ip_block(e: &mut Errors, block: &At) {
    let range = block.at("cidr");
    if range.is_empty() {
        return e.required(&range, "");
    }
    address::range(e, &range);
    let whole = address::parse_range(range.str());
    for except in block.at("except").items() {
        match (address::parse_range(except.str()), whole) {
            (None, _) => address::range(e, &except),
            (Some(part), Some(whole)) if !address::is_strictly_within(part, whole) => e.invalid(&except, "must be a strict subset of `cidr`"),
            _ => {}
        }
    }
}

pub(super) fn endpoints_update(e: &mut Errors, new: &At, old: &Value) {
    if meta::changed(new, old, "subsets") {
        endpoints(e, new);
    }
}

pub(super) fn endpoints(e: &mut Errors, endpoints: &At) {
    for subset in endpoints.at("subsets").items() {
        let lists = ["addresses", "notReadyAddresses"].map(|name| subset.at(name));
        if lists.iter().all(|l| l.is_empty()) {
            e.required(&subset, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in lists.iter().flat_map(At::items) {
            address::ip(e, &address.at("ip"));
            e.optional_form(&address.at("hostname"), names::dns_label);
            e.given_form(&address.at("nodeName"), names::dns_subdomain);
            address::endpoint_ip(e, &address.at("ip"));
        }
        let ports = subset.at("ports");
        for port in ports.items() {
            if ports.len() > 1 { e.required_form(&port.at("name"), names::dns_label) } else { e.optional_form(&port.at("name"), names::dns_label) }
            e.port_number(&port.at("port"));
            e.one_of(&port.at("protocol"), &PROTOCOLS);
            e.given_form(&port.at("appProtocol"), names::qualified_name);
        }
    }
}

pub(super) fn slice(e: &mut Errors, slice: &At) {
    e.one_of(&slice.at("addressType"), &["FQDN", "IPv4", "IPv6"]);
    slice_endpoints(e, slice);
    slice_ports(e, &slice.at("ports"));
}

fn slice_endpoints(e: &mut Errors, slice: &At) {
    let (kind, list) = (slice.at("addressType"), slice.at("endpoints"));
    if e.too_many(&list, 1000) {
        return;
    }
    for endpoint in list.items() {
        let addresses = endpoint.at("addresses");
        e.wanted(&addresses, "must contain at least 1 address");
        e.too_many(&addresses, 100);
        for at in addresses.items() {
            match (kind.str(), address::parse(at.str())) {
                ("IPv4" | "IPv6", None) => address::ip(e, &at),
                ("IPv4", Some(ip)) if !ip.is_ipv4() => e.invalid(&at.called(&addresses.path), "must be an IPv4 address"),
                ("IPv6", Some(ip)) if !ip.is_ipv6() => e.invalid(&at.called(&addresses.path), "must be an IPv6 address"),
                ("IPv4" | "IPv6", Some(_)) => address::endpoint_ip(e, &at),
                ("FQDN", _) => full_name(e, &at),
                _ => {}
            }
        }
        e.given_form(&endpoint.at("nodeName"), names::dns_subdomain);
        let topology = endpoint.at("deprecatedTopology");
        e.too_many(&topology, 16);
        meta::labels(e, &topology);
        e.given_form(&endpoint.at("hostname"), names::dns_label);
        hints(e, &endpoint.at("hints"));
    }
}

/// Which zones and nodes an endpoint is meant for.
fn hints(e: &mut Errors, hints: &At) {
    const MAX: usize = 8;
    for (list, rule) in [("forZones", names::label_value as fn(&str) -> Vec<String>), ("forNodes", names::dns_subdomain)] {
        let list = hints.at(list);
        if e.too_many(&list, MAX) {
            return;
        }
        let mut seen = HashSet::new();
        for name in list.items().map(|item| item.at("name")) {
            e.once(&name, &mut seen);
            e.form(&name, rule);
        }
    }
}

/// A domain name of two labels at least.
fn full_name(e: &mut Errors, at: &At) {
    let name = at.str().strip_suffix('.').unwrap_or(at.str());
    let before = e.0.len();
    e.text_form(at, name, names::dns_subdomain);
    if !e.has_since(before) && !name.contains('.') {
        e.invalid_value(at, name, "should be a domain with at least two segments separated by dots");
    }
}

fn slice_ports(e: &mut Errors, list: &At) {
    if e.too_many(list, 20_000) {
        return;
    }
    let mut seen = HashSet::new();
    for port in list.items() {
        let name = port.at("name");
        e.optional_form(&name, names::dns_label);
        e.once(&name, &mut seen);
        if port.at("protocol").is_set() {
            e.maybe_one_of(&port.at("protocol"), &PROTOCOLS);
        } else {
            e.required(&port.at("protocol"), "");
        }
        e.given_form(&port.at("appProtocol"), names::qualified_name);
    }
}

pub(super) fn ip_address(e: &mut Errors, object: &At) {
    let name = object.at("metadata.name");
    if name.is_empty() {
        e.required(&name, "name or generateName is required");
    } else {
        address::strict_ip(e, &name);
    }
    let parent = object.at("spec.parentRef");
    if !parent.is_set() {
        return e.required(&parent, "");
    }
    e.optional_form(&parent.at("group"), names::dns_subdomain);
    ["resource", "name"].iter().for_each(|f| e.required_form(&parent.at(f), names::path_segment));
    e.optional_form(&parent.at("namespace"), names::path_segment);
}

pub(super) fn service_cidr(e: &mut Errors, object: &At) {
    let ranges = object.at("spec.cidrs");
    if ranges.is_empty() {
        return e.required(&ranges, "at least one CIDR required");
    }
    if ranges.len() > 2 {
        return e.invalid(&ranges, "may only hold up to 2 values");
    }
    let words = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
    address::one_of_each_family(e, &ranges, |r| r.str(), words);
    ranges.items().for_each(|range| address::strict_range(e, &range));
}

pub(super) fn service_cidr_update(e: &mut Errors, new: &At, old: &Value) {
    let (ranges, was) = (new.at("spec.cidrs"), At::root(old).at("spec.cidrs"));
    if ranges.len() < was.len() {
        return e.immutable(&ranges);
    }
    ranges.items().zip(was.items()).filter(|(now, was)| now.value != was.value).for_each(|(now, _)| e.immutable(&now));
}
