//! Default values, as upstream's defaulting pass sets them on every write. What is set on creation alone (by
//! strategies and admission) is the API server's.
//!
//! Plain defaults are data: `data/defaults.tsv` (definition, field, value) and the `default=` of schemas. What looks at
//! other fields is a function here. Both hold wherever the definition occurs in an object.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::quantity::Quantity;
use crate::resource::Resource;
use crate::schema::{Kind, Object, Presence, Schema};
use crate::value::{at, items, object_mut, text};
use crate::{clock, pod};

/// A plain default: where below the definition's object, and what.
type Row = (Vec<&'static str>, Value);

fn rows() -> &'static HashMap<&'static str, Vec<Row>> {
    static ROWS: OnceLock<HashMap<&'static str, Vec<Row>>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let mut all: HashMap<_, Vec<Row>> = HashMap::new();
        for line in include_str!("../data/defaults.tsv").lines().filter(|l| !l.starts_with('#')) {
            let mut cells = line.split('\t');
            let (definition, field, value) = (cells.next().unwrap_or(""), cells.next().unwrap_or(""), cells.next().unwrap_or(""));
            let value = serde_json::from_str(value).unwrap_or(Value::Null);
            all.entry(definition).or_default().push((field.split('.').collect(), value));
        }
        all
    })
}

/// Sets what is absent and has a default. The object must have been pruned by its schema; doing it twice changes nothing.
pub fn apply(resource: &Resource, object: &mut Value) {
    apply_schema(resource.schema(), object);
}

/// Sets what is absent and has a default by this schema: of built-in definitions and of custom resources alike.
pub fn apply_schema(schema: &Schema, value: &mut Value) {
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(map)) => {
            if !object.definition.is_empty() {
                computed(object.definition, map);
                for (path, default) in rows().get(object.definition).into_iter().flatten() {
                    set_at(object, map, path, default);
                }
            }
            by_schema(object, map);
            for (name, value) in map.iter_mut() {
                if let Some(property) = object.property(name) {
                    apply_schema(&property.schema, value);
                }
            }
        }
        (Kind::Map(values), Value::Object(map)) => map.values_mut().for_each(|value| apply_schema(values, value)),
        (Kind::List(list), Value::Array(items)) => items.iter_mut().for_each(|item| apply_schema(&list.items, item)),
        _ => {}
    }
}

fn by_schema(object: &Object, map: &mut Map<String, Value>) {
    for property in &object.properties {
        let Some(default) = &property.default else { continue };
        let absent = match map.get(property.name.as_ref()) {
            None => true,
            // In custom resources a null that isn't allowed counts as absent where there is a default.
            Some(Value::Null) => !property.schema.nullable,
            Some(_) => false,
        };
        if absent {
            map.insert(property.name.to_string(), default.clone());
        }
    }
}

/// Sets a field unless it is there. Nothing is set below what isn't there. The zero value of a field that Go writes
/// always says nothing, so it counts as absent.
fn set_at(object: &Object, map: &mut Map<String, Value>, path: &[&str], default: &Value) {
    let Some(property) = path.first().and_then(|name| object.property(name)) else { return };
    match (path, &property.schema.kind) {
        ([name], _) => {
            if property.presence == Presence::Always && map.get(*name) == Some(&property.schema.zero()) {
                map.remove(*name);
            }
            set(map, name, default.clone());
        }
        ([parent, rest @ ..], Kind::Object(below)) => {
            if let Some(Value::Object(map)) = map.get_mut(*parent) {
                set_at(below, map, rest, default);
            }
        }
        _ => {}
    }
}

fn set(map: &mut Map<String, Value>, name: &str, default: Value) {
    if map.get(name).is_none_or(Value::is_null) {
        map.insert(name.to_owned(), default);
    }
}

fn str_of<'a>(map: &'a Map<String, Value>, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or("")
}

/// The object at the field, an empty one if it isn't there or something else.
fn object<'a>(map: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    object_mut(map.entry(name).or_insert_with(|| json!({})), &[])
}

fn list_mut<'a>(map: &'a mut Map<String, Value>, name: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// What a secret says in plain text is data like the rest.
fn string_data(secret: &mut Map<String, Value>) {
    let Some(Value::Object(texts)) = secret.remove("stringData") else { return };
    let encoded = texts.into_iter().filter_map(|(key, text)| Some((key, STANDARD.encode(text.as_str()?).into())));
    object(secret, "data").extend(encoded);
}

/// The account has an older name too; upstream's conversion keeps both alike.
fn service_account(spec: &mut Map<String, Value>) {
    let name = ["serviceAccountName", "serviceAccount"].into_iter().map(|field| str_of(spec, field)).find(|name| !name.is_empty());
    if let Some(name) = name.map(str::to_owned) {
        spec.insert("serviceAccountName".into(), name.as_str().into());
        spec.insert("serviceAccount".into(), name.into());
    }
}

/// The defaults of a definition that look at other fields. They come before the plain ones.
fn computed(definition: &str, map: &mut Map<String, Value>) {
    let Some(name) = definition.strip_prefix("io.k8s.api.") else {
        if definition.ends_with("apiextensions.v1.CustomResourceDefinition") {
            custom_resource_definition(map);
        }
        return;
    };
    match name {
        "core.v1.Pod" => whole_pod(map),
        "core.v1.Container" | "core.v1.EphemeralContainer" => {
            let policy = pull_policy(str_of(map, "image"));
            set(map, "imagePullPolicy", policy.into());
        }
        "core.v1.Volume" if map.keys().all(|key| key == "name") => {
            map.insert("emptyDir".into(), json!({}));
        }
        "core.v1.ImageVolumeSource" => {
            let policy = pull_policy(str_of(map, "reference"));
            set(map, "pullPolicy", policy.into());
        }
        "core.v1.Secret" => string_data(map),
        "apps.v1.StatefulSetSpec" => {
            for claim in list_mut(map, "volumeClaimTemplates") {
                claim.insert("kind".into(), "PersistentVolumeClaim".into());
                claim.insert("apiVersion".into(), "v1".into());
            }
        }
        "core.v1.Service" => service(map),
        "core.v1.ReplicationController" => {
            let labels = map.get("spec").map_or(&Value::Null, |spec| at(spec, &["template", "metadata", "labels"])).clone();
            if !labels.is_null() {
                set(object(map, "spec"), "selector", labels.clone());
                set(object(map, "metadata"), "labels", labels);
            }
        }
        "core.v1.Namespace" => {
            let name = map.get("metadata").map_or("", |m| text(m, &["name"])).to_owned();
            if !name.is_empty() {
                object(object(map, "metadata"), "labels").insert("kubernetes.io/metadata.name".into(), name.into());
            }
        }
        "core.v1.NodeSpec" => {
            // The older field is the first of the newer.
            let (one, first) = (str_of(map, "podCIDR").to_owned(), map.get("podCIDRs").and_then(|cidrs| cidrs.get(0)).and_then(Value::as_str).unwrap_or("").to_owned());
            if !one.is_empty() && first != one {
                map.insert("podCIDRs".into(), json!([one]));
            } else if one.is_empty() && !first.is_empty() {
                map.insert("podCIDR".into(), first.into());
            }
        }
        "core.v1.PodSpec" => service_account(map),
        "core.v1.NodeStatus" => {
            if let Some(capacity) = map.get("capacity").cloned() {
                set(map, "allocatable", capacity);
            }
        }
        "core.v1.LimitRangeItem" if str_of(map, "type") == "Container" => limit_range_item(map),
        "apps.v1.Deployment" => rolling_update(object(map, "spec"), "strategy", [("maxUnavailable", "25%".into()), ("maxSurge", "25%".into())]),
        "apps.v1.DaemonSet" => {
            set(object(object(map, "metadata"), "annotations"), "deprecated.daemonset.template.generation", "0".into());
            rolling_update(object(map, "spec"), "updateStrategy", [("maxUnavailable", 1.into()), ("maxSurge", 0.into())]);
        }
        "apps.v1.StatefulSet" => stateful_set(object(map, "spec")),
        "batch.v1.Job" => job(map),
        "autoscaling.v1.HorizontalPodAutoscaler" => {
            let annotations = map.get("metadata").map_or(&Value::Null, |m| at(m, &["annotations"]));
            if annotations.get("autoscaling.alpha.kubernetes.io/metrics").is_none() {
                set(object(map, "spec"), "targetCPUUtilizationPercentage", 80.into());
            }
        }
        "autoscaling.v2.HorizontalPodAutoscaler" => autoscaler(object(map, "spec")),
        "networking.v1.NetworkPolicy" => {
            let spec = object(map, "spec");
            let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
            set(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
        }
        "rbac.v1.Subject" if matches!(str_of(map, "kind"), "User" | "Group") => set(map, "apiGroup", "rbac.authorization.k8s.io".into()),
        "resource.v1.ExactDeviceRequest" | "resource.v1.DeviceSubRequest" if matches!(str_of(map, "allocationMode"), "" | "ExactCount") => {
            set(map, "count", 1.into());
        }
        "resource.v1.DeviceTaint" => set(map, "timeAdded", clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()),
        _ => {}
    }
}

/// `Always` for an image that may be another tomorrow under the same name, which is one tagged `latest` or not at all.
pub fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A port's colon has a slash after it.
    let (repository, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or((name, None), |(name, tag)| (name, Some(tag)));
    let domain = |(first, _): &(&str, &str)| first.contains(['.', ':']) || *first == "localhost";
    let path = repository.split_once('/').filter(domain).map_or(repository, |(_, path)| path);
    let good = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
    // What is no image's name has no tag.
    match (tag, digest) {
        (Some("latest"), _) | (None, None) if repository.len() <= 255 && path.split('/').all(good) => "Always",
        _ => "IfNotPresent",
    }
}

fn whole_pod(map: &mut Map<String, Value>) {
    let spec = object(map, "spec");
    if spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|seconds| seconds < 0) {
        spec.insert("terminationGracePeriodSeconds".into(), 1.into());
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in list_mut(spec, list) {
            let limits = container.get("resources").map_or(Value::Null, |r| r["limits"].clone());
            for (name, limit) in limits.as_object().into_iter().flatten() {
                set(object(object(container, "resources"), "requests"), name, limit.clone());
            }
            for port in list_mut(container, "ports").filter(|_| host_network) {
                let container_port = port.get("containerPort").cloned().unwrap_or_default();
                set(port, "hostPort", container_port);
            }
        }
    }
    if spec.get("resources").is_some_and(|r| r.get("limits").is_some() || r.get("requests").is_some()) {
        pod_level_resources(spec);
    }
}

fn pod_level_resources(spec: &mut Map<String, Value>) {
    let whole = json!({"spec": {"containers": spec.get("containers"), "initContainers": spec.get("initContainers")}});
    let shown = |amount: &Quantity| Value::from(amount.to_string());
    let resources = object(spec, "resources");
    for (name, amount) in pod::limits(&whole).iter().filter(|(name, _)| name.starts_with("hugepages-")) {
        if resources.get("requests").is_none_or(|r| r.get(name).is_none()) {
            set(object(resources, "limits"), name, shown(amount));
        }
    }
    let limits = resources.get("limits").cloned().unwrap_or_default();
    if limits.as_object().is_none_or(Map::is_empty) {
        return;
    }
    for (name, amount) in pod::requests(&whole).iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
        set(object(resources, "requests"), name, shown(amount));
    }
    for (name, limit) in limits.as_object().into_iter().flatten() {
        set(object(resources, "requests"), name, limit.clone());
    }
}

fn service(map: &mut Map<String, Value>) {
    let spec = object(map, "spec");
    match str_of(spec, "sessionAffinity") {
        "ClientIP" => {
            let timeout = spec.get("sessionAffinityConfig").map_or(&Value::Null, |c| at(c, &["clientIP", "timeoutSeconds"]));
            if timeout.is_null() {
                spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": 10_800}}));
            }
        }
        "" | "None" => {
            spec.remove("sessionAffinityConfig");
        }
        _ => {}
    }
    for port in list_mut(spec, "ports") {
        if port.get("targetPort").is_none_or(|target| *target == 0 || *target == "" || target.is_null()) {
            let number = port.get("port").cloned().unwrap_or_default();
            port.insert("targetPort".into(), number);
        }
    }
    let kind = match str_of(spec, "type") {
        "" => "ClusterIP",
        other => other,
    }
    .to_owned();
    let has_external_ips = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") || kind == "ClusterIP" && has_external_ips {
        set(spec, "externalTrafficPolicy", "Cluster".into());
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", "Cluster".into());
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true.into());
        let balancer = map.get_mut("status").and_then(|s| s.get_mut("loadBalancer")).and_then(Value::as_object_mut);
        for entry in balancer.into_iter().flat_map(|b| list_mut(b, "ingress")).filter(|e| e.contains_key("ip")) {
            set(entry, "ipMode", "VIP".into());
        }
    }
}

fn limit_range_item(map: &mut Map<String, Value>) {
    for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
        let amounts: BTreeMap<String, Value> = map.get(from).and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        for (name, amount) in amounts {
            set(object(map, to), &name, amount);
        }
    }
}

fn rolling_update(spec: &mut Map<String, Value>, strategy: &str, defaults: [(&str, Value); 2]) {
    let strategy = object(spec, strategy);
    if matches!(str_of(strategy, "type"), "" | "RollingUpdate") {
        let rolling = object(strategy, "rollingUpdate");
        defaults.into_iter().for_each(|(name, value)| set(rolling, name, value));
    }
}

fn stateful_set(spec: &mut Map<String, Value>) {
    object(spec, "persistentVolumeClaimRetentionPolicy");
    let strategy = object(spec, "updateStrategy");
    if str_of(strategy, "type").is_empty() {
        object(strategy, "rollingUpdate");
    }
    if let ("" | "RollingUpdate", Some(Value::Object(rolling))) = (str_of(strategy, "type").to_owned().as_str(), strategy.get_mut("rollingUpdate")) {
        set(rolling, "partition", 0.into());
    }
}

fn job(map: &mut Map<String, Value>) {
    let spec = object(map, "spec");
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        spec.insert("completions".into(), 1.into());
    }
    let backoff = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    set(spec, "backoffLimit", backoff.into());
    let replacement = if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set(spec, "podReplacementPolicy", replacement.into());
    let labels = spec.get("template").map_or(&Value::Null, |t| at(t, &["metadata", "labels"])).clone();
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        set(object(map, "metadata"), "labels", labels);
    }
}

fn autoscaler(spec: &mut Map<String, Value>) {
    let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
    set(spec, "metrics", cpu);
    let Some(Value::Object(behavior)) = spec.get_mut("behavior") else { return };
    let double = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let four = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    for (name, policies) in [("scaleUp", json!([four, double])), ("scaleDown", json!([double]))] {
        let rules = object(behavior, name);
        set(rules, "selectPolicy", "Max".into());
        set(rules, "policies", policies);
        if name == "scaleUp" {
            set(rules, "stabilizationWindowSeconds", 0.into());
        }
    }
}

fn custom_resource_definition(map: &mut Map<String, Value>) {
    let spec = object(map, "spec");
    let storage = spec.get("versions").map_or(Value::Null, |versions| {
        items(versions, &[]).iter().find(|v| v["storage"] == true).map_or(Value::Null, |v| v["name"].clone())
    });
    let names = object(spec, "names");
    let kind = str_of(names, "kind").to_owned();
    if !kind.is_empty() {
        set(names, "singular", kind.to_lowercase().into());
        set(names, "listKind", format!("{kind}List").into());
    }
    let stored = object(map, "status");
    if !storage.is_null() && stored.get("storedVersions").is_none_or(|v| v.as_array().is_none_or(Vec::is_empty)) {
        stored.insert("storedVersions".into(), json!([storage]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find_kind;

    fn check(group: &str, version: &str, kind: &str, mut object: Value, path: &[&str], expected: Value) {
        let resource = find_kind(group, version, kind).expect(kind);
        resource.schema().prune(&mut object).expect("pruned");
        apply(resource, &mut object);
        assert_eq!(at(&object, path), &expected, "{object}");
        let once = object.clone();
        resource.schema().prune(&mut object).expect("pruned again");
        apply(resource, &mut object);
        assert_eq!(object, once, "twice is as once");
    }

    #[test]
    fn what_upstream_keeps_in_one_form() {
        let secret = json!({"metadata": {"name": "s"}, "data": {"a": "AAAA", "b": "AAAA"}, "stringData": {"b": "text"}});
        check("", "v1", "Secret", secret, &["data"], json!({"a": "AAAA", "b": "dGV4dA=="}));
        let pod = |account: Value| json!({"metadata": {"name": "p"}, "spec": account});
        for account in [json!({"serviceAccount": "x"}), json!({"serviceAccountName": "x", "serviceAccount": "y"})] {
            check("", "v1", "Pod", pod(account.clone()), &["spec", "serviceAccountName"], json!("x"));
            check("", "v1", "Pod", pod(account), &["spec", "serviceAccount"], json!("x"));
        }
    }

    #[test]
    fn images() {
        for (image, policy) in [
            ("nginx", "Always"), ("nginx:latest", "Always"), ("nginx:1", "IfNotPresent"), ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"), ("nginx@sha256:abc", "IfNotPresent"), ("", "IfNotPresent"),
            ("Bad!", "IfNotPresent"), ("Host.io:5/a/b", "Always"), ("a//b", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn computed_defaults() {
        let limits = json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}});
        check("", "v1", "Pod", limits, &["spec", "containers"], json!([{"name": "c", "imagePullPolicy": "IfNotPresent",
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}]));
        check("", "v1", "Service", json!({"spec": {"type": "NodePort"}}), &["spec", "externalTrafficPolicy"], json!("Cluster"));
        check("apps", "v1", "Deployment", json!({"spec": {"strategy": {"type": "Recreate"}}}), &["spec", "strategy"], json!({"type": "Recreate"}));
        check("batch", "v1", "Job", json!({"spec": {"parallelism": 3}}), &["spec", "completions"], Value::Null);
        check("autoscaling", "v2", "HorizontalPodAutoscaler", json!({"spec": {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}}),
            &["spec", "behavior", "scaleDown"], json!({"selectPolicy": "Min", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}));
    }

    #[test]
    fn custom_resources_by_their_schema() {
        let schema = Schema::from_crd(&json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
            "size": {"type": "integer", "default": 3}, "none": {"type": "string", "nullable": true, "default": "x"}}}}}))
        .expect("a schema");
        let mut object = json!({});
        apply_schema(&schema, &mut object);
        assert_eq!(object, json!({"spec": {"size": 3, "none": "x"}}));
        let mut nulls = json!({"spec": {"size": null, "none": null}});
        apply_schema(&schema, &mut nulls);
        assert_eq!(nulls, json!({"spec": {"size": 3, "none": null}}));
    }
}
