//! The kinds that are not plain, one entry each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use skiff_api::{Status, field, random, value};

use skiff_store::Revision;

use super::service::Services;
use super::{Orphaning, Strategy};
use crate::server::Server;
use crate::custom;
use crate::verbs::{Call, Write, now_text};

/// A kind with nothing special.
pub(super) struct Plain;

impl Strategy for Plain {}

/// Custom resources.
pub(super) struct Custom {
    /// Whether the status is written elsewhere than the rest.
    pub has_status: bool,
}

#[async_trait]
impl Strategy for Custom {
    fn has_generation(&self) -> bool {
        true
    }

    fn requires_version(&self) -> bool {
        true
    }

    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        if self.has_status {
            value::remove(object, &["status"]);
        }
    }

    fn prepare_update(&self, call: &Call, new: &mut Value, old: &Value) {
        if call.info.subresource == "status" {
            keep_metadata(new, old);
        }
    }

    fn reset_fields(&self, subresource: &str) -> Vec<&'static [&'static str]> {
        match (subresource, self.has_status) {
            ("", true) => vec![&["status"]],
            ("status", _) => vec![&["metadata"], &["spec"]],
            _ => Vec::new(),
        }
    }

    async fn check_create(&self, write: &Write<'_>, object: &Value) -> Result<(), Status> {
        let resource = &write.call.resource;
        if resource.custom().is_some_and(|custom| custom.terminating) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(Status::forbidden(resource.group_resource(), value::text(object, &["metadata", "name"]), why));
        }
        Ok(())
    }
}

/// Nothing of the metadata is written by those who write this part of the object.
fn keep_metadata(new: &mut Value, old: &Value) {
    let fields = value::remove(new, &["metadata", "managedFields"]);
    new["metadata"] = old["metadata"].clone();
    let metadata = value::object_mut(new, &["metadata"]);
    metadata.remove("resourceVersion");
    metadata.remove("managedFields");
    metadata.extend(fields.map(|fields| ("managedFields".to_owned(), fields)));
}

/// What many kinds differ in, as data.
struct Facts {
    /// What a new object's status is.
    status: Option<fn() -> Value>,
    /// What else is made of a new object, or (with the old one) of a new version of it.
    prepare: fn(&mut Value, Option<&Value>),
    /// Whether new objects are of generation 1.
    generation: bool,
    /// See [`Strategy::counted`].
    counted: Option<&'static [&'static str]>,
    requires_version: bool,
    creates_on_update: bool,
    /// Whether admission and authorization go by these objects.
    at_once: bool,
    orphaning: Orphaning,
    /// Whether the answer to a deletion is the object that was.
    shown: bool,
    /// See [`Strategy::lifetime`].
    lifetime: Option<Duration>,
    /// Whether the labels are left alone by writes of the status.
    labels_stay: bool,
    /// Where requests for devices stand, some of which only marked namespaces may have.
    devices: Option<&'static [&'static str]>,
}

const PLAIN: Facts = Facts {
    status: None,
    prepare: |_, _| (),
    generation: false,
    counted: None,
    requires_version: false,
    creates_on_update: false,
    at_once: false,
    orphaning: Orphaning::Collect,
    shown: false,
    lifetime: None,
    labels_stay: false,
    devices: None,
};
const COUNTED: Facts = Facts { generation: true, counted: Some(&[]), ..PLAIN };
/// Updates must name the version that they replace.
const NAMED: Facts = Facts { requires_version: true, ..PLAIN };
const STRICT: Facts = Facts { requires_version: true, ..COUNTED };
const SHOWN: Facts = Facts { shown: true, ..PLAIN };
const UPSERT: Facts = Facts { creates_on_update: true, ..PLAIN };
/// Upstream's `--event-ttl`.
const EVENT: Facts = Facts { lifetime: Some(Duration::from_secs(3_600)), ..UPSERT };
const HEEDED: Facts = Facts { at_once: true, ..UPSERT };

fn empty() -> Value {
    json!({})
}

fn no_replicas() -> Value {
    json!({"replicas": 0})
}

/// A volume says since when it is in its phase.
fn phase_time(volume: &mut Value, old: Option<&Value>) {
    if old.is_none_or(|old| value::text(old, &["status", "phase"]) != value::text(volume, &["status", "phase"])) {
        value::object_mut(volume, &["status"]).insert("lastPhaseTransitionTime".into(), now_text().into());
    }
}

/// The status of a new autoscaler, whose fields differ by version.
fn no_metrics_yet(autoscaler: &mut Value, old: Option<&Value>) {
    if old.is_none() {
        let first = value::text(autoscaler, &["apiVersion"]) == "autoscaling/v1";
        autoscaler["status"] = if first { json!({"currentReplicas": 0, "desiredReplicas": 0}) } else { json!({"desiredReplicas": 0, "currentMetrics": null}) };
    }
}

/// What is served here is available from the start.
fn local_at_once(service: &mut Value, old: Option<&Value>) {
    if old.is_none() && !value::at(service, &["spec", "service"]).is_object() {
        service["status"] = json!({"conditions": [{
            "type": "Available", "status": "True", "lastTransitionTime": now_text(), "reason": "Local", "message": "Local APIServices are always available",
        }]});
    }
}

/// A daemon set counts its templates in an annotation, as it did before there were controller revisions.
fn template_generation(set: &mut Value, old: Option<&Value>) {
    const ANNOTATION: &str = "deprecated.daemonset.template.generation";
    let before = value::text(old.unwrap_or(set), &["metadata", "annotations", ANNOTATION]).parse::<i64>().unwrap_or(0);
    let changed = old.is_some_and(|old| value::at(old, &["spec", "template"]) != value::at(set, &["spec", "template"]));
    let generation = before.saturating_add(changed.into()).max(1);
    value::object_mut(set, &["metadata", "annotations"]).insert(ANNOTATION.into(), generation.to_string().into());
}

/// A limit range without a name gets one.
fn own_name(limits: &mut Value, _: Option<&Value>) {
    if value::text(limits, &["metadata", "name"]).is_empty() {
        value::object_mut(limits, &["metadata"]).insert("name".into(), random::uid().into());
    }
}

/// The older field for where a claim's data is from knows claims and snapshots alone; of a new one both fields say the same.
fn data_sources(claim: &mut Value, old: Option<&Value>) {
    let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let in_use = old.is_some_and(|old| ["dataSource", "dataSourceRef"].iter().any(|field| !value::at(old, &["spec", field]).is_null()));
    let group = |source: &Value| value::text(source, &["apiGroup"]).to_owned();
    let known = |source: &Value| match value::text(source, &["kind"]) {
        "PersistentVolumeClaim" => group(source).is_empty(),
        kind => kind == "VolumeSnapshot" && group(source) == "snapshot.storage.k8s.io",
    };
    if !in_use && spec.get("dataSource").is_some_and(|source| !known(source)) {
        spec.remove("dataSource");
    }
    // Sources of other namespaces are a feature that is off.
    if !in_use && spec.get("dataSourceRef").is_some_and(|source| !value::text(source, &["namespace"]).is_empty()) {
        spec.remove("dataSourceRef");
    }
    if old.is_some() {
        return;
    }
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => drop(spec.insert("dataSourceRef".into(), source)),
        (None, Some(source)) => drop(spec.insert("dataSource".into(), source)),
        _ => {}
    }
}

/// Of its secrets a service account says the names alone.
fn secret_names(account: &mut Value, _: Option<&Value>) {
    for secret in account.get_mut("secrets").and_then(Value::as_array_mut).into_iter().flatten() {
        *secret = secret.get("name").map_or_else(|| json!({}), |name| json!({"name": name}));
    }
}

/// The kinds that differ from a plain one in facts alone.
const FACTS: &[(&str, &str, Facts)] = &[
    ("", "Endpoints", UPSERT),
    ("", "Event", EVENT),
    ("", "LimitRange", Facts { prepare: own_name, ..HEEDED }),
    ("", "PersistentVolume", Facts { status: Some(|| json!({"phase": "Pending"})), prepare: phase_time, ..SHOWN }),
    ("", "PersistentVolumeClaim", Facts { status: Some(|| json!({"phase": "Pending"})), prepare: data_sources, ..SHOWN }),
    ("", "PodTemplate", Facts { shown: true, ..COUNTED }),
    ("", "ReplicationController", Facts { status: Some(no_replicas), orphaning: Orphaning::Orphan, ..COUNTED }),
    ("", "ResourceQuota", Facts { status: Some(empty), at_once: true, ..SHOWN }),
    ("", "ServiceAccount", Facts { prepare: secret_names, ..SHOWN }),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy", STRICT),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", STRICT),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", STRICT),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", Facts { status: Some(empty), ..STRICT }),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", STRICT),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", STRICT),
    ("apiregistration.k8s.io", "APIService", Facts { status: Some(empty), prepare: local_at_once, requires_version: true, ..PLAIN }),
    ("apps", "DaemonSet", Facts {
        status: Some(|| json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0})),
        prepare: template_generation,
        ..COUNTED
    }),
    ("apps", "Deployment", Facts { status: Some(empty), counted: Some(&["annotations"]), labels_stay: true, ..COUNTED }),
    ("apps", "ReplicaSet", Facts { status: Some(no_replicas), ..COUNTED }),
    ("apps", "StatefulSet", Facts { status: Some(|| json!({"replicas": 0, "availableReplicas": 0})), ..COUNTED }),
    ("autoscaling", "HorizontalPodAutoscaler", Facts { prepare: no_metrics_yet, ..PLAIN }),
    ("batch", "CronJob", Facts { status: Some(empty), ..COUNTED }),
    ("coordination.k8s.io", "Lease", Facts { requires_version: true, ..UPSERT }),
    ("discovery.k8s.io", "EndpointSlice", Facts { counted: Some(&["labels"]), ..COUNTED }),
    ("events.k8s.io", "Event", EVENT),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", Facts { status: Some(empty), ..COUNTED }),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", Facts { status: Some(empty), ..COUNTED }),
    ("networking.k8s.io", "Ingress", Facts { status: Some(|| json!({"loadBalancer": {}})), ..COUNTED }),
    ("networking.k8s.io", "IngressClass", COUNTED),
    ("networking.k8s.io", "NetworkPolicy", COUNTED),
    ("networking.k8s.io", "ServiceCIDR", Facts { status: Some(empty), ..PLAIN }),
    ("node.k8s.io", "RuntimeClass", NAMED),
    ("policy", "PodDisruptionBudget", Facts {
        status: Some(|| json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0})),
        ..STRICT
    }),
    ("rbac.authorization.k8s.io", "ClusterRole", HEEDED),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", HEEDED),
    ("rbac.authorization.k8s.io", "Role", HEEDED),
    ("rbac.authorization.k8s.io", "RoleBinding", HEEDED),
    ("resource.k8s.io", "ResourceClaim", Facts { status: Some(empty), devices: Some(&["spec", "devices", "requests"]), ..SHOWN }),
    ("resource.k8s.io", "ResourceClaimTemplate", Facts { devices: Some(&["spec", "spec", "devices", "requests"]), ..SHOWN }),
    ("resource.k8s.io", "ResourceSlice", Facts { shown: true, ..COUNTED }),
    ("resource.k8s.io", "DeviceClass", Facts { shown: true, ..COUNTED }),
    ("scheduling.k8s.io", "PriorityClass", Facts { counted: None, ..COUNTED }),
    ("storage.k8s.io", "CSIDriver", Facts { shown: true, counted: Some(&[]), ..NAMED }),
    ("storage.k8s.io", "CSINode", Facts { shown: true, ..NAMED }),
    ("storage.k8s.io", "CSIStorageCapacity", NAMED),
    ("storage.k8s.io", "StorageClass", SHOWN),
    ("storage.k8s.io", "VolumeAttachment", Facts { status: Some(|| json!({"attached": false})), shown: true, ..NAMED }),
    ("storage.k8s.io", "VolumeAttributesClass", SHOWN),
];

pub(super) fn special() -> HashMap<(&'static str, &'static str), Arc<dyn Strategy>> {
    let mut special: HashMap<_, Arc<dyn Strategy>> = HashMap::new();
    for (group, kind, facts) in FACTS {
        special.insert((*group, *kind), Arc::new(Factual(facts)));
    }
    special.insert(("", "ComponentStatus"), Arc::new(ComponentStatuses));
    special.insert(("", "Namespace"), Arc::new(Namespaces));
    special.insert(("", "Node"), Arc::new(Nodes));
    special.insert(("", "Pod"), Arc::new(Pods));
    special.insert(("", "Service"), Arc::new(Services));
    special.insert(("apiextensions.k8s.io", "CustomResourceDefinition"), Arc::new(Definitions));
    special.insert(("batch", "Job"), Arc::new(Jobs));
    special.insert(("certificates.k8s.io", "CertificateSigningRequest"), Arc::new(SigningRequests));
    special
}

struct Factual(&'static Facts);

/// The label of namespaces in which requests may have devices that others have, too.
const ADMINISTERED: &str = "resource.kubernetes.io/admin-access";

#[async_trait]
impl Strategy for Factual {
    async fn check_create(&self, write: &Write<'_>, object: &Value) -> Result<(), Status> {
        let requests = self.0.devices.map_or(&[][..], |path| value::items(object, path));
        let Some(at) = requests.iter().position(|request| value::at(request, &["exactly", "adminAccess"]) == &Value::Bool(true)) else { return Ok(()) };
        let call = write.call;
        let cache = call.server.cache.resource("/registry/namespaces/").ok_or_else(Status::no_such_resource)?;
        let namespace = cache.get(&format!("/registry/namespaces/{}", call.info.namespace)).and_then(|object| object.value().ok());
        if namespace.is_some_and(|namespace| value::text(&namespace, &["metadata", "labels", ADMINISTERED]) == "true") {
            return Ok(());
        }
        let why = format!("admin access to devices requires the `{ADMINISTERED}: true` label on the containing namespace");
        write.check(object, &[field::Error::forbidden(format!("spec.devices.requests[{at}].adminAccess"), why)])
    }

    fn has_generation(&self) -> bool {
        self.0.generation
    }

    fn counted(&self) -> Option<&'static [&'static str]> {
        self.0.counted
    }

    fn requires_version(&self) -> bool {
        self.0.requires_version
    }

    fn lifetime(&self) -> Option<Duration> {
        self.0.lifetime
    }

    fn creates_on_update(&self) -> bool {
        self.0.creates_on_update
    }

    fn counts_at_once(&self) -> bool {
        self.0.at_once
    }

    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        value::remove(object, &["status"]);
        if let Some(status) = self.0.status {
            object["status"] = status();
        }
        (self.0.prepare)(object, None);
    }

    fn prepare_update(&self, call: &Call, new: &mut Value, old: &Value) {
        if self.0.labels_stay && call.info.subresource == "status" {
            let labels = old["metadata"].get("labels").cloned();
            let metadata = value::object_mut(new, &["metadata"]);
            metadata.remove("labels");
            metadata.extend(labels.map(|labels| ("labels".to_owned(), labels)));
        }
        (self.0.prepare)(new, Some(old));
    }

    fn reset_fields(&self, subresource: &str) -> Vec<&'static [&'static str]> {
        match subresource {
            "" => vec![&["status"]],
            "status" if self.0.labels_stay => vec![&["spec"], &["metadata", "labels"]],
            "status" => vec![&["spec"]],
            _ => Vec::new(),
        }
    }

    fn shows_deleted(&self) -> bool {
        self.0.shown
    }

    fn default_orphaning(&self) -> Orphaning {
        self.0.orphaning
    }
}

/// The old list of the control plane's parts: the store, and what runs in this process.
struct ComponentStatuses;

#[async_trait]
impl Strategy for ComponentStatuses {
    async fn made(&self, server: &Server) -> Option<Vec<Value>> {
        let mut parts: Vec<(String, Result<(), String>)> = server.components();
        parts.push(("etcd-0".into(), server.store.revision().await.map(drop).map_err(|e| e.to_string())));
        parts.sort_by(|a, b| a.0.cmp(&b.0));
        let object = |(name, health): (String, Result<(), String>)| {
            let (status, message) = health.map_or_else(|why| ("False", why), |()| ("True", "ok".into()));
            let condition = json!({"type": "Healthy", "status": status, "message": message});
            json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]})
        };
        Some(parts.into_iter().map(object).collect())
    }
}

/// Namespaces go when their content has gone: the `kubernetes` finalizer stands in their spec.
struct Namespaces;

/// The namespaces that can't be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

impl Strategy for Namespaces {
    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        let finalizers = value::object_mut(object, &["spec"]).entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut().filter(|list| !list.iter().any(|f| f == "kubernetes")) {
            list.push("kubernetes".into());
        }
        object["status"] = json!({"phase": "Active"});
    }

    fn prepare_update(&self, call: &Call, new: &mut Value, old: &Value) {
        // Only the finalize endpoint takes finalizers away.
        if call.info.subresource != "finalize" {
            new["spec"] = old["spec"].clone();
        }
    }

    fn check_delete(&self, call: &Call, object: &Value) -> Result<(), Status> {
        let name = value::text(object, &["metadata", "name"]);
        if IMMORTAL.contains(&name) {
            return Err(Status::forbidden(call.resource.group_resource(), name, "this namespace may not be deleted"));
        }
        Ok(())
    }

    fn counts_at_once(&self) -> bool {
        true
    }

    fn prepare_delete(&self, object: &mut Value) {
        value::object_mut(object, &["status"]).insert("phase".into(), "Terminating".into());
    }

    fn finalized(&self, object: &Value) -> bool {
        [["metadata", "finalizers"], ["spec", "finalizers"]].iter().all(|path| value::items(object, path).is_empty())
    }

    fn shows_deleted(&self) -> bool {
        true
    }
}

/// Nodes bring their status along.
struct Nodes;

impl Strategy for Nodes {
    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        let status = value::object_mut(object, &["status"]);
        status.entry("daemonEndpoints").or_insert_with(|| json!({"kubeletEndpoint": {"Port": 0}}));
        status.entry("nodeInfo").or_insert_with(|| {
            json!({
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "", "containerRuntimeVersion": "",
                "kubeletVersion": "", "kubeProxyVersion": "", "operatingSystem": "", "architecture": "",
            })
        });
    }

    /// What there was of configurations for kubelets in the API stays where it is, and comes nowhere else.
    fn prepare_update(&self, call: &Call, new: &mut Value, old: &Value) {
        if call.info.subresource == "status" && value::at(old, &["status", "config"]).is_null() {
            value::remove(new, &["status", "config"]);
        }
    }
}

/// Pods end in their own time.
struct Pods;

impl Strategy for Pods {
    fn has_generation(&self) -> bool {
        true
    }

    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "qosClass": skiff_api::pod::qos_class(object)});
        if !value::items(object, &["spec", "schedulingGates"]).is_empty() {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "lastProbeTime": null, "lastTransitionTime": now_text(), "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
    }

    fn prepare_update(&self, call: &Call, new: &mut Value, old: &Value) {
        if matches!(call.info.subresource.as_str(), "ephemeralcontainers" | "resize") {
            keep_metadata(new, old);
        }
        if call.info.subresource == "status" && value::text(new, &["status", "qosClass"]).is_empty() {
            new["status"]["qosClass"] = value::at(old, &["status", "qosClass"]).clone();
        }
    }

    fn goes_gracefully(&self) -> bool {
        true
    }

    fn grace(&self, object: &Value, asked: Option<i64>) -> i64 {
        let scheduled = !value::text(object, &["spec", "nodeName"]).is_empty();
        let ended = matches!(value::text(object, &["status", "phase"]), "Succeeded" | "Failed");
        if !scheduled || ended {
            return 0;
        }
        asked.or_else(|| value::at(object, &["spec", "terminationGracePeriodSeconds"]).as_i64()).unwrap_or(30).max(0)
    }

    fn shows_deleted(&self) -> bool {
        true
    }
}

/// Jobs choose their pods by their own uid, unless a client insists on a selector.
struct Jobs;

impl Strategy for Jobs {
    fn has_generation(&self) -> bool {
        true
    }

    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        object["status"] = json!({});
        if value::at(object, &["spec", "manualSelector"]).as_bool() == Some(true) {
            return;
        }
        let [uid, name] = ["uid", "name"].map(|key| Value::from(value::text(object, &["metadata", key])));
        let labels = value::object_mut(object, &["spec", "template", "metadata", "labels"]);
        let before = Value::Object(labels.clone());
        for (key, text) in [
            ("controller-uid", &uid),
            ("job-name", &name),
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
        ] {
            labels.insert(key.into(), text.clone());
        }
        let labels = labels.clone();
        value::object_mut(object, &["spec", "selector", "matchLabels"]).insert("batch.kubernetes.io/controller-uid".into(), uid);
        // A job without labels has its template's.
        let own = value::object_mut(object, &["metadata"]).entry("labels").or_insert(Value::Null);
        if own.as_object().is_none_or(Map::is_empty) || *own == before {
            *own = labels.into();
        }
    }

    fn default_orphaning(&self) -> Orphaning {
        Orphaning::Orphan
    }
}

/// Custom resource definitions come up by their controller's word, and go when their objects are gone.
struct Definitions;

/// Adds the storage version to those that objects may be stored in.
fn stored_versions(definition: &mut Value) {
    let storage = value::items(definition, &["spec", "versions"]).iter().find(|v| v["storage"] == true).map(|v| v["name"].clone());
    let stored = value::object_mut(definition, &["status"]).entry("storedVersions").or_insert_with(|| json!([]));
    if let (Some(list), Some(storage)) = (stored.as_array_mut(), storage)
        && !list.contains(&storage)
    {
        list.push(storage);
    }
}

#[async_trait]
impl Strategy for Definitions {
    fn has_generation(&self) -> bool {
        true
    }

    fn requires_version(&self) -> bool {
        true
    }

    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        object["status"] = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
        stored_versions(object);
    }

    fn prepare_update(&self, call: &Call, new: &mut Value, _old: &Value) {
        if call.info.subresource.is_empty() {
            stored_versions(new);
        }
    }

    fn prepare_delete(&self, object: &mut Value) {
        if !value::at(object, &["metadata", "deletionTimestamp"]).is_null() {
            return;
        }
        let finalizers = value::object_mut(object, &["metadata"]).entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut().filter(|list| !list.iter().any(|f| f == custom::FINALIZER)) {
            list.push(custom::FINALIZER.into());
        }
        let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        custom::set_condition(&mut object["status"], "Terminating", "True", "InstanceDeletionPending", message, &now_text());
    }

    async fn settle(&self, call: &Call, revision: Revision) {
        // The status is the controller's own word of what it has done.
        if call.info.subresource.is_empty() {
            custom::settle(&call.server, revision).await;
        }
    }
}

fn conditions_mut(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    object.pointer_mut("/status/conditions").and_then(Value::as_array_mut).into_iter().flatten().filter(|c| c.is_object())
}

/// Signing requests say who asks.
struct SigningRequests;

#[async_trait]
impl Strategy for SigningRequests {
    fn prepare_create(&self, call: &Call, object: &mut Value) {
        object["status"] = json!({});
        let spec = value::object_mut(object, &["spec"]);
        spec.insert("username".into(), call.user.name.clone().into());
        spec.insert("groups".into(), call.user.groups.clone().into());
        if call.user.uid.is_empty() {
            spec.remove("uid");
        } else {
            spec.insert("uid".into(), call.user.uid.clone().into());
        }
        if call.user.extra.is_empty() {
            spec.remove("extra");
        } else {
            spec.insert("extra".into(), json!(call.user.extra));
        }
    }

    fn prepare_update(&self, call: &Call, new: &mut Value, old: &Value) {
        new["spec"] = old["spec"].clone();
        let before = value::items(old, &["status", "conditions"]);
        // Approval is given elsewhere than the rest of the status.
        if call.info.subresource == "status" {
            for kind in ["Approved", "Denied"] {
                let kept = before.iter().filter(|c| c["type"] == kind);
                let mut now: Vec<_> = conditions_mut(new).filter(|c| c["type"] == kind).collect();
                if now.len() == kept.clone().count() {
                    now.iter_mut().zip(kept).for_each(|(condition, kept)| (*condition).clone_from(kept));
                }
            }
        }
        for condition in conditions_mut(new) {
            let same = before.iter().find(|c| c["type"] == condition["type"] && c["status"] == condition["status"] && !c["lastTransitionTime"].is_null());
            let times = [("lastUpdateTime", None), ("lastTransitionTime", same.map(|c| c["lastTransitionTime"].clone()))];
            for (key, kept) in times {
                if condition[key].is_null() {
                    condition[key] = kept.unwrap_or_else(|| now_text().into());
                }
            }
        }
    }

    fn reset_fields(&self, subresource: &str) -> Vec<&'static [&'static str]> {
        match subresource {
            "" => vec![&["spec"], &["status"]],
            "approval" => vec![&["spec"], &["status", "certificate"]],
            _ => vec![&["spec"], &["status", "conditions"]],
        }
    }
}
