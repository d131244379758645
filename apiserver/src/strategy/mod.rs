//! What is special about a kind, beside its schema and its validation. A kind without an entry here is a plain one.

mod claims;
mod kinds;
mod service;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::resource::Resource;
use skiff_api::{Status, value};
use skiff_store::Revision;

use crate::server::Server;
use crate::cache::FRESH_TIMEOUT;
use crate::verbs::{Call, Write};

pub(crate) use claims::{Claims, give_back};
pub(crate) use service::{Allocator, CLAIM_PREFIXES, orphaned};

/// What a deletion without a word about dependents does to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orphaning {
    /// They go too.
    Collect,
    /// They stay.
    Orphan,
}

/// What is special about a kind. Every method's default is the plain kind's.
#[async_trait]
pub(crate) trait Strategy: Send + Sync {
    /// Whether new objects are of generation 1.
    fn has_generation(&self) -> bool {
        false
    }

    /// The members of `metadata` whose changes `metadata.generation` counts besides those of all else; `None` when it
    /// counts none.
    fn counted(&self) -> Option<&'static [&'static str]> {
        self.has_generation().then_some(&[])
    }

    /// Whether an update must name the version that it replaces.
    fn requires_version(&self) -> bool {
        false
    }

    /// Whether an update of an object that isn't there makes it.
    fn creates_on_update(&self) -> bool {
        false
    }

    /// Makes a client's object one that can begin: takes away what only controllers may say.
    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        value::remove(object, &["status"]);
    }

    /// The same for a client's new version of an object.
    fn prepare_update(&self, _call: &Call, _new: &mut Value, _old: &Value) {}

    /// Rules that need more than the object.
    async fn check_create(&self, _write: &Write<'_>, _object: &Value) -> Result<(), Status> {
        Ok(())
    }

    /// Whether writes may take or give back what only one object can have.
    fn claims(&self) -> bool {
        false
    }

    /// Takes (and gives back) what only one object can have: addresses, ports. `old` is `None` on create.
    async fn claim(&self, _write: &Write<'_>, _new: &mut Value, _old: Option<&Value>) -> Result<Claims, Status> {
        Ok(Claims::default())
    }

    /// The claims of an object that is gone.
    fn claims_of(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The fields that the endpoint (the subresource's name, empty for the resource) ignores in applied configurations.
    fn reset_fields(&self, subresource: &str) -> Vec<&'static [&'static str]> {
        match subresource {
            "" => vec![&["status"]],
            "status" => vec![&["spec"]],
            _ => Vec::new(),
        }
    }

    /// Refuses the deletion of what must stay.
    fn check_delete(&self, _call: &Call, _object: &Value) -> Result<(), Status> {
        Ok(())
    }

    /// Whether admission or authorization of other requests must heed a write from the moment that it is answered.
    fn counts_at_once(&self) -> bool {
        false
    }

    /// The objects of a kind that isn't stored but made for each answer.
    async fn made(&self, _server: &Server) -> Option<Vec<Value>> {
        None
    }

    /// Waits until requests after this one see what a write did, where that is promised.
    async fn settle(&self, call: &Call, revision: Revision) {
        if self.counts_at_once() {
            // Should the cache lag for long, then only this promise is late.
            let _ = call.server.cache.reached(revision, FRESH_TIMEOUT).await;
        }
    }

    /// Changes an object that is being deleted.
    fn prepare_delete(&self, _object: &mut Value) {}

    /// How many seconds the object is given to end.
    fn grace(&self, _object: &Value, _asked: Option<i64>) -> i64 {
        0
    }

    /// Whether nothing holds a deleted object back any more.
    fn finalized(&self, object: &Value) -> bool {
        value::items(object, &["metadata", "finalizers"]).is_empty()
    }

    fn default_orphaning(&self) -> Orphaning {
        Orphaning::Collect
    }

    /// Whether its objects are marked as going even when they go at once.
    fn goes_gracefully(&self) -> bool {
        false
    }

    /// Whether the answer to a deletion is the object, and not a `Status`.
    fn shows_deleted(&self) -> bool {
        false
    }
}

/// The strategies by group and kind.
pub(crate) struct Strategies {
    special: HashMap<(&'static str, &'static str), Arc<dyn Strategy>>,
    plain: Arc<dyn Strategy>,
    custom: [Arc<dyn Strategy>; 2],
}

impl Strategies {
    pub fn new() -> Self {
        Self { special: kinds::special(), plain: Arc::new(kinds::Plain), custom: [false, true].map(|has_status| -> Arc<dyn Strategy> { Arc::new(kinds::Custom { has_status }) }) }
    }

    pub fn of<'a>(&'a self, resource: &'a Resource) -> &'a Arc<dyn Strategy> {
        if matches!(resource.schema, skiff_api::resource::ResourceSchema::Custom(_)) {
            return &self.custom[usize::from(resource.subresource("status").is_some())];
        }
        // A kind of several groups (events) is known by the one it is stored in.
        self.special.get(&(resource.group.as_ref(), resource.kind.as_ref())).unwrap_or(&self.plain)
    }
}
