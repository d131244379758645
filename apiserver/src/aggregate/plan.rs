//! What is to be decided about API services: which ones the server registers itself, and whether one is available.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use skiff_api::value::{at, items, text};

use crate::registry::Served;

/// Marks what the server registers itself: `onstart` what is built in, `true` what follows definitions.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// The group of API services themselves, which is never registered.
const OWN_GROUP: &str = "apiregistration.k8s.io";
/// Where custom groups stand among the groups, and their versions within them. Upstream's figures, like [`PRIORITIES`].
const CUSTOM: (i64, i64) = (1_000, 100);

/// The places of the built-in groups: group, version, priority of the group, of the version.
const PRIORITIES: &[(&str, &str, i64, i64)] = &[
    ("", "v1", 18_000, 1),
    ("apps", "v1", 17_800, 15),
    ("events.k8s.io", "v1", 17_750, 15),
    ("authentication.k8s.io", "v1", 17_700, 15),
    ("authorization.k8s.io", "v1", 17_600, 15),
    ("autoscaling", "v1", 17_500, 15),
    ("autoscaling", "v2", 17_500, 30),
    ("batch", "v1", 17_400, 15),
    ("certificates.k8s.io", "v1", 17_300, 15),
    ("networking.k8s.io", "v1", 17_200, 15),
    ("policy", "v1", 17_100, 15),
    ("rbac.authorization.k8s.io", "v1", 17_000, 15),
    ("storage.k8s.io", "v1", 16_800, 15),
    ("apiextensions.k8s.io", "v1", 16_700, 15),
    ("admissionregistration.k8s.io", "v1", 16_700, 15),
    ("scheduling.k8s.io", "v1", 16_600, 15),
    ("coordination.k8s.io", "v1", 16_500, 15),
    ("node.k8s.io", "v1", 16_300, 15),
    ("discovery.k8s.io", "v1", 16_200, 15),
    ("resource.k8s.io", "v1", 16_200, 21),
    ("flowcontrol.apiserver.k8s.io", "v1", 16_100, 21),
];

/// Where a group that is served here stands among the groups.
pub(crate) fn priority(group: &str) -> i64 {
    match PRIORITIES.iter().find(|(known, ..)| *known == group) {
        Some((_, _, priority, _)) => *priority,
        None if group == OWN_GROUP => i64::MAX,
        None => CUSTOM.0,
    }
}

/// What is to be done about a registration.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Create(Value),
    Replace(Value),
    Delete(String),
}

/// What is to be done so that everything that is served here is registered. What is built in is put right at the
/// `start` alone; what somebody else registered is left alone.
pub(super) fn registrations(served: &Served, existing: &BTreeMap<String, Value>, start: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut names = Vec::new();
    for (group, versions) in served.groups() {
        for version in versions.into_iter().filter(|_| group != OWN_GROUP) {
            let built_in = PRIORITIES.iter().find(|(g, v, ..)| *g == group && *v == version);
            let (place, version_place) = built_in.map_or(CUSTOM, |(_, _, group, version)| (*group, *version));
            let mode = if built_in.is_some() { "onstart" } else { "true" };
            let name = format!("{version}.{group}");
            let mut spec = json!({"version": version, "groupPriorityMinimum": place, "versionPriority": version_place});
            if !group.is_empty() {
                spec["group"] = group.into();
            }
            match existing.get(&name) {
                None if start || mode == "true" => steps.push(Step::Create(json!({
                    "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                    "metadata": {"name": name, "labels": {MANAGED: mode}}, "spec": spec,
                }))),
                Some(found) if (start || mode == "true") && managed(found) == mode && found["spec"] != spec => {
                    let mut found = found.clone();
                    found["spec"] = spec;
                    steps.push(Step::Replace(found));
                }
                _ => {}
            }
            names.push(name);
        }
    }
    let stale = existing.iter().filter(|(name, found)| managed(found) == "true" && !names.contains(name));
    steps.extend(stale.map(|(name, _)| Step::Delete(name.clone())));
    steps
}

fn managed(service: &Value) -> &str {
    text(service, &["metadata", "labels", MANAGED])
}

/// What is known of an API service's availability without asking it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It is so: status, reason, message.
    Is(bool, &'static str, String),
    /// Everything is in place; the server itself must be asked.
    Ask,
}

/// Whether an API service is available, as far as objects tell: its Service (if it is there) and the slices of that.
pub(super) fn verdict(service: &Value, found: Option<&Value>, slices: &[Value]) -> Verdict {
    let target = at(service, &["spec", "service"]);
    if !target.is_object() {
        return Verdict::Is(true, "Local", "Local APIServices are always available".into());
    }
    let (namespace, name, port) = target_of(target);
    let no = |reason, message| Verdict::Is(false, reason, message);
    let Some(found) = found else {
        return no("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    if text(found, &["spec", "type"]) != "ClusterIP" {
        return Verdict::Ask;
    }
    let Some(listening) = items(found, &["spec", "ports"]).iter().find(|p| p["port"].as_i64() == Some(port)) else {
        return no("ServicePortError", format!("service/{name} in {namespace:?} is not listening on port {port}"));
    };
    if slices.is_empty() {
        return no("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {namespace:?}"));
    }
    let port_name = text(listening, &["name"]);
    let serves = |slice: &&Value| {
        let ready = |e: &Value| at(e, &["conditions", "ready"]).as_bool() != Some(false);
        items(slice, &["endpoints"]).iter().any(ready)
            && items(slice, &["ports"]).iter().any(|p| text(p, &["name"]) == port_name && p["port"].is_number())
    };
    if !slices.iter().any(|slice| serves(&slice)) {
        return no("MissingEndpoints", format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"));
    }
    Verdict::Ask
}

/// Namespace, name and port.
pub(super) fn target_of(target: &Value) -> (&str, &str, i64) {
    (text(target, &["namespace"]), text(target, &["name"]), target["port"].as_i64().unwrap_or(443))
}

/// The API service with the condition; `None` when it has it already.
pub(super) fn with_condition(service: &Value, (status, reason, message): (bool, &str, &str), now: &str) -> Option<Value> {
    let status = if status { "True" } else { "False" };
    let mut conditions = items(service, &["status", "conditions"]).to_vec();
    match conditions.iter_mut().find(|c| c["type"] == "Available") {
        Some(known) if known["status"] == status && known["reason"] == reason && known["message"] == message => return None,
        Some(known) => {
            if known["status"] != status {
                known["status"] = status.into();
                known["lastTransitionTime"] = now.into();
            }
            known["reason"] = reason.into();
            known["message"] = message.into();
        }
        None => conditions.push(json!({"type": "Available", "status": status, "lastTransitionTime": now, "reason": reason, "message": message})),
    }
    let mut service = service.clone();
    service["status"] = json!({"conditions": conditions});
    Some(service)
}

/// Whether the object says that the API service is available.
pub(super) fn available(service: &Value) -> bool {
    items(service, &["status", "conditions"]).iter().any(|c| c["type"] == "Available" && c["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn check(service: Option<Value>, slices: &[Value], expected: &str) {
        let remote = json!({"spec": {"service": {"namespace": "n", "name": "s", "port": 443}}});
        let told = match verdict(&remote, service.as_ref(), slices) {
            Verdict::Ask => "ask".to_owned(),
            Verdict::Is(status, reason, message) => format!("{status} {reason}: {message}"),
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn availability() {
        let service = |port: i64| Some(json!({"spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": port}]}}));
        let slice = |ready: bool, port: &str| json!({"endpoints": [{"addresses": ["1.1.1.1"], "conditions": {"ready": ready}}], "ports": [{"name": port, "port": 8443}]});
        check(None, &[], "false ServiceNotFound: service/s in \"n\" is not present");
        check(service(80), &[], "false ServicePortError: service/s in \"n\" is not listening on port 443");
        check(service(443), &[], "false EndpointsNotFound: cannot find endpointslices for service/s in \"n\"");
        let missing = "false MissingEndpoints: endpointslices for service/s in \"n\" have no addresses with port name \"https\"";
        check(service(443), &[slice(false, "https")], missing);
        check(service(443), &[slice(true, "other")], missing);
        check(service(443), &[slice(true, "https")], "ask");
        check(Some(json!({"spec": {"type": "ExternalName"}})), &[], "ask");
        let local = verdict(&json!({"spec": {"group": "g"}}), None, &[]);
        assert_eq!(local, Verdict::Is(true, "Local", "Local APIServices are always available".into()));
    }

    #[test]
    fn conditions_change_only_with_what_they_say() {
        let made = with_condition(&json!({}), (false, "A", "a"), "t1").expect("a change");
        assert_eq!(with_condition(&made, (false, "A", "a"), "t2"), None);
        let other = with_condition(&made, (false, "B", "b"), "t2").expect("a change");
        assert_eq!(other["status"]["conditions"][0]["lastTransitionTime"], "t1");
        let passed = with_condition(&other, (true, "Passed", "p"), "t3").expect("a change");
        assert_eq!(passed["status"]["conditions"][0]["lastTransitionTime"], "t3");
        assert!(available(&passed) && !available(&other));
    }

    #[test]
    fn everything_served_is_registered_once() {
        let served = Registry::default().now();
        let mut existing = BTreeMap::new();
        let steps = registrations(&served, &existing, true);
        assert_eq!(steps.len(), PRIORITIES.len());
        for step in steps {
            let Step::Create(service) = step else { panic!("not created: {step:?}") };
            existing.insert(text(&service, &["metadata", "name"]).to_owned(), service);
        }
        assert_eq!(registrations(&served, &existing, true), []);
        let stale = json!({"metadata": {"labels": {MANAGED: "true"}}});
        existing.insert("v1.gone.io".into(), stale);
        existing.insert("v1.theirs.io".into(), json!({"metadata": {}}));
        assert_eq!(registrations(&served, &existing, false), [Step::Delete("v1.gone.io".into())]);
        existing.remove("v1.gone.io");
        existing.remove("v1.apps");
        assert_eq!(registrations(&served, &existing, false), []);
    }
}
