//! Admission: rules that look beyond the object, each a plugin with upstream's name, in upstream's order.

mod certificates;
mod defaults;
pub(crate) mod escalation;
mod limits;
mod namespace;
mod nodes;
mod priority;
mod quota;
mod service_account;

use std::sync::PoisonError;

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::Status;

use crate::verbs::{Call, Write};
pub(crate) use quota::{Claim, Ledger};

/// One write as the plugins see it.
pub(crate) struct Request<'a> {
    pub call: &'a Call,
    /// The object before; `None` when it is being created.
    pub old: Option<&'a Value>,
    /// Whether nothing will be kept.
    pub dry_run: bool,
    write: &'a Write<'a>,
}

impl Request<'_> {
    /// Keeps a claim until the write is over.
    fn hold(&self, claim: quota::Claim) {
        self.write.held.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
    }

    /// Ends the claims of the write.
    fn let_go(&self) {
        self.write.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether the request is a create of this resource, with no subresource.
    pub fn creates(&self, group: &str, plural: &str) -> bool {
        self.old.is_none() && self.call.info.subresource.is_empty() && self.call.resource.group == group && self.call.resource.plural == plural
    }
}

/// A rule. Both methods' defaults do nothing.
#[async_trait]
trait Plugin: Send + Sync {
    /// Changes the object that is to be kept.
    async fn mutate(&self, _request: &Request<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Refuses what must not be.
    async fn validate(&self, _request: &Request<'_>, _object: &Value) -> Result<(), Status> {
        Ok(())
    }
}

/// The plugins, in the order in which they act.
const PLUGINS: &[&dyn Plugin] = &[
    &namespace::NamespaceLifecycle,
    &limits::LimitRanger,
    &service_account::ServiceAccount,
    &nodes::NodeRestriction,
    &nodes::TaintNodesByCondition,
    &priority::Priority,
    &defaults::DefaultTolerationSeconds,
    &defaults::DefaultStorageClass,
    &certificates::Certificates,
    &defaults::DefaultIngressClass,
    &defaults::StorageObjectInUseProtection,
    &escalation::Escalation,
    &quota::ResourceQuota,
];

/// Lets the plugins change what is to be kept.
pub(crate) async fn mutate(write: &Write<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let request = Request { call: write.call, old, dry_run: write.options.dry_run, write };
    for plugin in PLUGINS {
        plugin.mutate(&request, object).await?;
    }
    Ok(())
}

/// Lets the plugins refuse what is to be kept.
pub(crate) async fn validate(write: &Write<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
    let request = Request { call: write.call, old, dry_run: write.options.dry_run, write };
    let Some(object) = object else { return Ok(()) };
    for plugin in PLUGINS {
        plugin.validate(&request, object).await?;
    }
    Ok(())
}

/// Lets the plugins refuse a deletion.
pub(crate) async fn validate_delete(call: &Call, current: &Value) -> Result<(), Status> {
    nodes::check_delete(call, current)
}
