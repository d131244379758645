//! The cells that take a function, by resource and heading. The rules are those of upstream's printers.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::duration::{age, human};
use super::{count, join, or, selector, shown};
use crate::value::{at, condition, items, text, time};

/// The cell of the column in the object's row.
pub(super) fn cell(plural: &str, column: &str, object: &Value, now: Timestamp) -> Value {
    let of = |path: &[&str]| text(object, path);
    match (plural, column) {
        ("componentstatuses", _) => component(column, object),
        ("configmaps", "Data") => (count(&object["data"]) + count(&object["binaryData"])).into(),
        ("endpoints", "Endpoints") => endpoints(object).into(),
        ("events", _) => event(column, object, now),
        ("nodes", _) => node(column, object),
        ("persistentvolumes" | "persistentvolumeclaims", _) => volume(plural, column, object),
        ("resourcequotas", _) => quota(object, column == "Limit").into(),
        ("services", _) => service(column, object),
        ("mutatingadmissionpolicies" | "validatingadmissionpolicies", "ParamKind") => match at(object, &["spec", "paramKind"]) {
            Value::Null => "<unset>".into(),
            kind => format!("{}/{}", text(kind, &["apiVersion"]), text(kind, &["kind"])).into(),
        },
        ("mutatingadmissionpolicybindings" | "validatingadmissionpolicybindings", "ParamRef") => match at(object, &["spec", "paramRef"]) {
            Value::Null => "<unset>".into(),
            by if text(by, &["name"]).is_empty() => selector(&by["selector"], "", "<error>"),
            by => format!("{}/{}", or_star(text(by, &["namespace"])), text(by, &["name"])).into(),
        },
        ("apiservices", "Service") => match at(object, &["spec", "service"]) {
            Value::Null => "Local".into(),
            service => format!("{}/{}", text(service, &["namespace"]), text(service, &["name"])).into(),
        },
        ("apiservices", "Available") => match condition(object, "Available") {
            None => "Unknown".into(),
            Some(c) if c["status"] == "True" || text(c, &["reason"]).is_empty() => c["status"].clone(),
            Some(c) => format!("{} ({})", text(c, &["status"]), text(c, &["reason"])).into(),
        },
        ("controllerrevisions", "Controller") => controller(object).into(),
        ("deployments" | "statefulsets", "Ready") => {
            let number = |path: &[&str]| at(object, path).as_i64().unwrap_or(0);
            format!("{}/{}", number(&["status", "readyReplicas"]), number(&["spec", "replicas"])).into()
        }
        ("deployments", "Selector") => selector(at(object, &["spec", "selector"]), "", "<invalid>"),
        ("horizontalpodautoscalers", "Reference") => {
            format!("{}/{}", of(&["spec", "scaleTargetRef", "kind"]), of(&["spec", "scaleTargetRef", "name"])).into()
        }
        ("horizontalpodautoscalers", "Targets") => targets(object).into(),
        ("cronjobs", "Suspend") => match at(object, &["spec", "suspend"]) {
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            _ => "<unset>".into(),
        },
        ("jobs", _) => job(column, object, now),
        ("certificatesigningrequests", "RequestedDuration") => {
            let seconds = at(object, &["spec", "expirationSeconds"]).as_i64();
            seconds.map_or_else(|| "<none>".into(), |s| human(SignedDuration::from_secs(s)).into())
        }
        ("certificatesigningrequests", "Condition") => certificate_request(object).into(),
        ("endpointslices", "Ports") => first_three(items(object, &["ports"]).iter().map(|p| match &p["port"] {
            Value::Null if text(p, &["name"]).is_empty() => "*".to_owned(),
            Value::Null => text(p, &["name"]).to_owned(),
            number => number.to_string(),
        }))
        .unwrap_or_else(|| "<unset>".to_owned())
        .into(),
        ("endpointslices", "Endpoints") => {
            let addresses = items(object, &["endpoints"]).iter().flat_map(|e| items(e, &["addresses"])).map(shown);
            first_three(addresses).unwrap_or_else(|| "<unset>".to_owned()).into()
        }
        ("flowschemas", "MissingPL") => condition(object, "Dangling").map_or_else(|| "?".into(), |c| c["status"].clone()),
        ("ingressclasses", "Name") => named_default(object, &["ingressclass.kubernetes.io/is-default-class"]).into(),
        ("storageclasses", "Name") => {
            let annotations = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
            named_default(object, &annotations).into()
        }
        ("ingressclasses", "Parameters") => match at(object, &["spec", "parameters"]) {
            Value::Null => "<none>".into(),
            p => format!("{}/{}", with_group(text(p, &["kind"]), text(p, &["apiGroup"])), text(p, &["name"])).into(),
        },
        ("ingresses", "Hosts") => hosts(object).into(),
        ("ingresses", "Address") => balancer_addresses(object).into(),
        ("ingresses", "Ports") => if count(at(object, &["spec", "tls"])) > 0 { "80, 443".into() } else { "80".into() },
        ("ipaddresses", "ParentRef") => parent(object).into(),
        ("clusterrolebindings" | "rolebindings", "Role") => format!("{}/{}", of(&["roleRef", "kind"]), of(&["roleRef", "name"])).into(),
        ("clusterrolebindings" | "rolebindings", _) => subjects(object, column.trim_end_matches('s')).into(),
        ("resourceclaims", "State") => claim_state(object).into(),
        ("csidrivers", "TokenRequests") => match at(object, &["spec", "tokenRequests"]) {
            Value::Null => "<unset>".into(),
            _ => join(items(object, &["spec", "tokenRequests"]).iter().map(|r| &r["audience"])).into(),
        },
        _ => Value::Null,
    }
}

fn or_star(text: &str) -> &str {
    if text.is_empty() { "*" } else { text }
}

fn with_group(kind: &str, group: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}

/// Up to three, and how many more there are; nothing when there are none.
fn first_three(values: impl Iterator<Item = String>) -> Option<String> {
    let all: Vec<String> = values.collect();
    let shown = all.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(",");
    match all.len() {
        0 => None,
        1..=3 => Some(shown),
        n => Some(format!("{shown} + {} more...", n - 3)),
    }
}

fn component(column: &str, object: &Value) -> Value {
    let healthy = items(object, &["conditions"]).iter().find(|c| c["type"] == "Healthy");
    match (column, healthy) {
        ("Status", None) => "Unknown".into(),
        ("Status", Some(c)) if c["status"] == "True" => "Healthy".into(),
        ("Status", Some(_)) => "Unhealthy".into(),
        (column, c) => c.map_or("", |c| text(c, &[&column.to_lowercase()])).into(),
    }
}

fn endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in items(object, &["subsets"]) {
        let addresses = || items(subset, &["addresses"]).iter().map(|a| text(a, &["ip"]));
        let ports = items(subset, &["ports"]);
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let joined = |ip: &str| if ip.contains(':') { format!("[{ip}]:{}", port["port"]) } else { format!("{ip}:{}", port["port"]) };
            all.extend(addresses().map(joined));
        }
    }
    if items(object, &["subsets"]).is_empty() {
        return "<none>".to_owned();
    }
    first_three(all.into_iter()).unwrap_or_default()
}

fn event(column: &str, object: &Value, now: Timestamp) -> Value {
    let of = |path: &[&str]| text(object, path);
    let first_seen = || age(time(object, &["firstTimestamp"]).or_else(|| time(object, &["eventTime"])), now);
    match column {
        "Last Seen" => match (at(object, &["series"]), time(object, &["lastTimestamp"])) {
            (Value::Object(_), _) => age(time(object, &["series", "lastObservedTime"]), now),
            (_, Some(last)) => age(Some(last), now),
            (_, None) => first_seen(),
        }
        .into(),
        "First Seen" => first_seen().into(),
        "Object" => {
            let (kind, name) = (of(&["involvedObject", "kind"]).to_lowercase(), of(&["involvedObject", "name"]));
            if name.is_empty() { kind.into() } else { format!("{kind}/{name}").into() }
        }
        "Source" => {
            let either = |new: &'static str, old: &'static str| Some(of(&["source", old])).filter(|t| !t.is_empty()).unwrap_or_else(|| of(&[new]));
            let (component, instance) = (either("reportingComponent", "component"), either("reportingInstance", "host"));
            if instance.is_empty() { component.into() } else { format!("{component}, {instance}").into() }
        }
        "Message" => of(&["message"]).trim().into(),
        "Count" => {
            let counted = at(object, &["series", "count"]).as_i64().or_else(|| object["count"].as_i64());
            counted.filter(|n| *n != 0).unwrap_or(1).into()
        }
        _ => Value::Null,
    }
}

fn node(column: &str, object: &Value) -> Value {
    match column {
        "Status" => {
            let ready = items(object, &["status", "conditions"]).iter().rfind(|c| c["type"] == "Ready");
            let status = ready.map_or("Unknown", |c| if c["status"] == "True" { "Ready" } else { "NotReady" });
            let cordoned = at(object, &["spec", "unschedulable"]) == true;
            if cordoned { format!("{status},SchedulingDisabled").into() } else { status.into() }
        }
        "Roles" => {
            let labels = at(object, &["metadata", "labels"]).as_object().into_iter().flatten();
            let role = |(key, value): (&'_ String, &'_ Value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role.to_owned()),
                None if key == "kubernetes.io/role" => value.as_str().map(str::to_owned),
                None => None,
            };
            let roles: BTreeSet<String> = labels.filter_map(role).filter(|r| !r.is_empty()).collect();
            or(&roles.into_iter().collect::<Vec<_>>().join(","), "<none>")
        }
        "Internal-IP" | "External-IP" => {
            let kind = if column == "Internal-IP" { "InternalIP" } else { "ExternalIP" };
            let address = items(object, &["status", "addresses"]).iter().find(|a| a["type"] == kind);
            or(address.map_or("", |a| text(a, &["address"])), "<none>")
        }
        _ => {
            let info = at(object, &["status", "nodeInfo"]);
            let (kernel, architecture) = (text(info, &["kernelVersion"]), text(info, &["architecture"]));
            let kernel = if kernel.is_empty() { "<unknown>" } else { kernel };
            if architecture.is_empty() { kernel.into() } else { format!("{kernel} ({architecture})").into() }
        }
    }
}

fn access_modes(modes: &[Value]) -> String {
    let all = [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let short: Vec<&str> = all.iter().filter(|(mode, _)| modes.iter().any(|m| m == mode)).map(|(_, short)| *short).collect();
    short.join(",")
}

fn volume(plural: &str, column: &str, object: &Value) -> Value {
    let is_claim = plural == "persistentvolumeclaims";
    let holder = if is_claim { "status" } else { "spec" };
    let unbound = is_claim && text(object, &["spec", "volumeName"]).is_empty();
    match column {
        "Status" if !at(object, &["metadata", "deletionTimestamp"]).is_null() => "Terminating".into(),
        "Status" => text(object, &["status", "phase"]).into(),
        "Capacity" | "Access Modes" if unbound => "".into(),
        "Capacity" => or(text(object, &[holder, "capacity", "storage"]), "0"),
        "Access Modes" => access_modes(items(object, &[holder, "accessModes"])).into(),
        "Claim" => match at(object, &["spec", "claimRef"]) {
            Value::Null => "".into(),
            claim => format!("{}/{}", text(claim, &["namespace"]), text(claim, &["name"])).into(),
        },
        _ => match at(object, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]) {
            Value::String(class) => class.as_str().into(),
            _ => text(object, &["spec", "storageClassName"]).into(),
        },
    }
}

fn quota(object: &Value, limits: bool) -> String {
    let hard = at(object, &["status", "hard"]).as_object().into_iter().flatten();
    let counted = hard.filter(|(name, _)| name.starts_with("limits.") == limits).map(|(name, hard)| {
        let used = at(object, &["status", "used", name]).as_str().unwrap_or("0");
        format!("{name}: {used}/{}", hard.as_str().unwrap_or("0"))
    });
    counted.collect::<Vec<_>>().join(", ")
}

fn balancer_addresses(object: &Value) -> String {
    let entries = items(object, &["status", "loadBalancer", "ingress"]).iter();
    let address = |e: &Value| Some(text(e, &["ip"])).filter(|ip| !ip.is_empty()).unwrap_or_else(|| text(e, &["hostname"])).to_owned();
    let all: BTreeSet<String> = entries.map(address).filter(|a| !a.is_empty()).collect();
    all.into_iter().collect::<Vec<_>>().join(",")
}

fn service(column: &str, object: &Value) -> Value {
    match column {
        "Cluster-IP" => or(items(object, &["spec", "clusterIPs"]).first().and_then(Value::as_str).unwrap_or(""), "<none>"),
        "Port(s)" => {
            let ports = items(object, &["spec", "ports"]).iter().map(|p| match p["nodePort"].as_i64() {
                Some(node) if node > 0 => format!("{}:{node}/{}", p["port"], text(p, &["protocol"])),
                _ => format!("{}/{}", p["port"], text(p, &["protocol"])),
            });
            or(&ports.collect::<Vec<_>>().join(","), "<none>")
        }
        _ => {
            let given = join(items(object, &["spec", "externalIPs"]).iter());
            match text(object, &["spec", "type"]) {
                "ClusterIP" | "NodePort" => or(&given, "<none>"),
                "LoadBalancer" => {
                    let all = [balancer_addresses(object), given].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>();
                    or(&all.join(","), "<pending>")
                }
                "ExternalName" => text(object, &["spec", "externalName"]).into(),
                _ => "<unknown>".into(),
            }
        }
    }
}

fn controller(object: &Value) -> String {
    let owner = items(object, &["metadata", "ownerReferences"]).iter().find(|o| o["controller"] == true);
    owner.map_or_else(
        || "<none>".to_owned(),
        |o| {
            let group = text(o, &["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
            format!("{}/{}", with_group(text(o, &["kind"]), group).to_lowercase(), text(o, &["name"]))
        },
    )
}

fn targets(object: &Value) -> String {
    let metrics = items(object, &["spec", "metrics"]);
    let current = items(object, &["status", "currentMetrics"]);
    let known = |value: &Value| Some(shown(value)).filter(|t| !t.is_empty()).unwrap_or_else(|| "<unknown>".to_owned());
    let of = |i: usize, metric: &Value| -> String {
        let kind = text(metric, &["type"]);
        let Some(field) = [("Resource", "resource"), ("ContainerResource", "containerResource"), ("Pods", "pods"), ("Object", "object"), ("External", "external")]
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, field)| *field)
        else {
            return "<unknown type>".to_owned();
        };
        let target = at(metric, &[field, "target"]);
        let now = current.get(i).map_or(&Value::Null, |c| at(c, &[field, "current"]));
        let averaged = !target["averageValue"].is_null();
        match kind {
            "Resource" | "ContainerResource" => {
                let name = text(metric, &[field, "name"]);
                if averaged {
                    return format!("{name}: {}/{}", known(&now["averageValue"]), shown(&target["averageValue"]));
                }
                let percent = |value: &Value, none: &str| value.as_i64().map_or_else(|| none.to_owned(), |n| format!("{n}%"));
                format!("{name}: {}/{}", percent(&now["averageUtilization"], "<unknown>"), percent(&target["averageUtilization"], "<auto>"))
            }
            "Pods" => format!("{}/{}", known(&now["averageValue"]), shown(&target["averageValue"])),
            _ if averaged => format!("{}/{} (avg)", known(&now["averageValue"]), shown(&target["averageValue"])),
            _ => format!("{}/{}", known(&now["value"]), shown(&target["value"])),
        }
    };
    let shown: Vec<String> = metrics.iter().enumerate().take(2).map(|(i, m)| of(i, m)).collect();
    match metrics.len() {
        0 => "<none>".to_owned(),
        1 | 2 => shown.join(", "),
        n => format!("{} + {} more...", shown.join(", "), n - 2),
    }
}

fn job(column: &str, object: &Value, now: Timestamp) -> Value {
    let is = |kind: &str| condition(object, kind).is_some_and(|c| c["status"] == "True");
    match column {
        "Status" => {
            let terminating = !at(object, &["metadata", "deletionTimestamp"]).is_null();
            let states = [
                ("Complete", is("Complete")),
                ("Failed", is("Failed")),
                ("Terminating", terminating),
                ("Suspended", is("Suspended")),
                ("FailureTarget", is("FailureTarget")),
                ("SuccessCriteriaMet", is("SuccessCriteriaMet")),
            ];
            states.iter().find(|(_, holds)| *holds).map_or("Running", |(name, _)| name).into()
        }
        "Completions" => {
            let succeeded = at(object, &["status", "succeeded"]).as_i64().unwrap_or(0);
            let parallelism = at(object, &["spec", "parallelism"]).as_i64().unwrap_or(0);
            match at(object, &["spec", "completions"]).as_i64() {
                Some(completions) => format!("{succeeded}/{completions}"),
                None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
                None => format!("{succeeded}/1"),
            }
            .into()
        }
        _ => match time(object, &["status", "startTime"]) {
            None => "".into(),
            Some(start) => human(time(object, &["status", "completionTime"]).unwrap_or(now).duration_since(start)).into(),
        },
    }
}

fn certificate_request(object: &Value) -> String {
    let has = |kind: &str| condition(object, kind).is_some();
    let mut state = if has("Denied") { "Denied" } else if has("Approved") { "Approved" } else { "Pending" }.to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(object, &["status", "certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    state
}

fn named_default(object: &Value, annotations: &[&str]) -> String {
    let name = text(object, &["metadata", "name"]);
    let default = annotations.iter().any(|a| text(object, &["metadata", "annotations", a]) == "true");
    if default { format!("{name} (default)") } else { name.to_owned() }
}

fn hosts(object: &Value) -> String {
    let rules = items(object, &["spec", "rules"]);
    let mut hosts: Vec<&str> = Vec::new();
    for rule in rules {
        if hosts.len() == 3 {
            return format!("{} + {} more...", hosts.join(","), rules.len() - 3);
        }
        hosts.extend(Some(text(rule, &["host"])).filter(|h| !h.is_empty()));
    }
    if hosts.is_empty() { "*".to_owned() } else { hosts.join(",") }
}

fn parent(object: &Value) -> String {
    match at(object, &["spec", "parentRef"]) {
        Value::Null => "<none>".to_owned(),
        by => {
            let resource = with_group(text(by, &["resource"]), text(by, &["group"])).to_lowercase();
            let parts = [resource.as_str(), text(by, &["namespace"]), text(by, &["name"])];
            parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join("/")
        }
    }
}

fn subjects(object: &Value, kind: &str) -> String {
    let of_kind = items(object, &["subjects"]).iter().filter(|s| s["kind"] == kind);
    let shown = of_kind.map(|s| match kind {
        "ServiceAccount" => format!("{}/{}", text(s, &["namespace"]), text(s, &["name"])),
        _ => text(s, &["name"]).to_owned(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn claim_state(object: &Value) -> String {
    let deleted = !at(object, &["metadata", "deletionTimestamp"]).is_null();
    let allocated = !at(object, &["status", "allocation"]).is_null();
    let reserved = allocated && count(at(object, &["status", "reservedFor"])) > 0;
    let states = [("deleted", deleted), ("pending", !allocated && !deleted), ("allocated", allocated), ("reserved", reserved)];
    states.iter().filter(|(_, holds)| *holds).map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}
