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

const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";

/// When a rule looks at an object.
enum When {
    Always,
    /// When it is created.
    New,
    /// When it replaces another.
    Replaced,
    /// When what stands at this path below the place is not what stood there before.
    Written(&'static str),
    /// Always, but what was to be said of the object before is not said again.
    More,
}
use When::{Always, More, New, Replaced, Written};

type Check = fn(&mut Found, &At);

/// The rules by group and kind: when they look, where ([`places`]), and what they say of each thing that they find there.
const RULES: &[(&str, &str, When, &str, Check)] = &[
    ("", "Endpoints", Always, "subsets[].addresses|notReadyAddresses[].ip", Found::ip),
    ("", "Node", Always, "spec.configSource", |f, at| f.old(at, "the feature is removed")),
    ("", "Node", Always, "spec.externalID", |f, at| f.old(at, "this field is deprecated, and is unused by Kubernetes")),
    ("", "Node", Always, "spec.podCIDRs[]", Found::range),
    ("", "PersistentVolume", Always, "spec.persistentVolumeReclaimPolicy", recycled),
    ("", "PersistentVolume", Always, "spec.nodeAffinity.required.nodeSelectorTerms[].matchExpressions[].key", Found::node_label),
    ("", "PersistentVolume", Always, "spec", |f, at| {
        OLD_VOLUMES.iter().filter(|(kind, _)| *kind != "gitRepo").for_each(|(kind, words)| f.old(&at.at(kind), words));
    }),
    ("", "PersistentVolumeClaim", Always, "spec", Found::claim),
    ("", "Pod", New, "metadata.name", |f, at| f.host_name(at, "the Pod's hostname")),
    ("", "Pod", New, "", Found::pod),
    ("", "PodTemplate", Written(""), "template", Found::pod),
    ("", "ReplicationController", New, "metadata.name", pod_name),
    ("", "ReplicationController", Written(""), "spec.template", Found::pod),
    ("", "ResourceQuota", New, "spec.hard", quota),
    ("", "Service", Always, "", Found::service),
    ("", "ServiceAccount", More, "metadata.annotations[kubernetes.io/enforce-mountable-secrets]", |f, at| {
        f.given(at, "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets");
    }),
    ("apiextensions.k8s.io", "CustomResourceDefinition", More, "", |f, at| f.0.extend(definition::warnings(at.value))),
    ("apps", "DaemonSet", Written(""), "spec.template", Found::pod),
    ("apps", "Deployment", New, "metadata.name", pod_name),
    ("apps", "Deployment", Written(""), "spec.template", Found::pod),
    ("apps", "ReplicaSet", New, "metadata.name", pod_name),
    ("apps", "ReplicaSet", Written(""), "spec.template", Found::pod),
    ("apps", "StatefulSet", Written(""), "spec.template", Found::pod),
    ("apps", "StatefulSet", New, "spec.volumeClaimTemplates[].spec", Found::claim),
    ("apps", "StatefulSet", Replaced, "spec.volumeClaimTemplates[]", |f, at| f.claim(&at.at("spec").called(at.below("Spec")))),
    ("apps", "StatefulSet", Always, "spec.revisionHistoryLimit", |f, at| {
        f.negative(at, "a negative value retains all historical revisions; a value >= 0 is recommended");
    }),
    ("batch", "CronJob", New, "metadata.name", pod_name),
    ("batch", "CronJob", Written(""), "spec.jobTemplate.spec.template", Found::pod),
    ("batch", "CronJob", Replaced, "spec.schedule", time_zone),
    ("batch", "Job", New, "metadata.name", pod_name),
    ("batch", "Job", Written(""), "spec.template", Found::pod),
    ("discovery.k8s.io", "EndpointSlice", New, "addressType", |f, at| {
        f.0.extend((at.str() == "FQDN").then(|| "spec.addressType: FQDN endpoints are deprecated".to_owned()));
    }),
    ("discovery.k8s.io", "EndpointSlice", Always, "", |f, at| {
        places(at, "endpoints[].addresses[]").iter().filter(|_| at.at("addressType").str() != "FQDN").for_each(|ip| f.ip(ip));
    }),
    ("networking.k8s.io", "Ingress", New, "", ingress),
    ("networking.k8s.io", "NetworkPolicy", Always, "spec.ingress[].from[].ipBlock", Found::ip_block),
    ("networking.k8s.io", "NetworkPolicy", Always, "spec.egress[].to[].ipBlock", Found::ip_block),
    ("node.k8s.io", "RuntimeClass", Always, "scheduling.nodeSelector", |f, at| {
        at.entries().filter_map(|(key, _)| old_label(key)).for_each(|words| f.say(at, words));
    }),
    ("storage.k8s.io", "CSIDriver", Written("tokenRequests"), "spec", token_requests),
    ("storage.k8s.io", "StorageClass", Always, "allowedTopologies[].matchLabelExpressions[].key", |f, at| {
        old_label(at.str()).iter().for_each(|words| f.say(at, words));
    }),
];

/// The rules of pods and of templates of pods: where, and what they say.
const POD: &[(&str, Check)] = &[
    ("spec.nodeSelector", |f, at| {
        at.entries().filter_map(|(key, at)| Some((at, old_label(key)?))).for_each(|(at, words)| f.say(&at, words));
    }),
    ("spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[].matchExpressions[].key", Found::node_label),
    ("spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[].preference.matchExpressions[]", Found::preference),
    ("spec.topologySpreadConstraints[]", |f, at| {
        f.node_label(&at.at("topologyKey"));
        f.selected(&at.at("labelSelector"));
    }),
    ("metadata.annotations", |f, at| OLD_ANNOTATIONS.iter().for_each(|(name, words)| f.old(&at.key(name), words))),
    ("spec.volumes[]", |f, at| {
        OLD_VOLUMES.iter().for_each(|(kind, words)| f.old(&at.at(kind), words));
        f.claim(&at.at("ephemeral.volumeClaimTemplate.spec"));
    }),
    ("spec.hostAliases", |f, at| f.repeated(at, "ip")),
    ("spec.imagePullSecrets", |f, at| f.repeated(at, "name")),
    ("spec.imagePullSecrets[].name", |f, at| {
        if at.is_empty() {
            f.say(at, "invalid empty name \"\"");
        }
    }),
    ("spec.overhead[memory]", Found::whole),
    ("spec.overhead[ephemeral-storage]", Found::whole),
    ("spec.initContainers|containers|ephemeralContainers[]", |f, at| {
        for name in ["memory", "ephemeral-storage"] {
            ["limits", "requests"].iter().for_each(|list| f.whole(&at.at("resources").at(list).key(name)));
        }
        f.variables(&at.at("env"));
    }),
    ("spec", Found::ports),
    ("spec.terminationGracePeriodSeconds", |f, at| f.negative(at, "must be >= 0; negative values are invalid and will be treated as 1")),
    ("spec.affinity.podAffinity", Found::pod_terms),
    ("spec.affinity.podAntiAffinity", Found::pod_terms),
    ("spec.dnsConfig.nameservers[]", Found::ip),
    ("spec.hostAliases[].ip", Found::ip),
];

/// All places that a path leads to: `a[].b` below each item of a list, `a|b` first the one and then the other, `a[key]` the entry
/// of a map at the end. A place where nothing stands is one too.
fn places<'a>(from: &At<'a>, path: &str) -> Vec<At<'a>> {
    let (names, rest) = path.split_once('[').unwrap_or((path, ""));
    let (parents, last) = names.rsplit_once('.').unwrap_or(("", names));
    let down = |from: &At<'a>, name: &str| if name.is_empty() { from.clone() } else { from.at(name) };
    let parent = down(from, parents);
    let here = last.split('|').map(|name| down(&parent, name));
    match rest.split_once(']') {
        None => here.collect(),
        Some(("", below)) => here.flat_map(|list| list.items()).flat_map(|item| places(&item, below.trim_start_matches('.'))).collect(),
        Some((key, _)) => here.map(|map| map.key(key)).collect(),
    }
}

/// What clients are warned of who write a built-in object.
pub(super) fn of(group: &str, kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut all = Found::default();
    for (_, _, when, path, check) in RULES.iter().filter(|rule| (rule.0, rule.1) == (group, kind)) {
        let found = |object: &Value| {
            let mut found = Found::default();
            places(&At::root(object), path).iter().for_each(|at| check(&mut found, at));
            found.0
        };
        let at = |object, below: &str| places(&At::root(object), path).iter().flat_map(|at| places(at, below)).map(|at| at.value).next();
        let looks = match (when, old) {
            (Always | More, _) | (New, None) | (Replaced, Some(_)) => true,
            (Written(below), old) => old.is_none_or(|old| at(old, below) != at(object, below)),
            _ => false,
        };
        let before = old.filter(|_| matches!(when, More)).map(found).unwrap_or_default();
        all.0.extend(found(object).into_iter().filter(|words| looks && !before.contains(words)));
    }
    all.0
}

fn old_label(key: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(label, _)| *label == key).map(|(_, words)| *words)
}

fn pod_name(f: &mut Found, name: &At) {
    f.host_name(name, "Pod names and hostnames");
}

fn recycled(f: &mut Found, policy: &At) {
    if policy.str() == "Recycle" {
        let instead = "Instead, the recommended approach is to use dynamic provisioning.";
        f.say(policy, format!("The Recycle reclaim policy is deprecated. {instead}"));
    }
}

fn quota(f: &mut Found, hard: &At) {
    for name in ["cpu", "memory", "storage", "ephemeral-storage"] {
        let (request, limit) = (format!("requests.{name}"), format!("limits.{name}"));
        let bare = matches!(name, "cpu" | "memory").then_some(name);
        let asked = [Some(request.as_str()), bare].into_iter().flatten().find(|key| hard.key(key).is_set());
        let Some((key, asked)) = asked.and_then(|key| Some((key, hard.key(key).quantity()?))) else { continue };
        if let Some(most) = hard.key(&limit).quantity().filter(|most| asked > *most) {
            f.0.push(format!("ResourceQuota {key} ({asked}) should be less than {limit} ({most})"));
        }
    }
}

fn time_zone(f: &mut Found, schedule: &At) {
    if schedule.str().contains("TZ") {
        let instead = "use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";
        f.0.push(format!("cannot use TZ or CRON_TZ in spec.spec.schedule, {instead}"));
    }
}

fn ingress(f: &mut Found, ingress: &At) {
    if meta::annotation(ingress, INGRESS_CLASS).is_some() && !ingress.at("spec.ingressClassName").is_set() {
        f.0.push(format!("annotation {INGRESS_CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"));
    }
}

fn token_requests(f: &mut Found, spec: &At) {
    if !spec.at("tokenRequests").is_empty() && !spec.at("serviceAccountTokenInSecrets").is_set() {
        let instead = "if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes";
        f.0.push(format!("spec.serviceAccountTokenInSecrets is unset; {instead}"));
    }
}

/// What one rule has to say.
#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn say(&mut self, at: &At, words: impl AsRef<str>) {
        self.0.push(format!("{}: {}", at.path, words.as_ref()));
    }

    fn given(&mut self, at: &At, words: &str) {
        if at.is_set() {
            self.say(at, words);
        }
    }

    /// Something that is old, if it is there.
    fn old(&mut self, at: &At, words: &str) {
        if at.is_set() && at.str().is_empty() != at.value.is_string() {
            self.say(at, words);
        }
    }

    fn negative(&mut self, at: &At, words: &str) {
        if at.number() < 0 {
            self.say(at, words);
        }
    }

    /// A name of which others are made.
    fn host_name(&mut self, name: &At, place: &str) {
        let faults = names::dns_label(name.str());
        if !faults.is_empty() {
            let words = format!("this is used in {place}, which can result in surprising behavior; a DNS label is recommended: [{}]", faults.join(" "));
            self.say(name, words);
        }
    }

    /// The label of a node in an expression.
    fn node_label(&mut self, key: &At) {
        old_label(key.str()).iter().for_each(|words| self.say(key, format!("{} is {words}", key.str())));
    }

    /// A label that a node had better have.
    fn preference(&mut self, expression: &At) {
        self.node_label(&expression.at("key"));
        for value in expression.at("values").items() {
            names::label_value(value.str()).iter().for_each(|fault| self.say(&value, format!("{} is invalid, {fault}", value.str())));
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

    fn ip_block(&mut self, block: &At) {
        self.range(&block.at("cidr"));
        block.at("except").items().for_each(|range| self.range(&range));
    }

    fn service(&mut self, service: &At) {
        let spec = service.at("spec");
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
    fn pod(&mut self, pod: &At) {
        for (path, check) in POD {
            places(pod, path).iter().for_each(|at| check(self, at));
        }
    }

    fn pod_terms(&mut self, affinity: &At) {
        for path in [
            "requiredDuringSchedulingIgnoredDuringExecution[].labelSelector",
            "preferredDuringSchedulingIgnoredDuringExecution[].podAffinityTerm.labelSelector",
        ] {
            places(affinity, path).iter().for_each(|selector| self.selected(selector));
        }
    }

    fn selected(&mut self, selector: &At) {
        if !selector.is_set() {
            self.say(selector, "a null labelSelector results in matching no pod");
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
    fn ports(&mut self, spec: &At) {
        let all = places(spec, "initContainers|containers|ephemeralContainers[].ports[]");
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
