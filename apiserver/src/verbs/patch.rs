//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply, through any view.

use bytes::Bytes;
use http::header;
use serde_json::{Map, Value};
use skiff_api::apply::{self, Manager, Operation};
use skiff_api::patch::{self, Error};
use skiff_api::resource::Resource;
use skiff_api::schema::{Schema, shown_value};
use skiff_api::status::{Cause, Details};
use skiff_api::{Status, cbor, field, json, value};

use super::view::View;
use super::write::{Transaction, Write, parse_cbor, read_yaml, transact};
use super::options::FieldValidation;
use super::{Call, create, update};
use crate::http::body::Reply;
use crate::http::encode::Shown;
use crate::subresources::scale;

/// The kinds of patch, by their media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Merge,
    Strategic,
    Apply,
}

fn kind(call: &Call) -> Result<Kind, Status> {
    let content_type = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let custom = matches!(call.resource.schema, skiff_api::resource::ResourceSchema::Custom(_));
    Ok(match content_type.split(';').next().unwrap_or("").trim() {
        "application/json-patch+json" => Kind::Json,
        "application/merge-patch+json" => Kind::Merge,
        "application/strategic-merge-patch+json" if !custom => Kind::Strategic,
        "application/apply-patch+yaml" | cbor::APPLY => Kind::Apply,
        // Upstream refuses it in two places: built-in resources by their route.
        _ if !custom => return Err(Status { details: Some(Box::default()), ..Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type") }),
        _ => {
            let message = "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
            return Err(Status::new(415, "UnsupportedMediaType", message));
        }
    })
}

/// Carries out a PATCH through a view.
pub(super) async fn patch(call: &Call, body: &Bytes, view: View) -> Result<Reply, Status> {
    let kind = kind(call)?;
    let force = call.query.get("force").is_some();
    let mut errors = Vec::new();
    if kind == Kind::Apply && call.query.get("fieldManager").is_none() {
        errors.push(field::Error::required("fieldManager", "is required for apply patch"));
    }
    if kind != Kind::Apply && force {
        errors.push(field::Error::forbidden("force", "may not be specified for non-apply patch"));
    }
    let mut write = Write::with(call, "PatchOptions", errors)?;
    if kind == Kind::Apply {
        return server_side_apply(write, body, view).await;
    }
    let read = json::parse(body).map_err(|why| match kind {
        Kind::Strategic => Status::bad_request(why),
        _ => Status::bad_request(format!("error decoding patch: {why}")),
    });
    let json::Parsed { value: mut patch, duplicates } = read?;
    // Go reads null into anything.
    match kind {
        _ if !patch.is_null() => {}
        Kind::Json => patch = Value::Array(Vec::new()),
        Kind::Strategic => patch = Value::Object(Map::new()),
        Kind::Merge | Kind::Apply => return Err(Status::bad_request("Invalid JSON Patch")),
    }
    let repeated: Vec<String> = match kind {
        Kind::Json => duplicates.iter().map(|fault| format!("json patch {fault}")).chain(patch::unknown_members(&patch)).collect(),
        _ => duplicates,
    };
    call.notes.sent(&patch);
    if kind != Kind::Json && !patch.is_object() {
        let why = format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", shown_value(&patch));
        return Err(Status::bad_request(if kind == Kind::Merge { format!("error decoding patch: {why}") } else { why }));
    }
    let shown = transact!(write, |current, entry| {
        if view == View::Scale {
            let mut shown = scale::show(&call.resource, &current);
            apply_patch(call, kind, &mut shown, &patch)?;
            write.warnings = scale::take_in(&mut shown, write.options.validation)?;
            same_name(call, &shown)?;
            let new = scale::set(call, &current, &shown)?;
            put(&mut write, new, current, &entry).await?
        } else {
            let mut patched = current.clone();
            apply_patch(call, kind, &mut patched, &patch)?;
            // The version that the patch itself doesn't name is no precondition.
            if value::at(&patched, &["metadata", "resourceVersion"]) == value::at(&current, &["metadata", "resourceVersion"]) {
                value::remove(&mut patched, &["metadata", "resourceVersion"]);
            }
            write.warnings.clear();
            if kind == Kind::Strategic {
                ["kind", "apiVersion"].iter().for_each(|key| patched[key].clone_from(&current[key]));
            }
            let cannot = |_: &Value, why| Status::invalid("", "", "", &[field::Error::invalid("patch", shown(call, kind, &current, &patch), why)]);
            let prune = if kind == Kind::Strategic { Schema::prune_merged } else { Schema::prune };
            let new = write.take_in_as(patched, repeated.clone(), &[], prune, &cannot)?;
            same_name(call, &new)?;
            update::finish(&mut write, view, new, current, &entry, true).await?
        }
    });
    if view == View::Scale { write.warn(view.answer(call, 200, &shown)?) } else { write.answer(200, &shown) }
}

/// What a patch made, or that patch, as refusals of it show it.
fn shown(call: &Call, kind: Kind, current: &Value, patch: &Value) -> String {
    let mut patched = current.clone();
    match kind {
        Kind::Strategic => return patch::as_go_prints(patch),
        // It was carried out before.
        _ => drop(apply_patch(call, kind, &mut patched, patch)),
    }
    let mut touched = Value::Object(Map::new());
    for path in value::items(patch, &[]).iter().flat_map(|step| ["path", "from"].map(|key| value::text(step, &[key]))) {
        let names: Vec<&str> = path.split('/').skip(1).collect();
        if let Some((_, parents)) = names.split_last() {
            value::object_mut(&mut touched, parents);
        }
    }
    call.resource.schema().patched(&patched, if kind == Kind::Json { &touched } else { patch })
}

fn same_name(call: &Call, new: &Value) -> Result<(), Status> {
    let name = value::text(new, &["metadata", "name"]);
    if name.is_empty() {
        return Err(create::nameless(call));
    }
    if name == call.info.name {
        return create::namespace_matches(call, new);
    }
    Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", call.info.name)))
}

fn apply_patch(call: &Call, kind: Kind, target: &mut Value, patch: &Value) -> Result<(), Status> {
    let result = match kind {
        Kind::Json => patch::json_patch(target, patch),
        Kind::Merge => {
            patch::merge_patch(target, patch);
            Ok(())
        }
        Kind::Strategic | Kind::Apply => patch::strategic_merge(call.resource.schema(), target, patch),
    };
    result.map_err(|error| match error {
        Error::BadRequest(why) => Status::bad_request(why),
        Error::TooLarge(why) => Status::new(413, "RequestEntityTooLarge", why),
        // Upstream doesn't say why.
        Error::Unprocessable(_) | Error::TestFailed(_) => {
            let message = "the server rejected our request due to an error in our request";
            Status { details: Some(Box::default()), ..Status::new(422, "Invalid", message) }
        }
    })
}

async fn server_side_apply(mut write: Write<'_>, body: &Bytes, view: View) -> Result<Reply, Status> {
    let call = write.call;
    let resource = &call.resource;
    // JSON is read as the YAML that it is where there is something to be said of it.
    let (mut config, repeated) = match json::parse(body) {
        Err(_) if body.starts_with(cbor::MAGIC) => (parse_cbor(body)?.value, Vec::new()),
        Ok(parsed) if parsed.duplicates.is_empty() => (parsed.value, Vec::new()),
        _ => read_yaml(body).map(|read| (read.value, read.repeated)).map_err(|status| Status { message: format!("error decoding YAML: {}", status.message), ..status })?,
    };
    if config.is_null() {
        config = Value::Object(Map::new());
    }
    if !config.is_object() {
        let why = format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", shown_value(&config));
        return Err(Status::bad_request(format!("error decoding YAML: error unmarshaling JSON: while decoding JSON: {why}")));
    }
    call.notes.sent(&config);
    match write.options.validation {
        FieldValidation::Strict if !repeated.is_empty() => {
            let lines = repeated.join("\n  ");
            let why = format!("error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {lines}");
            return Err(Status::bad_request(why));
        }
        FieldValidation::Strict | FieldValidation::Ignore => {}
        FieldValidation::Warn => write.warnings.extend(repeated),
    }
    let (kind, version) = if view == View::Scale { ("Scale", "autoscaling/v1".to_owned()) } else { (&*resource.kind, resource.api_version()) };
    let (given_kind, given) = (value::text(&config, &["kind"]), value::text(&config, &["apiVersion"]));
    if (given_kind, given) != (kind, version.as_str()) {
        let shown = if given.contains('/') { given.to_owned() } else { format!("/{given}") };
        return Err(Status::bad_request(format!("invalid object type: {shown}, Kind={given_kind}")));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let name = value::text(&config, &["metadata", "name"]);
    if !name.is_empty() && name != call.info.name {
        return Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", call.info.name)));
    }
    create::namespace_matches(call, &config)?;
    if view == View::Scale {
        return scale::apply(write, config).await;
    }
    // What the schema doesn't know is refused when the configuration is applied; what is left out is not filled in.
    let named = format!("{}/{}; {}", value::text(&config, &["metadata", "namespace"]), value::text(&config, &["metadata", "name"]), type_of(resource));
    resource.schema().canonicalize(&mut config).map_err(|why| untyped(&named, &why))?;
    value::object_mut(&mut config, &["metadata"]).insert("name".into(), call.info.name.as_str().into());
    if resource.namespaced {
        value::object_mut(&mut config, &["metadata"]).insert("namespace".into(), call.info.namespace.as_str().into());
    }
    let force = call.query.flag("force");
    let strategy = call.strategy();
    let reset = strategy.reset_fields(&call.info.subresource);
    let manager = write.manager(Operation::Apply);
    let version = value::remove(&mut config, &["metadata", "resourceVersion"]);
    let applying = Applying { config, named, manager, force, reset, version };
    match applying.change(&mut write, view).await {
        Err(status) if status.code == 404 && call.info.subresource.is_empty() && applying.version.is_none() => {
            let uid = value::text(&applying.config, &["metadata", "uid"]);
            if !uid.is_empty() {
                let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
                return Err(Status::conflict(resource.group_resource(), &call.info.name, why));
            }
            let new = applying.onto(&mut write, None)?;
            let shown = create::insert(&mut write, new, false).await?;
            write.answer(201, &shown)
        }
        result => write.answer(200, &result?),
    }
}

/// A configuration and who applies it.
struct Applying {
    config: Value,
    /// Its name and type, as messages show them.
    named: String,
    manager: Manager,
    force: bool,
    reset: Vec<&'static [&'static str]>,
    /// The resource version that the object must have.
    version: Option<Value>,
}

impl Applying {
    /// What the configuration makes of the object that is there.
    fn onto(&self, write: &mut Write<'_>, live: Option<&Value>) -> Result<Value, Status> {
        let schema = write.call.resource.schema();
        let applied = apply::apply(schema, live, &self.config, &self.manager, self.force, &self.reset).map_err(|error| match error {
            apply::Error::Invalid(why) => untyped(&self.named, &why),
            conflicts => apply_error(conflicts),
        })?;
        let warnings = std::mem::take(&mut write.warnings);
        let new = write.take_in(applied, Vec::new(), &[]);
        write.warnings = warnings;
        new
    }

    async fn change(&self, write: &mut Write<'_>, view: View) -> Result<Shown, Status> {
        Ok(transact!(write, |current, entry| {
            let mut new = self.onto(write, Some(&current))?;
            value::remove(&mut new, &["metadata", "resourceVersion"]);
            if let Some(version) = &self.version {
                value::object_mut(&mut new, &["metadata"]).insert("resourceVersion".into(), version.clone());
            }
            update::finish(write, view, new, current, &entry, false).await?
        }))
    }
}

/// `apps/v1, Kind=Deployment`
fn type_of(resource: &Resource) -> String {
    format!("{}/{}, Kind={}", resource.group, resource.version, resource.kind)
}

/// Refuses a configuration that isn't of its type.
fn untyped(named: &str, why: &str) -> Status {
    Status::new(500, "", format!("failed to create typed patch object ({named}): {why}"))
}

/// A failed apply as a refusal: conflicts are 409 with a cause each.
pub(crate) fn apply_error(error: apply::Error) -> Status {
    match error {
        apply::Error::Conflicts(ref conflicts) => {
            let causes = conflicts
                .iter()
                .map(|c| Cause { reason: "FieldManagerConflict".into(), message: c.message(), field: c.field.clone() })
                .collect();
            let details = Details { causes, ..Details::default() };
            Status { details: Some(Box::new(details)), ..Status::new(409, "Conflict", error.to_string()) }
        }
        apply::Error::Invalid(why) => Status::new(500, "InternalError", why),
    }
}

/// What an applying write of a scale shares with the others.
pub(crate) async fn put(write: &mut Write<'_>, new: Value, current: Value, entry: &skiff_store::Entry) -> Result<Transaction, Status> {
    update::finish(write, View::Main { has_status: true }, new, current, entry, true).await
}
