//! Admission policies: `ValidatingAdmissionPolicy` and `MutatingAdmissionPolicy` with their bindings.

mod mutating;
mod status;
mod validating;

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;
use skiff_api::cel::admission::Policy;
use skiff_api::labels::Selector;
use skiff_api::{Status, value};
use skiff_store::Revision;

use super::Request;
use super::matching::Constraints;
use crate::cache::{Cache, Filter};
use crate::convert;

pub(super) use mutating::MutatingPolicies;
pub(super) use mutating::mutate;
pub(crate) use status::run;
pub(super) use validating::ValidatingPolicies;
pub(super) use validating::validate;

/// Where policies and their bindings are stored.
const VALIDATING: [&str; 2] = ["/registry/validatingadmissionpolicies/", "/registry/validatingadmissionpolicybindings/"];
const MUTATING: [&str; 2] = ["/registry/mutatingadmissionpolicies/", "/registry/mutatingadmissionpolicybindings/"];

/// A policy, compiled, with its bindings.
struct Bound {
    name: String,
    /// Whether its failure is the request's.
    fails: bool,
    constraints: Result<Constraints, String>,
    /// API version and kind of its parameters.
    param_kind: Option<(String, String)>,
    policy: Policy,
    reinvoked: bool,
    bindings: Vec<Binding>,
}

struct Binding {
    name: String,
    constraints: Result<Constraints, String>,
    param_ref: Value,
    /// `Deny`, `Warn`, `Audit`
    actions: Vec<String>,
}

/// The policies of one sort as of a revision of the policies and one of the bindings.
type Read = RwLock<([Revision; 2], Arc<Vec<Bound>>)>;

/// All policies.
#[derive(Default)]
pub(crate) struct Policies {
    validating: Read,
    mutating: Read,
}

impl Policies {
    fn validating(&self, cache: &Cache) -> Arc<Vec<Bound>> {
        current(&self.validating, cache, VALIDATING)
    }

    fn mutating(&self, cache: &Cache) -> Arc<Vec<Bound>> {
        current(&self.mutating, cache, MUTATING)
    }
}

fn current(read: &Read, cache: &Cache, prefixes: [&str; 2]) -> Arc<Vec<Bound>> {
    let [Some(policies), Some(bindings)] = prefixes.map(|prefix| cache.resource(prefix)) else { return Arc::default() };
    let newest = [*policies.subscribe().borrow(), *bindings.subscribe().borrow()];
    {
        let (revisions, bound) = &*read.read().unwrap_or_else(PoisonError::into_inner);
        if *revisions == newest {
            return Arc::clone(bound);
        }
    }
    let (policies, bindings) = (policies.list(&Filter::default(), 0), bindings.list(&Filter::default(), 0));
    let all: Vec<Value> = bindings.objects.iter().filter_map(|o| o.value().ok()).collect();
    let read_policies = policies.objects.iter().filter_map(|o| o.value().ok());
    let bound = Arc::new(read_policies.map(|policy| Bound::read(&policy, &all)).filter(|bound| !bound.bindings.is_empty()).collect::<Vec<_>>());
    *read.write().unwrap_or_else(PoisonError::into_inner) = ([policies.newest, bindings.newest], Arc::clone(&bound));
    bound
}

impl Bound {
    fn read(policy: &Value, bindings: &[Value]) -> Self {
        let name = value::text(policy, &["metadata", "name"]).to_owned();
        let spec = &policy["spec"];
        let text = |path: &[&str]| value::text(spec, path).to_owned();
        let bindings = bindings.iter().filter(|b| value::text(b, &["spec", "policyName"]) == name).map(|binding| Binding {
            name: value::text(binding, &["metadata", "name"]).to_owned(),
            constraints: Constraints::read(&binding["spec"]["matchResources"]),
            param_ref: binding["spec"]["paramRef"].clone(),
            actions: value::items(binding, &["spec", "validationActions"]).iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        });
        Self {
            fails: value::text(spec, &["failurePolicy"]) != "Ignore",
            constraints: Constraints::read(&spec["matchConstraints"]),
            param_kind: spec["paramKind"].is_object().then(|| (text(&["paramKind", "apiVersion"]), text(&["paramKind", "kind"]))),
            policy: Policy::compile(spec).0,
            reinvoked: value::text(spec, &["reinvocationPolicy"]) == "IfNeeded",
            bindings: bindings.collect(),
            name,
        }
    }
}

impl Binding {
    /// Whether the binding is about the request, too.
    fn matches(&self, request: &Request<'_>, object: Option<&Value>) -> Result<bool, String> {
        let constraints = self.constraints.as_ref().map_err(Clone::clone)?;
        constraints.matched(request, object, true).map(|found| found.is_some()).map_err(|status| status.message)
    }

    /// The parameters that the policy is to be evaluated with, one evaluation each. Null is for none.
    fn params(&self, bound: &Bound, request: &Request<'_>) -> Result<Vec<Value>, String> {
        let reference = &self.param_ref;
        let (Some((version, kind)), true) = (&bound.param_kind, reference.is_object()) else { return Ok(vec![Value::Null]) };
        let server = &request.call.server;
        let served = server.registry.now();
        let resource = served.ordered.iter().find(|r| *r.kind == **kind && r.api_version() == *version && !r.storage_prefix.is_empty());
        let unknown = || format!("paramKind kind `{version}, Kind={kind}` not known");
        let resource = resource.ok_or_else(unknown)?;
        let cache = server.cache.resource(&resource.storage_prefix).ok_or_else(unknown)?;
        let given = value::text(reference, &["namespace"]);
        let namespace = match (resource.namespaced, given) {
            (false, "") => "",
            (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
            (true, "") if request.call.info.namespace.is_empty() => {
                return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
            }
            (true, "") => &request.call.info.namespace,
            (true, given) => given,
        };
        let name = value::text(reference, &["name"]);
        let found = if name.is_empty() {
            let labels = Selector::from_label_selector(&reference["selector"])?;
            cache.list(&Filter { namespace: namespace.to_owned(), labels, ..Filter::default() }, 0).objects
        } else {
            cache.get(&server.key(resource, namespace, name)).into_iter().collect()
        };
        if found.is_empty() && value::text(reference, &["parameterNotFoundAction"]) == "Deny" {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        let read = found.iter().map(|o| o.value().map(|v| convert::to_version(resource, v)).map_err(|e| e.to_string()));
        read.collect()
    }
}

/// The refusal of a policy.
fn forbidden(request: &Request<'_>, object: Option<&Value>, message: &str, reason: &str) -> Status {
    let name = request.name(object);
    let mut status = Status::forbidden(request.call.resource.group_resource(), &name, message);
    let reason = if reason.is_empty() { "Invalid" } else { reason };
    status.code = match reason {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = reason.to_owned().into();
    if let Some(details) = &mut status.details {
        details.causes.push(skiff_api::status::Cause { message: message.to_owned(), ..Default::default() });
    }
    status
}
