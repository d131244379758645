//! LIST: from the cache, or for the later pages of a list from the store at the revision that the first page showed.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use skiff_api::{Status, field, fields, labels};
use skiff_store::Revision;

use super::{Call, options};
use crate::cache::{Filter, Listed, Object, ResourceCache};
use crate::convert;
use crate::http::body::Reply;
use crate::http::encode::{List, Shown};

/// How many entries of the store are looked through at a time for a filtered page.
const SCAN: usize = 1_000;
/// How long a reader waits for a revision that is yet to come.
const FUTURE_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a list goes on: upstream's token, base64 of JSON.
#[derive(Debug, Deserialize, Serialize)]
struct Continue {
    v: String,
    rv: i64,
    start: String,
}

/// Which revision a reader asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The newest.
    Newest,
    /// Any, the cache's at once: `resourceVersion=0`.
    Any,
    /// This one or a later one.
    AtLeast(Revision),
    /// Just this one.
    Exact(Revision),
}

/// Reads the selectors and the namespace of a list, watch or deletecollection.
pub(super) fn filter(call: &Call) -> Result<Filter, Status> {
    let labels = labels::Selector::parse(call.query.get("labelSelector").unwrap_or("")).map_err(Status::bad_request)?;
    let fields = fields::Selector::parse(call.query.get("fieldSelector").unwrap_or("")).map_err(Status::bad_request)?;
    for requirement in &fields.requirements {
        let known = matches!(requirement.field.as_str(), "metadata.name" | "metadata.namespace")
            || call.resource.selectable_fields.iter().any(|f| f.label == requirement.field);
        if !known {
            return Err(Status::bad_request(call.resource.unknown_label(&requirement.field)));
        }
    }
    Ok(Filter { namespace: call.info.namespace.clone(), labels, fields })
}

/// Reads `resourceVersion` and `resourceVersionMatch`.
pub(super) fn wanted(call: &Call, watch: bool) -> Result<Wanted, Status> {
    let version = call.query.get("resourceVersion");
    let matching = call.query.get("resourceVersionMatch");
    let events = call.query.get("sendInitialEvents");
    let mut errors = Vec::new();
    let path = "resourceVersionMatch";
    if watch && events.is_some() && matching != Some("NotOlderThan") {
        errors.push(field::Error::forbidden(path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    } else if watch && events.is_none() && matching.is_some() {
        errors.push(field::Error::forbidden(path, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"));
    } else if !watch && let Some(matching) = matching {
        if version.is_none() {
            errors.push(field::Error::forbidden(path, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        if call.query.get("continue").is_some() {
            errors.push(field::Error::forbidden(path, "resourceVersionMatch is forbidden when continue is provided"));
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.push(field::Error::not_supported(path, matching, &["Exact", "NotOlderThan", ""]));
        }
        if matching == "Exact" && version == Some("0") {
            errors.push(field::Error::forbidden(path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
        }
    }
    if !watch && events.is_some() {
        errors.push(field::Error::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    options::check("ListOptions", &errors)?;
    let Some(text) = version else { return Ok(Wanted::Newest) };
    let revision: Revision = text.parse().map_err(|_| {
        let detail = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        Status::bad_request(format!("invalid resource version: resourceVersion: Invalid value: {text:?}: {detail}"))
    })?;
    Ok(match (revision, matching) {
        (0, _) => Wanted::Any,
        (revision, Some("Exact")) => Wanted::Exact(revision),
        (revision, _) => Wanted::AtLeast(revision),
    })
}

pub(super) fn too_large(wanted: Revision, current: Revision) -> Status {
    let details = skiff_api::status::Details {
        causes: vec![skiff_api::status::Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            ..Default::default()
        }],
        retry_after_seconds: 1,
        ..Default::default()
    };
    let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
    Status { details: Some(Box::new(details)), ..Status::new(504, "Timeout", message) }
}

/// Carries out a LIST.
pub(super) async fn list(call: &Call) -> Result<Reply, Status> {
    let filter = filter(call)?;
    let wanted = wanted(call, false)?;
    let limit = call.query.int("limit")?.map_or(0, |l| usize::try_from(l).unwrap_or(0));
    if let Some(made) = call.strategy().made(&call.server).await {
        let items = made.into_iter().map(Shown::Value).collect();
        return call.encoder().list(List { items, revision: call.server.cache.applied(), next: String::new(), remaining: None });
    }
    let mut page = page(call, &filter, wanted, limit).await?;
    page.items = convert::shown(&call.server, &call.resource, page.items).await?;
    call.encoder().list(page)
}

async fn page(call: &Call, filter: &Filter, wanted: Wanted, limit: usize) -> Result<List, Status> {
    let cache = call.cache()?;
    let all = &call.server.cache;
    if let Some(token) = call.query.get("continue") {
        if !matches!(wanted, Wanted::Newest | Wanted::Any) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let (at, after) = read_token(token, cache.prefix())?;
        let at = if at < 0 { None } else { Some(at.unsigned_abs()) };
        return stored_page(call, &cache, filter, at, &after, limit).await;
    }
    let revision = match wanted {
        Wanted::Exact(revision) => return stored_page(call, &cache, filter, Some(revision), "", limit).await,
        Wanted::Newest => all.fresh().await?,
        Wanted::Any => all.applied(),
        Wanted::AtLeast(revision) => {
            all.reached(revision, FUTURE_TIMEOUT).await.map_err(|current| too_large(revision, current))?
        }
    };
    let Listed { objects, more, newest } = cache.list(filter, limit);
    let revision = revision.max(newest);
    let next = match objects.last() {
        Some(last) if more > 0 => write_token(revision, last.path()),
        _ => String::new(),
    };
    let remaining = (filter.labels.is_empty() && filter.fields.is_empty()).then_some(more);
    Ok(List { items: objects.into_iter().map(Shown::Stored).collect(), revision, next, remaining })
}

/// A page cut from the store at a revision (`None`: the newest), after the key `after`.
async fn stored_page(
    call: &Call,
    cache: &ResourceCache,
    filter: &Filter,
    at: Option<Revision>,
    after: &str,
    limit: usize,
) -> Result<List, Status> {
    let prefix = if filter.namespace.is_empty() { cache.prefix().to_owned() } else { format!("{}{}/", cache.prefix(), filter.namespace) };
    let end = skiff_store::prefix_end(&prefix);
    let mut start = if after.is_empty() { prefix } else { format!("{after}\0") };
    let mut found: Vec<Arc<Object>> = Vec::new();
    let mut pinned = at;
    loop {
        let want = if limit == 0 { 0 } else { SCAN.max(limit) };
        let page = call.server.store.list(&start, &end, want, pinned).await.map_err(|e| expired(e, after.is_empty()))?;
        pinned = Some(page.revision);
        let seen = page.entries.len();
        for (index, entry) in page.entries.into_iter().enumerate() {
            start = format!("{}\0", entry.key);
            let object = cache.read(entry.key, entry.modified, entry.value).map_err(Status::internal)?;
            if cache.passes(filter, &object) {
                found.push(Arc::new(object));
            }
            if limit > 0 && found.len() == limit {
                let remaining = (seen - index - 1) as u64 + page.remaining;
                let next = found.last().filter(|_| remaining > 0).map_or(String::new(), |o| write_token(page.revision, o.path()));
                let exact = filter.labels.is_empty() && filter.fields.is_empty();
                let items = found.into_iter().map(Shown::Stored).collect();
                return Ok(List { items, revision: page.revision, next, remaining: exact.then_some(remaining as usize) });
            }
        }
        if page.remaining == 0 {
            let items = found.into_iter().map(Shown::Stored).collect();
            return Ok(List { items, revision: page.revision, next: String::new(), remaining: None });
        }
    }
}

fn expired(error: skiff_store::Error, first: bool) -> Status {
    match error {
        skiff_store::Error::Compacted { .. } if first => Status::expired("The resourceVersion for the provided list is too old."),
        skiff_store::Error::Compacted { .. } => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ),
        skiff_store::Error::Future { asked, current } => too_large(asked, current),
        other => other.into(),
    }
}

fn write_token(revision: Revision, path: &str) -> String {
    let token = Continue { v: "meta.k8s.io/v1".into(), rv: revision as i64, start: format!("{path}\0") };
    BASE64.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// The revision (negative: the newest) and the key after which the next page begins.
fn read_token(token: &str, prefix: &str) -> Result<(i64, String), Status> {
    let invalid = |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = BASE64.decode(token.trim_end_matches('=')).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(at) => at.saturating_sub(1),
            base64::DecodeError::InvalidPadding => token.len(),
        };
        invalid(format!("illegal base64 data at input byte {at}"))
    })?;
    let read: Continue = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
    if read.v != "meta.k8s.io/v1" {
        return Err(invalid("server does not recognize this encoded version".into()));
    }
    let path = read.start.trim_end_matches('\0');
    if read.rv == 0 || path.is_empty() || path.split('/').any(|part| part == "..") {
        return Err(invalid(format!("incorrect encoded start resourceVersion or key {path:?}")));
    }
    Ok((read.rv, format!("{prefix}{path}")))
}
