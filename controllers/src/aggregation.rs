//! ClusterRoles that are made of others: their rules are those of all roles that their selectors choose.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::Patch;
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use skiff_api::typed::selector;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{Change, is_gone};

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let roles = context.kinds.cluster_roles.clone();
    let others = context.kinds.cluster_roles.changes(move |_: &Change<ClusterRole>| {
        let made_of_others = roles.all().into_iter().filter(|role| role.aggregation_rule.is_some());
        made_of_others.map(|role| ObjectRef::from_obj(&*role)).collect()
    });
    Controller::new("clusterrole-aggregation-controller", &context.kinds.cluster_roles).on_stream(others).run(context, reconcile)
}

/// The rules that the role should have: of each selector's roles in the order of their names, each rule once.
fn rules(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    for chosen in selectors {
        let chosen = selector::of(Some(chosen));
        let labels = |part: &ClusterRole| part.metadata.labels.clone().unwrap_or_default();
        let mut parts: Vec<_> = all.iter().filter(|part| part.metadata.name != role.metadata.name && chosen.matches(&labels(part))).collect();
        parts.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for rule in parts.iter().flat_map(|part| part.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Some(rules)
}

async fn reconcile(context: Arc<Context>, role: Arc<ClusterRole>) -> Result<Again, Error> {
    let kind = &context.kinds.cluster_roles;
    let Some(rules) = rules(&role, &kind.all()) else { return Ok(None) };
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(None);
    }
    let patch = Patch::Merge(json!({"metadata": {"uid": role.metadata.uid}, "rules": rules}));
    match kind.patch(&role.metadata, &patch).await {
        Err(error) if !is_gone(&error) => Err(Error::on("writing the rules of a cluster role")(error)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn role(name: &str, label: &str, resources: &[&str], of: &[&str]) -> Arc<ClusterRole> {
        let rules: Vec<Value> = resources.iter().map(|r| json!({"verbs": ["get"], "resources": [r], "apiGroups": [""]})).collect();
        let selectors: Vec<Value> = of.iter().map(|label| json!({"matchLabels": {"to": label}})).collect();
        let mut role = json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": rules});
        if !of.is_empty() {
            role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        }
        Arc::new(serde_json::from_value(role).expect("a role"))
    }

    #[test]
    fn a_whole_has_the_rules_of_its_parts() {
        let all = [
            role("z", "view", &["pods", "nodes"], &[]),
            role("b", "view", &["nodes"], &[]),
            role("e", "edit", &["secrets"], &[]),
            role("whole", "view", &["old"], &["view", "edit"]),
        ];
        let names = |rules: Option<Vec<PolicyRule>>| rules.map(|rules| rules.into_iter().flat_map(|r| r.resources.unwrap_or_default()).collect::<Vec<_>>());
        assert_eq!(names(rules(&all[3], &all)), Some(vec!["nodes".to_owned(), "pods".to_owned(), "secrets".to_owned()]));
        assert_eq!(rules(&all[0], &all), None);
    }
}
