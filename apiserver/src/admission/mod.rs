//! Admission: rules that look beyond the object, each a plugin with upstream's name, in upstream's order.

mod certificates;
mod claim_resize;
mod defaults;
pub(crate) mod escalation;
mod expressions;
mod limits;
mod matching;
mod namespace;
mod nodes;
mod pod_security;
mod policies;
mod priority;
mod quota;
mod resize;
mod runtime_class;
mod service_account;
mod topology;
mod webhooks;

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::Instant;
use skiff_api::{Status, value};

use crate::metrics::{Admission, Metrics};
use crate::options::{self, Options};
use crate::verbs::{Call, DeleteOptions, Write};
pub(crate) use policies::{Policies, run as watch_policies};
pub(crate) use quota::{Claim, Ledger};
pub(crate) use webhooks::Hooks;

/// What a request does with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One request as the plugins see it.
pub(crate) struct Request<'a> {
    pub call: &'a Call,
    pub operation: Operation,
    /// The object before; `None` when it is being created, or connected to.
    pub old: Option<&'a Value>,
    /// Whether nothing will be kept.
    pub dry_run: bool,
    /// The options of the request, `CreateOptions` and the like; null for a connection.
    pub options: Value,
    /// Which mutating webhooks and policies are to be asked again.
    again: Mutex<Reinvocation>,
    /// The write, where the request is one.
    write: Option<&'a Write<'a>>,
}

/// Mutators that want to see what later ones made of the object are asked once more. Upstream's reinvocation.
#[derive(Default)]
struct Reinvocation {
    /// Whether this is the second time.
    second: bool,
    /// Whether there is to be a second time.
    needed: bool,
    /// By plugin: what it has to remember.
    plugins: [Invoked; 2],
}

/// What one mutating plugin remembers of the first time.
#[derive(Default)]
struct Invoked {
    /// Those asked since the last change that want to be asked again after one.
    eligible: Vec<String>,
    /// Those to be asked again.
    again: Vec<String>,
    /// The object as the plugin left it.
    output: Value,
}

impl Invoked {
    /// The object has changed: those asked before are asked again.
    fn changed(&mut self) {
        self.again.append(&mut self.eligible);
    }
}

impl<'a> Request<'a> {
    fn of_write(write: &'a Write<'a>, old: Option<&'a Value>) -> Self {
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        let kind = if old.is_some() { "UpdateOptions" } else { "CreateOptions" };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        for key in ["fieldManager", "fieldValidation"] {
            if let Some(text) = write.call.query.get(key) {
                options[key] = text.into();
            }
        }
        let request = Self::new(write.call, operation, old, write.options.dry_run, options);
        Self { write: Some(write), ..request }
    }

    fn new(call: &'a Call, operation: Operation, old: Option<&'a Value>, dry_run: bool, mut options: Value) -> Self {
        if dry_run && options.is_object() {
            options["dryRun"] = json!(["All"]);
        }
        Self { call, operation, old, dry_run, options, again: Mutex::default(), write: None }
    }

    /// Keeps a claim until the write is over.
    fn hold(&self, claim: quota::Claim) {
        if let Some(write) = self.write {
            write.held.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
        }
    }

    /// Ends the claims of the write.
    fn let_go(&self) {
        if let Some(write) = self.write {
            write.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn again(&self) -> std::sync::MutexGuard<'_, Reinvocation> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request is a create of this resource, with no subresource.
    pub fn creates(&self, group: &str, plural: &str) -> bool {
        self.old.is_none() && self.is_of(group, plural)
    }

    /// Whether the request writes this resource as a whole.
    pub fn is_of(&self, group: &str, plural: &str) -> bool {
        self.call.info.subresource.is_empty() && self.call.resource.group == group && self.call.resource.plural == plural
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

/// The plugins, with the names that metrics show, in the order in which they act.
const PLUGINS: &[(&str, &dyn Plugin)] = &[
    ("NamespaceLifecycle", &namespace::NamespaceLifecycle),
    ("LimitRanger", &limits::LimitRanger),
    ("ServiceAccount", &service_account::ServiceAccount),
    ("NodeRestriction", &nodes::NodeRestriction),
    ("TaintNodesByCondition", &nodes::TaintNodesByCondition),
    ("PodSecurity", &pod_security::PodSecurity),
    ("Priority", &priority::Priority),
    ("DefaultTolerationSeconds", &defaults::DefaultTolerationSeconds),
    ("DefaultStorageClass", &defaults::DefaultStorageClass),
    ("StorageObjectInUseProtection", &defaults::StorageObjectInUseProtection),
    ("PersistentVolumeClaimResize", &claim_resize::PersistentVolumeClaimResize),
    ("RuntimeClass", &runtime_class::RuntimeClass),
    ("CertificateApproval", &certificates::Certificates::Approval),
    ("CertificateSigning", &certificates::Certificates::Signing),
    ("CertificateSubjectRestriction", &certificates::Certificates::Subject),
    ("DefaultIngressClass", &defaults::DefaultIngressClass),
    ("PodTopologyLabels", &topology::PodTopologyLabels),
    ("PodResizeValidator", &resize::PodResizeValidator),
    ("Escalation", &escalation::Escalation),
    ("MutatingAdmissionPolicy", &policies::MutatingPolicies),
    ("MutatingAdmissionWebhook", &webhooks::Mutating),
    ("ValidatingAdmissionPolicy", &policies::ValidatingPolicies),
    ("ValidatingAdmissionWebhook", &webhooks::Validating),
    ("ResourceQuota", &quota::ResourceQuota),
];

/// Which plugins act.
pub(crate) struct Acting {
    off: Vec<&'static str>,
}

impl Acting {
    /// All but those that the options switch off.
    pub fn read(options: &Options) -> Result<Self, options::Error> {
        let known = |flag: &'static str, names: &[String]| {
            let find = |name: &String| PLUGINS.iter().map(|(known, _)| *known).find(|known| known == name);
            let named: Result<Vec<&'static str>, _> =
                names.iter().map(|name| find(name).ok_or_else(|| options::Error::new(flag, format!("there is no plugin {name:?}")))).collect();
            named
        };
        let on = known("enable-admission-plugins", &options.enable_admission_plugins)?;
        let off = known("disable-admission-plugins", &options.disable_admission_plugins)?;
        match on.iter().find(|name| off.contains(name)) {
            Some(both) => Err(options::Error::new("enable-admission-plugins", format!("{both} is disabled too"))),
            None => Ok(Self { off }),
        }
    }

    fn has(&self, name: &str) -> bool {
        !self.off.contains(&name)
    }

    fn all(&self) -> impl Iterator<Item = (usize, &'static dyn Plugin)> {
        PLUGINS.iter().enumerate().filter(|(_, (name, _))| self.has(name)).map(|(at, (_, plugin))| (at, *plugin))
    }
}

/// Counts how long the plugins take.
struct Clock<'a> {
    metrics: &'a Metrics,
    operation: &'static str,
    kind: &'static str,
    began: Instant,
    last: Instant,
}

impl<'a> Clock<'a> {
    fn start(request: &Request<'a>, kind: &'static str) -> Self {
        let operation = if request.old.is_some() { "UPDATE" } else { "CREATE" };
        let now = Instant::now();
        Self { metrics: &request.call.server.metrics, operation, kind, began: now, last: now }
    }

    fn plugin<T>(&mut self, at: usize, result: &Result<T, Status>) {
        let now = Instant::now();
        let what = Admission::Plugin(at, PLUGINS[at].0);
        self.metrics.admitted(what, now - self.last, self.operation, self.kind, result.is_err());
        self.last = now;
        if result.is_err() {
            self.step(true);
        }
    }

    fn step(&self, refused: bool) {
        self.metrics.admitted(Admission::Step, self.last - self.began, self.operation, self.kind, refused);
    }
}

/// Lets the plugins change what is to be kept; all of them twice when a webhook or policy asks for it.
pub(crate) async fn mutate(write: &Write<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let request = Request::of_write(write, old);
    loop {
        let mut clock = Clock::start(&request, "admit");
        for (at, plugin) in write.call.server.acting.all() {
            let result = plugin.mutate(&request, object).await;
            clock.plugin(at, &result);
            result?;
        }
        clock.step(false);
        let mut again = request.again();
        if again.second || !again.needed {
            return Ok(());
        }
        again.second = true;
    }
}

/// Lets the plugins refuse what is to be kept.
pub(crate) async fn validate(write: &Write<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let request = Request::of_write(write, old);
    let mut clock = Clock::start(&request, "validate");
    for (at, plugin) in write.call.server.acting.all() {
        let result = plugin.validate(&request, object).await;
        clock.plugin(at, &result);
        result?;
    }
    clock.step(false);
    Ok(())
}

/// Lets the plugins refuse a deletion.
pub(crate) async fn validate_delete(call: &Call, current: &Value, options: &DeleteOptions) -> Result<(), Status> {
    if call.server.acting.has("NodeRestriction") {
        nodes::restrict(call, Operation::Delete, current, Some(current)).await?;
    }
    // An eviction was judged as one.
    if !call.info.subresource.is_empty() {
        return Ok(());
    }
    let mut shown = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
    if let Some(grace) = options.grace {
        shown["gracePeriodSeconds"] = grace.into();
    }
    if let Some(policy) = &options.propagation {
        shown["propagationPolicy"] = policy.as_str().into();
    }
    for (key, wanted) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
        if let Some(wanted) = wanted {
            shown["preconditions"][key] = wanted.as_str().into();
        }
    }
    judge(&Request::new(call, Operation::Delete, Some(current), options.dry_run, shown), None).await
}

/// Lets the plugins refuse what a client does with an object beyond changing it: `object` is what it sends, an
/// `Eviction` or the options of an `exec`.
pub(crate) async fn validate_other(call: &Call, operation: Operation, object: &mut Value, dry_run: bool) -> Result<(), Status> {
    let options = match operation {
        Operation::Connect => Value::Null,
        _ => json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
    };
    if operation != Operation::Connect && call.server.acting.has("NodeRestriction") {
        nodes::restrict(call, operation, object, None).await?;
    }
    if call.info.subresource == "binding" && call.server.acting.has("PodTopologyLabels") {
        let node = value::text(object, &["target", "name"]).to_owned();
        topology::label(&call.server, &node, object)?;
    }
    judge(&Request::new(call, operation, None, dry_run, options), Some(object)).await
}

/// Asks webhooks and policies alone.
async fn judge(request: &Request<'_>, mut object: Option<&mut Value>) -> Result<(), Status> {
    let acting = &request.call.server.acting;
    if let Some(object) = object.as_deref_mut().filter(|_| acting.has("MutatingAdmissionPolicy")) {
        policies::mutate(request, object)?;
    }
    if acting.has("MutatingAdmissionWebhook") {
        webhooks::mutate(request, object.as_deref_mut()).await?;
    }
    if acting.has("ValidatingAdmissionPolicy") {
        policies::validate(request, object.as_deref())?;
    }
    if acting.has("ValidatingAdmissionWebhook") {
        webhooks::validate(request, object.as_deref()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_can_be_switched_off() {
        let check = |on: &[&str], off: &[&str], expected: Result<bool, &str>| {
            let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let options = Options { enable_admission_plugins: names(on), disable_admission_plugins: names(off), ..Options::default() };
            let acts = Acting::read(&options).map(|acting| acting.all().any(|(at, _)| PLUGINS[at].0 == "Priority")).map_err(|e| e.to_string());
            assert_eq!(acts, expected.map_err(str::to_owned), "{on:?} {off:?}");
        };
        check(&[], &[], Ok(true));
        check(&["Priority"], &["LimitRanger"], Ok(true));
        check(&[], &["Priority"], Ok(false));
        check(&["Priority"], &["Priority"], Err("--enable-admission-plugins: Priority is disabled too"));
        check(&[], &["Nonsense"], Err("--disable-admission-plugins: there is no plugin \"Nonsense\""));
    }
}
