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
use meta::{NameRule, label, path_segment, subdomain};

type Judge = fn(&mut Errors, &At);
type Update = fn(&mut Errors, &At, &Value);

/// A step in judging an object. Upstream's own order: it is that of the errors.
enum Step {
    /// Metadata: names of the kind's form and the like.
    Names,
    /// What the kind wants of every object.
    Body,
    /// Metadata against what it was.
    Meta,
    /// Fields that stay as they are.
    Fixed(&'static [&'static str]),
    /// Counts of a status, of which none exceeds what it is a part of.
    Counts(&'static [&'static str]),
    /// More that the kind wants of an object here.
    Also(Judge),
    /// What the kind wants of an object that replaces another.
    Own(Update),
}
use Step::{Also, Body, Counts, Fixed, Meta, Names, Own};

/// The rules of a kind.
struct Rules {
    group: &'static str,
    kind: &'static str,
    /// The form of its names; none where the kind judges its metadata itself.
    names: Option<NameRule>,
    body: Judge,
    /// The steps for an object that replaces another. A new one has its names and its body judged.
    update: &'static [Step],
    /// The endpoints below an object whose updates have rules of their own.
    below: &'static [(&'static str, &'static [Step])],
}

const fn kind(group: &'static str, kind: &'static str, names: NameRule, body: Judge, update: &'static [Step]) -> Rules {
    Rules { group, kind, names: Some(names), body, update, below: &[] }
}

/// A kind without rules for its metadata but what its body says.
const fn unnamed(group: &'static str, kind: &'static str, body: Judge, update: &'static [Step]) -> Rules {
    Rules { group, kind, names: None, body, update, below: &[] }
}

impl Rules {
    const fn with(self, below: &'static [(&'static str, &'static [Step])]) -> Self {
        Self { below, ..self }
    }

    /// Takes the steps. `old` is null where there is nothing before.
    fn judge(&self, steps: &[Step], e: &mut Errors, new: &At, old: &Value, namespaced: bool) {
        for step in steps {
            match step {
                Names => self.names.iter().for_each(|form| meta::object_meta(e, new, namespaced, *form)),
                Body => (self.body)(e, new),
                Meta => meta::meta_update(e, new, old),
                Fixed(fields) => e.unchanged(new, old, fields),
                Counts(fields) => workloads::counts_status(e, new, old, fields),
                Also(rule) => rule(e, new),
                Own(rule) => rule(e, new, old),
            }
        }
    }
}

fn nothing(_: &mut Errors, _: &At) {}

/// A kind that is not in the table.
static PLAIN: Rules = kind("", "", subdomain, nothing, &[Meta]);

const REPLICAS: &[Step] = &[Meta, Counts(&["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "terminatingReplicas"])];

static KINDS: &[Rules] = &[
    kind("", "ConfigMap", subdomain, core::config_map, &[Meta, Own(core::frozen), Names, Body]),
    kind("", "Endpoints", subdomain, network::endpoints, &[Meta, Names, Own(network::endpoints_update)]),
    kind("", "Event", path_segment, core::event, &[Own(core::event_update)]),
    kind("", "LimitRange", subdomain, core::limit_range, &[Names, Body]),
    kind("", "Namespace", label, core::namespace, &[Meta])
        .with(&[("status", &[Meta, Also(core::namespace_status)]), ("finalize", &[Meta, Also(core::namespace_finalize)])]),
    kind("", "Node", subdomain, core::node, &[Meta, Own(core::node_update)]).with(&[("status", &[Meta, Own(core::node_update)])]),
    // Upstream looks at the whole twice.
    kind("", "PersistentVolume", subdomain, storage::volume, &[Names, Body, Names, Body, Own(storage::volume_update)]),
    kind("", "PersistentVolumeClaim", subdomain, storage::claim, &[Meta, Names, Body, Own(storage::claim_update)])
        .with(&[("status", &[Meta, Also(storage::claim_status)])]),
    kind("", "Pod", subdomain, pod::create, &[Meta, Names, Own(pod::update)]).with(&[
        ("status", &[Meta, Own(pod::status)]),
        ("ephemeralcontainers", &[Meta, Names, Own(pod::ephemeral_update)]),
        ("resize", &[Meta, Names, Own(pod::resize)]),
    ]),
    kind("", "PodTemplate", subdomain, workloads::pod_template, &[Meta, Body]),
    kind("", "ReplicationController", subdomain, workloads::replication_controller, &[Meta, Body]).with(&[("status", REPLICAS)]),
    kind("", "ResourceQuota", subdomain, core::resource_quota, &[Meta, Own(core::quota_update)])
        .with(&[("status", &[Meta, Also(core::quota_status)])]),
    kind("", "Secret", subdomain, core::secret, &[Meta, Fixed(&["type"]), Own(core::frozen), Names, Body]),
    unnamed("", "Service", service::create, &[Own(service::update)]).with(&[("status", &[Meta, Also(service::status)])]),
    kind("admissionregistration.k8s.io", "MutatingAdmissionPolicy", subdomain, webhooks::policy, &[Names, Body, Meta]),
    kind("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding", subdomain, webhooks::policy_binding, &[Names, Body, Meta]),
    kind("admissionregistration.k8s.io", "MutatingWebhookConfiguration", subdomain, webhooks::mutating, &[Names, Body]),
    kind("admissionregistration.k8s.io", "ValidatingAdmissionPolicy", subdomain, webhooks::policy, &[Names, Body, Meta])
        .with(&[("status", &[Meta, Also(webhooks::policy_status)])]),
    kind("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding", subdomain, webhooks::policy_binding, &[Names, Body, Meta]),
    kind("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", subdomain, webhooks::validating, &[Names, Body]),
    unnamed("apiextensions.k8s.io", "CustomResourceDefinition", definition::definition, &[Meta, Own(definition::definition_update)])
        .with(&[("status", &[Meta, Also(definition::definition_status)])]),
    unnamed("apiregistration.k8s.io", "APIService", webhooks::api_service, &[Meta, Body]),
    kind("apps", "ControllerRevision", subdomain, workloads::controller_revision, &[Meta, Names, Body, Fixed(&["data"])]),
    kind("apps", "DaemonSet", subdomain, workloads::daemon_set, &[Meta, Fixed(&["spec.selector"]), Body]).with(&[("status", &[Meta, Counts(&[
        "currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable",
        "numberUnavailable",
    ])])]),
    kind("apps", "Deployment", subdomain, workloads::deployment, &[Meta, Body, Fixed(&["spec.selector"])]).with(&[("status", &[Meta, Counts(&[
        "replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas", "terminatingReplicas",
    ])])]),
    kind("apps", "ReplicaSet", subdomain, workloads::replica_set, &[Meta, Body, Fixed(&["spec.selector"])]).with(&[("status", REPLICAS)]),
    kind("apps", "StatefulSet", label, workloads::stateful_set, &[Meta, Own(workloads::stateful_set_update)]).with(&[("status", &[Meta, Counts(&[
        "replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas",
    ])])]),
    // Reviews are judged by what they ask.
    unnamed("authentication.k8s.io", "SelfSubjectReview", nothing, &[Meta]),
    unnamed("authentication.k8s.io", "TokenReview", nothing, &[Meta]),
    unnamed("authorization.k8s.io", "LocalSubjectAccessReview", access::local_access_review, &[Meta]),
    unnamed("authorization.k8s.io", "SelfSubjectAccessReview", access::self_access_review, &[Meta]),
    unnamed("authorization.k8s.io", "SelfSubjectRulesReview", nothing, &[Meta]),
    unnamed("authorization.k8s.io", "SubjectAccessReview", access::access_review, &[Meta]),
    kind("autoscaling", "HorizontalPodAutoscaler", subdomain, cluster::autoscaler, &[Meta, Body])
        .with(&[("status", &[Meta, Also(cluster::autoscaler_status)])]),
    kind("autoscaling", "Scale", subdomain, cluster::scale, &[Meta]),
    kind("batch", "CronJob", subdomain, jobs::cron_job, &[Meta, Also(jobs::cron_job_spec)]),
    unnamed("batch", "Job", jobs::job, &[Body, Meta, Own(jobs::job_update)]).with(&[("status", &[Meta, Own(job_status::update)])]),
    kind("certificates.k8s.io", "CertificateSigningRequest", path_segment, access::signing_request, &[
        Names, Body, Own(access::signing_request_update), Meta,
    ])
    .with(&[
        ("status", &[Names, Body, Own(access::signing_request_status), Meta]),
        ("approval", &[Names, Body, Own(access::signing_request_approval), Meta]),
    ]),
    kind("coordination.k8s.io", "Lease", subdomain, cluster::lease, &[Meta, Body]),
    kind("discovery.k8s.io", "EndpointSlice", subdomain, network::slice, &[Names, Body, Fixed(&["addressType"])]),
    kind("events.k8s.io", "Event", subdomain, core::event, &[Own(core::event_update)]),
    kind("flowcontrol.apiserver.k8s.io", "FlowSchema", subdomain, cluster::flow_schema, &[Meta, Names, Body])
        .with(&[("status", &[Meta, Also(cluster::flow_status)])]),
    kind("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", subdomain, cluster::priority_level, &[Meta, Names, Body])
        .with(&[("status", &[Meta, Also(cluster::flow_status)])]),
    kind("networking.k8s.io", "Ingress", subdomain, network::ingress, &[Meta, Also(network::ingress_rules)])
        .with(&[("status", &[Meta, Own(network::ingress_status)])]),
    kind("networking.k8s.io", "IngressClass", subdomain, network::ingress_class, &[Meta, Fixed(&["spec.controller"]), Names, Body]),
    unnamed("networking.k8s.io", "IPAddress", network::ip_address, &[Meta, Fixed(&["spec.parentRef"])]),
    kind("networking.k8s.io", "NetworkPolicy", subdomain, network::network_policy, &[Meta, Body]),
    kind("networking.k8s.io", "ServiceCIDR", subdomain, network::service_cidr, &[Meta, Own(network::service_cidr_update)]),
    kind("node.k8s.io", "RuntimeClass", subdomain, cluster::runtime_class, &[Meta, Fixed(&["handler"])]),
    kind("policy", "PodDisruptionBudget", path_segment, cluster::budget, &[Meta, Body]).with(&[("status", &[Meta, Also(cluster::budget_status)])]),
    kind("rbac.authorization.k8s.io", "ClusterRole", path_segment, access::cluster_role, &[Names, Body, Meta]),
    kind("rbac.authorization.k8s.io", "ClusterRoleBinding", path_segment, access::cluster_role_binding, &[
        Names, Body, Meta, Own(access::binding_update),
    ]),
    kind("rbac.authorization.k8s.io", "Role", path_segment, access::role, &[Names, Body, Meta]),
    kind("rbac.authorization.k8s.io", "RoleBinding", path_segment, access::role_binding, &[Names, Body, Meta, Own(access::binding_update)]),
    kind("resource.k8s.io", "DeviceClass", subdomain, devices::class, &[Meta, Body]),
    kind("resource.k8s.io", "ResourceClaim", subdomain, devices::claim, &[Meta, Fixed(&["spec"])])
        .with(&[("status", &[Meta, Own(claim_status::update)])]),
    kind("resource.k8s.io", "ResourceClaimTemplate", subdomain, devices::template, &[Names, Body, Meta, Fixed(&["spec"])]),
    kind("resource.k8s.io", "ResourceSlice", subdomain, devices::resource_slice, &[Meta, Own(devices::resource_slice_update)]),
    kind("scheduling.k8s.io", "PriorityClass", subdomain, cluster::priority_class, &[
        Meta, Own(cluster::priority_class_update), Fixed(&["preemptionPolicy"]),
    ]),
    kind("storage.k8s.io", "CSIDriver", subdomain, storage::driver, &[Meta, Names, Body, Own(storage::driver_update)]),
    kind("storage.k8s.io", "CSINode", subdomain, storage::csi_node, &[Meta, Names, Body, Own(storage::csi_node_update)]),
    kind("storage.k8s.io", "CSIStorageCapacity", subdomain, storage::capacity, &[Meta, Fixed(&["nodeTopology", "storageClassName"])]),
    kind("storage.k8s.io", "StorageClass", subdomain, storage::class, &[
        Names, Body, Meta, Fixed(&["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"]),
    ]),
    kind("storage.k8s.io", "VolumeAttachment", subdomain, storage::attachment, &[Meta, Names, Body, Fixed(&["spec"])]),
    kind("storage.k8s.io", "VolumeAttributesClass", subdomain, storage::attributes_class, &[
        Meta, Own(storage::attributes_class_update), Names, Body,
    ]),
];

fn rules_of(resource: &Resource) -> &'static Rules {
    KINDS.iter().find(|rules| rules.kind == resource.kind && rules.group == resource.group).unwrap_or(&PLAIN)
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
    if let Some(custom) = resource.custom() {
        custom::create(&mut errors, custom, &at, resource.namespaced);
    } else {
        rules_of(resource).judge(&[Names, Body], &mut errors, &at, &Value::Null, resource.namespaced);
    }
    errors.0
}

/// What is wrong with an object that is to replace another through a subresource (`ephemeralcontainers`); an empty
/// name is the object itself.
pub fn validate_subresource_update(resource: &Resource, subresource: &str, new: &Value, old: &Value) -> Vec<field::Error> {
    let (new, old) = (in_rules_version(resource, new), in_rules_version(resource, old));
    let (at, mut errors) = (At::of(&new, rules_schema(resource)), Errors::default());
    // Upstream's update looks at metadata before, and most kinds look again.
    meta::meta_update(&mut errors, &at, &old);
    if let Some(custom) = resource.custom() {
        custom::update(&mut errors, custom, subresource, &at, &old);
    } else {
        let rules = rules_of(resource);
        let own = rules.below.iter().find(|(name, _)| *name == subresource).map(|(_, steps)| *steps);
        let steps = own.unwrap_or(if subresource == "status" { &[Meta] } else { rules.update });
        rules.judge(steps, &mut errors, &at, &old, resource.namespaced);
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
            validate_subresource_update(resource, "", &new, &old).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(errors(json!({"metadata": {"labels": {"a": "b"}}})), [""; 0]);
        let refused = errors(json!({"spec": {"nodeName": "n"}}));
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("spec: Forbidden: pod updates may not change fields other than"), "{refused:?}");
        assert!(refused[0].contains("\n- \"NodeName\": \"\",\n+ \"NodeName\": \"n\",\n"), "{refused:?}");
        let (resource, old) = admitted("", "v1", "Secret", json!({"metadata": {"name": "s", "namespace": "n"}, "immutable": true, "data": {"k": "dg=="}}));
        let mut new = old.clone();
        new["data"]["k"] = "eg==".into();
        let errors: Vec<String> = validate_subresource_update(resource, "", &new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["data: Forbidden: field is immutable when `immutable` is set"]);
    }

    #[test]
    fn values_are_shown_as_structs() {
        let meta = json!({"name": "x", "namespace": "n"});
        let (resource, old) = admitted("storage.k8s.io", "v1", "VolumeAttachment", json!({"metadata": {"name": "a"},
            "spec": {"attacher": "a.io", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}}));
        let mut new = old.clone();
        new["spec"]["nodeName"] = "m".into();
        let errors: Vec<String> = validate_subresource_update(resource, "", &new, &old).iter().map(ToString::to_string).collect();
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
            let errors: Vec<String> = validate_subresource_update(resource, "", &new, &old).iter().map(ToString::to_string).collect();
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
                    validate_subresource_update(resource, "", &object, &odd);
                    for subresource in &resource.subresources {
                        validate_subresource_update(resource, &subresource.name, &object, &odd);
                    }
                    crate::print::cells(resource, &object, crate::clock::now());
                }
            }
        }
    }
}
