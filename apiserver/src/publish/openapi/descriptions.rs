//! What definitions and their properties are for, as the types of the client library say.

use std::sync::OnceLock;

use k8s_openapi::api::{
    admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates, coordination, core, discovery, events,
    flowcontrol, networking, node, policy, rbac, resource, scheduling, storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value};

macro_rules! collect {
    ($generator:ident: $($type:path,)+) => {
        $($generator.subschema_for::<$type>();)+
    };
}

/// The schemas of all definitions, by name. Kept, for making them takes a while; they are only made when somebody asks
/// for OpenAPI.
fn all() -> &'static Map<String, Value> {
    static ALL: OnceLock<Map<String, Value>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut generator: SchemaGenerator = SchemaSettings::draft07().into_generator();
        collect! { generator:
            admissionregistration::v1::MutatingAdmissionPolicy, admissionregistration::v1::MutatingAdmissionPolicyBinding,
            admissionregistration::v1::MutatingWebhookConfiguration, admissionregistration::v1::ValidatingAdmissionPolicy,
            admissionregistration::v1::ValidatingAdmissionPolicyBinding, admissionregistration::v1::ValidatingWebhookConfiguration,
            apiextensions::v1::CustomResourceDefinition, apiregistration::v1::APIService,
            apps::v1::ControllerRevision, apps::v1::DaemonSet, apps::v1::Deployment, apps::v1::ReplicaSet, apps::v1::StatefulSet,
            authentication::v1::SelfSubjectReview, authentication::v1::TokenRequest, authentication::v1::TokenReview,
            authorization::v1::LocalSubjectAccessReview, authorization::v1::SelfSubjectAccessReview,
            authorization::v1::SelfSubjectRulesReview, authorization::v1::SubjectAccessReview,
            autoscaling::v1::HorizontalPodAutoscaler, autoscaling::v1::Scale, autoscaling::v2::HorizontalPodAutoscaler,
            batch::v1::CronJob, batch::v1::Job, certificates::v1::CertificateSigningRequest, coordination::v1::Lease,
            core::v1::Binding, core::v1::ComponentStatus, core::v1::ConfigMap, core::v1::Endpoints, core::v1::Event, core::v1::LimitRange,
            core::v1::Namespace, core::v1::Node, core::v1::PersistentVolume, core::v1::PersistentVolumeClaim, core::v1::Pod,
            core::v1::PodTemplate, core::v1::ReplicationController, core::v1::ResourceQuota, core::v1::Secret, core::v1::Service,
            core::v1::ServiceAccount, discovery::v1::EndpointSlice, events::v1::Event, flowcontrol::v1::FlowSchema,
            flowcontrol::v1::PriorityLevelConfiguration, networking::v1::IPAddress, networking::v1::Ingress, networking::v1::IngressClass,
            networking::v1::NetworkPolicy, networking::v1::ServiceCIDR, node::v1::RuntimeClass, policy::v1::Eviction,
            policy::v1::PodDisruptionBudget, rbac::v1::ClusterRole, rbac::v1::ClusterRoleBinding, rbac::v1::Role, rbac::v1::RoleBinding,
            resource::v1::DeviceClass, resource::v1::ResourceClaim, resource::v1::ResourceClaimTemplate, resource::v1::ResourceSlice,
            scheduling::v1::PriorityClass, storage::v1::CSIDriver, storage::v1::CSINode, storage::v1::CSIStorageCapacity,
            storage::v1::StorageClass, storage::v1::VolumeAttachment, storage::v1::VolumeAttributesClass,
            meta::v1::DeleteOptions, meta::v1::ListMeta, meta::v1::Status,
        }
        let mut all = generator.take_definitions(false);
        all.values_mut().for_each(strip);
        all
    })
}

/// Keeps of a schema its description and those of its properties.
fn strip(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    map.retain(|key, _| matches!(key.as_str(), "description" | "properties"));
    for property in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(|p| p.values_mut()) {
        if let Some(property) = property.as_object_mut() {
            property.retain(|key, _| key == "description");
        }
    }
}

/// What the definition is for.
pub(super) fn of(definition: &str) -> Option<&'static Value> {
    all().get(definition)?.get("description")
}

/// What the property is for.
pub(super) fn of_property(definition: &str, property: &str) -> Option<&'static Value> {
    all().get(definition)?.get("properties")?.get(property)?.get("description")
}
