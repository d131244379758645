//! Pods name a priority class; its number is what counts.

use async_trait::async_trait;
use serde_json::{Value, json};
use skiff_api::{Status, value};

use super::{Plugin, Request};
use crate::cache::Filter;

pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    async fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if let Some(old) = request.old
            && request.is_of("", "pods")
        {
            for key in ["priority", "preemptionPolicy"] {
                let kept = value::at(old, &["spec", key]);
                if !kept.is_null() && value::at(pod, &["spec", key]).is_null() {
                    pod["spec"][key] = kept.clone();
                }
            }
        }
        if !request.creates("", "pods") {
            return Ok(());
        }
        let server = &request.call.server;
        let cache = server.cache.resource("/registry/priorityclasses/").ok_or_else(Status::no_such_resource)?;
        let name = value::text(pod, &["spec", "priorityClassName"]).to_owned();
        let refuse = |why: &str| {
            Status::forbidden(request.call.resource.group_resource(), value::text(pod, &["metadata", "name"]), why)
        };
        let class = if name.is_empty() {
            let mut defaults: Vec<Value> =
                cache.list(&Filter::default(), 0).objects.iter().filter_map(|o| o.value().ok()).filter(|c| c["globalDefault"] == true).collect();
            defaults.sort_by_key(|c| c["value"].as_i64());
            defaults.into_iter().next()
        } else {
            let class = cache.get(&format!("/registry/priorityclasses/{name}"));
            let class = class.ok_or_else(|| refuse(&format!("no PriorityClass with name {name} was found")))?;
            Some(class.value().map_err(Status::internal)?)
        };
        let (number, policy) = class.as_ref().map_or((0, "PreemptLowerPriority"), |c| {
            (c["value"].as_i64().unwrap_or(0), c["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority"))
        });
        let asked = value::at(pod, &["spec", "priority"]).as_i64();
        if asked.is_some_and(|asked| asked != number) {
            return Err(refuse(&format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {number} from the given PriorityClass name",
                asked.unwrap_or(0)
            )));
        }
        let asked = value::text(pod, &["spec", "preemptionPolicy"]);
        if !asked.is_empty() && asked != policy {
            return Err(refuse(&format!(
                "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        pod["spec"]["preemptionPolicy"] = policy.into();
        pod["spec"]["priority"] = json!(number);
        if let Some(class) = class
            && name.is_empty()
        {
            pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }

    async fn validate(&self, request: &Request<'_>, class: &Value) -> Result<(), Status> {
        if request.is_of("scheduling.k8s.io", "priorityclasses") { check_single_default(request, class) } else { Ok(()) }
    }
}

fn check_single_default(request: &Request<'_>, class: &Value) -> Result<(), Status> {
    if class["globalDefault"] != true {
        return Ok(());
    }
    let cache = request.call.server.cache.resource("/registry/priorityclasses/").ok_or_else(Status::no_such_resource)?;
    let classes = cache.list(&Filter::default(), 0).objects;
    match classes.iter().find(|o| o.value().is_ok_and(|c| c["globalDefault"] == true)) {
        None => Ok(()),
        Some(other) if request.old.is_some() && *other.name() == *value::text(class, &["metadata", "name"]) => Ok(()),
        Some(other) => {
            let why = format!("PriorityClass {} is already marked as default. Only one default can exist", other.name());
            Err(Status::forbidden(request.call.resource.group_resource(), value::text(class, &["metadata", "name"]), why))
        }
    }
}
