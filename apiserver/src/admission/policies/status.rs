//! The status of validating policies: which generation has been seen, and what the types of the objects they are about
//! show to be wrong with their expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::cel::Type;
use skiff_api::cel::admission::type_check;
use skiff_api::resource::Resource;
use skiff_api::{Status, value};

use super::VALIDATING;
use crate::bootstrap;
use crate::cache::Filter;
use crate::server::Server;

/// How many types one policy is checked against.
const MAX_TYPES: usize = 10;

/// Looks after the policies' status, each time that one changes. Ends with the server.
pub(crate) async fn run(server: Arc<Server>) {
    let Some(cache) = server.cache.resource(VALIDATING[0]) else { return };
    let mut bell = cache.subscribe();
    loop {
        bell.mark_unchanged();
        for policy in cache.list(&Filter::default(), 0).objects.iter().filter_map(|o| o.value().ok()) {
            // A conflict rings the bell again.
            if let Err(error) = settle(&server, &policy).await.or_else(|e| if matches!(e.code, 404 | 409) { Ok(()) } else { Err(e) }) {
                tracing::warn!(name = value::text(&policy, &["metadata", "name"]), error = error.message, "status of an admission policy not written");
            }
        }
        if bell.changed().await.is_err() {
            return;
        }
    }
}

async fn settle(server: &Arc<Server>, policy: &Value) -> Result<(), Status> {
    let (metadata, status) = (&policy["metadata"], &policy["status"]);
    if status["observedGeneration"] == metadata["generation"] && status["typeChecking"].is_object() {
        return Ok(());
    }
    let served = server.registry.now();
    let spec = &policy["spec"];
    let params = value::at(spec, &["paramKind"]);
    let param = served.ordered.iter().find(|r| *r.kind == *value::text(params, &["kind"]) && r.api_version() == value::text(params, &["apiVersion"]));
    let warnings = type_check(spec, &types(spec, &served.ordered), param.and_then(|r| type_of(r)).as_ref());
    let shown: Vec<Value> = warnings.into_iter().map(|(field, warning)| json!({"fieldRef": field, "warning": warning})).collect();
    let checking = if shown.is_empty() { json!({}) } else { json!({"expressionWarnings": shown}) };
    let patch = json!({
        "metadata": {"resourceVersion": metadata["resourceVersion"]},
        "status": {"observedGeneration": metadata["generation"], "typeChecking": checking},
    });
    let path = format!("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{}/status", value::text(metadata, &["name"]));
    bootstrap::patch(server, &path, &patch).await
}

fn type_of(resource: &Resource) -> Option<Type> {
    match resource.custom() {
        Some(custom) => Type::of_schema(&custom.source, true),
        None => Some(Type::of_builtin(resource.schema())),
    }
}

/// The types that the policy names one by one, sorted by group, version and kind.
fn types(spec: &Value, served: &[Arc<Resource>]) -> Vec<(String, Type)> {
    let mut found: BTreeMap<[&str; 3], &Resource> = BTreeMap::new();
    for rule in value::items(spec, &["matchConstraints", "resourceRules"]) {
        let named = |key: &str, wanted: &str| {
            let list = value::items(rule, &[key]);
            !list.iter().any(|x| x == "*") && list.iter().any(|x| x == wanted)
        };
        for resource in served {
            if named("apiGroups", &resource.group) && named("apiVersions", &resource.version) && named("resources", &resource.plural) {
                found.insert([&resource.group, &resource.version, &resource.kind], resource);
            }
        }
    }
    let typed = found.into_values().take(MAX_TYPES).filter_map(|r| {
        let version = if r.group.is_empty() { format!("/{}", r.version) } else { r.api_version() };
        Some((format!("{version}, Kind={}", r.kind), type_of(r)?))
    });
    typed.collect()
}
