//! PodSecurity: namespaces say by labels what their pods may do.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::pod_security::{self, Level, Policy, Standard, describe, violations};
use skiff_api::{Status, value};

use super::{Operation, Plugin, Request};
use crate::cache::Filter;

/// How many pods are looked at when a namespace gets stricter. Upstream's figure.
const MAX_PODS: usize = 3_000;

pub(super) struct PodSecurity;

/// Where the kinds that make pods have their template.
const TEMPLATES: [(&str, &str, &[&str]); 8] = [
    ("apps", "deployments", &["spec", "template"]),
    ("apps", "replicasets", &["spec", "template"]),
    ("apps", "daemonsets", &["spec", "template"]),
    ("apps", "statefulsets", &["spec", "template"]),
    ("batch", "jobs", &["spec", "template"]),
    ("batch", "cronjobs", &["spec", "jobTemplate", "spec", "template"]),
    ("", "replicationcontrollers", &["spec", "template"]),
    ("", "podtemplates", &["template"]),
];

#[async_trait]
impl Plugin for PodSecurity {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        let call = request.call;
        let (group, plural, subresource) = (call.resource.group.as_ref(), call.resource.plural.as_ref(), call.info.subresource.as_str());
        match (group, plural, subresource) {
            ("", "namespaces", "") => namespace(request, object),
            ("", "pods", "" | "ephemeralcontainers" | "resize") => {
                if request.old.is_some_and(|old| !pod_security::is_significant(object, old)) {
                    return Ok(());
                }
                pod(request, &object["metadata"], &object["spec"], true)
            }
            (_, _, "") => match TEMPLATES.iter().find(|(g, p, _)| (*g, *p) == (group, plural)) {
                Some((_, _, path)) => {
                    let template = value::at(object, path);
                    if template.is_object() { pod(request, &template["metadata"], &template["spec"], false) } else { Ok(()) }
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Judges a pod, or the template of one, which is never refused.
fn pod(request: &Request<'_>, metadata: &Value, spec: &Value, enforce: bool) -> Result<(), Status> {
    let (Policy { enforce: enforced, audit, warn }, errors) = pod_security::policy(&request.namespace_object()?);
    let notes = &request.call.notes;
    if let Some(error) = errors.first() {
        notes.annotate("pod-security.kubernetes.io/error".into(), format!("Failed to parse policy: {error}"));
    }
    let judge = |standard: Standard| Some(violations(standard, metadata, spec)).filter(|found| !found.is_empty()).map(|found| describe(&found, true));
    if enforce {
        notes.annotate("pod-security.kubernetes.io/enforce-policy".into(), enforced.to_string());
    }
    if let Some(found) = judge(audit) {
        notes.annotate("pod-security.kubernetes.io/audit-violations".into(), format!("would violate PodSecurity \"{audit}\": {found}"));
    }
    if enforce
        && let Some(found) = judge(enforced)
    {
        let name = value::text(metadata, &["name"]);
        let why = format!("violates PodSecurity \"{enforced}\": {found}");
        return Err(Status::forbidden(request.call.resource.group_resource(), name, why));
    }
    if let Some(found) = judge(warn) {
        notes.warn(format!("would violate PodSecurity \"{warn}\": {found}"));
    }
    Ok(())
}

/// Refuses labels that make no sense, and warns of the pods that a stricter level would not have let in.
fn namespace(request: &Request<'_>, object: &Value) -> Result<(), Status> {
    let (new, errors) = pod_security::policy(object);
    let old = request.old.map(pod_security::policy);
    let known = old.as_ref().is_some_and(|(_, before)| *before == errors);
    if !errors.is_empty() && !known {
        return Err(Status::invalid("", "Namespace", value::text(object, &["metadata", "name"]), &errors));
    }
    let Some((old, _)) = old.filter(|_| request.operation == Operation::Update) else { return Ok(()) };
    let relaxed = new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level;
    if new.enforce == old.enforce || new.enforce.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let name = value::text(object, &["metadata", "name"]);
    let cache = request.call.server.cache.resource("/registry/pods/").ok_or_else(Status::no_such_resource)?;
    let pods = cache.list(&Filter { namespace: name.to_owned(), ..Filter::default() }, 0).objects;
    // The first pod's name and the number of pods, by what they violate.
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in pods.iter().take(MAX_PODS).filter_map(|p| p.value().ok()) {
        let broken = violations(new.enforce, &pod["metadata"], &pod["spec"]);
        if !broken.is_empty() {
            let first = || (value::text(&pod, &["metadata", "name"]).to_owned(), 0);
            found.entry(describe(&broken, false)).or_insert_with(first).1 += 1;
        }
    }
    let notes = &request.call.notes;
    if pods.len() > MAX_PODS {
        notes.warn(format!("new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods", pods.len()));
    }
    if !found.is_empty() {
        notes.warn(format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{}\"", new.enforce));
    }
    let mut warnings: Vec<String> = found
        .into_iter()
        .map(|(what, (first, count))| match count {
            1 => format!("{first}: {what}"),
            2 => format!("{first} (and 1 other pod): {what}"),
            n => format!("{first} (and {} other pods): {what}", n - 1),
        })
        .collect();
    warnings.sort();
    warnings.into_iter().for_each(|warning| notes.warn(warning));
    Ok(())
}
