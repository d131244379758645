//! The rules of each kind, with upstream's messages.
//!
//! Objects come pruned by their schema and defaulted. What needs more than the object (whether a port is free, a class
//! exists) is the API server's. CEL expressions are not compiled here.

mod access;
mod address;
mod check;
mod claim_status;
mod cluster;
mod container;
mod core;
mod cron;
mod custom;
mod definition;
mod devices;
mod diff;
mod job_status;
mod jobs;
pub(crate) mod meta;
mod network;
mod pod;
mod resources;
mod scheduling;
mod service;
mod sources;
mod storage;
mod structural;
mod volume;
mod warnings;
mod webhooks;
mod windows;
mod workloads;

use serde_json::Value;

use crate::field;
use crate::resource::{Resource, ResourceSchema};
use crate::schema::Schema;
use check::{At, Errors};

type Create = fn(&mut Errors, &At);
type Update = fn(&mut Errors, &At, &Value);

/// The rules of a kind.
struct Rules {
    group: &'static str,
    kind: &'static str,
    create: Create,
    update: Update,
    /// The endpoints below an object whose updates have rules of their own.
    below: &'static [(&'static str, Update)],
}

const fn kind(group: &'static str, kind: &'static str, create: Create, update: Update) -> Rules {
    Rules { group, kind, create, update, below: &[] }
}

impl Rules {
    const fn with(self, below: &'static [(&'static str, Update)]) -> Self {
        Self { below, ..self }
    }
}

/// Metadata alone, of an object in a namespace.
fn namespaced(e: &mut Errors, object: &At) {
    meta::object_meta(e, object, true, meta::subdomain);
}

/// Metadata alone, of an object in none.
fn cluster_wide(e: &mut Errors, object: &At) {
    meta::object_meta(e, object, false, meta::subdomain);
}

fn replicas_status(e: &mut Errors, new: &At, old: &Value) {
    workloads::counts_status(e, new, old, &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "terminatingReplicas"]);
}

fn deployment_status(e: &mut Errors, new: &At, old: &Value) {
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas", "terminatingReplicas"];
    workloads::counts_status(e, new, old, &counts);
}

fn daemon_status(e: &mut Errors, new: &At, old: &Value) {
    let counts = ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady", "updatedNumberScheduled",
        "numberAvailable", "numberUnavailable"];
    workloads::counts_status(e, new, old, &counts);
}

fn set_status(e: &mut Errors, new: &At, old: &Value) {
    workloads::counts_status(e, new, old, &["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"]);
}

fn quota_status(e: &mut Errors, new: &At, old: &Value) {
    meta::meta_update(e, new, old);
    core::quota_status(e, new);
}

fn core_event(e: &mut Errors, object: &At) {
    core::event(e, object, "involvedObject");
}

fn core_event_update(e: &mut Errors, new: &At, old: &Value) {
    core::event_update(e, new, old, "involvedObject");
}

fn new_event(e: &mut Errors, object: &At) {
    core::event(e, object, "regarding");
}

fn new_event_update(e: &mut Errors, new: &At, old: &Value) {
    core::event_update(e, new, old, "regarding");
}

fn limit_range_update(e: &mut Errors, new: &At, _old: &Value) {
    core::limit_range(e, new);
}

/// Kinds that are not here have the rules of metadata alone.
const KINDS: &[Rules] = &[
    kind("", "ConfigMap", core::config_map, core::config_map_update),
    kind("", "Endpoints", network::endpoints, network::endpoints_update),
    kind("", "Event", core_event, core_event_update),
    kind("", "LimitRange", core::limit_range, limit_range_update),
    kind("", "Namespace", core::namespace, meta::meta_update)
        .with(&[("status", core::namespace_status), ("finalize", core::namespace_finalize)]),
    kind("", "Node", core::node, core::node_update).with(&[("status", core::node_update)]),
    kind("", "PersistentVolume", storage::volume, storage::volume_update),
    kind("", "PersistentVolumeClaim", storage::claim, storage::claim_update).with(&[("status", storage::claim_status)]),
    kind("", "Pod", pod::create, pod::update)
        .with(&[("status", pod::status), ("ephemeralcontainers", pod::ephemeral_update), ("resize", pod::resize)]),
    kind("", "PodTemplate", workloads::pod_template, workloads::pod_template_update),
    kind("", "ReplicationController", workloads::replication_controller, workloads::replication_controller_update)
        .with(&[("status", replicas_status)]),
    kind("", "ResourceQuota", core::resource_quota, core::quota_update).with(&[("status", quota_status)]),
    kind("", "Secret", core::secret, core::secret_update),
    kind("", "Service", service::create, service::update).with(&[("status", service::status)]),
    kind("", "ServiceAccount", namespaced, meta::meta_update),
    kind("admissionregistration.k8s.io", "MutatingAdmissionPolicy", webhooks::policy, webhooks::policy_update),
    kind("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", webhooks::policy_binding, webhooks::policy_binding_update),
    kind("admissionregistration.k8s.io", "MutatingWebhookConfiguration", webhooks::mutating, webhooks::mutating_update),
    kind("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", webhooks::policy, webhooks::policy_update)
        .with(&[("status", webhooks::policy_status)]),
    kind("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", webhooks::policy_binding, webhooks::policy_binding_update),
    kind("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", webhooks::validating, webhooks::configuration_update),
    kind("apiextensions.k8s.io", "CustomResourceDefinition", definition::definition, definition::definition_update)
        .with(&[("status", definition::definition_status)]),
    kind("apiregistration.k8s.io", "APIService", webhooks::api_service, webhooks::api_service_update),
    kind("apps", "ControllerRevision", workloads::controller_revision, workloads::controller_revision_update),
    kind("apps", "DaemonSet", workloads::daemon_set, workloads::daemon_set_update).with(&[("status", daemon_status)]),
    kind("apps", "Deployment", workloads::deployment, workloads::deployment_update).with(&[("status", deployment_status)]),
    kind("apps", "ReplicaSet", workloads::replica_set, workloads::replica_set_update).with(&[("status", replicas_status)]),
    kind("apps", "StatefulSet", workloads::stateful_set, workloads::stateful_set_update).with(&[("status", set_status)]),
    kind("authentication.k8s.io", "SelfSubjectReview", access::any_review, meta::meta_update),
    kind("authentication.k8s.io", "TokenReview", access::any_review, meta::meta_update),
    kind("authorization.k8s.io", "LocalSubjectAccessReview", access::local_access_review, meta::meta_update),
    kind("authorization.k8s.io", "SelfSubjectAccessReview", access::self_access_review, meta::meta_update),
    kind("authorization.k8s.io", "SelfSubjectRulesReview", access::any_review, meta::meta_update),
    kind("authorization.k8s.io", "SubjectAccessReview", access::access_review, meta::meta_update),
    kind("autoscaling", "HorizontalPodAutoscaler", cluster::autoscaler, cluster::autoscaler_update)
        .with(&[("status", cluster::autoscaler_status)]),
    kind("autoscaling", "Scale", cluster::scale, meta::meta_update),
    kind("batch", "CronJob", jobs::cron_job, jobs::cron_job_update),
    kind("batch", "Job", jobs::job, jobs::job_update).with(&[("status", job_status::update)]),
    kind("certificates.k8s.io", "CertificateSigningRequest", access::signing_request, access::signing_request_update)
        .with(&[("status", access::signing_request_status), ("approval", access::signing_request_approval)]),
    kind("coordination.k8s.io", "Lease", cluster::lease, cluster::lease_update),
    kind("discovery.k8s.io", "EndpointSlice", network::slice, network::slice_update),
    kind("events.k8s.io", "Event", new_event, new_event_update),
    kind("flowcontrol.apiserver.k8s.io", "FlowSchema", cluster::flow_schema, cluster::flow_schema_update)
        .with(&[("status", cluster::flow_status)]),
    kind("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", cluster::priority_level, cluster::priority_level_update)
        .with(&[("status", cluster::flow_status)]),
    kind("networking.k8s.io", "Ingress", network::ingress, network::ingress_update).with(&[("status", network::ingress_status)]),
    kind("networking.k8s.io", "IngressClass", network::ingress_class, network::ingress_class_update),
    kind("networking.k8s.io", "IPAddress", network::ip_address, network::ip_address_update),
    kind("networking.k8s.io", "NetworkPolicy", network::network_policy, network::network_policy_update),
    kind("networking.k8s.io", "ServiceCIDR", network::service_cidr, network::service_cidr_update),
    kind("node.k8s.io", "RuntimeClass", cluster::runtime_class, cluster::runtime_class_update),
    kind("policy", "PodDisruptionBudget", cluster::budget, cluster::budget_update).with(&[("status", cluster::budget_status)]),
    kind("rbac.authorization.k8s.io", "ClusterRole", access::cluster_role, access::cluster_role_update),
    kind("rbac.authorization.k8s.io", "ClusterRoleBinding", access::cluster_role_binding, access::cluster_role_binding_update),
    kind("rbac.authorization.k8s.io", "Role", access::role, access::role_update),
    kind("rbac.authorization.k8s.io", "RoleBinding", access::role_binding, access::role_binding_update),
    kind("resource.k8s.io", "DeviceClass", devices::class, devices::class_update),
    kind("resource.k8s.io", "ResourceClaim", devices::claim, devices::claim_update)
        .with(&[("status", claim_status::update)]),
    kind("resource.k8s.io", "ResourceClaimTemplate", devices::template, devices::template_update),
    kind("resource.k8s.io", "ResourceSlice", devices::resource_slice, devices::resource_slice_update),
    kind("scheduling.k8s.io", "PriorityClass", cluster::priority_class, cluster::priority_class_update),
    kind("storage.k8s.io", "CSIDriver", storage::driver, storage::driver_update),
    kind("storage.k8s.io", "CSINode", storage::csi_node, storage::csi_node_update),
    kind("storage.k8s.io", "CSIStorageCapacity", storage::capacity, storage::capacity_update),
    kind("storage.k8s.io", "StorageClass", storage::class, storage::class_update),
    kind("storage.k8s.io", "VolumeAttachment", storage::attachment, storage::attachment_update),
    kind("storage.k8s.io", "VolumeAttributesClass", storage::attributes_class, storage::attributes_class_update),
];

fn rules_of(resource: &Resource) -> Option<&'static Rules> {
    KINDS.iter().find(|rules| rules.kind == resource.kind && rules.group == resource.group)
}

/// An autoscaler's rules are written for `v2`, whatever version it is in.
fn in_rules_version<'a>(resource: &Resource, object: &'a Value) -> std::borrow::Cow<'a, Value> {
    if resource.kind == "HorizontalPodAutoscaler" && resource.version == "v1" {
        let mut copy = object.clone();
        crate::convert::to_version(&mut copy, "autoscaling/v2");
        return std::borrow::Cow::Owned(copy);
    }
    std::borrow::Cow::Borrowed(object)
}

/// The schema of the version that the rules are written for. Of custom resources no struct is shown.
fn rules_schema(resource: &Resource) -> &Schema {
    match &resource.schema {
        ResourceSchema::Custom(_) => Schema::any(),
        _ if resource.kind == "HorizontalPodAutoscaler" => Schema::builtin("io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler").unwrap_or(Schema::any()),
        _ => resource.schema(),
    }
}

/// What is wrong with an object that is to be created.
pub fn validate_create(resource: &Resource, object: &Value) -> Vec<field::Error> {
    let object = in_rules_version(resource, object);
    let (at, mut errors) = (At::of(&object, rules_schema(resource)), Errors::default());
    match (&resource.schema, rules_of(resource)) {
        (ResourceSchema::Custom(custom), _) => custom::create(&mut errors, custom, &at, resource.namespaced),
        (_, Some(rules)) => (rules.create)(&mut errors, &at),
        (_, None) if resource.namespaced => namespaced(&mut errors, &at),
        (_, None) => cluster_wide(&mut errors, &at),
    }
    errors.0
}

/// What is wrong with an object that is to replace another.
pub fn validate_update(resource: &Resource, new: &Value, old: &Value) -> Vec<field::Error> {
    validate_subresource_update(resource, "", new, old)
}

/// What is wrong with an object whose status is to replace another's.
pub fn validate_status_update(resource: &Resource, new: &Value, old: &Value) -> Vec<field::Error> {
    validate_subresource_update(resource, "status", new, old)
}

/// What is wrong with an object that is to replace another through a subresource (`ephemeralcontainers`); an empty
/// name is the object itself.
pub fn validate_subresource_update(resource: &Resource, subresource: &str, new: &Value, old: &Value) -> Vec<field::Error> {
    let (new, old) = (in_rules_version(resource, new), in_rules_version(resource, old));
    let (at, mut errors) = (At::of(&new, rules_schema(resource)), Errors::default());
    // Upstream's update looks at metadata before, and most kinds look again.
    meta::meta_update(&mut errors, &at, &old);
    match (&resource.schema, rules_of(resource)) {
        (ResourceSchema::Custom(custom), _) => custom::update(&mut errors, custom, subresource, &at, &old),
        (_, Some(rules)) => {
            let own = rules.below.iter().find(|(name, _)| *name == subresource).map(|(_, update)| *update);
            let update = own.unwrap_or(if subresource == "status" { meta::meta_update } else { rules.update });
            update(&mut errors, &at, &old);
        }
        (_, None) => meta::meta_update(&mut errors, &at, &old),
    }
    errors.0
}

/// What keeps the schemas of a custom resource definition from being structural.
pub fn non_structural(definition: &Value) -> Vec<field::Error> {
    definition::non_structural(&At::root(definition))
}

/// What clients are warned of who write this object, in place of `old` or as a new one.
pub fn warnings(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<String> {
    if resource.custom().is_some() {
        return meta::finalizer_warnings(new, old);
    }
    warnings::of(&resource.group, &resource.kind, new, old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::find_kind;

    fn admitted(group: &str, version: &str, kind: &str, mut object: Value) -> (&'static Resource, Value) {
        let resource = find_kind(group, version, kind).expect(kind);
        resource.schema().prune(&mut object).expect("pruned");
        crate::defaults::apply(resource, &mut object);
        (resource, object)
    }

    fn check(group: &str, kind: &str, object: Value, expected: &[&str]) {
        let (resource, object) = admitted(group, "v1", kind, object);
        let errors: Vec<String> = validate_create(resource, &object).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{object}");
    }

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        json_patch::merge(&mut pod["spec"], &spec);
        pod
    }

    #[test]
    fn creates() {
        check("", "Pod", pod(json!({})), &[]);
        check("", "Pod", pod(json!({"restartPolicy": "Maybe"})), &[r#"spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never""#]);
        check("", "Pod", pod(json!({"containers": []})), &["spec.containers: Required value"]);
        check("", "Pod", pod(json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 70_000}]}]})),
            &["spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"]);
        let meta = json!({"name": "x", "namespace": "n"});
        check("", "ConfigMap", json!({"metadata": meta, "data": {"..": "v"}}), &["data[..]: Invalid value: \"..\": must not be '..'"]);
        check("", "Service", json!({"metadata": meta, "spec": {"ports": []}}), &["spec.ports: Required value"]);
        check("apps", "Deployment", json!({"metadata": meta, "spec": {"selector": {"matchLabels": {"a": "b"}}, "replicas": -1,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod(json!({}))["spec"]}}}),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]);
        check("batch", "CronJob", json!({"metadata": meta, "spec": {"schedule": "61 * * * *", "jobTemplate": {"spec": {"template": {"spec": pod(json!({"restartPolicy": "Never"}))["spec"]}}}}}),
            &["spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"]);
        check("rbac.authorization.k8s.io", "ClusterRole", json!({"metadata": {"name": "a:b"}, "rules": [{"verbs": []}]}), &[
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
        ]);
        check("", "Namespace", json!({"metadata": {"name": "x", "ownerReferences": [{"kind": "A", "name": "a", "uid": "u"}]}}),
            &["metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty"]);
    }

    #[test]
    fn updates() {
        let (resource, old) = admitted("", "v1", "Pod", pod(json!({})));
        let errors = |change: Value| {
            let mut new = old.clone();
            json_patch::merge(&mut new, &change);
            validate_update(resource, &new, &old).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(errors(json!({"metadata": {"labels": {"a": "b"}}})), [""; 0]);
        let refused = errors(json!({"spec": {"nodeName": "n"}}));
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("spec: Forbidden: pod updates may not change fields other than"), "{refused:?}");
        assert!(refused[0].contains("\n- \"NodeName\": \"\",\n+ \"NodeName\": \"n\",\n"), "{refused:?}");
        let (resource, old) = admitted("", "v1", "Secret", json!({"metadata": {"name": "s", "namespace": "n"}, "immutable": true, "data": {"k": "dg=="}}));
        let mut new = old.clone();
        new["data"]["k"] = "eg==".into();
        let errors: Vec<String> = validate_update(resource, &new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["data: Forbidden: field is immutable when `immutable` is set"]);
    }

    #[test]
    fn values_are_shown_as_structs() {
        let meta = json!({"name": "x", "namespace": "n"});
        let (resource, old) = admitted("storage.k8s.io", "v1", "VolumeAttachment", json!({"metadata": {"name": "a"},
            "spec": {"attacher": "a.io", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}}));
        let mut new = old.clone();
        new["spec"]["nodeName"] = "m".into();
        let errors: Vec<String> = validate_update(resource, &new, &old).iter().map(ToString::to_string).collect();
        let shown = r#"{"Attacher":"a.io","Source":{"PersistentVolumeName":"pv","InlineVolumeSpec":null},"NodeName":"m"}"#;
        assert_eq!(errors, [format!("spec: Invalid value: {shown}: field is immutable")]);
        check("policy", "PodDisruptionBudget", json!({"metadata": meta, "spec": {"minAvailable": 1, "maxUnavailable": 1, "selector": {"matchLabels": {"a": "b"}}}}),
            &[r#"spec: Invalid value: {"MinAvailable":1,"Selector":{"matchLabels":{"a":"b"}},"MaxUnavailable":1,"UnhealthyPodEvictionPolicy":null}: minAvailable and maxUnavailable cannot be both set"#]);
        check("storage.k8s.io", "CSIDriver", json!({"metadata": {"name": "d.io"}, "spec": {"nodeAllocatableUpdatePeriodSeconds": 1}}),
            &["spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 1: must be greater than or equal to 10 seconds"]);
        check("discovery.k8s.io", "EndpointSlice", json!({"metadata": meta, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "-"}, {"name": "z"}, {"name": "z"}]}}]}),
            &["endpoints[0].hints.forZones[0].name: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
                "endpoints[0].hints.forZones[2].name: Duplicate value: \"z\""]);
    }

    #[test]
    fn statuses() {
        let check = |group: &str, kind: &str, old: Value, subresource: &str, change: Value, expected: &[&str]| {
            let resource = find_kind(group, "v1", kind).expect(kind);
            let mut new = old.clone();
            json_patch::merge(&mut new, &change);
            let errors: Vec<String> = validate_subresource_update(resource, subresource, &new, &old).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{kind} {new}");
        };
        let budget = || json!({"metadata": {"name": "b"}});
        let condition = json!({"type": "A", "status": "True", "reason": "Why", "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z"});
        check("policy", "PodDisruptionBudget", budget(), "status", json!({"status": {"conditions": [condition]}}), &[]);
        check("policy", "PodDisruptionBudget", budget(), "status", json!({"status": {"conditions": [condition, condition]}}),
            &["status.conditions[1].type: Duplicate value: \"A\""]);
        check("flowcontrol.apiserver.k8s.io", "FlowSchema", budget(), "status", json!({"status": {"conditions": [{"status": "True"}]}}),
            &["status.conditions[0].type: Required value"]);
        use base64::Engine;
        let pem = base64::engine::general_purpose::STANDARD.encode("-----BEGIN CERTIFICATE REQUEST-----");
        let request = json!({"metadata": {"name": "r"}, "spec": {"request": pem, "usages": ["client auth"], "signerName": "a.io/s"}});
        let approval = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        let csr = ("certificates.k8s.io", "CertificateSigningRequest");
        check(csr.0, csr.1, request.clone(), "approval", approval.clone(), &[]);
        check(csr.0, csr.1, request.clone(), "status", approval, &["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]);
        check(csr.0, csr.1, request.clone(), "approval", json!({"status": {"certificate": "eA=="}}), &["status.certificate: Forbidden: updates may not set certificate content"]);
        check(csr.0, csr.1, request, "status", json!({"status": {"certificate": "eA=="}}),
            &["status.certificate: Invalid value: \"<certificate data>\": must contain at least one CERTIFICATE PEM block"]);
        let ingress = |ip: &str| json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
        check("networking.k8s.io", "Ingress", json!({"metadata": {"name": "i"}}), "status", ingress("x"),
            &["status.loadBalancer.ingress[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]);
        let mut bad = ingress("x");
        bad["metadata"] = json!({"name": "i"});
        check("networking.k8s.io", "Ingress", bad, "status", ingress("x"), &[]);
    }

    #[test]
    fn gated_pods_are_only_narrowed() {
        let terms = |terms: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
        let asks = |keys: &[&str]| json!({"matchExpressions": keys.iter().map(|key| json!({"key": key, "operator": "Exists"})).collect::<Vec<_>>()});
        let check = |was: Value, change: Value, expected: &str| {
            let (resource, mut old) = admitted("", "v1", "Pod", pod(json!({"schedulingGates": [{"name": "a.io/b"}]})));
            json_patch::merge(&mut old["spec"], &was);
            let mut new = old.clone();
            json_patch::merge(&mut new["spec"], &change);
            let errors: Vec<String> = validate_update(resource, &new, &old).iter().map(ToString::to_string).collect();
            assert!(errors.len() == usize::from(!expected.is_empty()) && errors.iter().all(|e| e.starts_with(expected)), "{errors:?}");
        };
        check(json!({"nodeSelector": {"a": "b"}}), json!({"nodeSelector": {"c": "d"}}), "");
        check(json!({"nodeSelector": {"a": "b"}}), json!({"nodeSelector": {"a": "d"}}), "spec.nodeSelector: Invalid value: {\"a\":\"d\"}: only additions");
        check(json!({}), json!({"affinity": terms(json!([asks(&["a"])]))}), "");
        let narrow = json!({"affinity": terms(json!([asks(&["a"])]))});
        check(narrow.clone(), json!({"affinity": terms(json!([asks(&["a", "b"])]))}), "");
        let path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        check(narrow.clone(), json!({"affinity": terms(json!([asks(&["b"])]))}), &format!("{path}[0]: Invalid value"));
        check(narrow.clone(), json!({"affinity": terms(json!([asks(&["a"]), asks(&["b"])]))}), &format!("{path}: Invalid value"));
        check(narrow, json!({"affinity": null}), &format!("{path}: Invalid value: null"));
        check(json!({}), json!({"affinity": {"podAntiAffinity": {}}}), "spec: Forbidden: pod updates may not change fields");
    }

    #[test]
    fn garbage_is_refused_without_a_panic() {
        for resource in crate::resource::catalogue() {
            for odd in [json!({}), json!({"metadata": null, "spec": {}}), json!({"metadata": {"name": "é", "generateName": "-"}, "spec": {}, "status": {}})] {
                let mut object = odd.clone();
                if resource.schema().prune(&mut object).is_ok() {
                    crate::defaults::apply(resource, &mut object);
                    validate_create(resource, &object);
                    validate_update(resource, &object, &odd);
                    for subresource in &resource.subresources {
                        validate_subresource_update(resource, &subresource.name, &object, &odd);
                    }
                    crate::print::cells(resource, &object, crate::clock::now());
                }
            }
        }
    }
}
