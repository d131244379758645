//! Resource quotas: what a namespace may use. Usage is claimed by a guarded update of the quota's status, so that two
//! requests can't both take the last unit. The objects are counted anew before a refusal, for what was deleted is free
//! again; what others have claimed and not yet written is in the ledger meanwhile.
//! The ledger is one server's own: of several on one store, a count may miss what another has claimed that very moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::pod::{self, Resources};
use skiff_api::{Quantity, Status, quota, value};
use skiff_store::{Entry, Error, Guard};

use super::{Plugin, Request};
use crate::cache::{Filter, encode};
use crate::server::Server;
use crate::verbs::Call;

pub(super) struct ResourceQuota;

const PREFIX: &str = "/registry/resourcequotas/";

/// Claims by the quota's key, each with its number.
type Book = HashMap<String, Vec<(u64, Resources)>>;

/// What is claimed and not yet written, and the last claim's number.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<(u64, Book)>);

/// A claim in the ledger, which ends with it.
pub(crate) struct Claim {
    ledger: Arc<Ledger>,
    key: String,
    number: u64,
}

impl Ledger {
    fn enter(self: &Arc<Self>, key: &str, delta: &Resources) -> Claim {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.0 += 1;
        let number = book.0;
        book.1.entry(key.to_owned()).or_default().push((number, delta.clone()));
        Claim { ledger: Arc::clone(self), key: key.to_owned(), number }
    }

    fn claimed(&self, key: &str) -> Resources {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = Resources::new();
        book.1.get(key).into_iter().flatten().for_each(|(_, delta)| pod::add(&mut sum, delta));
        sum
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut book = self.ledger.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claims) = book.1.get_mut(&self.key) {
            claims.retain(|(number, _)| *number != self.number);
            if claims.is_empty() {
                book.1.remove(&self.key);
            }
        }
    }
}

/// How often a charge is tried again when somebody else was quicker.
const MAX_TRIES: usize = 100;

#[async_trait]
impl Plugin for ResourceQuota {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        // What an earlier try of the same write claimed was not written.
        request.let_go();
        let call = request.call;
        let (group, plural) = (call.resource.group.as_ref(), call.resource.plural.as_ref());
        if !call.resource.namespaced || !counts(request, group, plural, object) {
            return Ok(());
        }
        let Some(cache) = call.server.cache.resource(PREFIX) else { return Ok(()) };
        let filter = Filter { namespace: call.info.namespace.clone(), ..Filter::default() };
        let quotas = cache.list(&filter, 0).objects;
        let mut charges = Vec::new();
        for found in &quotas {
            let current = found.value().map_err(Status::internal)?;
            if !quota::matches(&current, group, plural, object) {
                continue;
            }
            if let Some(unsaid) = (group.is_empty() && plural == "pods").then(|| quota::unsaid(&current, object)).flatten() {
                let name = value::text(&current, &["metadata", "name"]);
                return Err(forbidden(call, object, format!("failed quota: {name}: {unsaid}")));
            }
            let before = request.old.filter(|old| quota::matches(&current, group, plural, old));
            let delta = growth(&quota::usage(group, plural, object), before.map(|old| quota::usage(group, plural, old)));
            let delta = quota::masked(&delta, &current);
            if !delta.is_empty() {
                charges.push((found.key.to_string(), delta));
            }
        }
        // All are looked at before the first is charged: a refusal leaves none charged in vain.
        for keep in [false, true] {
            for (key, delta) in charges.iter().filter(|_| !keep || !request.dry_run) {
                if let Some(claim) = charge(call, object, key, delta, keep).await? {
                    request.hold(claim);
                }
            }
        }
        Ok(())
    }
}

/// Whether the request can use more than before.
fn counts(request: &Request<'_>, group: &str, plural: &str, object: &Value) -> bool {
    let Some(old) = request.old else { return request.call.info.subresource.is_empty() };
    let terminating = |pod: &Value| value::at(pod, &["spec", "activeDeadlineSeconds"]).is_null();
    match (group, plural, request.call.info.subresource.as_str()) {
        ("", "pods", "resize") | ("", "services" | "persistentvolumeclaims", "") => true,
        ("", "pods", "") => terminating(old) != terminating(object),
        _ => false,
    }
}

/// What is used more than before.
fn growth(now: &Resources, before: Option<Resources>) -> Resources {
    let before = before.unwrap_or_default();
    let grown = now.iter().map(|(name, amount)| (name.clone(), *amount - before.get(name).copied().unwrap_or(Quantity::ZERO)));
    grown.filter(|(_, amount)| amount.signum() > 0).collect()
}

/// What the quota's status becomes when `delta` more is used, or what is too much of it.
fn charged(current: &Value, used: &Resources, delta: &Resources) -> Result<Value, String> {
    let hard = pod::resource_list(value::at(current, &["spec", "hard"]));
    let mut next = used.clone();
    pod::add(&mut next, delta);
    let exceeded = |name: &String| hard.get(name).is_some_and(|most| next.get(name).is_some_and(|amount| amount > most));
    let of = |amounts: &Resources| -> Resources {
        let over = delta.keys().filter(|name| exceeded(name));
        over.map(|name| (name.clone(), amounts.get(name).copied().unwrap_or(Quantity::ZERO))).collect()
    };
    let over = of(delta);
    if over.is_empty() {
        let used: serde_json::Map<String, Value> = next.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
        return Ok(json!({"hard": value::at(current, &["spec", "hard"]), "used": used}));
    }
    let name = value::text(current, &["metadata", "name"]);
    let (requested, used, limited) = (quota::shown(&over), quota::shown(&of(used)), quota::shown(&of(&hard)));
    Err(format!("exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"))
}

/// Charges one quota, or (without `keep`) only looks whether that is possible. What the status says is believed while
/// it leaves room; before a refusal, and where it says nothing, the objects themselves are counted.
async fn charge(call: &Call, object: &Value, key: &str, delta: &Resources, keep: bool) -> Result<Option<Claim>, Status> {
    let server = &call.server;
    let mut counted = false;
    for _ in 0..MAX_TRIES {
        let Some(entry) = server.store.get(key).await? else { return Ok(None) };
        let current = read(server, &entry)?;
        let known = pod::resource_list(value::at(&current, &["status", "used"]));
        let complete = delta.keys().all(|name| known.contains_key(name));
        let used = if counted || !complete { count(server, key, &current).await? } else { known };
        match charged(&current, &used, delta) {
            Err(why) if counted || !complete => return Err(forbidden(call, object, why)),
            Err(_) => counted = true,
            Ok(_) if !keep => return Ok(None),
            Ok(status) => {
                let mut next = current;
                next["status"] = status;
                let bytes: Bytes = encode(&next).into();
                // Before the commit, so that nobody sees the one without the other.
                let claim = server.quota_ledger.enter(key, delta);
                match server.store.commit(key, Guard::Modified(entry.modified), Some(bytes)).await {
                    Ok(_) => return Ok(Some(claim)),
                    Err(Error::Conflict(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Err(Status::internal(format!("quota {key} changes too quickly to be charged")))
}

fn read(server: &Server, entry: &Entry) -> Result<Value, Status> {
    let cache = server.cache.resource(PREFIX).ok_or_else(Status::no_such_resource)?;
    cache.read(entry.key.clone(), entry.modified, entry.value.clone()).and_then(|o| o.value()).map_err(Status::internal)
}

/// What the namespace's objects use of the quota, and what is claimed for more of them.
async fn count(server: &Server, key: &str, current: &Value) -> Result<Resources, Status> {
    // First: what is written in between is counted twice, never not at all.
    let claimed = server.quota_ledger.claimed(key);
    server.cache.fresh().await?;
    let hard: Vec<&String> = value::at(current, &["spec", "hard"]).as_object().into_iter().flatten().map(|(name, _)| name).collect();
    let mut used: Resources = hard.iter().map(|name| ((*name).clone(), Quantity::ZERO)).collect();
    let filter = Filter { namespace: value::text(current, &["metadata", "namespace"]).into(), ..Filter::default() };
    pod::add(&mut used, &claimed);
    let mut seen = Vec::new();
    for resource in server.registry.now().ordered.iter().filter(|r| r.namespaced && !r.storage_prefix.is_empty()) {
        let (group, plural) = (resource.group.as_ref(), resource.plural.as_ref());
        if seen.contains(&(group, plural)) || !hard.iter().any(|name| quota::concerns(name, group, plural)) {
            continue;
        }
        seen.push((group, plural));
        let Some(cache) = server.cache.resource(&resource.storage_prefix) else { continue };
        for object in cache.list(&filter, 0).objects.iter().filter_map(|o| o.value().ok()) {
            if quota::matches(current, group, plural, &object) {
                pod::add(&mut used, &quota::masked(&quota::usage(group, plural, &object), current));
            }
        }
    }
    Ok(used)
}

fn forbidden(call: &Call, object: &Value, why: String) -> Status {
    Status::forbidden(call.resource.group_resource(), value::text(object, &["metadata", "name"]), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(list: Value) -> Resources {
        pod::resource_list(&list)
    }

    fn check(used: Value, delta: Value, expected: Result<Value, &str>) {
        let current = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "cpu": "1"}}});
        let result = charged(&current, &amounts(used), &amounts(delta)).map(|status| status["used"].clone());
        assert_eq!(result, expected.map_err(str::to_owned));
    }

    #[test]
    fn charges() {
        check(json!({"pods": "1", "cpu": "500m"}), json!({"pods": "1", "cpu": "500m"}), Ok(json!({"pods": "2", "cpu": "1"})));
        let over = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2";
        check(json!({"pods": "2", "cpu": "0"}), json!({"pods": "1", "cpu": "500m"}), Err(over));
    }

    #[test]
    fn only_growth_is_charged() {
        let grown = growth(&amounts(json!({"a": "2", "b": "1", "c": "1"})), Some(amounts(json!({"a": "1", "b": "1", "c": "2"}))));
        assert_eq!(quota::shown(&grown), "a=1");
    }
}
