//! Containers: ports, environment, mounts, probes, security.

use std::collections::HashSet;

use serde_json::Value;

use super::check::{At, Errors};
use super::{resources, windows};
use crate::names;

pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// What containers are checked against: facts of the pod they are in.
pub(super) struct Pod<'a> {
    /// The pod's spec.
    pub spec: At<'a>,
    /// The volumes that are well formed.
    pub volumes: Vec<At<'a>>,
    /// The names of the pod's resource claims.
    pub claims: Vec<&'a str>,
    /// Whether it is a pod itself, not a template of one.
    pub is_pod: bool,
}

impl<'a> Pod<'a> {
    fn volume(&self, name: &str) -> Option<&At<'a>> {
        self.volumes.iter().find(|v| v.at("name").str() == name)
    }

    fn grace(&self) -> i64 {
        self.spec.at("terminationGracePeriodSeconds").number()
    }
}

/// The main containers.
pub(super) fn containers(e: &mut Errors, pod: &Pod) {
    let list = pod.spec.at("containers");
    if list.is_empty() {
        return e.required(&list, "");
    }
    let mut names = HashSet::new();
    for container in list.items() {
        common(e, &container, pod);
        unique_name(e, &container, &mut names, true);
        running(e, &container, pod);
        restart_policy(e, &container);
    }
    host_ports(e, list.items());
}

/// The init containers, sidecars among them.
pub(super) fn init_containers(e: &mut Errors, pod: &Pod) {
    let mut names: HashSet<&str> = pod.spec.at("containers").items().map(|c| c.at("name").str()).collect();
    for container in pod.spec.at("initContainers").items() {
        common(e, &container, pod);
        if container.at("restartPolicy").is_set() {
            restart_policy(e, &container);
        } else if !container.at("restartPolicyRules").is_empty() {
            e.required(&container.at("restartPolicy"), RULES_WITHOUT_POLICY);
        }
        unique_name(e, &container, &mut names, false);
        host_ports(e, std::iter::once(container.clone()));
        if container.at("restartPolicy").str() == "Always" {
            running(e, &container, pod);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.at(field).is_set() {
                e.forbidden(&container.at(field), "may not be set for init containers without restartPolicy=Always");
            }
        }
    }
}

/// The fields that an ephemeral container may have.
const EPHEMERAL: [&str; 17] = [
    "name", "image", "command", "args", "workingDir", "envFrom", "env", "volumeMounts", "volumeDevices", "terminationMessagePath",
    "terminationMessagePolicy", "imagePullPolicy", "securityContext", "stdin", "stdinOnce", "tty", "targetContainerName",
];

/// The containers put into a running pod.
pub(super) fn ephemeral_containers(e: &mut Errors, pod: &Pod) {
    let others: HashSet<&str> =
        ["containers", "initContainers"].iter().flat_map(|list| pod.spec.at(list).items()).map(|c| c.at("name").str()).collect();
    let mut names = others.clone();
    for container in pod.spec.at("ephemeralContainers").items() {
        common(e, &container, pod);
        image_blanks(e, &container);
        unique_name(e, &container, &mut names, true);
        let target = container.at("targetContainerName");
        if !target.is_empty() && !others.contains(target.str()) {
            e.not_found(&target);
        }
        for (field, value) in container.value.as_object().into_iter().flatten() {
            // What Go has a pointer to is there even when it is empty; of a lifecycle what is off may have gone.
            let given = !At::root(value).is_empty() || value.is_object() && !matches!(field.as_str(), "resources" | "lifecycle");
            if given && !EPHEMERAL.contains(&field.as_str()) {
                e.forbidden(&container.at(field), "cannot be set for an Ephemeral Container");
            }
        }
        for mount in container.at("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.at(field).is_empty() {
                    e.forbidden(&mount.at(field), "cannot be set for an Ephemeral Container");
                }
            }
        }
    }
}

pub(super) fn image_blanks(e: &mut Errors, container: &At) {
    let image = container.at("image");
    if image.str().trim() != image.str() {
        e.invalid(&image, "must not have leading or trailing whitespace");
    }
}

fn unique_name<'a>(e: &mut Errors, container: &At<'a>, names: &mut HashSet<&'a str>, with_empty: bool) {
    let name = container.at("name");
    if names.contains(name.str()) {
        e.push(crate::field::Error::duplicate(&name.path, name.str()));
    } else if with_empty || !name.is_empty() {
        names.insert(name.str());
    }
}

fn host_ports<'a>(e: &mut Errors, containers: impl Iterator<Item = At<'a>>) {
    let mut taken = HashSet::new();
    for port in containers.flat_map(|c| c.at("ports").items()) {
        let number = port.at("hostPort").number();
        let shown = format!("{}/{}/{number}", port.at("protocol").str(), port.at("hostIP").str());
        if number != 0 && !taken.insert(shown.clone()) {
            e.push(crate::field::Error::duplicate(port.below("hostPort"), shown));
        }
    }
}

fn common(e: &mut Errors, container: &At, pod: &Pod) {
    e.required_form(&container.at("name"), names::dns_label);
    e.filled(&container.at("image"));
    e.one_of(&container.at("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"]);
    ports(e, &container.at("ports"));
    environment(e, container, pod);
    mounts(e, container, pod);
    devices(e, container, pod);
    e.one_of(&container.at("imagePullPolicy"), &["Always", "IfNotPresent", "Never"]);
    resources::requirements(e, &container.at("resources"), resources::container_name, &pod.claims);
    resize_policy(e, &container.at("resizePolicy"), pod);
    security(e, &container.at("securityContext"), pod);
}

fn ports(e: &mut Errors, list: &At) {
    let mut names = HashSet::new();
    for port in list.items() {
        let name = port.at("name");
        if !name.is_empty() {
            let before = e.0.len();
            e.form(&name, names::port_name);
            if !e.has_since(before) && !names.insert(name.str()) {
                e.duplicate(&name);
            }
        }
        let number = port.at("containerPort");
        if number.number() == 0 {
            e.required(&number, "");
        } else {
            e.port_number(&number);
        }
        if port.at("hostPort").number() != 0 {
            e.port_number(&port.at("hostPort"));
        }
        e.one_of(&port.at("protocol"), &PROTOCOLS);
    }
}

fn environment(e: &mut Errors, container: &At, pod: &Pod) {
    for var in container.at("env").items() {
        e.required_form(&var.at("name"), names::env_var);
        value_from(e, &var, pod);
    }
    let list = container.at("envFrom");
    for source in list.items() {
        e.optional_form(&source.at("prefix"), names::env_var);
        let sources = ["configMapRef", "secretRef"].map(|name| source.at(name));
        for reference in sources.iter().filter(|s| s.is_set()) {
            e.required_form(&reference.at("name"), names::dns_subdomain);
        }
        match sources.iter().filter(|s| s.is_set()).count() {
            0 => e.invalid_value(&list, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => e.invalid_value(&list, "", "may not have more than one field specified at a time"),
        }
    }
}

fn value_from(e: &mut Errors, var: &At, pod: &Pod) {
    let from = var.at("valueFrom");
    if !from.is_set() {
        return;
    }
    let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    for (name, source) in sources.iter().map(|name| (*name, from.at(name))).filter(|(_, s)| s.is_set()) {
        match name {
            "fieldRef" => field_ref(e, &source, &ENV_FIELDS),
            "resourceFieldRef" => resource_ref(e, &source, false),
            "fileKeyRef" => file_key(e, &source, pod),
            _ => {
                e.form(&source.at("name"), names::dns_subdomain);
                e.required_form(&source.at("key"), names::config_key);
            }
        }
    }
    match sources.iter().filter(|name| from.at(name).is_set()).count() {
        0 => {
            let words = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            e.invalid_value(&from, "", words);
        }
        _ if !var.at("value").is_empty() => e.invalid_value(&from, "", "may not be specified when `value` is not empty"),
        1 => {}
        _ => e.invalid_value(&from, "", "may not have more than one field specified at a time"),
    }
}

fn file_key(e: &mut Errors, source: &At, pod: &Pod) {
    e.required_form(&source.at("key"), names::env_var);
    let volume = source.at("volumeName");
    e.required_form(&volume, names::dns_label);
    if source.at("path").is_empty() {
        e.required(&source.at("path"), "");
    } else {
        e.no_backsteps(&source.at("path"));
    }
    match pod.spec.at("volumes").items().find(|v| v.at("name").str() == volume.str()) {
        None => e.not_found(&volume),
        Some(v) if !v.at("emptyDir").is_set() => e.invalid(&volume, "referenced volume must be of type emptyDir"),
        Some(_) => {}
    }
}

/// The fields of a pod that an environment variable can hold.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// The fields of a pod that a file can hold.
pub(super) const FILE_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// A reference to a field of the pod.
pub(super) fn field_ref(e: &mut Errors, source: &At, allowed: &[&str]) {
    e.filled(&source.at("apiVersion"));
    let path = source.at("fieldPath");
    if path.is_empty() {
        return e.required(&path, "");
    }
    let subscripted = path.str().strip_suffix("']").and_then(|p| p.split_once("['"));
    match subscripted {
        Some(("metadata.annotations", key)) => {
            e.text_form(source, &key.to_lowercase(), names::qualified_name);
        }
        Some(("metadata.labels", key)) => {
            e.text_form(source, key, names::qualified_name);
        }
        Some((other, _)) => e.invalid_value(source, other, "does not support subscript"),
        None if !ENV_FIELDS.contains(&path.str()) && !FILE_FIELDS.contains(&path.str()) => {
            e.invalid(&path, format!("error converting fieldPath: field label not supported: {}", path.str()));
        }
        None if !allowed.contains(&path.str()) => e.unsupported(&path, allowed),
        None => {}
    }
}

/// A reference to an amount of a container's resources.
pub(super) fn resource_ref(e: &mut Errors, source: &At, of_volume: bool) {
    let names = ["limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"];
    let resource = source.at("resource");
    let huge = ["requests.hugepages-", "limits.hugepages-"].iter().any(|p| resource.str().starts_with(p));
    if of_volume && source.at("containerName").is_empty() {
        e.required(&source.at("containerName"), "");
    } else if resource.is_empty() {
        e.required(&resource, "");
    } else if !names.contains(&resource.str()) && !huge {
        e.unsupported(&resource, &names);
    }
    let divisor = source.at("divisor");
    if divisor.quantity().is_none_or(|q| q.is_zero()) {
        return;
    }
    let sizes = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
    let (allowed, kind) = match resource.str().split_once('.').map_or("", |(_, name)| name) {
        "cpu" => ("1m, 1", "cpu"),
        "memory" => (sizes, "memory"),
        "ephemeral-storage" => (sizes, "local ephemeral storage"),
        _ if huge => (sizes, "hugepages"),
        _ => return,
    };
    if !allowed.split(", ").any(|d| d == divisor.str()) {
        let list = if kind == "cpu" { "1m and 1" } else { allowed };
        e.invalid_value(&divisor, resource.str(), format!("only divisor's values {list} are supported with the {kind} resource"));
    }
}

fn mounts(e: &mut Errors, container: &At, pod: &Pod) {
    let list = container.at("volumeMounts");
    let devices: Vec<At> = container.at("volumeDevices").items().collect();
    let mut paths = Vec::new();
    for mount in list.items() {
        let (name, path) = (mount.at("name"), mount.at("mountPath"));
        e.filled(&name);
        if pod.volume(name.str()).is_none() {
            e.push(crate::field::Error::not_found(&name.path, name.str()));
        }
        e.filled(&path);
        if paths.contains(&path.str()) {
            e.invalid(&path, "must be unique");
        }
        paths.push(path.str());
        if devices.iter().any(|d| d.at("name").str() == name.str()) {
            e.invalid(&name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.at("devicePath").str() == path.str()) {
            e.invalid(&path, "must not already exist as a path in volumeDevices");
        }
        // Upstream names no item in what follows.
        let whole = |field: &str| mount.at(field).called(list.below(field));
        let (sub, expression) = (mount.at("subPath"), mount.at("subPathExpr"));
        if !sub.is_empty() {
            e.relative_path(&whole("subPath"));
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                e.invalid(&expression, "subPathExpr and subPath are mutually exclusive");
            }
            e.relative_path(&whole("subPathExpr"));
        }
        let propagation = whole("mountPropagation");
        e.maybe_one_of(&propagation, &["Bidirectional", "HostToContainer", "None"]);
        if propagation.str() == "Bidirectional" && !container.at("securityContext.privileged").flag() {
            e.forbidden(&propagation, "Bidirectional mount propagation is available only to privileged containers");
        }
        recursive_read_only(e, &mount, &whole("recursiveReadOnly"));
    }
}

fn recursive_read_only(e: &mut Errors, mount: &At, at: &At) {
    match at.str() {
        "Enabled" | "IfPossible" => {
            if !mount.at("readOnly").flag() {
                e.forbidden(at, "may only be specified when readOnly is true");
            }
            if !matches!(mount.at("mountPropagation").str(), "" | "None") {
                e.forbidden(at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => e.maybe_one_of(at, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(e: &mut Errors, container: &At, pod: &Pod) {
    let mounts: Vec<At> = container.at("volumeMounts").items().collect();
    let (mut names, mut paths) = (Vec::new(), Vec::new());
    for device in container.at("volumeDevices").items() {
        let (name, path) = (device.at("name"), device.at("devicePath"));
        e.filled(&name);
        if names.contains(&name.str()) {
            e.invalid(&name, "must be unique");
        }
        match pod.volume(name.str()) {
            Some(volume) if !volume.at("persistentVolumeClaim").is_set() && !volume.at("ephemeral").is_set() => {
                e.invalid(&name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
            }
            Some(_) => {}
            None => e.push(crate::field::Error::not_found(&name.path, name.str())),
        }
        e.filled(&path);
        if paths.contains(&path.str()) {
            e.invalid(&path, "must be unique");
        }
        if path.str().split('/').any(|part| part == "..") {
            e.invalid(&path, "can not contain backsteps ('..')");
        } else {
            paths.push(path.str());
        }
        if mounts.iter().any(|m| m.at("name").str() == name.str()) {
            e.invalid(&name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.at("mountPath").str() == path.str()) {
            e.invalid(&path, "must not already exist as a path in volumeMounts");
        }
        names.push(name.str());
    }
}

fn resize_policy(e: &mut Errors, list: &At, pod: &Pod) {
    let mut named = Vec::new();
    for policy in list.items() {
        // Upstream's errors are of the list.
        let (resource, restart) = (policy.at("resourceName").called(&list.path), policy.at("restartPolicy").called(&list.path));
        if named.contains(&resource.str()) {
            e.push(crate::field::Error::duplicate(&policy.path, resource.str()));
        }
        named.push(resource.str());
        e.one_of(&resource, &["cpu", "memory"]);
        e.one_of(&restart, &["NotRequired", "RestartContainer"]);
        if pod.spec.at("restartPolicy").str() == "Never" && restart.str() != "NotRequired" {
            e.invalid(&restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

const RULES_WITHOUT_POLICY: &str = "must specify restartPolicy when restart rules are used";

fn restart_policy(e: &mut Errors, container: &At) {
    let (policy, rules) = (container.at("restartPolicy"), container.at("restartPolicyRules"));
    if policy.is_set() {
        e.maybe_one_of(&policy, &["Always", "Never", "OnFailure"]);
    } else if !rules.is_empty() {
        e.required(&policy, RULES_WITHOUT_POLICY);
    }
    if rules.len() > 20 {
        e.too_long(&rules, 20);
    }
    for rule in rules.items() {
        let codes = rule.at("exitCodes");
        let actions = ["Restart", "RestartAllContainers"];
        if !actions.contains(&rule.at("action").str()) {
            e.push(crate::field::Error::not_supported(rule.below("action"), rule.at("action").str(), &actions));
        }
        if !codes.is_set() {
            e.required(&codes, "must be specified");
            continue;
        }
        if !matches!(codes.at("operator").str(), "In" | "NotIn") {
            e.push(crate::field::Error::not_supported(codes.below("operator"), codes.at("operator").str(), &["In", "NotIn"]));
        }
        if codes.at("values").len() > 255 {
            e.too_long(&codes.at("values"), 255);
        }
    }
}

/// What only a container that goes on running has: hooks and probes.
fn running(e: &mut Errors, container: &At, pod: &Pod) {
    let lifecycle = container.at("lifecycle");
    for hook in ["postStart", "preStop"] {
        if lifecycle.at(hook).is_set() {
            handler(e, &lifecycle.at(hook), pod);
        }
    }
    let signal = lifecycle.at("stopSignal");
    if signal.is_set() {
        match pod.spec.at("os.name").str() {
            "" => e.forbidden(&signal, "may not be set for containers with empty `spec.os.name`"),
            "windows" => e.maybe_one_of(&signal, &["SIGKILL", "SIGTERM"]),
            _ => {}
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.at(name);
        if !probe.is_set() {
            continue;
        }
        handler(e, &probe, pod);
        for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            e.non_negative(&probe.at(field));
        }
        let (grace, threshold) = (probe.at("terminationGracePeriodSeconds"), probe.at("successThreshold"));
        e.at_least(&grace, 1, "must be greater than 0");
        if name == "readinessProbe" {
            if grace.is_set() {
                e.invalid(&grace, "must not be set for readinessProbes");
            }
        } else if threshold.number() != 1 {
            e.invalid_value(&threshold, threshold.number(), "must be 1");
        }
    }
}

/// A probe's or hook's one way to ask or tell.
fn handler(e: &mut Errors, at: &At, pod: &Pod) {
    let mut found = false;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let way = at.at(kind);
        if !way.is_set() {
            continue;
        }
        if found {
            e.forbidden(&way, "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        match kind {
            "exec" => e.filled(&way.at("command")),
            "httpGet" => {
                e.filled(&way.at("path"));
                e.port(&way.at("port"));
                e.maybe_one_of(&way.at("scheme"), &["HTTP", "HTTPS"]);
                for header in way.at("httpHeaders").items() {
                    e.form(&header.at("name").called(way.below("httpHeaders")), names::http_header);
                }
            }
            "sleep" => {
                let (seconds, grace) = (way.at("seconds").number(), pod.grace());
                if !(0..=grace).contains(&seconds) {
                    e.invalid_value(&way, seconds, format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"));
                }
            }
            _ => e.port(&way.at("port")),
        }
    }
    if !found {
        e.required(at, "must specify a handler type");
    }
}

fn security(e: &mut Errors, at: &At, pod: &Pod) {
    if !at.is_set() {
        return;
    }
    e.user_id(&at.at("runAsUser"));
    e.user_id(&at.at("runAsGroup"));
    let mount = at.at("procMount");
    e.maybe_one_of(&mount, &["Default", "Unmasked"]);
    if mount.str() == "Unmasked" && pod.spec.at("hostUsers").value != &Value::Bool(false) {
        e.invalid(&mount, "`hostUsers` must be false to use `Unmasked`");
    }
    seccomp(e, &at.at("seccompProfile"));
    if at.at("allowPrivilegeEscalation").value == &Value::Bool(false) {
        if at.at("privileged").flag() {
            e.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        if at.at("capabilities.add").texts().contains(&"CAP_SYS_ADMIN") {
            e.invalid(at, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    windows::options(e, &at.at("windowsOptions"));
    app_armor(e, &at.at("appArmorProfile"));
}

/// A seccomp profile of a pod or a container.
pub(super) fn seccomp(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    let (kind, local) = (at.at("type"), at.at("localhostProfile"));
    match kind.str() {
        "" => e.required(&kind, "type is required when seccompProfile is set"),
        _ => e.maybe_one_of(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    if kind.str() == "Localhost" {
        if local.is_set() {
            e.relative_path(&local);
        } else {
            e.required(&local, "must be set when seccomp type is Localhost");
        }
    } else if local.is_set() {
        e.invalid(&at.called(&local.path), "can only be set when seccomp type is Localhost");
    }
}

/// An AppArmor profile of a pod or a container.
pub(super) fn app_armor(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return;
    }
    let (kind, local) = (at.at("type"), at.at("localhostProfile"));
    match kind.str() {
        "" => e.required(&kind, "type is required when appArmorProfile is set"),
        "Localhost" if local.str().trim().is_empty() => e.required(&local, "must be set when AppArmor type is Localhost"),
        "Localhost" if local.str().trim() != local.str() => e.invalid(&local, "must not be padded with whitespace"),
        "Localhost" => {}
        _ => e.maybe_one_of(&kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    if matches!(kind.str(), "RuntimeDefault" | "Unconfined") && local.is_set() {
        e.invalid(&local, "can only be set when AppArmor type is Localhost");
    }
}
