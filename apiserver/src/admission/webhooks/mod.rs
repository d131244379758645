//! Admission webhooks: mutating ones one after the other, validating ones side by side.

mod hook;
pub(super) mod review;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;
use skiff_api::resource::Resource;
use skiff_api::{Status, defaults, patch, random};

use super::{Operation, Plugin, Request, matching};
use crate::metrics::Admission;
use crate::convert;
use crate::subresources::scale;
pub(crate) use hook::Hooks;
use hook::Hook;
use review::Answer;

/// The plugin's place in what reinvocation remembers.
const MEMORY: usize = 1;

pub(super) struct Mutating;

#[async_trait]
impl Plugin for Mutating {
    async fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        mutate(request, Some(object)).await
    }
}

pub(super) struct Validating;

#[async_trait]
impl Plugin for Validating {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        validate(request, Some(object)).await
    }
}

/// Lets the mutating webhooks change the object.
pub(super) async fn mutate(request: &Request<'_>, mut object: Option<&mut Value>) -> Result<(), Status> {
    let hooks = request.call.server.hooks.mutating(&request.call.server.cache);
    if hooks.is_empty() || matching::is_exempt(request) {
        return Ok(());
    }
    {
        let mut again = request.again();
        let second = again.second;
        let memory = &mut again.plugins[MEMORY];
        // Other plugins have changed what the webhooks left.
        if second && object.as_deref().is_some_and(|o| *o != memory.output) {
            memory.changed();
        }
    }
    for (index, hook) in hooks.iter().enumerate() {
        let Some(matched) = hook.wants(request, object.as_deref())? else { continue };
        let second = request.again().second;
        if second && !request.again().plugins[MEMORY].again.contains(&hook.id) {
            continue;
        }
        let round = u8::from(second);
        let note = |kind: &str| format!("{kind}mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
        let changed = match mutate_by(hook, request, &matched, object.as_deref_mut()).await {
            Ok(changed) => changed,
            Err(Failure::Denied(status)) => return Err(status),
            Err(Failure::Call(why)) if hook.fails => return Err(Status::internal(why)),
            Err(Failure::Call(why)) => {
                tracing::warn!(webhook = hook.name, error = why, "webhook failed, and is ignored by its policy");
                request.call.notes.annotate(note("failed-open."), hook.name.clone());
                continue;
            }
        };
        let said = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed});
        request.call.notes.annotate(note(""), said.to_string());
        let mut again = request.again();
        if changed {
            again.needed = true;
            again.plugins[MEMORY].changed();
        }
        if hook.reinvoked {
            again.plugins[MEMORY].eligible.push(hook.id.clone());
        }
    }
    if let Some(object) = object {
        request.again().plugins[MEMORY].output = object.clone();
    }
    Ok(())
}

/// Lets the validating webhooks refuse.
pub(super) async fn validate(request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
    let hooks = request.call.server.hooks.validating(&request.call.server.cache);
    if hooks.is_empty() || matching::is_exempt(request) {
        return Ok(());
    }
    let mut wanting = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        if let Some(matched) = hook.wants(request, object)? {
            wanting.push((index, hook, matched));
        }
    }
    let calls = wanting.iter().map(|(_, hook, matched)| ask(hook, request, matched, object, false));
    for ((index, hook, _), answer) in wanting.iter().zip(join_all(calls).await) {
        match answer {
            Ok((answer, _)) if answer.allowed => {}
            Ok((answer, _)) => return Err(review::denial(&hook.name, &answer.result)),
            Err(Failure::Denied(status)) => return Err(status),
            Err(Failure::Call(why)) if hook.fails => return Err(Status::internal(why)),
            Err(Failure::Call(why)) => {
                tracing::warn!(webhook = hook.name, error = why, "webhook failed, and is ignored by its policy");
                request.call.notes.annotate(format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}"), hook.name.clone());
            }
        }
    }
    Ok(())
}

/// Why a webhook gave no answer.
enum Failure {
    /// It couldn't be asked, or said nothing sensible: the failure policy decides.
    Call(String),
    /// The request is refused whatever the policy.
    Denied(Status),
}

/// Asks a webhook. Gives its answer and the object as the webhook saw it.
async fn ask(hook: &Hook, request: &Request<'_>, matched: &Arc<Resource>, object: Option<&Value>, mutating: bool) -> Result<(Answer, Value), Failure> {
    if request.dry_run && !hook.dry_run_safe {
        return Err(Failure::Denied(Status::bad_request(format!("admission webhook {:?} does not support dry run", hook.name))));
    }
    let failed = |why: String| Failure::Call(format!("failed calling webhook {:?}: {why}", hook.name));
    let version = hook.version;
    let mut shown = Value::Null;
    let mut old = Value::Null;
    for (object, shown) in [(object, &mut shown), (request.old, &mut old)] {
        if let Some(object) = object {
            let converted = convert::current(&request.call.server, matched, unconverted(request, object)).await;
            *shown = converted.map_err(|status| failed(status.message))?;
        }
    }
    let uid = random::uid();
    let review = review::review(version, &uid, review::request(request, matched, object), shown.clone(), old);
    let config = hook.client.as_ref().map_err(|why| failed(format!("could not get REST client: {why}")))?;
    let began = Instant::now();
    let answer = request.call.server.webhooks.call(config, &review, hook.timeout).await;
    let (operation, kind) = (if request.old.is_some() { "UPDATE" } else { "CREATE" }, if mutating { "admit" } else { "validate" });
    let rejected = answer.as_ref().is_ok_and(|answer| answer["response"]["allowed"] != true);
    request.call.server.metrics.admitted(Admission::Webhook(&hook.name), began.elapsed(), operation, kind, rejected);
    let answer = answer.map_err(|error| failed(format!("failed to call webhook: {error}")))?;
    let answer = review::answer(version, &uid, mutating, &answer).map_err(|why| failed(format!("received invalid webhook response: {why}")))?;
    for warning in &answer.warnings {
        request.call.notes.warn(warning.clone());
    }
    for (key, text) in &answer.annotations {
        request.call.notes.annotate(format!("{}/{key}", hook.name), text.clone());
    }
    Ok((answer, shown))
}

/// Lets one webhook change the object; says whether it did.
async fn mutate_by(hook: &Hook, request: &Request<'_>, matched: &Arc<Resource>, object: Option<&mut Value>) -> Result<bool, Failure> {
    let (answer, mut shown) = ask(hook, request, matched, object.as_deref(), true).await?;
    if !answer.allowed {
        return Err(Failure::Denied(review::denial(&hook.name, &answer.result)));
    }
    if answer.patch.as_array().is_none_or(Vec::is_empty) {
        return Ok(false);
    }
    let internal = |why: String| Failure::Denied(Status::internal(why));
    let Some(object) = object else {
        return Err(internal(format!("admission webhook {:?} attempted to modify the object, which is not supported for this operation", hook.name)));
    };
    patch::json_patch(&mut shown, &answer.patch).map_err(|error| internal(error.to_string()))?;
    let shown = match request.call.info.subresource.as_str() {
        "scale" => shown,
        _ => convert::current(&request.call.server, &request.call.resource, shown).await.map_err(Failure::Denied)?,
    };
    let new = take_back(request, object, shown).map_err(Failure::Denied)?;
    let changed = new != *object;
    *object = new;
    Ok(changed)
}

/// The object as a policy that matched by `matched` sees it.
pub(super) fn show(request: &Request<'_>, matched: &Resource, object: &Value) -> Value {
    let shown = unconverted(request, object);
    if request.call.info.subresource == "scale" { shown } else { convert::to_version(matched, shown) }
}

/// The object as it is shown, but for its version.
fn unconverted(request: &Request<'_>, object: &Value) -> Value {
    let call = request.call;
    if call.info.subresource == "scale" {
        return scale::show(&call.resource, object);
    }
    let mut shown = object.clone();
    // The version that is replaced is the client's to know; it is no part of what is written here.
    if let (Operation::Update, Some(old)) = (request.operation, request.old)
        && shown["metadata"].is_object()
        && shown["metadata"]["resourceVersion"].is_null()
    {
        shown["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
    }
    shown
}

/// What a mutated form of the object makes of it: in the request's version, pruned and defaulted again.
pub(super) fn take_back(request: &Request<'_>, object: &Value, shown: Value) -> Result<Value, Status> {
    let call = request.call;
    if call.info.subresource == "scale" {
        return scale::set(call, object, &shown);
    }
    let of_resource = shown["kind"] == *call.resource.kind;
    let mut new = convert::to_version(&call.resource, shown);
    if of_resource {
        call.resource.schema().prune(&mut new).map_err(Status::internal)?;
        defaults::apply(&call.resource, &mut new);
        let metadata = skiff_api::value::object_mut(&mut new, &["metadata"]);
        metadata.remove("resourceVersion");
        if let Some(version) = object["metadata"].get("resourceVersion") {
            metadata.insert("resourceVersion".into(), version.clone());
        }
    }
    Ok(new)
}
