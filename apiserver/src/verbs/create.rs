//! CREATE.

use bytes::Bytes;
use serde_json::Value;
use skiff_api::{Status, random, validation, value};

use super::update::DELETION;
use super::write::{Write, stamp};
use super::Call;
use crate::admission;
use crate::http::body::Reply;
use crate::http::encode::Shown;

/// The longest part of a `generateName` that is kept: with five random characters it is a label's 63.
const MAX_GENERATED_BASE: usize = 58;
/// How often another random name is tried when one is taken; upstream's figure.
const NAME_TRIES: usize = 8;

/// Carries out a CREATE.
pub(super) async fn create(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    let mut write = Write::new(call, "CreateOptions")?;
    let object = write.decode(body)?;
    let shown = insert(&mut write, object, true).await?;
    write.answer(201, &shown)
}

/// Makes a new object of what a client sent (pruned and defaulted). `book` says whether its `managedFields` are still to
/// be written: an apply has done it.
pub(super) async fn insert(write: &mut Write<'_>, object: Value, book: bool) -> Result<Shown, Status> {
    let call = write.call;
    namespace_matches(call, &object)?;
    // A dry run asks the store for nothing but the name.
    if !write.options.dry_run && !matches!(value::text(&object, &["metadata", "resourceVersion"]), "" | "0") {
        return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
    }
    let generated = value::text(&object, &["metadata", "name"]).is_empty();
    let base = value::text(&object, &["metadata", "generateName"]).to_owned();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut candidate = object.clone();
        if generated && !base.is_empty() {
            let kept: String = base.chars().take(MAX_GENERATED_BASE).collect();
            candidate["metadata"]["name"] = format!("{kept}{}", random::suffix(5)).into();
        }
        match insert_named(write, candidate, book).await {
            Err(status) if status.reason == "AlreadyExists" && generated && attempt < NAME_TRIES => {}
            result => return result,
        }
    }
}

async fn insert_named(write: &mut Write<'_>, mut object: Value, book: bool) -> Result<Shown, Status> {
    let call = write.call;
    let strategy = call.strategy();
    if call.resource.namespaced {
        value::object_mut(&mut object, &["metadata"]).insert("namespace".into(), call.info.namespace.as_str().into());
    }
    for key in DELETION {
        value::remove(&mut object, &["metadata", key]);
    }
    // What the server adds from here on is nobody's.
    if book {
        write.book(None, &mut object, &strategy.reset_fields(""));
    }
    admission::mutate(write, &mut object, None).await?;
    stamp(&mut object, &call.info.namespace, strategy.has_generation());
    strategy.prepare_create(call, &mut object);
    write.check(&object, &validation::validate_create(&call.resource, &object))?;
    write.note(&object, None);
    strategy.check_create(write, &object).await?;
    admission::validate(write, &object, None).await?;
    let claims = strategy.claim(write, &mut object, None).await?;
    write.insert(object, claims).await
}

/// Refuses an object without a name where the URL has one.
pub(super) fn nameless(call: &Call) -> Status {
    Status::bad_request(format!("the name of the object ({} based on URL) was undeterminable: name must be provided", call.info.name))
}

/// Refuses an object of another namespace than the request's.
pub(crate) fn namespace_matches(call: &Call, object: &Value) -> Result<(), Status> {
    let namespace = value::text(object, &["metadata", "namespace"]);
    if !namespace.is_empty() && call.resource.namespaced && namespace != call.info.namespace {
        return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    Ok(())
}
