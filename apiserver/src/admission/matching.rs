//! Which requests a webhook or policy is about.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::labels::Selector;
use skiff_api::resource::Resource;
use skiff_api::status::GroupResource;
use skiff_api::{Status, value};

use super::{Operation, Request};

const GROUP: &str = "admissionregistration.k8s.io";

/// Webhooks and policies never judge themselves: what they refuse could not be repaired.
pub(super) fn is_exempt(request: &Request<'_>) -> bool {
    let resource = &request.call.resource;
    resource.group == GROUP
        && matches!(
            resource.plural.as_ref(),
            "validatingwebhookconfigurations"
                | "mutatingwebhookconfigurations"
                | "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings"
                | "mutatingadmissionpolicies"
                | "mutatingadmissionpolicybindings"
        )
}

/// What a webhook or policy wants to see. Upstream's `MatchResources`, and the same members of webhooks.
#[derive(Clone, Debug)]
pub(super) struct Constraints {
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    /// Whether rules hold for the same objects in other versions, too.
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
}

/// A rule: requests of these operations on these resources.
#[derive(Clone, Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// With their subresources.
    resources: Vec<(String, String)>,
    scope: String,
    /// Of these objects only; empty for all.
    names: Vec<String>,
}

impl Rule {
    fn read(rule: &Value) -> Self {
        let list = |key: &str| value::items(rule, &[key]).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
        let split = |r: &String| r.split_once('/').map_or((r.clone(), String::new()), |(r, s)| (r.to_owned(), s.to_owned()));
        Self {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources").iter().map(split).collect(),
            scope: value::text(rule, &["scope"]).to_owned(),
            names: list("resourceNames"),
        }
    }

    fn matches(&self, request: &Request<'_>, resource: &Resource, name: &str) -> bool {
        let info = &request.call.info;
        let holds = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
        let cluster = info.namespace.is_empty() || (resource.group.is_empty() && resource.plural == "namespaces");
        let scope = match self.scope.as_str() {
            "Namespaced" => !cluster,
            "Cluster" => cluster,
            _ => true,
        };
        scope
            && holds(&self.operations, request.operation.as_str())
            && holds(&self.groups, &resource.group)
            && holds(&self.versions, &resource.version)
            && self.resources.iter().any(|(r, s)| (r == "*" || *r == resource.plural) && (s == "*" || *s == info.subresource))
            && (self.names.is_empty() || self.names.iter().any(|n| n == name))
    }
}

impl Constraints {
    /// Reads `rules` (webhooks) or `resourceRules` (policies) and what stands beside them.
    pub fn read(from: &Value) -> Result<Self, String> {
        let rules = |key: &str| value::items(from, &[key]).iter().map(Rule::read).collect::<Vec<_>>();
        let selector = |key: &str| match value::at(from, &[key]) {
            Value::Null => Ok(Selector::everything()),
            selector => Selector::from_label_selector(selector),
        };
        let mut all = rules("rules");
        all.extend(rules("resourceRules"));
        Ok(Self {
            rules: all,
            exclude: rules("excludeResourceRules"),
            equivalent: value::text(from, &["matchPolicy"]) != "Exact",
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
        })
    }

    /// Whether the request is meant: the resource by whose rule it is, in the version in which the judge sees the object.
    /// `any` is whether no rules at all mean every resource (bindings).
    pub fn matched(&self, request: &Request<'_>, object: Option<&Value>, any: bool) -> Result<Option<Arc<Resource>>, Status> {
        let in_namespace = self.namespace_matches(request, object);
        if matches!(in_namespace, Ok(false)) || !self.object_matches(request, object) {
            return Ok(None);
        }
        let own = &request.call.resource;
        let name = request.name(object);
        let matched = if any && self.rules.is_empty() {
            Some(Arc::clone(own))
        } else {
            self.first(&self.rules, request, &name)
        };
        if matched.is_none() || self.first(&self.exclude, request, &name).is_some() {
            return Ok(None);
        }
        in_namespace.map(|_| matched)
    }

    /// The resource that the first fitting rule names.
    fn first(&self, rules: &[Rule], request: &Request<'_>, name: &str) -> Option<Arc<Resource>> {
        let own = &request.call.resource;
        if rules.iter().any(|rule| rule.matches(request, own, name)) {
            return Some(Arc::clone(own));
        }
        if !self.equivalent || own.storage_prefix.is_empty() {
            return None;
        }
        let served = request.call.server.registry.now();
        let others: Vec<&Arc<Resource>> = served.ordered.iter().filter(|r| r.storage_prefix == own.storage_prefix && !Arc::ptr_eq(r, own)).collect();
        rules.iter().find_map(|rule| others.iter().find(|r| rule.matches(request, r, name)).map(|r| Arc::clone(r)))
    }

    fn namespace_matches(&self, request: &Request<'_>, object: Option<&Value>) -> Result<bool, Status> {
        let namespaces = request.call.resource.group.is_empty() && request.call.resource.plural == "namespaces";
        if self.namespaces.is_empty() || (request.call.info.namespace.is_empty() && !namespaces) {
            return Ok(true);
        }
        if namespaces && matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(object.is_some_and(|o| self.namespaces.matches_object(o)));
        }
        Ok(self.namespaces.matches_object(&request.namespace_object()?))
    }

    fn object_matches(&self, request: &Request<'_>, object: Option<&Value>) -> bool {
        self.objects.is_empty() || object.into_iter().chain(request.old).any(|o| self.objects.matches_object(o))
    }
}

impl Request<'_> {
    /// The name of the object that the request is about.
    pub(super) fn name(&self, object: Option<&Value>) -> String {
        if !self.call.info.name.is_empty() {
            return self.call.info.name.clone();
        }
        value::text(object.or(self.old).unwrap_or(&Value::Null), &["metadata", "name"]).to_owned()
    }

    /// The namespace of the request; that of a namespace is itself.
    pub(super) fn namespace(&self, object: Option<&Value>) -> String {
        let resource = &self.call.resource;
        if resource.group.is_empty() && resource.plural == "namespaces" { self.name(object) } else { self.call.info.namespace.clone() }
    }

    /// The namespace that the object is in, as an object.
    pub(super) fn namespace_object(&self) -> Result<Value, Status> {
        let name = &self.call.info.namespace;
        let cache = self.call.server.cache.resource("/registry/namespaces/").ok_or_else(Status::no_such_resource)?;
        let found = cache.get(&format!("/registry/namespaces/{name}"));
        let found = found.ok_or_else(|| Status::not_found(GroupResource { group: "", resource: "namespaces" }, name))?;
        found.value().map_err(Status::internal)
    }

    /// The kind of what the request sends, with its group and version, for this version of the resource.
    pub(super) fn kind(&self, resource: &Resource) -> [String; 3] {
        match resource.subresource(&self.call.info.subresource) {
            Some(sub) if *sub.kind != *resource.kind => [sub.group.to_string(), sub.version.to_string(), sub.kind.to_string()],
            _ => [resource.group.to_string(), resource.version.to_string(), resource.kind.to_string()],
        }
    }
}
