//! Kinds that are served in several versions: from the stored version to the one asked for, and back.

use serde_json::Value;
use skiff_api::custom::Custom;
use skiff_api::resource::Resource;
use skiff_api::{Status, convert, fields};

use crate::cache::Filter;
use crate::custom;
use crate::http::encode::Shown;
use crate::server::Server;

/// The object in the resource's version, by its webhook where the definition names one.
pub async fn current(server: &Server, resource: &Resource, object: Value) -> Result<Value, Status> {
    one(server, resource, object, &resource.api_version()).await
}

/// The object in the version that the resource is stored as, likewise.
pub async fn stored(server: &Server, resource: &Resource, object: Value) -> Result<Value, Status> {
    if resource.stored_as.is_empty() { Ok(object) } else { one(server, resource, object, &resource.stored_as).await }
}

async fn one(server: &Server, resource: &Resource, object: Value, version: &str) -> Result<Value, Status> {
    let Some((custom, hook)) = hook(resource) else { return Ok(to(resource, object, version)) };
    let converted = custom::by_webhook(server, custom, hook, vec![object], version).await?;
    converted.into_iter().next().ok_or_else(|| Status::internal("a conversion gave nothing"))
}

fn hook(resource: &Resource) -> Option<(&Custom, &Value)> {
    let custom = resource.custom()?;
    Some((custom, custom.webhook.as_deref()?))
}

/// Makes objects ready to be shown in the resource's version: what only a webhook can convert is converted, all in one
/// call. The rest is the encoder's business.
pub async fn shown(server: &Server, resource: &Resource, objects: Vec<Shown>) -> Result<Vec<Shown>, Status> {
    let version = resource.api_version();
    let ready = |shown: &Shown| match shown {
        Shown::Stored(object) => object.is_in_version(&version),
        Shown::Value(value) => value["apiVersion"] == *version,
    };
    let Some((custom, hook)) = hook(resource).filter(|_| !objects.iter().all(ready)) else { return Ok(objects) };
    let values = objects.iter().filter(|o| !ready(o)).map(Shown::value).collect::<Result<_, _>>()?;
    let mut converted = custom::by_webhook(server, custom, hook, values, &version).await?.into_iter();
    Ok(objects.into_iter().map(|shown| if ready(&shown) { shown } else { converted.next().map_or(shown, Shown::Value) }).collect())
}

/// Takes out of a filter what only objects in the resource's version can answer: fields, where a webhook converts.
pub fn late_fields(resource: &Resource, filter: &mut Filter) -> fields::Selector {
    if hook(resource).is_none() {
        return fields::Selector::default();
    }
    let (early, late) = std::mem::take(&mut filter.fields.requirements).into_iter().partition(|r| r.field.starts_with("metadata."));
    filter.fields.requirements = early;
    fields::Selector { requirements: late }
}

/// Whether an object in the resource's version has these fields.
pub fn passes(resource: &Resource, late: &fields::Selector, shown: &Shown) -> Result<bool, Status> {
    if late.is_empty() {
        return Ok(true);
    }
    let object = shown.value()?;
    let field = |label: &str| resource.selectable_fields.iter().find(|field| field.label == label);
    Ok(late.matches(|label| field(label).map_or("".into(), |field| field.value(&object))))
}

/// The object in the resource's version. What is in that version already stays as it is. No webhook is asked.
pub fn to_version(resource: &Resource, object: Value) -> Value {
    to(resource, object, &resource.api_version())
}

fn to(resource: &Resource, mut object: Value, version: &str) -> Value {
    let Some(from) = object.get("apiVersion").and_then(Value::as_str) else { return object };
    match resource.custom() {
        // What another version doesn't know is lost on the way to it.
        Some(custom) if from != version => {
            object["apiVersion"] = version.into();
            custom.prune(&mut object);
        }
        Some(_) => {}
        None => convert::to_version(&mut object, version),
    }
    object
}
