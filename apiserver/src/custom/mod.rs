//! Custom resources come up and go with their definitions: this watches the definitions, has the registry serve what they
//! describe, and writes in their status how that went.
//!
//! What a definition describes is served from the moment that it has got its names, before its status says so. A write of
//! a definition is answered when it is served ([`settle`]), so that its objects may follow at once.

mod cleanup;
mod convert;
mod plan;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use skiff_api::resource::{self, Resource};
use skiff_api::value::{at, text};
use skiff_store::Revision;

use crate::bootstrap;
use crate::cache::{FRESH_TIMEOUT, Filter, Form, ResourceCache, Tidy};
use crate::server::Server;
use crate::verbs::now_text;
pub(crate) use convert::by_webhook;
pub(crate) use plan::{FINALIZER, set_condition};

const GROUP: &str = "apiextensions.k8s.io";
/// How soon a status that couldn't be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A definition as it was last seen.
struct Known {
    revision: Revision,
    /// The definition, with the status that it should have.
    definition: Value,
    /// What it makes; nothing until it has got its names.
    resources: Vec<Arc<Resource>>,
    /// Whether its status is still to be written.
    pending: bool,
}

/// Keeps the registry in step with the definitions.
pub(crate) struct Controller {
    server: Arc<Server>,
    definitions: Arc<ResourceCache>,
    known: BTreeMap<String, Known>,
    /// The definitions whose objects are being deleted.
    cleaning: Arc<Mutex<HashSet<String>>>,
}

impl Controller {
    /// A controller that has brought up every definition that there is; none where definitions aren't kept.
    pub fn new(server: &Arc<Server>) -> Option<Self> {
        let kind = resource::find_kind(GROUP, "v1", "CustomResourceDefinition")?;
        let definitions = server.cache.resource(&kind.storage_prefix)?;
        let mut controller = Self { server: Arc::clone(server), definitions, known: BTreeMap::new(), cleaning: Arc::default() };
        controller.look();
        Some(controller)
    }

    /// Follows the definitions. Ends with the server.
    pub async fn run(mut self) {
        let mut bell = self.definitions.subscribe();
        loop {
            bell.mark_unchanged();
            self.look();
            self.clean_up();
            let written = self.write().await;
            tokio::select! {
                changed = bell.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !written => {}
            }
        }
    }

    /// Looks at what changed, decides every status, and serves what is to be served.
    pub fn look(&mut self) {
        let seen = self.server.cache.applied();
        let listed = self.definitions.list(&Filter::default(), 0).objects;
        let mut changed = Vec::new();
        let names: HashSet<&str> = listed.iter().map(|o| o.name()).collect();
        let gone: Vec<String> = self.known.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        for name in &gone {
            if let Some(Known { resources, .. }) = self.known.remove(name) {
                self.give_up(&resources);
            }
        }
        for object in &listed {
            let known = self.known.get(object.name()).map(|k| k.revision);
            if known == Some(object.revision) {
                continue;
            }
            let Ok(definition) = object.value() else { continue };
            let resources = self.known.remove(object.name()).map_or_else(Vec::new, |k| {
                // What is served stays what it is while nothing that it is made of changes; otherwise it is made anew.
                if k.definition["spec"] == definition["spec"] { k.resources } else { Vec::new() }
            });
            self.known.insert(object.name().to_owned(), Known { revision: object.revision, definition, resources, pending: false });
            changed.push(object.name().to_owned());
        }
        // Names that were taken may be free now.
        let waiting = self.known.iter().filter(|(name, k)| !plan::named(&k.definition) && !changed.contains(name));
        let waiting: Vec<String> = waiting.map(|(name, _)| name.clone()).collect();
        if !changed.is_empty() || !gone.is_empty() {
            changed.iter().chain(&waiting).for_each(|name| self.decide(name));
            let all = self.known.values().flat_map(|k| k.resources.iter().cloned()).collect();
            self.server.registry.serve_custom(all);
        }
        self.server.definitions.send_replace(seen);
    }

    fn decide(&mut self, name: &str) {
        let Some(Known { definition, resources, .. }) = self.known.get(name) else { return };
        let group = text(definition, &["spec", "group"]);
        let taken = || {
            let mut taken = plan::Taken::default();
            self.known.values().filter(|k| text(&k.definition, &["spec", "group"]) == group).for_each(|k| taken.add(&k.definition));
            taken
        };
        let status = plan::status(definition, taken, &now_text());
        let same_names = status["acceptedNames"] == definition["status"]["acceptedNames"];
        let changed = status != definition["status"];
        let mut definition = definition.clone();
        definition["status"] = status;
        let terminating = plan::terminating(&definition);
        let mut made = resources.clone();
        if !plan::served(&definition) {
            self.give_up(resources);
            made.clear();
        } else if made.is_empty() || !same_names || made.iter().any(|r| r.custom().is_some_and(|c| c.terminating != terminating)) {
            let renew = made.is_empty() || !same_names;
            let accepted = at(&definition, &["status", "acceptedNames"]);
            made = skiff_api::custom::resources(&definition, accepted, terminating).into_iter().map(Arc::new).collect();
            if renew && let Some(first) = made.iter().find(|r| !resource::is_built_in(&r.group, &r.plural)) {
                self.server.cache.put(&first.storage_prefix, form(&made));
            }
        }
        if let Some(known) = self.known.get_mut(name) {
            (known.definition, known.resources) = (definition, made);
            known.pending |= changed;
        }
    }

    /// Ends keeping the objects of resources that are no more.
    fn give_up(&self, resources: &[Arc<Resource>]) {
        if let Some(first) = resources.iter().find(|r| !resource::is_built_in(&r.group, &r.plural)) {
            self.server.cache.remove(&first.storage_prefix);
        }
    }

    /// Writes every status that isn't as it should be. Answers whether all went well: who was quicker rings the bell.
    async fn write(&mut self) -> bool {
        let mut written = true;
        for (name, known) in self.known.iter_mut().filter(|(_, known)| known.pending) {
            match write(&self.server, name, &known.definition).await {
                Err(error) if !matches!(error.code, 404 | 409) => {
                    tracing::warn!(name, error = error.message, "status of a custom resource definition not written");
                    written = false;
                }
                _ => known.pending = false,
            }
        }
        written
    }

    /// Begins to delete the objects of definitions that wait for that.
    fn clean_up(&self) {
        for (name, _) in self.known.iter().filter(|(_, k)| plan::waits(&k.definition)) {
            if self.cleaning.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
                let (server, name, cleaning) = (Arc::clone(&self.server), name.clone(), Arc::clone(&self.cleaning));
                tokio::spawn(async move {
                    let work = cleanup::run(&server, &name);
                    tokio::select! { () = work => {}, () = server.stopping() => {} }
                    cleaning.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                });
            }
        }
    }
}

/// How stored objects of the resources, versions of one kind, are read.
fn form(versions: &[Arc<Resource>]) -> Form {
    let tidy = versions.first().and_then(|r| r.custom().cloned()).map(|custom| -> Tidy { Arc::new(move |object| custom.tidy(object)) });
    Form::of(versions.iter().map(Arc::as_ref), tidy)
}

/// Writes a definition's status, as a client would.
async fn write(server: &Arc<Server>, name: &str, definition: &Value) -> Result<(), skiff_api::Status> {
    let path = format!("/apis/{GROUP}/v1/customresourcedefinitions/{name}/status");
    bootstrap::replace(server, &path, definition).await
}

/// Waits until what definitions of this revision describe is served. Should that take long, then only this promise is late.
pub(crate) async fn settle(server: &Server, revision: Revision) {
    let mut settled = server.definitions.subscribe();
    let _ = tokio::time::timeout(FRESH_TIMEOUT, settled.wait_for(|seen| *seen >= revision)).await;
}
