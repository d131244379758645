//! A container's environment: its own variables, those of ConfigMaps and Secrets, of the pod itself, and of Services. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector, Service};
use skiff_api::quantity::Quantity;

use crate::objects::{Content, Key, Kind};
use crate::pod;

/// What keeps an environment from being made; the texts are upstream's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The object isn't there.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// ConfigMap or Secret.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The object lacks the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The object can't be read.
    #[error("{0}")]
    Refused(String),
    /// No such field is offered.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// No such resource is offered.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// The pod has no such container.
    #[error("container {0} not found")]
    NoContainer(String),
}

/// What is known of the objects that a pod names: `None` for one that isn't there, an error for one that can't be read.
pub type Contents = BTreeMap<Key, Result<Option<Arc<Content>>, String>>;

/// What the pod can be told about itself and the node.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its address.
    pub pod_ip: String,
    /// The node's address.
    pub host_ip: String,
    /// What a container without limits may use: the node's CPU (thousandths) and memory (bytes).
    pub node: (i64, i64),
    /// The objects that it names.
    pub contents: &'a Contents,
}

impl About<'_> {
    /// An object's content; `None` when it is optional and isn't there.
    pub fn content(&self, kind: Kind, name: &str, optional: bool) -> Result<Option<Arc<Content>>, Error> {
        let key = Key { kind, namespace: pod::namespace(self.pod).into(), name: name.into() };
        match self.contents.get(&key) {
            Some(Ok(Some(content))) => Ok(Some(content.clone())),
            Some(Err(why)) => Err(Error::Refused(why.clone())),
            _ if optional => Ok(None),
            _ => Err(Error::NotFound { kind, name: name.into() }),
        }
    }

    /// The value of a field of the pod.
    pub fn field(&self, field: &ObjectFieldSelector) -> Result<String, Error> {
        let spec = pod::spec(self.pod);
        let metadata = &self.pod.metadata;
        let path = field.field_path.as_str();
        let subscript = |list: &str| path.strip_prefix(list)?.strip_prefix("['")?.strip_suffix("']");
        let of = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default();
        if let Some(key) = subscript("metadata.labels") {
            return Ok(of(&metadata.labels, key));
        }
        if let Some(key) = subscript("metadata.annotations") {
            return Ok(of(&metadata.annotations, key));
        }
        Ok(match path {
            "metadata.name" => pod::name(self.pod).into(),
            "metadata.namespace" => pod::namespace(self.pod).into(),
            "metadata.uid" => pod::uid(self.pod).into(),
            "metadata.labels" => lines(&metadata.labels),
            "metadata.annotations" => lines(&metadata.annotations),
            "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
            "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
            "status.hostIP" | "status.hostIPs" => self.host_ip.clone(),
            "status.podIP" | "status.podIPs" => self.pod_ip.clone(),
            other => return Err(Error::Field(other.into())),
        })
    }

    /// The value of a container's request or limit, in units of the divisor, rounded up.
    pub fn resource(&self, field: &ResourceFieldSelector, own: Option<&Container>) -> Result<String, Error> {
        let found;
        let container = match (field.container_name.as_deref().filter(|name| !name.is_empty()), own) {
            (None, Some(own)) => own,
            (name, _) => {
                let name = name.unwrap_or_default();
                found = pod::container(self.pod, name).ok_or_else(|| Error::NoContainer(name.into()))?.1;
                &found
            }
        };
        let unsupported = || Error::Resource(field.resource.clone());
        let (list, resource) = field.resource.split_once('.').ok_or_else(unsupported)?;
        let amounts = container.resources.as_ref();
        let of = |map: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
            map?.get(resource).and_then(|q| Quantity::parse(&q.0).ok())
        };
        let amount = match list {
            "limits" => of(amounts.and_then(|r| r.limits.as_ref())),
            "requests" => of(amounts.and_then(|r| r.requests.as_ref())),
            _ => return Err(unsupported()),
        };
        // Without a limit, the node's capacity is the limit.
        let (cpu, memory) = if list == "limits" { self.node } else { (0, 0) };
        let divisor = field.divisor.as_ref().and_then(|d| Quantity::parse(&d.0).ok()).filter(|d| d.signum() > 0);
        let (amount, divisor) = match resource {
            "cpu" => (amount.map_or(cpu, Quantity::milli_value), divisor.map_or(1000, Quantity::milli_value)),
            "memory" => (amount.map_or(memory, Quantity::value), divisor.map_or(1, Quantity::value)),
            "ephemeral-storage" => (amount.map_or(0, Quantity::value), divisor.map_or(1, Quantity::value)),
            name if name.starts_with("hugepages-") => (amount.map_or(0, Quantity::value), divisor.map_or(1, Quantity::value)),
            _ => return Err(unsupported()),
        };
        Ok((amount.max(0).unsigned_abs().div_ceil(divisor.max(1).unsigned_abs())).to_string())
    }
}

/// A map as the downward API shows it: a line `key="value"` each.
fn lines(map: &Option<BTreeMap<String, String>>) -> String {
    let lines: Vec<_> = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// Replaces `$(NAME)` by what is known under that name; `$$` stands for `$`, and what isn't known stays.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables that tell a pod of a namespace where Services are, and always where the API is.
pub fn service_variables<'a>(services: impl Iterator<Item = &'a Service>, namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    let mut master = BTreeMap::new();
    for service in services {
        let metadata = &service.metadata;
        let (name, home) = (metadata.name.as_deref().unwrap_or_default(), metadata.namespace.as_deref().unwrap_or_default());
        let ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).filter(|ip| !matches!(*ip, "" | "None"));
        let Some(ip) = ip else { continue };
        if home == namespace && links {
            add_service(&mut vars, service, name, ip);
        } else if home == "default" && name == "kubernetes" {
            add_service(&mut master, service, name, ip);
        }
    }
    // A Service of the pod's own namespace that bears the master's name comes first.
    for (name, value) in master {
        vars.entry(name).or_insert(value);
    }
    vars
}

fn add_service(vars: &mut BTreeMap<String, String>, service: &Service, name: &str, ip: &str) {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let shown_ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let mut set = |name: String, value: String| vars.insert(name, value);
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let number = port.port;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let link = format!("{}://{shown_ip}:{number}", protocol.to_lowercase());
        if index == 0 {
            set(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
            set(format!("{prefix}_SERVICE_PORT"), number.to_string());
            set(format!("{prefix}_PORT"), link.clone());
        }
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            set(format!("{prefix}_SERVICE_PORT_{}", upper(name)), number.to_string());
        }
        let port_prefix = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        set(port_prefix.clone(), link);
        set(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
        set(format!("{port_prefix}_PORT"), number.to_string());
        set(format!("{port_prefix}_ADDR"), ip.to_owned());
    }
}

/// The environment of a container.
pub fn variables(about: &About<'_>, container: &Container, services: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    let mut vars: BTreeMap<String, String> = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for source in container.env_from.iter().flatten() {
        let named = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => (Kind::ConfigMap, &map.name, map.optional),
            (None, Some(secret)) => (Kind::Secret, &secret.name, secret.optional),
            (None, None) => continue,
        };
        let (kind, name, optional) = named;
        let Some(content) = about.content(kind, name, optional.unwrap_or(false))? else { continue };
        let prefix = source.prefix.as_deref().unwrap_or_default();
        vars.extend(content.data.iter().map(|(key, value)| (format!("{prefix}{key}"), text(value))));
    }
    for var in container.env.iter().flatten() {
        let own = var.value.as_deref().filter(|value| !value.is_empty());
        let value = match (own, &var.value_from) {
            (Some(value), _) => {
                let known = |name: &str| vars.get(name).or_else(|| services.get(name)).map(String::as_str);
                Some(expand(value, known))
            }
            (None, None) => Some(String::new()),
            (None, Some(from)) => {
                if let Some(field) = &from.field_ref {
                    Some(about.field(field)?)
                } else if let Some(field) = &from.resource_field_ref {
                    Some(about.resource(field, Some(container))?)
                } else if let Some(key) = &from.config_map_key_ref {
                    keyed(about, Kind::ConfigMap, &key.name, &key.key, key.optional)?
                } else if let Some(key) = &from.secret_key_ref {
                    keyed(about, Kind::Secret, &key.name, &key.key, key.optional)?
                } else {
                    Some(String::new())
                }
            }
        };
        if let Some(value) = value {
            vars.insert(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        vars.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Ok(vars)
}

fn keyed(about: &About<'_>, kind: Kind, name: &str, key: &str, optional: Option<bool>) -> Result<Option<String>, Error> {
    let optional = optional.unwrap_or(false);
    let Some(content) = about.content(kind, name, optional)? else { return Ok(None) };
    match content.data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => {
            let kind = if kind == Kind::Secret { "Secret" } else { "ConfigMap" };
            Err(Error::NoKey { key: key.into(), kind, namespace: pod::namespace(about.pod).into(), name: name.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn contents() -> Contents {
        let content = |pairs: &[(&str, &str)]| {
            let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
            Ok(Some(Arc::new(Content { data, ..Content::default() })))
        };
        let key = |kind, name: &str| Key { kind, namespace: "ns".into(), name: name.into() };
        BTreeMap::from([
            (key(Kind::ConfigMap, "cm"), content(&[("COLOUR", "blue"), ("SIZE", "xl")])),
            (key(Kind::Secret, "s"), content(&[("PASSWORD", "hidden")])),
            (key(Kind::Secret, "refused"), Err("no".into())),
        ])
    }

    fn check(container: Value, expected: Result<&[(&str, &str)], &str>) {
        let mut container = container;
        container["name"] = json!("a");
        let mut pod = crate::testing::pod(json!({"nodeName": "n", "serviceAccountName": "sa", "containers": [container]}));
        pod.metadata.labels = Some(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
        let contents = contents();
        let about = About { pod: &pod, pod_ip: "10.244.0.2".into(), host_ip: "192.168.0.1".into(), node: (2000, 4 << 30), contents: &contents };
        let services = BTreeMap::from([("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())]);
        let vars = variables(&about, &pod::containers(&pod)[0], &services).map(|mut vars| {
            assert_eq!(vars.remove("KUBERNETES_SERVICE_HOST").as_deref(), Some("10.96.0.1"));
            vars
        });
        let expected = expected.map(|pairs| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        assert_eq!(vars.map_err(|e| e.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn values_expand_what_came_before() {
        let env = json!({"env": [
            {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(C)-$$(A)-$x"}, {"name": "C", "value": "http://$(KUBERNETES_SERVICE_HOST)"}]});
        check(env, Ok(&[("A", "1"), ("B", "1-$(C)-$(A)-$x"), ("C", "http://10.96.0.1")]));
    }

    #[test]
    fn objects_give_variables() {
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}], "env": [{"name": "P_SIZE", "value": "s"}]}),
            Ok(&[("P_COLOUR", "blue"), ("P_SIZE", "s"), ("PASSWORD", "hidden")]),
        );
        let key = |name: &str, key: &str, optional| json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": name, "key": key, "optional": optional}}}]});
        check(key("cm", "COLOUR", false), Ok(&[("A", "blue")]));
        check(key("cm", "x", true), Ok(&[]));
        check(key("cm", "x", false), Err("couldn't find key x in ConfigMap ns/cm"));
        check(key("none", "x", false), Err("configmap \"none\" not found"));
        check(key("none", "x", true), Ok(&[]));
        check(json!({"envFrom": [{"secretRef": {"name": "refused", "optional": true}}]}), Err("no"));
    }

    #[test]
    fn the_pod_tells_about_itself() {
        let field = |path: &str| json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": path}}}]});
        check(field("metadata.name"), Ok(&[("A", "p")]));
        check(field("metadata.labels['app']"), Ok(&[("A", "web")]));
        check(field("metadata.labels"), Ok(&[("A", "app=\"web\"")]));
        check(field("spec.nodeName"), Ok(&[("A", "n")]));
        check(field("status.podIP"), Ok(&[("A", "10.244.0.2")]));
        check(field("status.hostIP"), Ok(&[("A", "192.168.0.1")]));
        check(field("spec.x"), Err("unsupported fieldPath: spec.x"));
    }

    #[test]
    fn resources_are_counted_in_units_of_the_divisor() {
        let resource = |resource: &str, divisor: &str| {
            json!({"resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}}]})
        };
        check(resource("requests.cpu", "0"), Ok(&[("A", "1")]));
        check(resource("requests.cpu", "1m"), Ok(&[("A", "250")]));
        check(resource("limits.cpu", "1"), Ok(&[("A", "2")]));
        check(resource("limits.memory", "0"), Ok(&[("A", "134217728")]));
        check(resource("limits.memory", "1Mi"), Ok(&[("A", "128")]));
        check(resource("requests.memory", "1Gi"), Ok(&[("A", "1")]));
        check(resource("limits.x", "1"), Err("unsupported container resource : limits.x"));
    }

    #[test]
    fn services_are_told_as_docker_links_were() {
        let service = |namespace: &str, name: &str, ip: &str, ports: Value| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": ports}})).expect("a service")
        };
        let all = [
            service("default", "kubernetes", "10.96.0.1", json!([{"name": "https", "port": 443}])),
            service("ns", "my-db", "10.96.0.7", json!([{"port": 53, "protocol": "UDP"}])),
            service("ns", "headless", "None", json!([{"port": 1}])),
            service("other", "far", "10.96.0.8", json!([{"port": 1}])),
        ];
        let vars = service_variables(all.iter(), "ns", true);
        let mine: Vec<_> = vars.iter().filter(|(k, _)| k.starts_with("MY_DB")).map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(mine, [
            "MY_DB_PORT=udp://10.96.0.7:53",
            "MY_DB_PORT_53_UDP=udp://10.96.0.7:53",
            "MY_DB_PORT_53_UDP_ADDR=10.96.0.7",
            "MY_DB_PORT_53_UDP_PORT=53",
            "MY_DB_PORT_53_UDP_PROTO=udp",
            "MY_DB_SERVICE_HOST=10.96.0.7",
            "MY_DB_SERVICE_PORT=53",
        ]);
        assert_eq!(vars.get("KUBERNETES_SERVICE_PORT_HTTPS").map(String::as_str), Some("443"));
        assert!(!vars.keys().any(|k| k.starts_with("FAR") || k.starts_with("HEADLESS")));
        let without = service_variables(all.iter(), "ns", false);
        assert!(without.keys().all(|k| k.starts_with("KUBERNETES_")) && !without.is_empty());
    }
}
