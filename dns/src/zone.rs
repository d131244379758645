//! The cluster's names, and the answers to questions about them: pure, by upstream's DNS specification.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The version of the specification that this follows, as `dns-version` tells it.
const SPECIFICATION: &str = "1.1.0";

/// A namespace and a name.
type Key = (String, String);

/// What a question asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Addresses.
    A,
    /// Names and ports.
    Srv,
    /// The name of an address.
    Ptr,
    /// Text.
    Txt,
    /// Another name.
    Cname,
    /// Something that the cluster has none of.
    Other,
}

/// One record's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An address.
    A(Ipv4Addr),
    /// A name and port.
    Srv {
        /// The port.
        port: u16,
        /// The name.
        target: String,
    },
    /// The name of an address.
    Ptr(String),
    /// Text.
    Txt(String),
    /// Another name, which may be outside of the cluster.
    Cname(String),
}

/// An answer. Names end without a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These records; none when the name is there but has none of the kind. The second list is what helps along.
    Records(Vec<Data>, Vec<(String, Data)>),
    /// The name isn't there.
    NoName,
    /// The name is none of the cluster's.
    Foreign,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    protocol: String,
    number: u16,
}

/// An endpoint of a headless Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    /// Its hostname, or its address with dashes.
    host: String,
    ip: Ipv4Addr,
    ports: Vec<Port>,
}

#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    slices: BTreeMap<String, EndpointSlice>,
}

/// The cluster's names.
#[derive(Debug, Default)]
pub struct Zone {
    domain: String,
    entries: HashMap<Key, Entry>,
    /// How many Services a namespace has: namespaces without any have no name.
    namespaces: HashMap<String, usize>,
    /// The names of addresses.
    reverse: HashMap<Ipv4Addr, BTreeSet<String>>,
}

fn port(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Port> {
    Some(Port { name: name?.to_lowercase(), protocol: protocol.unwrap_or("TCP").to_lowercase(), number: u16::try_from(number).ok()? })
}

impl Entry {
    fn headless(&self) -> bool {
        self.service.as_ref().and_then(|s| s.spec.as_ref()).is_some_and(|s| s.cluster_ip.as_deref() == Some("None"))
    }

    fn addresses(&self) -> Vec<Ipv4Addr> {
        let spec = self.service.as_ref().and_then(|s| s.spec.as_ref());
        spec.and_then(|s| s.cluster_ip.as_deref()).and_then(|ip| ip.parse().ok()).into_iter().collect()
    }

    fn external_name(&self) -> Option<&str> {
        let spec = self.service.as_ref()?.spec.as_ref()?;
        spec.external_name.as_deref().filter(|name| spec.type_.as_deref() == Some("ExternalName") && !name.is_empty())
    }

    fn ports(&self) -> Vec<Port> {
        let spec = self.service.as_ref().and_then(|s| s.spec.as_ref());
        let ports = spec.into_iter().flat_map(|s| s.ports.iter().flatten());
        ports.filter_map(|p| port(Some(p.name.as_deref().unwrap_or("")), p.protocol.as_deref(), p.port)).collect()
    }

    /// The endpoints that have names: those that are ready, or all where the Service wants it so (its slices then say that all
    /// are ready).
    fn endpoints(&self) -> Vec<Endpoint> {
        let mut found: Vec<Endpoint> = Vec::new();
        for slice in self.slices.values().filter(|s| s.address_type == "IPv4") {
            let ports: Vec<Port> =
                slice.ports.iter().flatten().filter_map(|p| port(Some(p.name.as_deref().unwrap_or("")), p.protocol.as_deref(), p.port?)).collect();
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
                for ip in endpoint.addresses.iter().filter(|_| ready).filter_map(|ip| ip.parse::<Ipv4Addr>().ok()) {
                    let host = endpoint.hostname.clone().unwrap_or_else(|| ip.to_string().replace('.', "-"));
                    match found.iter_mut().find(|e| e.host == host && e.ip == ip) {
                        Some(same) => same.ports.extend(ports.iter().cloned()),
                        None => found.push(Endpoint { host, ip, ports: ports.clone() }),
                    }
                }
            }
        }
        found
    }
}

/// `10.96.0.10` as the name of its PTR record is asked for.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let mut parts: Vec<&str> = digits.split('.').collect();
    parts.reverse();
    parts.join(".").parse().ok()
}

impl Zone {
    /// No names yet, all of them below `domain`.
    pub fn new(domain: &str) -> Self {
        Self { domain: domain.trim_matches('.').to_lowercase(), ..Self::default() }
    }

    /// The domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    fn name_of(&self, key: &Key) -> String {
        format!("{}.{}.svc.{}", key.1, key.0, self.domain)
    }

    /// The names that an entry gives addresses.
    fn reverse_of(&self, key: &Key) -> Vec<(Ipv4Addr, String)> {
        let Some(entry) = self.entries.get(key) else { return Vec::new() };
        if entry.service.is_none() {
            return Vec::new();
        }
        let name = self.name_of(key);
        match entry.headless() {
            true => entry.endpoints().into_iter().map(|e| (e.ip, format!("{}.{name}", e.host))).collect(),
            false => entry.addresses().into_iter().map(|ip| (ip, name.clone())).collect(),
        }
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut Entry)) {
        for (ip, name) in self.reverse_of(&key) {
            if let Some(names) = self.reverse.get_mut(&ip) {
                names.remove(&name);
                if names.is_empty() {
                    self.reverse.remove(&ip);
                }
            }
        }
        let before = self.entries.get(&key).is_some_and(|e| e.service.is_some());
        let entry = self.entries.entry(key.clone()).or_default();
        change(entry);
        let after = entry.service.is_some();
        if !after && entry.slices.is_empty() {
            self.entries.remove(&key);
        }
        let count = self.namespaces.entry(key.0.clone()).or_default();
        *count = (*count + usize::from(after)).saturating_sub(usize::from(before));
        if *count == 0 {
            self.namespaces.remove(&key.0);
        }
        for (ip, name) in self.reverse_of(&key) {
            self.reverse.entry(ip).or_default().insert(name);
        }
    }

    /// Takes in a Service.
    pub fn put_service(&mut self, service: Service) {
        let key = (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone().unwrap_or_default());
        self.change(key, |entry| entry.service = Some(service));
    }

    /// Forgets a Service.
    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        self.change((namespace.into(), name.into()), |entry| entry.service = None);
    }

    /// Takes in a slice, if it is a Service's.
    pub fn put_slice(&mut self, slice: EndpointSlice) {
        let Some(key) = slice_key(&slice) else { return };
        let name = slice.metadata.name.clone().unwrap_or_default();
        self.change(key, |entry| drop(entry.slices.insert(name, slice)));
    }

    /// Forgets a slice.
    pub fn remove_slice(&mut self, slice: &EndpointSlice) {
        let Some(key) = slice_key(slice) else { return };
        let name = slice.metadata.name.clone().unwrap_or_default();
        self.change(key, |entry| drop(entry.slices.remove(&name)));
    }

    /// The Services and slices that are known, for telling after a list what is gone.
    pub fn known(&self) -> (Vec<Key>, Vec<EndpointSlice>) {
        let services = self.entries.iter().filter(|(_, e)| e.service.is_some()).map(|(key, _)| key.clone()).collect();
        (services, self.entries.values().flat_map(|e| e.slices.values().cloned()).collect())
    }

    /// Answers a question. The name is in lower case, without a dot at the end.
    pub fn answer(&self, name: &str, kind: Kind) -> Answer {
        if let Some(ip) = reversed(name) {
            return match self.reverse.get(&ip) {
                Some(names) if kind == Kind::Ptr => Answer::Records(names.iter().cloned().map(Data::Ptr).collect(), Vec::new()),
                Some(_) => Answer::Records(Vec::new(), Vec::new()),
                None => Answer::Foreign,
            };
        }
        let below = if name == self.domain { Some("") } else { name.strip_suffix(&self.domain).and_then(|n| n.strip_suffix('.')) };
        let Some(below) = below else { return Answer::Foreign };
        let mut labels: Vec<&str> = below.split('.').filter(|l| !l.is_empty()).collect();
        labels.reverse();
        match labels.as_slice() {
            [] | ["svc" | "pod"] => Answer::Records(Vec::new(), Vec::new()),
            ["dns-version"] => only(kind == Kind::Txt, || vec![Data::Txt(SPECIFICATION.into())]),
            ["pod", namespace] | ["svc", namespace] => match self.namespaces.contains_key(*namespace) {
                true => Answer::Records(Vec::new(), Vec::new()),
                false => Answer::NoName,
            },
            ["pod", _, dashed] => match dashed.replace('-', ".").parse() {
                Ok(ip) => only(kind == Kind::A, || vec![Data::A(ip)]),
                Err(_) => Answer::NoName,
            },
            ["svc", namespace, service, rest @ ..] => self.service((*namespace).to_owned(), (*service).to_owned(), rest, kind),
            _ => Answer::NoName,
        }
    }

    fn service(&self, namespace: String, service: String, rest: &[&str], kind: Kind) -> Answer {
        let key = (namespace, service);
        let Some(entry) = self.entries.get(&key).filter(|e| e.service.is_some()) else { return Answer::NoName };
        let name = self.name_of(&key);
        if let Some(external) = entry.external_name() {
            return match rest {
                [] => Answer::Records(vec![Data::Cname(external.trim_end_matches('.').to_lowercase())], Vec::new()),
                _ => Answer::NoName,
            };
        }
        let endpoints = if entry.headless() { entry.endpoints() } else { Vec::new() };
        match (rest, kind) {
            // A headless Service without endpoints has no name.
            ([], _) if entry.headless() && endpoints.is_empty() => Answer::NoName,
            ([], Kind::A) if entry.headless() => unique(endpoints.iter().map(|e| Data::A(e.ip))),
            ([], Kind::A) => unique(entry.addresses().into_iter().map(Data::A)),
            ([], Kind::Srv) => self.ports(&name, entry, &endpoints, |_| true),
            ([], _) => Answer::Records(Vec::new(), Vec::new()),
            ([protocol], _) if protocol.starts_with('_') => Answer::Records(Vec::new(), Vec::new()),
            ([protocol, port], kind) if protocol.starts_with('_') && port.starts_with('_') => {
                let found = self.ports(&name, entry, &endpoints, |p| p.name == port[1..] && p.protocol == protocol[1..]);
                match found {
                    Answer::Records(records, _) if records.is_empty() => Answer::NoName,
                    found if kind == Kind::Srv => found,
                    _ => Answer::Records(Vec::new(), Vec::new()),
                }
            }
            ([host], kind) => {
                let named: Vec<_> = endpoints.iter().filter(|e| e.host == *host || e.ip.to_string().replace('.', "-") == *host).collect();
                match (named.is_empty(), kind) {
                    (true, _) => Answer::NoName,
                    (false, Kind::A) => unique(named.into_iter().map(|e| Data::A(e.ip))),
                    (false, _) => Answer::Records(Vec::new(), Vec::new()),
                }
            }
            _ => Answer::NoName,
        }
    }

    /// The named ports that pass: of the Service itself, or of each endpoint of a headless one.
    fn ports(&self, name: &str, entry: &Entry, endpoints: &[Endpoint], pass: impl Fn(&Port) -> bool) -> Answer {
        let mut records = Vec::new();
        let mut helpful = Vec::new();
        if !entry.headless() {
            let ports = entry.ports();
            records.extend(ports.iter().filter(|p| pass(p)).map(|p| Data::Srv { port: p.number, target: name.to_owned() }));
            helpful.extend(entry.addresses().into_iter().map(|ip| (name.to_owned(), Data::A(ip))));
        }
        for endpoint in endpoints {
            let target = format!("{}.{name}", endpoint.host);
            records.extend(endpoint.ports.iter().filter(|p| pass(p)).map(|p| Data::Srv { port: p.number, target: target.clone() }));
            helpful.push((target, Data::A(endpoint.ip)));
        }
        records.sort();
        records.dedup();
        Answer::Records(records, helpful)
    }
}

fn only(of_kind: bool, records: impl FnOnce() -> Vec<Data>) -> Answer {
    Answer::Records(if of_kind { records() } else { Vec::new() }, Vec::new())
}

fn unique(records: impl Iterator<Item = Data>) -> Answer {
    Answer::Records(records.collect::<BTreeSet<_>>().into_iter().collect(), Vec::new())
}

fn slice_key(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((slice.metadata.namespace.clone().unwrap_or_default(), name.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local");
        let service = |name: &str, spec: Value| serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).expect("a service");
        zone.put_service(service("web", json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}, {"port": 81}]})));
        zone.put_service(service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})));
        zone.put_service(service("ext", json!({"type": "ExternalName", "externalName": "Example.com."})));
        zone.put_service(service("empty", json!({"clusterIP": "None"})));
        let slice = json!({
            "metadata": {"name": "db-1", "namespace": "ns", "labels": {SERVICE_NAME: "db"}}, "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.244.0.7"], "hostname": "db-0"}, {"addresses": ["10.244.0.8"]}, {"addresses": ["10.244.0.9"], "conditions": {"ready": false}}],
        });
        zone.put_slice(serde_json::from_value(slice).expect("a slice"));
        zone
    }

    fn check(name: &str, kind: Kind, expected: &str) {
        let shown = match zone().answer(name, kind) {
            Answer::Records(records, _) => records
                .iter()
                .map(|data| match data {
                    Data::A(ip) => ip.to_string(),
                    Data::Srv { port, target } => format!("{port} {target}"),
                    Data::Ptr(text) | Data::Txt(text) | Data::Cname(text) => text.clone(),
                })
                .collect::<Vec<_>>()
                .join(", "),
            other => format!("{other:?}"),
        };
        assert_eq!(shown, expected, "{name} {kind:?}");
    }

    #[test]
    fn services() {
        check("web.ns.svc.cluster.local", Kind::A, "10.96.0.9");
        check("web.ns.svc.cluster.local", Kind::Other, "");
        check("web.ns.svc.cluster.local", Kind::Srv, "80 web.ns.svc.cluster.local, 81 web.ns.svc.cluster.local");
        check("_http._tcp.web.ns.svc.cluster.local", Kind::Srv, "80 web.ns.svc.cluster.local");
        check("_http._udp.web.ns.svc.cluster.local", Kind::Srv, "NoName");
        check("x.web.ns.svc.cluster.local", Kind::A, "NoName");
        check("nope.ns.svc.cluster.local", Kind::A, "NoName");
        check("ns.svc.cluster.local", Kind::A, "");
        check("other.svc.cluster.local", Kind::A, "NoName");
        check("svc.cluster.local", Kind::A, "");
        check("ext.ns.svc.cluster.local", Kind::A, "example.com");
        check("dns-version.cluster.local", Kind::Txt, "1.1.0");
    }

    #[test]
    fn headless_services() {
        check("db.ns.svc.cluster.local", Kind::A, "10.244.0.7, 10.244.0.8");
        check("db-0.db.ns.svc.cluster.local", Kind::A, "10.244.0.7");
        check("10-244-0-8.db.ns.svc.cluster.local", Kind::A, "10.244.0.8");
        check("_sql._tcp.db.ns.svc.cluster.local", Kind::Srv, "5432 10-244-0-8.db.ns.svc.cluster.local, 5432 db-0.db.ns.svc.cluster.local");
        check("empty.ns.svc.cluster.local", Kind::A, "NoName");
    }

    #[test]
    fn pods_addresses_and_the_rest() {
        check("10-244-0-8.ns.pod.cluster.local", Kind::A, "10.244.0.8");
        check("x.ns.pod.cluster.local", Kind::A, "NoName");
        check("9.0.96.10.in-addr.arpa", Kind::Ptr, "web.ns.svc.cluster.local");
        check("7.0.244.10.in-addr.arpa", Kind::Ptr, "db-0.db.ns.svc.cluster.local");
        check("8.8.8.8.in-addr.arpa", Kind::Ptr, "Foreign");
        check("example.com", Kind::A, "Foreign");
        check("notcluster.local", Kind::A, "Foreign");
    }

    #[test]
    fn what_goes_is_forgotten() {
        let mut zone = zone();
        zone.remove_service("ns", "web");
        assert_eq!(zone.answer("web.ns.svc.cluster.local", Kind::A), Answer::NoName);
        assert_eq!(zone.answer("9.0.96.10.in-addr.arpa", Kind::Ptr), Answer::Foreign);
        let (services, slices) = zone.known();
        services.iter().for_each(|(namespace, name)| zone.remove_service(namespace, name));
        slices.iter().for_each(|slice| zone.remove_slice(slice));
        assert!(zone.entries.is_empty() && zone.reverse.is_empty() && zone.namespaces.is_empty());
    }
}
