//! UPDATE: a whole object (or its part, through a view) replaces what is there.

use bytes::Bytes;
use serde_json::Value;
use skiff_api::{Status, validation, value};
use skiff_store::Entry;

use super::view::{View, bump_generation, keep_system_metadata};
use super::write::{Transaction, Write, transact};
use super::{Call, create};
use crate::admission;
use crate::http::body::Reply;
use crate::http::encode::Shown;
use crate::subresources::scale;

/// What only a deletion writes.
pub(super) const DELETION: [&str; 2] = ["deletionTimestamp", "deletionGracePeriodSeconds"];

/// Carries out an UPDATE through a view.
pub(super) async fn update(call: &Call, body: &Bytes, view: View) -> Result<Reply, Status> {
    let mut write = Write::new(call, "UpdateOptions")?;
    if view == View::Scale {
        let wanted = scale::decode(call, body)?;
        let shown = transact!(write, |current, entry| {
            let new = scale::set(call, &current, &wanted)?;
            finish(&mut write, View::Main { has_status: true }, new, current, &entry, true).await?
        });
        return view.answer(call, 200, &shown);
    }
    let object = write.decode(body)?;
    let name = value::text(&object, &["metadata", "name"]);
    if name.is_empty() {
        return Err(create::nameless(call));
    }
    if name != call.info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    create::namespace_matches(call, &object)?;
    match replace(&mut write, view, &object).await {
        Err(status) if status.code == 404 && call.info.subresource.is_empty() && call.strategy().creates_on_update() => {
            let shown = create::insert(&mut write, object, true).await?;
            write.answer(201, &shown)
        }
        result => write.answer(200, &result?),
    }
}

async fn replace(write: &mut Write<'_>, view: View, object: &Value) -> Result<Shown, Status> {
    Ok(transact!(write, |current, entry| finish(write, view, object.clone(), current, &entry, true).await?))
}

/// What a write through `view` makes of `old`, prepared, booked, admitted and validated. `new` is what the client wants
/// there to be, pruned and defaulted.
pub(super) async fn finish(
    write: &mut Write<'_>,
    view: View,
    new: Value,
    old: Value,
    entry: &Entry,
    book: bool,
) -> Result<Transaction, Status> {
    let call = write.call;
    let gr = call.resource.group_resource();
    let name = &call.info.name;
    let (version, uid) = (value::text(&new, &["metadata", "resourceVersion"]), value::text(&new, &["metadata", "uid"]));
    let actual = value::text(&old, &["metadata", "uid"]);
    if !uid.is_empty() && uid != actual && call.info.verb == "update" {
        // A dry run has not come to the store, whose prefix is not in the key yet.
        let key = if write.options.dry_run { entry.key.trim_start_matches("/registry") } else { &entry.key };
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}");
        let why = format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {why}");
        return Err(Status::conflict(gr, name, why));
    }
    if !matches!(version, "" | "0") {
        version.parse::<u64>().map_err(|_| Status::new(500, "", format!("strconv.ParseUint: parsing {version:?}: invalid syntax")))?;
        if version != entry.modified.to_string() {
            return Err(Status::stale(gr, name));
        }
    } else if write.requires_version() {
        let error = skiff_api::field::Error::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        // Upstream says the resource where it says the kind elsewhere.
        return Err(Status::invalid(&call.resource.group, &call.resource.plural, name, &[error]));
    }
    let strategy = call.strategy();
    let mut new = view.merge(new, &old);
    let kept = [DELETION[0], DELETION[1], "uid"];
    let asked = kept.map(|key| value::remove(&mut new, &["metadata", key]).filter(|asked| *asked != ""));
    keep_system_metadata(&mut new, &old);
    if book {
        write.book(Some(&old), &mut new, &strategy.reset_fields(&call.info.subresource));
    }
    admission::mutate(write, &mut new, Some(&old)).await?;
    strategy.prepare_update(call, &mut new, &old);
    if let Some(counted) = strategy.counted().filter(|_| !view.is_status()) {
        bump_generation(&mut new, &old, counted, view.counts_status());
    }
    // A deletion can't be written, only asked for, and no other uid; what the client leaves out stays.
    let metadata = value::object_mut(&mut new, &["metadata"]);
    let written: Vec<&str> = kept.into_iter().zip(asked).filter_map(|(key, asked)| metadata.insert(key.into(), asked?).is_none().then_some(key)).collect();
    let errors = validation::validate_subresource_update(&call.resource, &call.info.subresource, &new, &old);
    for key in written {
        value::remove(&mut new, &["metadata", key]);
    }
    write.check(&new, &errors)?;
    write.note(&new, Some(&old));
    admission::validate(write, &new, Some(&old)).await?;
    let claims = strategy.claim(write, &mut new, Some(&old)).await?;
    let gone = !value::at(&new, &["metadata", "deletionTimestamp"]).is_null()
        && value::at(&new, &["metadata", "deletionGracePeriodSeconds"]).as_i64().unwrap_or(0) == 0
        && strategy.finalized(&new);
    Ok(if gone { Transaction::Delete(new) } else { Transaction::Put(new, claims) })
}

impl Write<'_> {
    /// Whether an update must say which version it replaces.
    fn requires_version(&self) -> bool {
        self.call.info.verb == "update" && matches!(self.call.info.subresource.as_str(), "" | "status") && self.call.strategy().requires_version()
    }
}
