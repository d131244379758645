//! The schemas here against those of k8s-openapi: every definition has the same fields.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api;
use schemars::generate::SchemaSettings;
use serde_json::Value;
use skiff_api::Schema;
use skiff_api::schema::Kind;

/// Fields by definition, of everything the types are made of.
macro_rules! fields_of {
    ($($group:ident::$version:ident { $($kind:ident),* $(,)? })*) => {{
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        $($({
            let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<api::$group::$version::$kind>();
            collect(&serde_json::to_value(&schema).expect("a schema is JSON"), &mut all);
        })*)*
        all
    }};
}

fn collect(schema: &Value, all: &mut BTreeMap<String, BTreeSet<String>>) {
    for (name, definition) in schema["definitions"].as_object().into_iter().flatten() {
        let fields = definition["properties"].as_object().into_iter().flatten().map(|(field, _)| field.clone());
        all.entry(name.clone()).or_insert_with(|| fields.collect());
    }
}

#[test]
fn definitions_have_the_fields_of_k8s_openapi() {
    let theirs = fields_of! {
        admissionregistration::v1 { MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration }
        apps::v1 { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        autoscaling::v2 { HorizontalPodAutoscaler }
        batch::v1 { CronJob, Job }
        certificates::v1 { CertificateSigningRequest }
        coordination::v1 { Lease }
        core::v1 { ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
            ResourceQuota, Secret, Service, ServiceAccount }
        discovery::v1 { EndpointSlice }
        flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        networking::v1 { Ingress, IngressClass, NetworkPolicy }
        node::v1 { RuntimeClass }
        policy::v1 { PodDisruptionBudget }
        rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        resource::v1 { DeviceClass, ResourceClaim, ResourceSlice }
        scheduling::v1 { PriorityClass }
        storage::v1 { CSIDriver, CSINode, StorageClass, VolumeAttachment }
    };
    assert!(theirs.len() > 200, "{} definitions are not all", theirs.len());
    let mut wrong = Vec::new();
    for (name, theirs) in &theirs {
        let Some(schema) = Schema::builtin(name) else { continue };
        let Kind::Object(object) = &schema.kind else { panic!("{name} is no object") };
        let ours: BTreeSet<String> = object.properties.iter().map(|p| p.name.to_string()).filter(|n| !matches!(n.as_str(), "apiVersion" | "kind")).collect();
        let theirs: BTreeSet<String> = theirs.iter().filter(|n| !matches!(n.as_str(), "apiVersion" | "kind")).cloned().collect();
        if ours != theirs {
            wrong.push(format!("{name}: {:?}", ours.symmetric_difference(&theirs)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
