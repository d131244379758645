//! What clients are warned of: objects that are fine, but for what is old, of no use, or not meant.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde_json::Value;

use super::check::At;
use super::{address, definition, meta};
use crate::names;

/// The labels of nodes that have better ones. Upstream's list.
const OLD_LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    ("failure-domain.beta.kubernetes.io/region", "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

/// Volumes that no kubelet knows any more, and since when.
const OLD_VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Annotations of pods that do nothing.
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    ("scheduler.alpha.kubernetes.io/critical-pod", "non-functional in v1.16+; use the \"priorityClassName\" field instead"),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

/// What has been found so far.
#[derive(Default)]
struct Found(Vec<String>);

/// What clients are warned of who write a built-in object.
pub(super) fn of(group: &str, kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    let (new, mut found) = (At::root(object), Found::default());
    let spec = new.at("spec");
    let is_new = old.is_none();
    let template = match (group, kind) {
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet") | ("", "ReplicationController") | ("batch", "Job") => "spec.template",
        ("batch", "CronJob") => "spec.jobTemplate.spec.template",
        ("", "PodTemplate") => "template",
        _ => "",
    };
    if is_new && matches!(kind, "Deployment" | "ReplicaSet" | "ReplicationController" | "Job" | "CronJob" | "Pod") && matches!(group, "" | "apps" | "batch") {
        let place = if kind == "Pod" { "the Pod's hostname" } else { "Pod names and hostnames" };
        let faults = names::dns_label(new.at("metadata.name").str());
        if !faults.is_empty() {
            let words = format!("this is used in {place}, which can result in surprising behavior; a DNS label is recommended: [{}]", faults.join(" "));
            found.say(&new.at("metadata.name"), words);
        }
    }
    if !template.is_empty() && old.is_none_or(|old| At::root(old).at(template).value != new.at(template).value) {
        let template = new.at(template);
        found.pod(&template.at("metadata.annotations"), &template.at("spec"));
    }
    match (group, kind) {
        ("", "Pod") if is_new => found.pod(&new.at("metadata.annotations"), &spec),
        ("apps", "StatefulSet") => {
            let path = if is_new { "spec" } else { "Spec" };
            spec.at("volumeClaimTemplates").items().for_each(|claim| found.claim(&claim.at("spec").called(claim.below(path))));
            if spec.at("revisionHistoryLimit").number() < 0 {
                found.say(&spec.at("revisionHistoryLimit"), "a negative value retains all historical revisions; a value >= 0 is recommended");
            }
        }
        ("batch", "CronJob") if !is_new && spec.at("schedule").str().contains("TZ") => {
            let instead = "use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";
            found.0.push(format!("cannot use TZ or CRON_TZ in spec.spec.schedule, {instead}"));
        }
        ("", "PersistentVolumeClaim") => found.claim(&spec),
        ("", "PersistentVolume") => {
            if spec.at("persistentVolumeReclaimPolicy").str() == "Recycle" {
                let instead = "Instead, the recommended approach is to use dynamic provisioning.";
                found.say(&spec.at("persistentVolumeReclaimPolicy"), format!("The Recycle reclaim policy is deprecated. {instead}"));
            }
            spec.at("nodeAffinity.required.nodeSelectorTerms").items().for_each(|term| found.expressions(&term.at("matchExpressions"), false));
            OLD_VOLUMES.iter().filter(|(kind, _)| *kind != "gitRepo").for_each(|(kind, words)| found.old(&spec.at(kind), words));
        }
        ("", "Service") => found.service(&new, &spec),
        ("", "Node") => {
            found.old(&spec.at("configSource"), "the feature is removed");
            found.old(&spec.at("externalID"), "this field is deprecated, and is unused by Kubernetes");
            spec.at("podCIDRs").items().for_each(|range| found.range(&range));
        }
        ("", "ServiceAccount") if meta::annotation(&new, MOUNTABLE).is_some() => {
            if old.is_none_or(|old| meta::annotation(&At::root(old), MOUNTABLE).is_none()) {
                let words = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
                found.say(&new.at("metadata.annotations").key(MOUNTABLE), words);
            }
        }
        ("", "ResourceQuota") if is_new => {
            let hard = spec.at("hard");
            for name in ["cpu", "memory", "storage", "ephemeral-storage"] {
                let (request, limit) = (format!("requests.{name}"), format!("limits.{name}"));
                let bare = matches!(name, "cpu" | "memory").then_some(name);
                let asked = [Some(request.as_str()), bare].into_iter().flatten().find(|key| hard.key(key).is_set());
                let Some((key, asked)) = asked.and_then(|key| Some((key, hard.key(key).quantity()?))) else { continue };
                if let Some(most) = hard.key(&limit).quantity().filter(|most| asked > *most) {
                    found.0.push(format!("ResourceQuota {key} ({asked}) should be less than {limit} ({most})"));
                }
            }
        }
        ("", "Endpoints") => {
            let lists = spec_subsets(&new);
            lists.flat_map(|list| list.items().collect::<Vec<_>>()).for_each(|address| found.ip(&address.at("ip")));
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            if is_new && new.at("addressType").str() == "FQDN" {
                found.0.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
            } else if new.at("addressType").str() != "FQDN" {
                let addresses = new.at("endpoints").items().flat_map(|endpoint| endpoint.at("addresses").items().collect::<Vec<_>>());
                addresses.for_each(|address| found.ip(&address));
            }
        }
        ("networking.k8s.io", "Ingress") if is_new => {
            if meta::annotation(&new, INGRESS_CLASS).is_some() && !spec.at("ingressClassName").is_set() {
                found.0.push(format!("annotation {INGRESS_CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"));
            }
        }
        ("networking.k8s.io", "NetworkPolicy") => {
            for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
                for block in spec.at(rules).items().flat_map(|rule| rule.at(peers).items().map(|peer| peer.at("ipBlock")).collect::<Vec<_>>()) {
                    found.range(&block.at("cidr"));
                    block.at("except").items().for_each(|range| found.range(&range));
                }
            }
        }
        ("node.k8s.io", "RuntimeClass") => {
            let selector = new.at("scheduling.nodeSelector");
            selector.entries().filter_map(|(key, _)| old_label(key)).for_each(|words| found.say(&selector, words));
        }
        ("storage.k8s.io", "StorageClass") => {
            let keys = new.at("allowedTopologies").items().flat_map(|topology| topology.at("matchLabelExpressions").items().collect::<Vec<_>>());
            keys.map(|expression| expression.at("key")).for_each(|key| found.old(&key, old_label(key.str()).unwrap_or("")));
        }
        ("storage.k8s.io", "CSIDriver") => {
            let requests = spec.at("tokenRequests");
            let changed = old.is_none_or(|old| meta::changed(&spec, &old["spec"], "tokenRequests"));
            if changed && !requests.is_empty() && !spec.at("serviceAccountTokenInSecrets").is_set() {
                let instead = "if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes";
                found.0.push(format!("spec.serviceAccountTokenInSecrets is unset; {instead}"));
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => found.0 = definition::warnings(object, old),
        _ => {}
    }
    found.0
}

fn spec_subsets<'a>(endpoints: &At<'a>) -> impl Iterator<Item = At<'a>> + use<'a> {
    endpoints.at("subsets").items().flat_map(|subset| [subset.at("addresses"), subset.at("notReadyAddresses")])
}

fn old_label(key: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(label, _)| *label == key).map(|(_, words)| *words)
}

impl Found {
    fn say(&mut self, at: &At, words: impl AsRef<str>) {
        self.0.push(format!("{}: {}", at.path, words.as_ref()));
    }

    /// Something that is old, if it is there.
    fn old(&mut self, at: &At, words: &str) {
        if !words.is_empty() && at.is_set() && at.str().is_empty() == !at.value.is_string() {
            self.say(at, words);
        }
    }

    /// Old labels of nodes in expressions, and values that no label can have.
    fn expressions(&mut self, list: &At, values: bool) {
        for expression in list.items() {
            let key = expression.at("key");
            if let Some(words) = old_label(key.str()) {
                self.say(&key, format!("{} is {words}", key.str()));
            }
            for value in expression.at("values").items().filter(|_| values) {
                names::label_value(value.str()).iter().for_each(|fault| self.say(&value, format!("{} is invalid, {fault}", value.str())));
            }
        }
    }

    /// An amount of bytes that isn't whole.
    fn whole(&mut self, at: &At) {
        if at.quantity().is_some_and(|q| q.milli_value() % 1000 != 0) {
            self.say(at, format!("fractional byte value {:?} is invalid, must be an integer", at.str()));
        }
    }

    fn claim(&mut self, spec: &At) {
        ["requests", "limits"].iter().for_each(|list| self.whole(&spec.at("resources").at(list).key("storage")));
    }

    /// An address in a form that isn't read everywhere.
    fn ip(&mut self, at: &At) {
        let (text, Some(ip)) = (at.str(), address::parse(at.str())) else { return };
        match (text.parse::<IpAddr>(), ip) {
            (Err(_), _) => self.say(at, format!("non-standard IP address {text:?} is invalid: use \"{ip}\"")),
            (_, IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
                Some(v4) => self.say(at, format!("non-standard IP address {text:?} is invalid: use \"{v4}\"")),
                None if v6.to_string() != text => self.say(at, format!("IPv6 address {text:?} should be in RFC 5952 canonical format (\"{v6}\")")),
                None => {}
            },
            _ => {}
        }
    }

    /// The same for a range, which also says clearly which one it is.
    fn range(&mut self, at: &At) {
        let text = at.str();
        let (Some((first, bits)), Some((ip, length))) = (address::parse_range(text), text.split_once('/')) else { return };
        let (before, Some(given)) = (self.0.len(), address::parse(ip)) else { return };
        if given != first {
            let whole = if given.is_ipv4() { 32 } else { 128 };
            self.say(at, format!("CIDR value {text:?} is ambiguous in this context (should be \"{first}/{bits}\" or \"{given}/{whole}\"?)"));
        }
        if ip.parse::<IpAddr>().is_err() || length != bits.to_string() {
            self.say(at, format!("non-standard CIDR value {text:?} is invalid: use \"{first}/{bits}\""));
        }
        if self.0.len() == before && given.is_ipv6() && format!("{given}/{bits}") != text {
            self.say(at, format!("IPv6 CIDR value {text:?} should be in RFC 5952 canonical format (\"{given}/{bits}\")"));
        }
    }

    fn service(&mut self, service: &At, spec: &At) {
        let (kind, external) = (spec.at("type"), spec.at("externalIPs"));
        let headless = kind.str() == "ClusterIP" && spec.at("clusterIP").str() == "None";
        let named = kind.str() == "ExternalName";
        if meta::annotation(service, TOPOLOGY_HINTS).is_some() {
            self.0.push(format!("annotation {TOPOLOGY_HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"));
        }
        if !headless {
            spec.at("clusterIPs").items().for_each(|ip| self.ip(&ip));
        } else {
            let ignored = [
                ("loadBalancerIP", !spec.at("loadBalancerIP").is_empty()),
                ("externalIPs", !external.is_empty()),
                ("SessionAffinity", spec.at("sessionAffinity").str() != "None"),
            ];
            self.0.extend(ignored.iter().filter(|(_, given)| *given).map(|(field, _)| format!("spec.{field} is ignored for headless services")));
        }
        external.items().for_each(|ip| self.ip(&ip));
        if !external.is_empty() && !headless && !named {
            self.0.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned());
        }
        self.ip(&spec.at("loadBalancerIP"));
        spec.at("loadBalancerSourceRanges").items().for_each(|range| self.range(&range));
        if named && !external.is_empty() {
            self.0.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
        }
        if !named && !spec.at("externalName").is_empty() {
            self.0.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
        }
        if spec.at("trafficDistribution").str() == "PreferClose" {
            self.say(&spec.at("trafficDistribution"), "\"PreferClose\" is deprecated; use \"PreferSameZone\"");
        }
    }

    /// A pod, or the template of one.
    fn pod(&mut self, annotations: &At, spec: &At) {
        let selector = spec.at("nodeSelector");
        for (key, at) in selector.entries() {
            old_label(key).iter().for_each(|words| self.say(&at, words));
        }
        let affinity = spec.at("affinity.nodeAffinity");
        let required = affinity.at("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        required.items().for_each(|term| self.expressions(&term.at("matchExpressions"), false));
        let preferred = affinity.at("preferredDuringSchedulingIgnoredDuringExecution");
        preferred.items().for_each(|term| self.expressions(&term.at("preference.matchExpressions"), true));
        for spread in spec.at("topologySpreadConstraints").items() {
            let key = spread.at("topologyKey");
            old_label(key.str()).iter().for_each(|words| self.say(&key, format!("{} is {words}", key.str())));
            self.selected(&spread.at("labelSelector"));
        }
        for (name, words) in OLD_ANNOTATIONS {
            self.old(&annotations.key(name), words);
        }
        for volume in spec.at("volumes").items() {
            OLD_VOLUMES.iter().for_each(|(kind, words)| self.old(&volume.at(kind), words));
            self.claim(&volume.at("ephemeral.volumeClaimTemplate.spec"));
        }
        self.repeated(&spec.at("hostAliases"), "ip");
        self.repeated(&spec.at("imagePullSecrets"), "name");
        for name in spec.at("imagePullSecrets").items().map(|secret| secret.at("name")).filter(At::is_empty) {
            self.say(&name, "invalid empty name \"\"");
        }
        ["memory", "ephemeral-storage"].iter().for_each(|name| self.whole(&spec.at("overhead").key(name)));
        let containers: Vec<At> = ["initContainers", "containers", "ephemeralContainers"].iter().flat_map(|list| spec.at(list).items()).collect();
        for container in &containers {
            for (name, list) in [("memory", "limits"), ("memory", "requests"), ("ephemeral-storage", "limits"), ("ephemeral-storage", "requests")] {
                self.whole(&container.at("resources").at(list).key(name));
            }
            self.variables(&container.at("env"));
        }
        self.ports(&containers);
        if spec.at("terminationGracePeriodSeconds").number() < 0 {
            self.say(&spec.at("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1");
        }
        for affinity in ["podAffinity", "podAntiAffinity"].map(|kind| spec.at("affinity").at(kind)) {
            let (required, preferred) = ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
            affinity.at(required).items().for_each(|term| self.selected(&term.at("labelSelector")));
            affinity.at(preferred).items().for_each(|term| self.selected(&term.at("podAffinityTerm.labelSelector")));
        }
        spec.at("dnsConfig.nameservers").items().for_each(|server| self.ip(&server));
        spec.at("hostAliases").items().for_each(|alias| self.ip(&alias.at("ip")));
    }

    fn selected(&mut self, selector: &At) {
        if !selector.is_set() {
            self.say(selector, NO_SELECTOR);
        }
    }

    fn repeated(&mut self, list: &At, key: &str) {
        let mut seen = HashSet::new();
        for item in list.items().map(|item| item.at(key)).filter(|item| !seen.insert(item.str().to_owned())) {
            self.say(&item, format!("duplicate {key} {:?}", item.str()));
        }
    }

    /// Variables that hide others of their name, and don't build on them.
    fn variables(&mut self, list: &At) {
        let mut seen = HashSet::new();
        for item in list.items() {
            let (name, value) = (item.at("name").str(), item.at("value").str());
            let reference = format!("$({name})");
            if !seen.insert(name) && (item.at("valueFrom").is_set() || value == reference || !value.contains(&reference)) {
                self.say(&item, format!("hides previous definition of {name:?}, which may be dropped when using apply"));
            }
        }
    }

    /// Ports that are the same as others, more or less.
    fn ports(&mut self, containers: &[At]) {
        let all: Vec<At> = containers.iter().flat_map(|container| container.at("ports").items()).collect();
        for (i, port) in all.iter().enumerate() {
            let (ip, host) = (port.at("hostIP").str(), port.at("hostPort").number());
            let id = |port: &At| (port.at("containerPort").number(), port.at("protocol").str().to_owned());
            for other in all[..i].iter().filter(|other| id(other) == id(port)) {
                let (other_ip, other_host) = (other.at("hostIP").str(), other.at("hostPort").number());
                let how = if (ip, host) == (other_ip, other_host) {
                    "duplicate"
                } else if host == 0 || other_host == 0 {
                    "overlapping"
                } else if host == other_host && ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                self.say(port, format!("{how} port definition with {}", other.path));
            }
        }
        let mut named: HashMap<&str, &At> = HashMap::new();
        for (port, name) in all.iter().map(|port| (port, port.at("name").str())).filter(|(_, name)| !name.is_empty()) {
            if let Some(first) = named.get(name) {
                let path = &first.path;
                self.say(port, format!("duplicate port name {name:?} with {path}, services and probes that select ports by name will use {path}"));
            } else {
                named.insert(name, port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(group: &str, kind: &str, object: Value, expected: &[&str]) {
        assert_eq!(of(group, kind, &object, None), expected, "{object}");
    }

    fn in_pod(spec: Value, expected: &[&str]) {
        check("", "Pod", json!({"metadata": {"name": "p"}, "spec": spec}), expected);
    }

    #[test]
    fn pods() {
        let with = |container: Value| json!({"containers": [container]});
        in_pod(with(json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "A", "value": "3$(A)"}]})), &[]);
        let hidden = "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply";
        in_pod(with(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "3"}]})), &[hidden]);
        let ports = json!({"ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]});
        in_pod(with(ports), &["spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"]);
        let fraction = "spec.containers[0].resources.limits[memory]: fractional byte value \"128m\" is invalid, must be an integer";
        in_pod(with(json!({"resources": {"limits": {"memory": "128m", "cpu": "1m"}}})), &[fraction]);
        in_pod(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}, "volumes": [{"gitRepo": {}}]}), &[
            "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
        ]);
        in_pod(json!({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}), &["spec.imagePullSecrets[1].name: duplicate name \"a\""]);
    }

    #[test]
    fn others() {
        let named = json!({"metadata": {"name": "a.b"}, "spec": {"template": {"spec": {"hostAliases": [{"ip": "010.0.0.1"}]}}}});
        let found = of("apps", "Deployment", &named, None);
        assert!(found[0].starts_with("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]"), "{found:?}");
        assert_eq!(found[1..], ["spec.template.spec.hostAliases[0].ip: non-standard IP address \"010.0.0.1\" is invalid: use \"10.0.0.1\""]);
        assert_eq!(of("apps", "Deployment", &named, Some(&named)), [""; 0]);
        let headless = json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "sessionAffinity": "ClientIP"}});
        check("", "Service", headless, &["spec.SessionAffinity is ignored for headless services"]);
        let policy = |range: &str| json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": range}}]}]}});
        check("networking.k8s.io", "NetworkPolicy", policy("10.0.0.0/8"), &[]);
        let odd = "spec.ingress[0].from[0].ipBlock.cidr: CIDR value \"10.0.0.1/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.0.0.1/32\"?)";
        check("networking.k8s.io", "NetworkPolicy", policy("10.0.0.1/8"), &[odd]);
        let quota = json!({"spec": {"hard": {"cpu": "2", "limits.cpu": "1"}}});
        check("", "ResourceQuota", quota, &["ResourceQuota cpu (2) should be less than limits.cpu (1)"]);
        let ingress = json!({"metadata": {"annotations": {"kubernetes.io/ingress.class": "x"}}});
        check("networking.k8s.io", "Ingress", ingress, &["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"]);
    }
}
