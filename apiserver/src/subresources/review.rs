//! Reviews: who am I, may I, may they.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use skiff_api::{Status, field, value};

use crate::auth::{self, Attributes, User};
use crate::http::body::Reply;
use crate::http::encode::answer;
use crate::verbs::{Call, check_type, parse_body};

/// Answers a review.
pub(super) async fn create(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    let mut review = parse_body(call, body)?.value;
    check_type(&mut review, &call.resource.kind, &call.resource.api_version())?;
    if !review.get("metadata").is_some_and(Value::is_object) {
        review["metadata"] = json!({});
    }
    review["status"] = match call.resource.plural.as_ref() {
        "selfsubjectreviews" => json!({"userInfo": shown(&call.user)}),
        "selfsubjectaccessreviews" => access(call, &review, &call.user)?,
        "subjectaccessreviews" => access(call, &review, &named(call, &review)?)?,
        "localsubjectaccessreviews" => {
            let namespace = value::text(&review, &["spec", "resourceAttributes", "namespace"]);
            if namespace != call.info.namespace {
                let error = field::Error::invalid("spec.resourceAttributes.namespace", namespace, "must match metadata.namespace");
                return Err(invalid(call, error));
            }
            access(call, &review, &named(call, &review)?)?
        }
        "selfsubjectrulesreviews" => rules(call, &review)?,
        "tokenreviews" => token(call, &review).await?,
        _ => return Err(Status::no_such_resource()),
    };
    Ok(answer(201, &review, call.shape.whole(), call.encoder().pretty))
}

fn invalid(call: &Call, error: field::Error) -> Status {
    Status::invalid(&call.resource.group, &call.resource.kind, "", &[error])
}

/// A user as `UserInfo`.
pub(crate) fn shown(user: &User) -> Value {
    let mut info = Map::new();
    info.insert("username".into(), json!(user.name));
    if !user.uid.is_empty() {
        info.insert("uid".into(), json!(user.uid));
    }
    info.insert("groups".into(), json!(user.groups));
    if !user.extra.is_empty() {
        info.insert("extra".into(), json!(user.extra));
    }
    info.into()
}

/// The user that a review asks about.
fn named(call: &Call, review: &Value) -> Result<User, Status> {
    let name = value::text(review, &["spec", "user"]);
    let groups: Vec<String> = value::items(review, &["spec", "groups"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    if name.is_empty() && groups.is_empty() {
        let error = field::Error::invalid("spec.user", name, "at least one of user or group must be specified");
        return Err(invalid(call, error));
    }
    Ok(User { name: name.into(), groups, ..User::default() })
}

fn access(call: &Call, review: &Value, user: &User) -> Result<Value, Status> {
    let resource = &review["spec"]["resourceAttributes"];
    let path = &review["spec"]["nonResourceAttributes"];
    let text = |from: &'_ Value, key: &str| from.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let (verb, group, plural, subresource, namespace, name, path) = match (resource.is_object(), path.is_object()) {
        (true, false) => (
            text(resource, "verb"),
            text(resource, "group"),
            text(resource, "resource"),
            text(resource, "subresource"),
            text(resource, "namespace"),
            text(resource, "name"),
            String::new(),
        ),
        (false, true) => (text(path, "verb"), String::new(), String::new(), String::new(), String::new(), String::new(), text(path, "path")),
        (both, _) => {
            let (at, detail) = if both {
                ("spec.nonResourceAttributes", "cannot be specified in combination with resourceAttributes")
            } else {
                ("spec.resourceAttributes", "exactly one of nonResourceAttributes or resourceAttributes must be specified")
            };
            let mut status = invalid(call, field::Error::invalid(at, Value::Null, detail));
            // Upstream names no kind here.
            status.message = status.message.replacen(&format!("{}.{}", call.resource.kind, call.resource.group), &format!(".{}", call.resource.group), 1);
            if let Some(details) = &mut status.details {
                details.kind.clear();
            }
            return Err(status);
        }
    };
    let attributes = Attributes {
        verb: &verb,
        group: &group,
        resource: &plural,
        subresource: &subresource,
        namespace: &namespace,
        name: &name,
        path: &path,
    };
    let allowed = auth::allowed(&call.server, user, &attributes);
    Ok(json!({"allowed": allowed}))
}

fn rules(call: &Call, review: &Value) -> Result<Value, Status> {
    let namespace = value::text(review, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resource, mut other) = (Vec::new(), Vec::new());
    let mut rules = call.server.rbac.rules(&call.server.cache, &call.user, namespace);
    if call.user.in_group(auth::MASTERS) {
        rules.insert(0, auth::rbac::Rule::everything());
    }
    for rule in rules {
        if !rule.non_resource_urls.is_empty() {
            other.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
        if !rule.resources.is_empty() {
            let mut shown = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = json!(rule.resource_names);
            }
            resource.push(shown);
        }
    }
    Ok(json!({"resourceRules": resource, "nonResourceRules": other, "incomplete": false}))
}

async fn token(call: &Call, review: &Value) -> Result<Value, Status> {
    let token = value::text(review, &["spec", "token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = value::items(review, &["spec", "audiences"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(match call.server.tokens.authenticate(&call.server, token, &audiences).await {
        Some(found) => json!({"authenticated": true, "user": shown(&found.user), "audiences": found.audiences}),
        None => json!({"user": {}, "error": "invalid bearer token"}),
    })
}
