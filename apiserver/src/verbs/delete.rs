//! DELETE and DELETECOLLECTION: at once, after a grace period, or when the last finalizer goes.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use http::header::CONTENT_TYPE;
use skiff_api::schema::Schema;
use skiff_api::{Status, cbor, clock, field, json as json_text, protobuf, value};
use skiff_store::{Entry, Error, Guard};

use super::write::{parse_cbor, parse_protobuf, parse_yaml, typed};
use super::{Call, list, options};
use crate::admission;
use crate::cache::{Filter, encode};
use crate::convert;
use crate::http::body::Reply;
use crate::http::encode::{List, Shown, answer as written};
use crate::strategy::Orphaning;

/// How many objects of a collection are deleted at a time.
const PARALLEL: usize = 16;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion asks for. Upstream's `DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    /// Seconds that the object is given to end; `None` for its own default.
    pub grace: Option<i64>,
    /// The uid that the object must have.
    pub uid: Option<String>,
    /// The resource version that the object must have.
    pub resource_version: Option<String>,
    /// What becomes of what the object owns; `None` for the kind's default.
    pub propagation: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options from the body, or from the query where there is no body: never from both.
    pub fn read(call: &Call, body: &Bytes) -> Result<Self, Status> {
        let mut options = Self::default();
        let dry_run: Vec<String>;
        let orphan_dependents;
        if body.is_empty() {
            dry_run = call.query.all("dryRun").into_iter().map(str::to_owned).collect();
            orphan_dependents = call.query.get("orphanDependents").map(|v| v == "true");
            options.grace = call.query.int("gracePeriodSeconds")?;
            options.propagation = call.query.get("propagationPolicy").map(str::to_owned);
        } else {
            let given = Self::decode(call, body)?;
            let text = |path: &[&str]| value::at(&given, path).as_str().map(str::to_owned);
            options.grace = value::at(&given, &["gracePeriodSeconds"]).as_i64();
            options.propagation = text(&["propagationPolicy"]);
            options.uid = text(&["preconditions", "uid"]);
            options.resource_version = text(&["preconditions", "resourceVersion"]);
            orphan_dependents = value::at(&given, &["orphanDependents"]).as_bool();
            dry_run = value::items(&given, &["dryRun"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        let mut errors = Vec::new();
        if orphan_dependents.is_some() && options.propagation.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(field::Error::invalid("propagationPolicy", options.propagation.clone().unwrap_or_default(), detail));
        } else if let Some(policy) = &options.propagation
            && !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan")
        {
            let detail = "supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"";
            let error = field::Error::not_supported("propagationPolicy", policy.as_str(), &[]);
            errors.push(field::Error { detail: detail.into(), ..error });
        }
        options.dry_run = options::dry_run(&dry_run.iter().map(String::as_str).collect::<Vec<_>>(), &mut errors);
        options::check("DeleteOptions", &errors)?;
        if let Some(orphan) = orphan_dependents {
            options.propagation = Some(if orphan { "Orphan" } else { "Background" }.into());
        }
        // A negative grace period is one second, as upstream has it.
        options.grace = options.grace.map(|g| if g < 0 { 1 } else { g });
        Ok(options)
    }

    fn decode(call: &Call, body: &Bytes) -> Result<Value, Status> {
        let yaml = call.headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/yaml"));
        let mut given = match json_text::parse(body) {
            Ok(parsed) => parsed.value,
            Err(_) if body.starts_with(protobuf::MAGIC) => parse_protobuf(body)?.value,
            Err(_) if body.starts_with(cbor::MAGIC) => parse_cbor(body)?.value,
            Err(_) if yaml => parse_yaml(body)?.value,
            Err(why) => return Err(Status::bad_request(format!("couldn't get version/kind; json parse error: {why}"))),
        };
        if given.is_null() {
            given = json!({});
        }
        typed(&given).map_err(|why| Status::bad_request(format!("couldn't get version/kind; json parse error: {why}")))?;
        call.notes.sent(&given);
        let (kind, version) = (value::text(&given, &["kind"]), value::text(&given, &["apiVersion"]));
        if !matches!(kind, "" | "DeleteOptions") {
            let scheme = "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27";
            return Err(Status::bad_request(format!("no kind {kind:?} is registered for version {version:?} in scheme {scheme:?}")));
        }
        let schema = Schema::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions").unwrap_or_else(Schema::any);
        schema.prune(&mut given).map_err(Status::bad_request)?;
        Ok(given)
    }
}

/// Carries out a DELETE.
pub(super) async fn delete(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    let options = DeleteOptions::read(call, body)?;
    let deleted = delete_object(call, &call.info.name, &options).await?;
    answer(call, deleted)
}

/// What a deletion came to.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is gone; this was it.
    Gone(Value),
    /// The object is marked and goes later.
    Marked(Shown),
}

fn answer(call: &Call, deleted: Deleted) -> Result<Reply, Status> {
    let object = match deleted {
        Deleted::Marked(shown) => return call.encoder().object(200, &shown),
        Deleted::Gone(object) => object,
    };
    if call.strategy().shows_deleted() {
        return call.encoder().object(200, &Shown::Value(object));
    }
    let mut details = json!({"name": call.info.name, "kind": call.resource.plural, "uid": object["metadata"]["uid"]});
    if !call.resource.group.is_empty() {
        details["group"] = call.resource.group.as_ref().into();
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(written(200, &status, call.shape.whole(), call.encoder().pretty))
}

/// Deletes one object of the call's resource and namespace.
pub(crate) async fn delete_object(call: &Call, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
    let server = &call.server;
    let strategy = server.strategies.of(&call.resource);
    let gr = call.resource.group_resource();
    let key = server.key(&call.resource, &call.info.namespace, name);
    let cache = call.cache()?;
    loop {
        let Some(entry) = server.store.get(&key).await? else { return Err(Status::not_found(gr, name)) };
        let object = cache.read(Arc::clone(&entry.key), entry.modified, entry.value.clone()).map_err(Status::internal)?;
        let current = convert::current(server, &call.resource, object.value().map_err(Status::internal)?).await?;
        preconditions(call, name, options, &current, &entry)?;
        admission::validate_delete(call, &current, options).await?;
        strategy.check_delete(call, &current)?;

        let mut next = current.clone();
        let grace = strategy.grace(&current, options.grace);
        let marked = !value::at(&current, &["metadata", "deletionTimestamp"]).is_null();
        plan_finalizers(&mut next, options, strategy.default_orphaning());
        strategy.prepare_delete(&mut next);
        let finalized = strategy.finalized(&next);
        if finalized && grace == 0 {
            if !options.dry_run {
                match server.store.commit(&key, Guard::Modified(entry.modified), None).await {
                    Ok(_) => server.deleted(&call.resource, &entry).await,
                    Err(Error::Conflict(_)) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            if strategy.goes_gracefully() && !marked {
                mark(&mut next, &current, grace, marked);
                count(&mut next);
            }
            return Ok(Deleted::Gone(next));
        }
        mark(&mut next, &current, grace, marked);
        let shown = if options.dry_run || next == current {
            Shown::Value(next)
        } else {
            if strategy.has_generation() && !marked {
                count(&mut next);
            }
            let bytes: Bytes = encode(&convert::stored(server, &call.resource, next).await?).into();
            match server.store.commit(&key, Guard::Modified(entry.modified), Some(bytes.clone())).await {
                Ok(revision) => {
                    call.settle(revision).await;
                    call.ready(Shown::Stored(Arc::new(cache.read(Arc::clone(&entry.key), revision, bytes).map_err(Status::internal)?))).await?
                }
                Err(Error::Conflict(_)) => continue,
                Err(error) => return Err(error.into()),
            }
        };
        return Ok(Deleted::Marked(shown));
    }
}

fn preconditions(call: &Call, name: &str, options: &DeleteOptions, current: &Value, entry: &Entry) -> Result<(), Status> {
    let fail = |what: &str, wanted: &str, actual: &str| {
        let kind = skiff_api::status::GroupResource { group: &call.resource.group, resource: &call.resource.kind };
        let why = format!(
            "the {what} in the precondition ({wanted}) does not match the {what} in record ({actual}). The object might have been deleted and then recreated"
        );
        Err(Status::conflict(kind, name, why))
    };
    let uid = value::text(current, &["metadata", "uid"]);
    match &options.uid {
        Some(wanted) if wanted != uid => return fail("UID", wanted, uid),
        _ => {}
    }
    let version = entry.modified.to_string();
    match &options.resource_version {
        Some(wanted) if *wanted != version => {
            let kind = skiff_api::status::GroupResource { group: &call.resource.group, resource: &call.resource.kind };
            let why = format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
            );
            Err(Status::conflict(kind, name, why))
        }
        _ => Ok(()),
    }
}

/// Books in the finalizers what is to become of the dependents: the garbage collector reads it there.
fn plan_finalizers(object: &mut Value, options: &DeleteOptions, default: Orphaning) {
    let before: Vec<String> =
        value::items(object, &["metadata", "finalizers"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let has = |finalizer: &str| before.iter().any(|f| f == finalizer);
    let (orphan, foreground) = match options.propagation.as_deref() {
        Some("Orphan") => (true, false),
        Some("Foreground") => (false, true),
        Some(_) => (false, false),
        // Without a word, an earlier decision stands, then the kind's default holds.
        None if has(ORPHAN) || has(FOREGROUND) => return,
        None => (default == Orphaning::Orphan, false),
    };
    let mut after: Vec<String> = before.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    if orphan {
        after.push(ORPHAN.into());
    }
    if foreground {
        after.push(FOREGROUND.into());
    }
    let metadata = value::object_mut(object, &["metadata"]);
    if after.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), after.into());
    }
}

/// Being deleted is a change that the generation counts.
fn count(object: &mut Value) {
    let generation = value::at(object, &["metadata", "generation"]).as_i64().unwrap_or(0);
    object["metadata"]["generation"] = json!(generation + 1);
}

/// Marks an object as on its way out. A grace period may get shorter, never longer.
fn mark(next: &mut Value, current: &Value, grace: i64, marked: bool) {
    let left = value::at(current, &["metadata", "deletionGracePeriodSeconds"]).as_i64().unwrap_or(0);
    if marked && grace >= left {
        return;
    }
    let at = clock::now() + jiff::SignedDuration::from_secs(grace);
    let metadata = value::object_mut(next, &["metadata"]);
    metadata.insert("deletionTimestamp".into(), at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
}

/// Carries out a DELETECOLLECTION: everything that the selectors choose, one by one.
pub(super) async fn delete_collection(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    let options = DeleteOptions::read(call, body)?;
    let mut filter: Filter = list::filter(call)?;
    let late = convert::late_fields(&call.resource, &mut filter);
    let cache = call.cache()?;
    let revision = call.server.cache.fresh().await?;
    let chosen = cache.list(&filter, 0).whole()?.objects;
    let items: Vec<Shown> = stream::iter(chosen)
        .map(|object| {
            let (options, late) = (&options, &late);
            async move {
                if !late.is_empty() && list::chosen(call, vec![Shown::Stored(Arc::clone(&object))], late).await?.is_empty() {
                    return Ok(None);
                }
                // The collection may span namespaces: each object is deleted in its own.
                let one = call.about(&call.resource, object.namespace(), "", "");
                match delete_object(&one, object.name(), options).await {
                    Ok(Deleted::Gone(value)) => Ok(Some(Shown::Value(value))),
                    Ok(Deleted::Marked(shown)) => Ok(Some(shown)),
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(status),
                }
            }
        })
        .buffered(PARALLEL)
        .try_filter_map(|shown| async move { Ok::<_, Status>(shown) })
        .try_collect()
        .await?;
    list::write(call, List { items, revision, next: String::new(), remaining: None })
}
