//! Nobody gives rights away that they don't have: roles may only hold what their writer holds, and bindings only give
//! roles whose rules their writer holds, unless the verbs `escalate` and `bind` say otherwise.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::{Status, value};

use super::{Plugin, Request};
use crate::auth::rbac::Rule;
use crate::auth::{self, Attributes};

pub(super) struct Escalation;

const GROUP: &str = "rbac.authorization.k8s.io";

#[async_trait]
impl Plugin for Escalation {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        let call = request.call;
        let resource = &call.resource;
        if resource.group != GROUP || !call.info.subresource.is_empty() {
            return Ok(());
        }
        let namespace = call.info.namespace.as_str();
        let name = value::text(object, &["metadata", "name"]);
        let unchanged = |parts: &[&str]| request.old.is_some_and(|old| parts.iter().all(|part| old.get(part) == object.get(part)));
        let may = async |verb, resource, name| {
            let attributes = Attributes { verb, group: GROUP, version: "*", resource, namespace, name, ..Attributes::default() };
            auth::allowed(&call.server, &call.user, &attributes).await
        };
        let wanted = match resource.plural.as_ref() {
            plural @ ("roles" | "clusterroles") => {
                if unchanged(&["rules", "aggregationRule"]) || may("escalate", plural, name).await {
                    return Ok(());
                }
                let mut rules = rules_of(object);
                // A role that is made of others may come to hold anything.
                if value::at(object, &["aggregationRule"]).is_object() {
                    rules.push(Rule::everything());
                }
                rules
            }
            "rolebindings" | "clusterrolebindings" => {
                let role = value::text(object, &["roleRef", "name"]);
                let cluster = value::text(object, &["roleRef", "kind"]) == "ClusterRole";
                if unchanged(&["roleRef", "subjects"]) || may("bind", if cluster { "clusterroles" } else { "roles" }, role).await {
                    return Ok(());
                }
                let (prefix, key, kind) = match cluster {
                    true => ("/registry/clusterroles/", format!("/registry/clusterroles/{role}"), "clusterroles"),
                    false => ("/registry/roles/", format!("/registry/roles/{namespace}/{role}"), "roles"),
                };
                let found = call.server.cache.resource(prefix).and_then(|cache| cache.get(&key));
                let gr = skiff_api::status::GroupResource { group: GROUP, resource: kind };
                rules_of(&found.ok_or_else(|| Status::not_found(gr, role))?.value().map_err(Status::internal)?)
            }
            _ => return Ok(()),
        };
        let (held, faults) = call.server.rbac.rules(&call.server.cache, &call.user, namespace);
        let missing = missing(&held, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            call.user.name,
            quoted(&call.user.groups),
            missing.join("\n")
        );
        let why = if faults.is_empty() { why } else { format!("{why}; resolution errors: [{}]", faults.join(", ")) };
        Err(Status::forbidden(resource.group_resource(), name, why))
    }
}

fn rules_of(role: &Value) -> Vec<Rule> {
    serde_json::from_value::<Option<Vec<Rule>>>(value::at(role, &["rules"]).clone()).ok().flatten().unwrap_or_default()
}

/// Whether the role doesn't give all that the rule gives.
pub(crate) fn lacks(role: &Value, rule: &Value) -> bool {
    let rule = serde_json::from_value::<Rule>(rule.clone());
    rule.is_ok_and(|rule| !missing(&rules_of(role), &[rule]).is_empty())
}

/// A list as Go shows it.
fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}

/// What of the wanted rules isn't held, as upstream tells it.
fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<String> {
    let mut missing: Vec<Rule> = Vec::new();
    for atom in wanted.iter().flat_map(atoms).filter(|atom| !held.iter().any(|rule| covers(rule, atom))) {
        // Atoms that differ in their verb alone are told as one, but for paths.
        let like = |rule: &&mut Rule| !atom.resources.is_empty() && Rule { verbs: Vec::new(), ..(*rule).clone() } == Rule { verbs: Vec::new(), ..atom.clone() };
        match missing.iter_mut().find(like) {
            Some(rule) => rule.verbs.extend(atom.verbs),
            None => missing.push(atom),
        }
    }
    missing.iter().map(shown).collect::<BTreeSet<_>>().into_iter().collect()
}

/// A rule taken apart into rules of one of everything.
fn atoms(rule: &Rule) -> Vec<Rule> {
    let one = |item: &String| vec![item.clone()];
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let atom = Rule { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Rule::default() };
                if rule.resource_names.is_empty() {
                    atoms.push(atom.clone());
                }
                atoms.extend(rule.resource_names.iter().map(|name| Rule { resource_names: one(name), ..atom.clone() }));
            }
        }
        atoms.extend(rule.non_resource_urls.iter().map(|url| Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() }));
    }
    atoms
}

/// Whether the rule gives all that the atom gives.
fn covers(rule: &Rule, atom: &Rule) -> bool {
    let has = |list: &[String], item: &String| list.iter().any(|i| i == "*" || i == item);
    if !atom.verbs.iter().all(|verb| has(&rule.verbs, verb)) {
        return false;
    }
    if let Some(url) = atom.non_resource_urls.first() {
        return rule.non_resource_urls.iter().any(|u| u == url || u.strip_suffix('*').is_some_and(|start| url.starts_with(start)));
    }
    let resource = |wanted: &String| {
        let any = wanted.split_once('/').map(|(_, sub)| format!("*/{sub}"));
        has(&rule.resources, wanted) || any.is_some_and(|any| rule.resources.contains(&any))
    };
    let named = match atom.resource_names.first() {
        None => rule.resource_names.is_empty(),
        Some(name) => rule.resource_names.is_empty() || rule.resource_names.contains(name),
    };
    named && atom.api_groups.iter().all(|group| has(&rule.api_groups, group)) && atom.resources.iter().all(resource)
}

fn shown(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = parts.iter().filter(|(_, list)| !list.is_empty()).map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(held: &Value, wanted: &Value, expected: &[&str]) {
        let rules = |rules: &Value| rules_of(&json!({"rules": rules}));
        assert_eq!(missing(&rules(held), &rules(wanted)), expected, "{held} {wanted}");
    }

    #[test]
    fn what_is_not_held() {
        let pods = json!([{"apiGroups": [""], "resources": ["pods", "*/log"], "verbs": ["get"]}]);
        check(&pods, &pods, &[]);
        check(&pods, &json!([{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"], "verbs": ["get"]}]), &[]);
        check(&pods, &json!([{"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}]), &[]);
        check(
            &pods,
            &json!([{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "list"]}]),
            &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["list"]}"#, r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#],
        );
        let named = json!([{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"], "verbs": ["*"]}]);
        check(&named, &json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]), &[r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#]);
        let paths = json!([{"nonResourceURLs": ["/healthz/*"], "verbs": ["get"]}]);
        check(&paths, &json!([{"nonResourceURLs": ["/healthz/a", "/x"], "verbs": ["get"]}]), &[r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#]);
        check(&json!([]), &json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]), &[r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#]);
    }
}
