//! Pods and their templates.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::check::{At, Errors, same};
use super::container::{self, Pod};
use super::{address, meta, resources, scheduling, volume, windows};
use crate::field::Error;
use crate::names;

/// A pod to be created.
pub(super) fn create(e: &mut Errors, pod: &At) {
    metadata_and_spec(e, pod);
    let spec = pod.at("spec");
    if !spec.at("ephemeralContainers").is_empty() {
        e.forbidden(&spec.at("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.at("nodeName").is_empty() && !spec.at("schedulingGates").is_empty() {
        e.forbidden(&spec.at("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

fn metadata_and_spec(e: &mut Errors, pod: &At) {
    let spec = pod.at("spec");
    pod_spec(e, &spec, Some(pod.at("metadata.name").str()));
    if spec.at("serviceAccountName").is_empty() {
        let sources = spec.at("volumes").items().flat_map(|v| v.at("projected.sources").items());
        for token in sources.map(|s| s.at("serviceAccountToken")).filter(At::is_set) {
            e.forbidden(&token, "must not be specified when serviceAccountName is not set");
        }
    }
    for list in ["containers", "initContainers"] {
        spec.at(list).items().for_each(|c| container::image_blanks(e, &c));
    }
}

/// A template of pods: what controllers make pods of.
pub(super) fn template(e: &mut Errors, at: &At) {
    meta::labels(e, &at.at("metadata.labels").called(at.below("labels")));
    meta::annotations(e, &at.at("metadata.annotations").called(at.below("annotations")));
    pod_spec(e, &at.at("spec"), None);
    let ephemeral = at.at("spec.ephemeralContainers");
    if !ephemeral.is_empty() {
        e.forbidden(&ephemeral, "ephemeral containers not allowed in pod template");
    }
}

/// A pod's spec. `name` is the pod's, absent for a template.
fn pod_spec(e: &mut Errors, spec: &At, name: Option<&str>) {
    if !spec.at("terminationGracePeriodSeconds").is_set() {
        e.required(&spec.at("terminationGracePeriodSeconds"), "");
    }
    let volumes = volume::volumes(e, &spec.at("volumes"), name.unwrap_or(""));
    let claims = spec.at("resourceClaims").items().map(|c| c.at("name").str()).filter(|n| !n.is_empty()).collect();
    resource_claims(e, &spec.at("resourceClaims"));
    let pod = Pod { spec: spec.clone(), volumes, claims, is_pod: name.is_some() };
    container::containers(e, &pod);
    container::init_containers(e, &pod);
    container::ephemeral_containers(e, &pod);
    pod_resources(e, spec, &pod.claims);
    host_network_ports(e, &pod);
    e.one_of(&spec.at("restartPolicy"), &["Always", "OnFailure", "Never"]);
    e.one_of(&spec.at("dnsPolicy"), &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    meta::labels(e, &spec.at("nodeSelector"));
    security(e, spec);
    scheduling::affinity(e, &spec.at("affinity"));
    dns(e, spec);
    spec.at("readinessGates").items().for_each(|gate| e.form(&gate.at("conditionType"), names::qualified_name));
    let mut gates = HashSet::new();
    for gate in spec.at("schedulingGates").items().map(|gate| gate.at("name").called(gate.path)) {
        e.form(&gate, names::qualified_name);
        e.once(&gate, &mut gates);
    }
    scheduling::spread(e, &spec.at("topologySpreadConstraints"));
    windows::host_process(e, spec);
    host_users(e, spec);
    hostname_override(e, spec);
    for field in ["serviceAccountName", "nodeName"] {
        e.optional_form(&spec.at(field), names::dns_subdomain);
    }
    e.in_range(&spec.at("activeDeadlineSeconds"), 1, i32::MAX.into());
    ["hostname", "subdomain"].into_iter().for_each(|field| e.optional_form(&spec.at(field), names::dns_label));
    scheduling::tolerations(e, &spec.at("tolerations"));
    for alias in spec.at("hostAliases").items() {
        address::ip(e, &alias.at("ip"));
        alias.at("hostnames").items().for_each(|host| e.form(&host, names::dns_subdomain));
    }
    e.optional_form(&spec.at("priorityClassName"), names::dns_subdomain);
    e.given_form(&spec.at("runtimeClassName"), names::dns_subdomain);
    if spec.at("preemptionPolicy").is_set() {
        e.one_of(&spec.at("preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
    }
    overhead(e, &spec.at("overhead"));
    os(e, spec);
}

/// The overhead of a runtime class: limits like those of a container.
pub(super) fn overhead(e: &mut Errors, at: &At) {
    if at.is_set() {
        let limits = json!({"limits": at.value});
        let mut found = Errors::default();
        resources::requirements(&mut found, &At::root(&limits).called(&at.path), resources::container_name, &[]);
        e.0.extend(found.0);
    }
}

fn resource_claims(e: &mut Errors, list: &At) {
    for claim in list.items() {
        e.required_form(&claim.at("name"), names::dns_label);
        let (name, template) = (claim.at("resourceClaimName"), claim.at("resourceClaimTemplateName"));
        if name.is_set() == template.is_set() {
            let words = if name.is_set() {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            } else {
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
            };
            e.invalid(&claim, words);
        }
        for field in [name, template].iter().filter(|f| f.is_set()) {
            e.form(field, names::dns_subdomain);
        }
    }
    e.unique(list.items().map(|c| c.at("name")));
}

fn pod_resources(e: &mut Errors, spec: &At, claims: &[&str]) {
    let at = spec.at("resources");
    if !at.is_set() {
        return;
    }
    if spec.at("os.name").str() == "windows" {
        return e.forbidden(&at, "may not be set for a windows pod");
    }
    if at.at("claims").is_set() {
        e.forbidden(&at.at("claims"), "claims may not be set for Resources at pod-level");
    }
    resources::requirements(e, &at, resources::pod_name, claims);
    let whole = json!({"spec": {"containers": spec.at("containers").value, "initContainers": spec.at("initContainers").value}});
    for (name, needed) in crate::pod::requests(&whole) {
        let entry = at.at("requests").key(&name);
        if entry.quantity().is_some_and(|given| needed > given) {
            e.invalid(&entry, format!("must be greater than or equal to aggregate container requests of {needed}"));
        }
    }
    for container in spec.at("containers").items() {
        for (name, limit) in container.at("resources.limits").entries() {
            let whole = at.at("limits").key(name);
            if limit.quantity() > whole.quantity() && whole.is_set() {
                let place = limit.called(format!("{}[{name}].limits", container.path.replacen(&spec.path, &at.path, 1)));
                e.invalid(&place, format!("must be less than or equal to pod limits of {}", whole.str()));
            }
        }
    }
}

fn host_network_ports(e: &mut Errors, pod: &Pod) {
    if !pod.spec.at("hostNetwork").flag() {
        return;
    }
    for port in pod.spec.at("containers").items().flat_map(|c| c.at("ports").items()) {
        let (host, own) = (port.at("hostPort").number(), port.at("containerPort").number());
        if (pod.is_pod || host != 0) && host != own {
            e.invalid_value(&port.at("hostPort"), host, "must match `containerPort` when `hostNetwork` is true");
        }
    }
}

fn security(e: &mut Errors, spec: &At) {
    let at = spec.at("securityContext");
    if !at.is_set() {
        return;
    }
    ["fsGroup", "runAsUser", "runAsGroup"].into_iter().for_each(|field| e.user_id(&at.at(field)));
    at.at("supplementalGroups").items().for_each(|group| e.user_id(&group));
    let share = spec.at("shareProcessNamespace").called(at.below("shareProcessNamespace"));
    if share.flag() && spec.at("hostPID").flag() {
        e.invalid(&share, "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    sysctls(e, &at.at("sysctls"), spec);
    e.maybe_one_of(&at.at("fsGroupChangePolicy"), &["Always", "OnRootMismatch"]);
    container::seccomp(e, &at.at("seccompProfile"));
    windows::options(e, &at.at("windowsOptions"));
    container::app_armor(e, &at.at("appArmorProfile"));
    e.maybe_one_of(&at.at("supplementalGroupsPolicy"), &["Merge", "Strict"]);
    e.maybe_one_of(&at.at("seLinuxChangePolicy"), &["Recursive"]);
}

fn sysctls(e: &mut Errors, list: &At, spec: &At) {
    let segment = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let is_segment = |s: &str| {
        let b = s.as_bytes();
        let end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        end(b.first()) && end(b.last()) && b.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(b))
    };
    let mut seen = Vec::new();
    for sysctl in list.items() {
        let name = sysctl.at("name");
        if name.is_empty() {
            e.required(&name, "");
        } else if name.str().len() > 253 || !name.str().split(['.', '/']).all(is_segment) {
            e.invalid(&name, format!("must have at most 253 characters and match regex ^({segment}[\\./])*{segment}$"));
        } else if seen.contains(&name.str()) {
            e.duplicate(&name);
        }
        if spec.at("hostNetwork").flag() && name.str().starts_with("net.") {
            e.invalid(&name, "may not be specified when 'hostNetwork' is true");
        }
        let ipc = ["kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."].iter().any(|p| name.str().starts_with(p));
        if spec.at("hostIPC").flag() && ipc {
            e.invalid(&name, "may not be specified when 'hostIPC' is true");
        }
        seen.push(name.str());
    }
}

fn dns(e: &mut Errors, spec: &At) {
    let config = spec.at("dnsConfig");
    let servers = config.at("nameservers");
    if spec.at("dnsPolicy").str() == "None" {
        if !config.is_set() {
            return e.required(&config, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            return e.required(&servers, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    if servers.len() > 3 {
        e.invalid(&servers, "must not have more than 3 nameservers");
    }
    servers.items().for_each(|server| address::ip(e, &server));
    let searches = config.at("searches");
    if searches.len() > 32 {
        e.invalid(&searches, "must not have more than 32 search paths");
    }
    if searches.texts().join(" ").len() > 2048 {
        e.invalid(&searches, "must not have more than 2048 characters (including spaces) in the search list");
    }
    for search in searches.items().filter(|s| s.str() != ".") {
        let name = search.str().strip_suffix('.').unwrap_or(search.str());
        e.text_form(&search, name, names::dns_subdomain_with_underscore);
    }
    for option in config.at("options").items().filter(|o| o.at("name").is_empty()) {
        e.required(&option, "must not be empty");
    }
}

fn host_users(e: &mut Errors, spec: &At) {
    if spec.at("hostUsers").value != &Value::Bool(false) {
        return;
    }
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.at(field).flag() {
            e.forbidden(&spec.at(field).called(spec.below(shown)), "when `hostUsers` is false");
        }
    }
}

fn hostname_override(e: &mut Errors, spec: &At) {
    let name = spec.at("hostnameOverride");
    if !name.is_set() {
        return;
    }
    if spec.at("setHostnameAsFQDN").flag() {
        e.forbidden(&name, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.at("hostNetwork").flag() {
        e.forbidden(&name, "may not be specified when hostNetwork is true");
    }
    e.no_longer(&name, 64);
    e.form(&name, names::dns_subdomain);
}

/// The fields of a pod that mean nothing on Windows.
const NOT_ON_WINDOWS: [&str; 14] = [
    "securityContext.appArmorProfile", "securityContext.seLinuxOptions", "hostUsers", "hostPID", "hostIPC", "securityContext.seccompProfile",
    "securityContext.fsGroup", "securityContext.fsGroupChangePolicy", "securityContext.sysctls", "shareProcessNamespace",
    "securityContext.runAsUser", "securityContext.runAsGroup", "securityContext.supplementalGroups", "securityContext.supplementalGroupsPolicy",
];

fn os(e: &mut Errors, spec: &At) {
    let os = spec.at("os");
    if !os.is_set() {
        return;
    }
    match os.at("name").str() {
        "" => e.required(&os.at("name"), ""),
        "linux" => {
            if spec.at("securityContext.windowsOptions").is_set() {
                e.forbidden(&spec.at("securityContext.windowsOptions"), "windows options cannot be set for a linux pod");
            }
        }
        "windows" => {
            for field in NOT_ON_WINDOWS.iter().map(|f| spec.at(f)).filter(|f| !f.is_empty() && f.value != &Value::Bool(false)) {
                e.forbidden(&field, "cannot be set for a windows pod");
            }
        }
        other => e.push(Error::not_supported(&os.path, other, &["linux", "windows"])),
    }
}

/// What may change of a pod's spec, as upstream says it.
const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),\
    `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A pod to replace another.
pub(super) fn update(e: &mut Errors, new: &At, old: &Value) {
    metadata_and_spec(e, new);
    let (spec, was) = (new.at("spec"), &old["spec"]);
    for list in ["containers", "initContainers"] {
        let (now, before) = (spec.at(list), At::root(was).at(list).len());
        if now.len() != before {
            return e.forbidden(&now, "pod updates may not add or remove containers");
        }
        for container in now.items() {
            e.filled(&container.at("image"));
            container::image_blanks(e, &container);
        }
    }
    deadline(e, &spec.at("activeDeadlineSeconds"), was["activeDeadlineSeconds"].as_i64());
    only_added_tolerations(e, &spec.at("tolerations"), was);
    let had: Vec<&str> = At::root(was).at("schedulingGates").items().map(|g| g.at("name").str()).collect();
    for gate in spec.at("schedulingGates").items().map(|g| g.at("name")).filter(|g| !had.contains(&g.str())) {
        e.forbidden(&gate, format!("only deletion is allowed, but found new scheduling gate '{}'", gate.str()));
    }
    let mut munged = munge(spec.value, was);
    if !had.is_empty() {
        narrowed(e, &spec, was, &mut munged);
    }
    if !same(&munged, was) {
        e.forbidden(&spec, format!("pod updates may not change fields other than {UPDATABLE}\n{}", spec.changes(was, &munged)));
    }
}

fn deadline(e: &mut Errors, at: &At, was: Option<i64>) {
    e.in_range(at, 0, i32::MAX.into());
    match (at.int(), was) {
        (Some(now), Some(was)) if was < now => e.invalid(at, "must be less than or equal to previous value"),
        (None, Some(_)) => e.invalid(at, "must not update from a positive integer to nil value"),
        _ => {}
    }
}

fn only_added_tolerations(e: &mut Errors, now: &At, was: &Value) {
    for old in At::root(was).at("tolerations").items() {
        let kept = now.items().any(|new| {
            let rest = |v: &Value| {
                let mut copy = v.clone();
                crate::value::remove(&mut copy, &["tolerationSeconds"]);
                copy
            };
            rest(new.value) == rest(old.value)
        });
        if !kept {
            e.forbidden(now, "existing toleration can not be modified except its tolerationSeconds");
        }
    }
    scheduling::tolerations(e, now);
}

/// The new spec with what may change put back to what it was: any difference left is one too many.
fn munge(new: &Value, old: &Value) -> Value {
    let mut spec = new.clone();
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = At::root(old).at(list).items().map(|c| c.at("image").value.clone()).collect();
        for (container, image) in spec[list].as_array_mut().into_iter().flatten().zip(images) {
            container["image"] = image;
        }
    }
    let mut kept = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations"];
    let was = old["terminationGracePeriodSeconds"].as_i64();
    if was.is_some_and(|n| n < 0) && new["terminationGracePeriodSeconds"] == 1 {
        kept.push("terminationGracePeriodSeconds");
    }
    for field in kept {
        spec[field] = old[field].clone();
    }
    spec
}

/// A gated pod may still be narrowed in the nodes that it can run on. What is said of them is put back in `munged`.
fn narrowed(e: &mut Errors, spec: &At, was: &Value, munged: &mut Value) {
    let selector = spec.at("nodeSelector");
    let kept = At::root(was).at("nodeSelector").entries().all(|(key, label)| selector.value.get(key) == Some(label.value));
    if !kept {
        e.invalid(&selector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)");
    }
    munged["nodeSelector"] = was["nodeSelector"].clone();
    const TERMS: &str = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let (now, before) = (spec.at(TERMS), At::root(was).at(TERMS));
    if !before.is_empty() && now.len() != before.len() {
        e.invalid(&now, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
    } else {
        for (now, _) in now.items().zip(before.items()).filter(|(now, before)| !only_added(now, before)) {
            e.invalid(&now, "only additions are allowed (no mutations or deletions)");
        }
    }
    let (node, rest) = (&was["affinity"]["nodeAffinity"], &munged["affinity"]);
    let alone = rest.as_object().is_none_or(|parts| parts.keys().all(|part| part == "nodeAffinity"));
    if was["affinity"].is_null() && alone {
        munged["affinity"] = Value::Null;
    } else if !node.is_null() || rest.is_object() {
        munged["affinity"]["nodeAffinity"] = node.clone();
    }
}

/// Whether a node selector's term only has more than before; one that asked for nothing matched nothing, and stays so.
fn only_added(now: &At, before: &At) -> bool {
    let lists = ["matchExpressions", "matchFields"].map(|list| (now.at(list), before.at(list)));
    let nothing = lists.iter().all(|(_, before)| before.is_empty());
    lists.iter().all(|(now, before)| {
        let same = now.items().zip(before.items()).all(|(now, before)| same(now.value, before.value));
        if nothing { now.is_empty() } else { same && now.len() >= before.len() }
    })
}

/// A pod whose status is to replace another's.
pub(super) fn status(e: &mut Errors, new: &At, old: &Value) {
    let (status, was) = (new.at("status"), At::root(old));
    for condition in status.at("conditions").items() {
        let kind = condition.at("type");
        if kind.str().contains('/') {
            e.form(&kind, names::qualified_name);
        }
    }
    if new.at("spec.nodeName").str() != was.at("spec.nodeName").str() {
        e.forbidden(&status.at("nodeName"), "may not be changed directly");
    }
    let nominated = status.at("nominatedNodeName");
    if nominated.str() != was.at("status.nominatedNodeName").str() {
        e.optional_form(&nominated, names::dns_subdomain);
        if !nominated.is_empty() && !was.at("spec.nodeName").is_empty() {
            e.forbidden(&nominated, "may not be set on pods that are already bound to a node");
        }
    }
    e.at_least(&status.at("observedGeneration"), 0, "must be a non-negative integer");
    if status.at("qosClass").str() != was.at("status.qosClass").str() {
        e.immutable(&status.at("qosClass"));
    }
    transitions(e, &status, &was);
    status.at("podIPs").items().for_each(|ip| address::ip(e, &ip.at("ip").called(ip.path)));
    address::one_of_each_family(e, &status.at("podIPs"), |ip| ip.at("ip").str(), "may specify no more than one IP for each IP family");
}

/// A container that ended stays ended, unless it is to be restarted.
fn transitions(e: &mut Errors, status: &At, old: &At) {
    let policy = old.at("spec.restartPolicy");
    if policy.str() == "Always" {
        return;
    }
    let (now, was) = (status.at("containerStatuses"), old.at("status.containerStatuses"));
    for before in was.items() {
        let ended = before.at("state.terminated");
        if !ended.is_set() || policy.str() == "OnFailure" && ended.at("exitCode").number() != 0 {
            continue;
        }
        let after = now.items().find(|c| c.at("name").str() == before.at("name").str());
        if let Some(after) = after.filter(|c| !c.at("state.terminated").is_set()) {
            e.forbidden(&after.at("state"), "may not be transitioned to non-terminated state");
        }
    }
}

/// A pod into which ephemeral containers are put.
pub(super) fn ephemeral_update(e: &mut Errors, new: &At, old: &Value) {
    metadata_and_spec(e, new);
    let list = new.at("spec.ephemeralContainers");
    for before in At::root(&old["spec"]).at("ephemeralContainers").items() {
        let name = before.at("name").str();
        match list.items().find(|c| c.at("name").str() == name) {
            None => e.forbidden(&list, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if !same(now.value, before.value) => {
                e.forbidden(&list, format!("existing ephemeral containers {name:?} may not be changed\n{}", now.changes(before.value, now.value)));
            }
            Some(_) => {}
        }
    }
}

/// A pod whose resources are resized in place: nothing but CPU and memory may change.
pub(super) fn resize(e: &mut Errors, new: &At, old: &Value) {
    metadata_and_spec(e, new);
    let spec = new.at("spec");
    if crate::pod::qos_class(new.value) != crate::pod::qos_class(old) {
        e.invalid_value(&spec, crate::pod::qos_class(new.value), "Pod QOS Class may not change as a result of resizing");
    }
    let without_amounts = |spec: &Value| {
        let mut copy = spec.clone();
        for list in ["containers", "initContainers"] {
            for container in copy[list].as_array_mut().into_iter().flatten() {
                for amounts in ["requests", "limits"] {
                    for name in ["cpu", "memory"] {
                        crate::value::remove(container, &["resources", amounts, name]);
                    }
                }
            }
        }
        copy
    };
    if !same(&without_amounts(spec.value), &without_amounts(&old["spec"])) {
        e.forbidden(&spec, "only cpu and memory resources are mutable");
    }
}
