//! LIST: from the cache, or for the later pages of a list from the store at the revision that the first page showed.

use std::sync::Arc;
use std::time::Duration;

use skiff_api::{Status, field, fields, labels};
use skiff_store::Revision;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::{Call, options};
use crate::cache::{Filter, Listed, Object, ResourceCache};
use crate::convert;
use crate::http::body::Reply;
use crate::http::continuation;
use crate::http::encode::{List, Shown};
use crate::http::query::Query;

/// How many entries of the store are looked through at a time for a filtered page.
const SCAN: usize = 1_000;
/// How many objects take about a millisecond to write one by one.
const MANY: usize = 100;
/// How long a reader waits for a revision that is yet to come.
pub(super) const FUTURE_TIMEOUT: Duration = Duration::from_secs(3);

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
    // The old paths of watches name one object.
    let name = &call.info.name;
    let fields = match fields.required("metadata.name") {
        _ if name.is_empty() => fields,
        None if fields.is_empty() => fields::Selector::parse(&format!("metadata.name={name}")).map_err(Status::bad_request)?,
        Some(selected) if selected == name => fields,
        _ => return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name")),
    };
    Ok(Filter { namespace: call.info.namespace.clone(), labels, fields })
}

/// What a list or a watch asks for that can't go together. Upstream's `ValidateListOptions`.
fn option_errors(watch: bool, query: &Query) -> Vec<field::Error> {
    let (version, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    let (events, continues) = (query.get("sendInitialEvents").is_some(), query.get("continue").is_some());
    let mut errors = Vec::new();
    let forbid = |forbidden: bool, errors: &mut Vec<field::Error>, why: &str| {
        if forbidden {
            errors.push(field::Error::forbidden("resourceVersionMatch", why));
        }
    };
    let continued = "resourceVersionMatch is forbidden when continue is provided";
    let unsupported = |matching: &str, supported: &[&str]| field::Error::not_supported("resourceVersionMatch", matching, supported);
    if watch {
        let other = events && matching != Some("NotOlderThan");
        forbid(other, &mut errors, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        if let Some(matching) = matching {
            forbid(!events, &mut errors, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
            errors.extend((matching != "NotOlderThan").then(|| unsupported(matching, &["NotOlderThan"])));
            forbid(continues, &mut errors, continued);
        }
        return errors;
    }
    if let Some(matching) = matching {
        forbid(version.is_none(), &mut errors, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        forbid(continues, &mut errors, continued);
        let known = matches!(matching, "Exact" | "NotOlderThan");
        errors.extend((!known).then(|| unsupported(matching, &["Exact", "NotOlderThan", ""])));
        let exact = matching == "Exact" && version == Some("0");
        forbid(exact, &mut errors, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
    if events {
        errors.push(field::Error::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    errors
}

/// Reads `resourceVersion` and `resourceVersionMatch`.
pub(super) fn wanted(call: &Call, watch: bool) -> Result<Wanted, Status> {
    options::check("ListOptions", &option_errors(watch, &call.query))?;
    let (version, matching) = (call.query.get("resourceVersion"), call.query.get("resourceVersionMatch"));
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
    let mut filter = filter(call)?;
    let late = convert::late_fields(&call.resource, &mut filter);
    let wanted = wanted(call, false)?;
    let limit = call.query.int("limit")?.map_or(0, |l| usize::try_from(l).unwrap_or(0));
    if let Some(made) = call.strategy().made(&call.server).await {
        let items = made.into_iter().map(Shown::Value).collect();
        return call.encoder().list(List { items, revision: call.server.cache.applied(), next: String::new(), remaining: None });
    }
    let mut page = page(call, &filter, wanted, limit).await?;
    page.items = chosen(call, page.items, &late).await?;
    write(call, page)
}

/// Writes the list. What isn't put together from ready bytes is made object by object: a long one takes long, and what else this
/// thread has to do goes on elsewhere.
pub(super) fn write(call: &Call, list: List) -> Result<Reply, Status> {
    let encoder = call.encoder();
    if list.items.len() > MANY && !encoder.is_plain() && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        return tokio::task::block_in_place(|| encoder.list(list));
    }
    encoder.list(list)
}

/// The items in the resource's version, without those that don't have the `late` fields.
pub(super) async fn chosen(call: &Call, items: Vec<Shown>, late: &fields::Selector) -> Result<Vec<Shown>, Status> {
    let shown = convert::shown(&call.server, &call.resource, items).await?;
    let passes = |item: Shown| convert::passes(&call.resource, late, &item).map(|passes| passes.then_some(item)).transpose();
    shown.into_iter().filter_map(passes).collect()
}

async fn page(call: &Call, filter: &Filter, wanted: Wanted, limit: usize) -> Result<List, Status> {
    let cache = call.cache()?;
    let all = &call.server.cache;
    if let Some(token) = call.query.get("continue") {
        if !matches!(wanted, Wanted::Newest | Wanted::Any) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let (at, after) = continuation::read(token, cache.prefix())?;
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
    let Listed { objects, more, newest, .. } = cache.list(filter, limit).whole()?;
    let revision = revision.max(newest);
    let next = match objects.last() {
        Some(last) if more > 0 => continuation::write(Some(revision), last.path()),
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
        let page = call.server.store.list(&start, &end, want, pinned).await.map_err(|e| expired(e, after.is_empty(), after.strip_prefix(cache.prefix()).unwrap_or(after)))?;
        pinned = Some(page.revision);
        let seen = page.entries.len();
        for (index, entry) in page.entries.into_iter().enumerate() {
            start = format!("{}\0", entry.key);
            let object = cache.read_entry(entry)?;
            if cache.passes(filter, &object) {
                found.push(Arc::new(object));
            }
            if limit > 0 && found.len() == limit {
                let remaining = (seen - index - 1) as u64 + page.remaining;
                let next = found.last().filter(|_| remaining > 0).map_or(String::new(), |o| continuation::write(Some(page.revision), o.path()));
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

/// What a list is told whose revision is gone: at its `begin`, or behind the path where its next page would begin, from
/// where it may go on as things are now.
fn expired(error: skiff_store::Error, begin: bool, path: &str) -> Status {
    match error {
        skiff_store::Error::Compacted { .. } if begin => Status::expired("The resourceVersion for the provided list is too old."),
        skiff_store::Error::Compacted { .. } => {
            let status = Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
                 the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
                 Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted \
                 between the time the first chunk was returned and now may show up in the list.",
            );
            Status { continues: Some(continuation::write(None, path).into()), ..status }
        }
        skiff_store::Error::Future { asked, current } => too_large(asked, current),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(watch: bool, query: &str, expected: &[&str]) {
        let errors: Vec<String> = option_errors(watch, &Query::parse(query)).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{query}");
    }

    #[test]
    fn options_that_do_not_go_together() {
        const MATCH: &str = "resourceVersionMatch: Forbidden: ";
        check(false, "", &[]);
        check(false, "resourceVersion=5&resourceVersionMatch=Exact", &[]);
        check(false, "resourceVersionMatch=Exact", &[&format!("{MATCH}resourceVersionMatch is forbidden unless resourceVersion is provided")]);
        check(false, "resourceVersion=5&resourceVersionMatch=Exact&continue=x", &[&format!("{MATCH}resourceVersionMatch is forbidden when continue is provided")]);
        check(false, "resourceVersion=0&resourceVersionMatch=Exact", &[&format!("{MATCH}resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")]);
        let unsupported = "resourceVersionMatch: Unsupported value: \"Bad\": supported values: ";
        check(false, "resourceVersion=5&resourceVersionMatch=Bad", &[&format!("{unsupported}\"Exact\", \"NotOlderThan\", \"\"")]);
        check(false, "sendInitialEvents=true", &["sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"]);
        check(true, "sendInitialEvents=true&resourceVersionMatch=NotOlderThan", &[]);
        let requires = format!("{MATCH}sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        check(true, "sendInitialEvents=true", &[&requires]);
        check(true, "sendInitialEvents=true&resourceVersionMatch=Exact", &[&requires, "resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\""]);
        check(true, "resourceVersionMatch=NotOlderThan", &[&format!("{MATCH}resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")]);
    }

    #[test]
    fn an_expired_list_can_go_on() {
        let compacted = || skiff_store::Error::Compacted { asked: 5, oldest: 9 };
        assert_eq!(expired(compacted(), true, "").continues, None);
        let token = expired(compacted(), false, "ns/a").continues.expect("a token");
        assert_eq!(continuation::read(&token, "/registry/pods/").ok(), Some((None, "/registry/pods/ns/a".to_owned())));
    }
}
