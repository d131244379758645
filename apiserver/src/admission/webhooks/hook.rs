//! Webhooks, read from their configurations; read again when one of those changes.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use skiff_api::cel::admission::Conditions;
use skiff_api::resource::Resource;
use skiff_api::{Status, value};
use skiff_store::Revision;

use super::super::Request;
use super::super::expressions::Seen;
use super::super::matching::Constraints;
use crate::cache::{Cache, Filter};
use crate::webhook::ClientConfig;

const MUTATING: &str = "/registry/mutatingwebhookconfigurations/";
const VALIDATING: &str = "/registry/validatingwebhookconfigurations/";
const DEFAULT_TIMEOUT: u64 = 10;

/// One webhook.
pub(super) struct Hook {
    /// Its configuration and name, unique among all.
    pub id: String,
    pub name: String,
    pub configuration: String,
    pub client: Result<ClientConfig, String>,
    constraints: Result<Constraints, String>,
    conditions: Conditions,
    /// Whether its failure is the request's.
    pub fails: bool,
    pub timeout: Duration,
    /// Whether it may be asked of what is not to be kept.
    pub dry_run_safe: bool,
    /// Whether it wants to be asked again when the object changes after it.
    pub reinvoked: bool,
    /// The version of the reviews that it is sent.
    pub version: &'static str,
}

impl Hook {
    fn read(configuration: &str, index: usize, hook: &Value) -> Self {
        let name = value::text(hook, &["name"]).to_owned();
        let versions = value::items(hook, &["admissionReviewVersions"]);
        let known = versions.iter().find_map(|v| match v.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        });
        Self {
            id: format!("{configuration}/{name}/{index}"),
            name,
            configuration: configuration.to_owned(),
            client: ClientConfig::read(&hook["clientConfig"]).map_err(|e| e.to_string()),
            constraints: Constraints::read(hook),
            conditions: Conditions::compile(value::items(hook, &["matchConditions"]), "").0,
            fails: value::text(hook, &["failurePolicy"]) != "Ignore",
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT)),
            dry_run_safe: matches!(value::text(hook, &["sideEffects"]), "None" | "NoneOnDryRun"),
            reinvoked: value::text(hook, &["reinvocationPolicy"]) == "IfNeeded",
            version: known.unwrap_or("v1"),
        }
    }

    /// Whether the webhook is to be asked: the version of the resource in which it wants to see the object.
    pub fn wants(&self, request: &Request<'_>, object: Option<&Value>) -> Result<Option<Arc<Resource>>, Status> {
        let matched = self.constraints.as_ref().map_err(Status::internal)?.matched(request, object, false)?;
        let Some(matched) = matched else { return Ok(None) };
        if self.conditions.is_empty() {
            return Ok(Some(matched));
        }
        match self.conditions.hold(&Seen::new(request, &matched, object)?.input(&Value::Null)) {
            Ok(hold) => Ok(hold.then_some(matched)),
            Err(why) if self.fails => Err(Status::forbidden(request.call.resource.group_resource(), &request.name(object), why)),
            Err(_) => Ok(None),
        }
    }
}

/// The webhooks of one sort, in the order of their configurations' names, as of a revision.
type Read = RwLock<(Revision, Arc<Vec<Hook>>)>;

/// All webhooks.
#[derive(Default)]
pub(crate) struct Hooks {
    mutating: Read,
    validating: Read,
}

impl Hooks {
    pub(super) fn mutating(&self, cache: &Cache) -> Arc<Vec<Hook>> {
        current(&self.mutating, cache, MUTATING)
    }

    pub(super) fn validating(&self, cache: &Cache) -> Arc<Vec<Hook>> {
        current(&self.validating, cache, VALIDATING)
    }
}

fn current(read: &Read, cache: &Cache, prefix: &str) -> Arc<Vec<Hook>> {
    let Some(configurations) = cache.resource(prefix) else { return Arc::default() };
    let newest = *configurations.subscribe().borrow();
    {
        let (revision, hooks) = &*read.read().unwrap_or_else(PoisonError::into_inner);
        if *revision == newest {
            return Arc::clone(hooks);
        }
    }
    let listed = configurations.list(&Filter::default(), 0);
    let hooks = listed.objects.iter().filter_map(|o| o.value().ok()).flat_map(|configuration| {
        let name = value::text(&configuration, &["metadata", "name"]).to_owned();
        let hooks = value::items(&configuration, &["webhooks"]).iter().enumerate();
        hooks.map(|(i, hook)| Hook::read(&name, i, hook)).collect::<Vec<_>>()
    });
    let hooks = Arc::new(hooks.collect::<Vec<_>>());
    *read.write().unwrap_or_else(PoisonError::into_inner) = (listed.newest, Arc::clone(&hooks));
    hooks
}
