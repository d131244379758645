//! `scale`: the replica count of whatever has one, in one form.

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::resource::{Resource, find};
use skiff_api::schema::Schema;
use skiff_api::{Status, apply, field, labels, value};

use crate::http::body::Reply;
use crate::verbs::{Call, FieldValidation, View, Write, apply_error, decode_as, namespace_matches, put, transact};

/// The definition of its schema.
pub(crate) const DEFINITION: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The type of a scale, as it is written.
pub(crate) fn resource() -> Resource {
    let template = find("apps", "v1", "deployments").map(|r| (**r).clone());
    let plain = template.unwrap_or_else(|| unreachable!("deployments are in the catalogue"));
    Resource {
        group: "autoscaling".into(),
        version: "v1".into(),
        kind: "Scale".into(),
        stored_as: "autoscaling/v1".into(),
        columns: std::sync::Arc::default(),
        ..plain
    }
}

/// Where the resource's objects have their counts.
struct Places<'a> {
    spec: Vec<&'a str>,
    status: Vec<&'a str>,
    /// Where the selector stands as text; built-in resources make it of the object's selector.
    selector: Option<Vec<&'a str>>,
}

fn places(resource: &Resource) -> Places<'_> {
    fn path(steps: &[String]) -> Vec<&str> {
        steps.iter().map(String::as_str).collect()
    }
    match resource.custom().and_then(|custom| custom.scale.as_ref()) {
        Some(scale) => Places { spec: path(&scale.spec), status: path(&scale.status), selector: scale.selector.as_deref().map(path) },
        None => Places { spec: vec!["spec", "replicas"], status: vec!["status", "replicas"], selector: None },
    }
}

/// Refuses to show a scale of a custom object that doesn't say how many replicas it wants.
pub(crate) fn check(resource: &Resource, object: &Value) -> Result<(), Status> {
    let places = places(resource);
    if resource.custom().is_some() && value::at(object, &places.spec).is_null() {
        return Err(Status::internal(format!("the spec replicas field {:?} does not exist", format!(".{}", places.spec.join(".")))));
    }
    Ok(())
}

/// The object's scale.
pub(crate) fn show(resource: &Resource, object: &Value) -> Value {
    let places = places(resource);
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(member) = object["metadata"].get(key) {
            metadata[key] = member.clone();
        }
    }
    let selector = value::at(object, &["spec", "selector"]);
    // A replication controller's selector is a plain map of labels.
    let selector = match (&places.selector, selector.get("matchLabels").or(selector.get("matchExpressions"))) {
        (Some(path), _) => value::text(object, path).to_owned(),
        (None, _) if resource.custom().is_some() => String::new(),
        (None, Some(_)) => labels::Selector::from_label_selector(selector).map(|s| s.to_string()).unwrap_or_default(),
        (None, None) => labels::Selector::from_map(selector).to_string(),
    };
    let mut spec = json!({});
    if let Some(replicas) = value::at(object, &places.spec).as_i64().filter(|r| *r != 0) {
        spec["replicas"] = json!(replicas);
    }
    let mut status = json!({"replicas": value::at(object, &places.status).as_i64().unwrap_or(0)});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// Reads a body as a scale.
pub(crate) fn decode(call: &Call, body: &Bytes) -> Result<Value, Status> {
    let scale = decode_as(call, body, "Scale", "autoscaling/v1", DEFINITION)?;
    let name = value::text(&scale, &["metadata", "name"]);
    if !name.is_empty() && name != call.info.name {
        return Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({})", call.info.name)));
    }
    namespace_matches(call, &scale)?;
    Ok(scale)
}

/// Checks the types in a patched scale. Gives what there is to warn of.
pub(crate) fn take_in(scale: &mut Value, validation: FieldValidation) -> Result<Vec<String>, Status> {
    let schema = Schema::builtin(DEFINITION).unwrap_or_else(Schema::any);
    let cannot = |why| Status::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {why}"));
    let unknown: Vec<String> = schema.prune(scale).map_err(cannot)?.iter().map(|path| format!("unknown field {path:?}")).collect();
    match validation {
        FieldValidation::Strict if !unknown.is_empty() => Err(cannot(format!("strict decoding error: {}", unknown.join(", ")))),
        FieldValidation::Warn => Ok(unknown),
        _ => Ok(Vec::new()),
    }
}

/// The object with the replica count of `scale`, and the preconditions that it names.
pub(crate) fn set(call: &Call, current: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = value::at(scale, &["spec", "replicas"]).as_i64().unwrap_or(0);
    // Custom objects are judged as a whole.
    if call.resource.custom().is_none() && replicas < 0 {
        let error = field::Error::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", &call.info.name, &[error]));
    }
    let mut new = current.clone();
    put_at(&mut new, &places(&call.resource).spec, json!(replicas));
    let metadata = value::object_mut(&mut new, &["metadata"]);
    metadata.remove("resourceVersion");
    for key in ["resourceVersion", "uid"] {
        if let Some(text) = scale["metadata"].get(key).filter(|t| t.as_str().is_some_and(|t| !t.is_empty())) {
            metadata.insert(key.into(), text.clone());
        }
    }
    Ok(new)
}

fn put_at(object: &mut Value, path: &[&str], member: Value) {
    if let Some((last, parents)) = path.split_last() {
        value::object_mut(object, parents).insert((*last).to_owned(), member);
    }
}

/// Conflicts as those of scales: upstream shows the version of what was sent.
fn as_scale(error: apply::Error, call: &Call) -> apply::Error {
    match error {
        apply::Error::Conflicts(mut conflicts) => {
            for conflict in &mut conflicts {
                conflict.owner = conflict.owner.replace(&call.resource.api_version(), "autoscaling/v1");
            }
            apply::Error::Conflicts(conflicts)
        }
        other => other,
    }
}

/// Server-side apply of a scale: the manager owns the replica count of the object.
pub(crate) async fn apply(mut write: Write<'_>, mut config: Value) -> Result<Reply, Status> {
    let call = write.call;
    let named = value::text(&config, &["metadata", "name"]).to_owned();
    let schema = Schema::builtin(DEFINITION).unwrap_or_else(Schema::any);
    let unknown = match schema.canonicalize(&mut config) {
        Ok(unknown) => unknown.first().map(|path| format!(".{path}: field not declared in schema")),
        Err(why) => Some(why),
    };
    if let Some(why) = unknown {
        return Err(Status::new(500, "", format!("failed to create typed patch object (/{named}; autoscaling/v1, Kind=Scale): {why}")));
    }
    let replicas = value::at(&config, &["spec", "replicas"]).clone();
    let mut object = json!({
        "kind": call.resource.kind, "apiVersion": call.resource.api_version(),
        "metadata": {"name": call.info.name, "namespace": call.info.namespace},
    });
    put_at(&mut object, &places(&call.resource).spec, replicas);
    let manager = write.manager(apply::Operation::Apply);
    let force = call.query.flag("force");
    let shown = transact!(write, |current, entry| {
        let new = apply::apply(call.resource.schema(), Some(&current), &object, &manager, force, &[]).map_err(|error| apply_error(as_scale(error, call)))?;
        let new = write.take_in(new, Vec::new(), &[])?;
        put(&mut write, new, current, &entry).await?
    });
    View::Scale.answer(call, 200, &shown)
}
