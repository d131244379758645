//! `MutatingAdmissionPolicy`.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::cel::admission::MutationKind;
use skiff_api::resource::Resource;
use skiff_api::schema::Schema;
use skiff_api::{Status, apply, patch};

use super::super::expressions::Seen;
use super::super::webhooks::{show, take_back};
use super::super::{Plugin, Request, matching};
use super::{Binding, Bound, forbidden};

/// The plugin's place in what reinvocation remembers.
const MEMORY: usize = 0;

pub(in super::super) struct MutatingPolicies;

#[async_trait]
impl Plugin for MutatingPolicies {
    async fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        mutate(request, object)
    }
}

/// Lets the policies change the object.
pub(in super::super) fn mutate(request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
    let policies = request.call.server.policies.mutating(&request.call.server.cache);
    if policies.is_empty() || matching::is_exempt(request) {
        return Ok(());
    }
    {
        let mut again = request.again();
        if again.second && *object != again.plugins[MEMORY].output {
            again.plugins[MEMORY].changed();
        }
    }
    // Which policies are meant is decided before any of them changes the object.
    let (mut meant, mut refused) = (Vec::new(), None);
    for bound in policies.iter() {
        let mut fail = |binding: Option<&Binding>, why: String| {
            if bound.fails {
                refused.get_or_insert(worded(bound, binding, &why));
            }
        };
        let constraints = bound.constraints.as_ref().map_err(Clone::clone);
        let matched = match constraints.and_then(|c| c.matched(request, Some(object), false).map_err(|status| status.message)) {
            Ok(None) => continue,
            Ok(Some(matched)) => matched,
            Err(why) => {
                fail(None, format!("failed to configure policy: {why}"));
                continue;
            }
        };
        for binding in &bound.bindings {
            match binding.matches(request, Some(object)).and_then(|m| if m { binding.params(bound, request) } else { Ok(Vec::new()) }) {
                Ok(params) => meant.extend(params.into_iter().map(|p| (bound, binding, Arc::clone(&matched), p))),
                Err(why) => fail(Some(binding), format!("failed to configure binding: {why}")),
            }
        }
    }
    for (bound, binding, matched, params) in meant {
        match invoke(request, object, bound, binding, &matched, &params)? {
            Ok(()) => {}
            Err(why) if bound.fails => drop(refused.get_or_insert(worded(bound, Some(binding), &why))),
            Err(why) => tracing::debug!(policy = bound.name, error = why, "policy failed, and is ignored"),
        }
    }
    request.again().plugins[MEMORY].output = object.clone();
    refused.map_or(Ok(()), |message| {
        let status = forbidden(request, Some(object), &message, "");
        Err(Status { message, ..status })
    })
}

fn worded(bound: &Bound, binding: Option<&Binding>, why: &str) -> String {
    match binding {
        Some(binding) => format!("policy '{}' with binding '{}' denied request: {why}", bound.name, binding.name),
        None => format!("policy {:?} denied request: {why}", bound.name),
    }
}

/// Carries out one policy's mutations. The inner error is for the failure policy.
fn invoke(
    request: &Request<'_>,
    object: &mut Value,
    bound: &Bound,
    binding: &Binding,
    matched: &Arc<Resource>,
    params: &Value,
) -> Result<Result<(), String>, Status> {
    let mut seen = Seen::new(request, matched, Some(object))?;
    match bound.policy.matches(&seen.input(params)) {
        Ok(true) => {}
        Ok(false) => return Ok(Ok(())),
        Err(why) => return Ok(Err(why)),
    }
    let metadata = &params["metadata"];
    let id = format!("{}/{}/{}/{}", bound.name, binding.name, metadata["namespace"], metadata["name"]);
    {
        let again = request.again();
        if again.second && !again.plugins[MEMORY].again.contains(&id) {
            return Ok(Ok(()));
        }
    }
    let before = object.clone();
    let mut result = Ok(());
    for index in 0..bound.policy.mutations() {
        let mut shown = show(request, matched, object);
        seen = seen.with_object(shown.clone());
        let schema = if request.call.info.subresource == "scale" { Schema::any() } else { matched.schema() };
        let changed = bound.policy.mutation(index, &seen.input(params)).and_then(|(kind, made)| change(schema, kind, &mut shown, made));
        match changed {
            Ok(()) => *object = take_back(request, object, shown)?,
            Err(why) => {
                result = Err(why);
                break;
            }
        }
    }
    let mut again = request.again();
    if *object != before {
        again.needed = true;
        again.plugins[MEMORY].changed();
    }
    if bound.reinvoked {
        again.plugins[MEMORY].eligible.push(id);
    }
    Ok(result)
}

/// Applies what an expression made.
fn change(schema: &Schema, kind: MutationKind, object: &mut Value, made: Value) -> Result<(), String> {
    if kind == MutationKind::JsonPatch {
        let mut patched = object.clone();
        return match patch::json_patch(&mut patched, &made) {
            Ok(()) => {
                *object = patched;
                Ok(())
            }
            // A test that isn't passed means that there is nothing to do.
            Err(patch::Error::TestFailed(_)) => Ok(()),
            Err(error) => Err(format!("JSON Patch: {error}")),
        };
    }
    let mut atomics = Vec::new();
    apply::atomics(schema, &made, "", &mut atomics);
    if !atomics.is_empty() {
        return Err(format!("error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}", atomics.join(", ")));
    }
    *object = apply::merge(schema, Some(object), Some(&made));
    Ok(())
}
