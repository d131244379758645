//! Reviews: who am I, may I, may they.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use skiff_api::{Status, fields, labels, validation, value};

use crate::auth::{self, Attributes, User, Verdict};
use crate::http::body::Reply;
use crate::http::encode::Shown;
use crate::verbs::{Call, Write, namespace_matches, now_text};

/// Answers a review.
pub(super) async fn create(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    let mut write = Write::new(call, "CreateOptions")?;
    let mut review = write.decode(body)?;
    namespace_matches(call, &review)?;
    if call.resource.namespaced {
        review["metadata"]["namespace"] = call.info.namespace.as_str().into();
    }
    write.book(None, &mut review, &[&["status"]]);
    let errors = validation::validate_create(&call.resource, &review);
    if !errors.is_empty() {
        // Upstream names no kind here.
        return Err(Status::invalid(&call.resource.group, "", "", &errors));
    }
    let status = match call.resource.plural.as_ref() {
        "selfsubjectreviews" => json!({"userInfo": shown(&call.user)}),
        "selfsubjectaccessreviews" => access(call, &review, &call.user).await?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => access(call, &review, &named(&review)).await?,
        "selfsubjectrulesreviews" => rules(call, &review)?,
        "tokenreviews" => token(call, &review).await?,
        _ => return Err(Status::no_such_resource()),
    };
    // What says only something of the one who asks is answered without the question.
    match call.resource.plural.as_ref() {
        "selfsubjectreviews" => review["metadata"] = json!({"creationTimestamp": now_text()}),
        "selfsubjectrulesreviews" => {
            review["metadata"] = json!({});
            review["spec"] = json!({});
        }
        _ => {}
    }
    review["status"] = status;
    write.answer(201, &Shown::Value(review))
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
fn named(review: &Value) -> User {
    let groups = value::items(review, &["spec", "groups"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let extra = serde_json::from_value(value::at(review, &["spec", "extra"]).clone()).unwrap_or_default();
    User { name: value::text(review, &["spec", "user"]).into(), groups, uid: value::text(review, &["spec", "uid"]).into(), extra }
}

/// A selector of a review as a text, and what is wrong with it; what can't be read asks about more.
fn selector(resource: &Value, which: &str) -> (String, Option<String>) {
    let given = value::at(resource, &[which]);
    let (raw, requirements) = (value::text(given, &["rawSelector"]), value::items(given, &["requirements"]));
    let labels = which == "labelSelector";
    let fault = |partially: bool| {
        let partially = if partially { "partially ignored" } else { "ignored" };
        Some(format!("spec.resourceAttributes.{which} {partially} due to parse error"))
    };
    if requirements.is_empty() {
        let read = if labels { labels::Selector::parse(raw).map(|s| s.to_string()) } else { fields::Selector::parse(raw).map(|s| s.to_string()) };
        return read.map_or_else(|_| (String::new(), fault(false)), |text| (text, None));
    }
    let read: Vec<String> = requirements.iter().filter_map(|r| if labels { label_requirement(r) } else { field_requirement(r) }).collect();
    let fault = if read.len() == requirements.len() { None } else { fault(!read.is_empty()) };
    (read.join(","), fault)
}

fn label_requirement(requirement: &Value) -> Option<String> {
    let expressions = json!({"matchExpressions": [requirement]});
    labels::Selector::from_label_selector(&expressions).ok().map(|selector| selector.to_string())
}

/// Fields are compared with one value each.
fn field_requirement(requirement: &Value) -> Option<String> {
    let equal = match value::text(requirement, &["operator"]) {
        "In" => true,
        "NotIn" => false,
        _ => return None,
    };
    let [Value::String(one)] = value::items(requirement, &["values"]) else { return None };
    let requirement = fields::Requirement { field: value::text(requirement, &["key"]).into(), value: one.clone(), equal };
    Some(fields::Selector { requirements: vec![requirement] }.to_string())
}

async fn access(call: &Call, review: &Value, user: &User) -> Result<Value, Status> {
    let resource = &review["spec"]["resourceAttributes"];
    let path = &review["spec"]["nonResourceAttributes"];
    let ((field_selector, field_fault), (label_selector, label_fault)) = (selector(resource, "fieldSelector"), selector(resource, "labelSelector"));
    let given = if path.is_object() { path } else { resource };
    let word = |key: &str| given.get(key).and_then(Value::as_str).unwrap_or("");
    let attributes = Attributes {
        verb: word("verb"),
        group: word("group"),
        version: if word("version").is_empty() && resource.is_object() { "*" } else { word("version") },
        resource: word("resource"),
        subresource: word("subresource"),
        namespace: word("namespace"),
        name: word("name"),
        path: word("path"),
        field_selector: &field_selector,
        label_selector: &label_selector,
    };
    let decision = auth::decide(&call.server, user, &attributes).await;
    let mut status = json!({"allowed": decision.allowed()});
    if decision.verdict == Verdict::Deny {
        status["denied"] = true.into();
    }
    let errors: Vec<String> = [Some(decision.error).filter(|e| !e.is_empty()), field_fault, label_fault].into_iter().flatten().collect();
    for (key, said) in [("reason", decision.reason), ("evaluationError", errors.join("; "))] {
        if !said.is_empty() {
            status[key] = said.into();
        }
    }
    Ok(status)
}

fn rules(call: &Call, review: &Value) -> Result<Value, Status> {
    let namespace = value::text(review, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resource, mut other) = (Vec::new(), Vec::new());
    let (rules, faults) = call.server.rbac.rules(&call.server.cache, &call.user, namespace);
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
    let unlisted = auth::unlisted(&call.server, &call.user);
    let mut status = json!({"resourceRules": resource, "nonResourceRules": other, "incomplete": !unlisted.is_empty()});
    let errors: Vec<&str> = unlisted.into_iter().chain(faults.iter().map(AsRef::as_ref)).collect();
    if !errors.is_empty() {
        status["evaluationError"] = auth::rbac::aggregated(&errors).into();
    }
    Ok(status)
}

async fn token(call: &Call, review: &Value) -> Result<Value, Status> {
    let token = value::text(review, &["spec", "token"]);
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = value::items(review, &["spec", "audiences"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let wanted = if audiences.is_empty() { call.server.access.audiences() } else { &audiences };
    Ok(match auth::identify(&call.server, token, wanted).await {
        Ok(found) => json!({"authenticated": true, "user": shown(&found.user), "audiences": found.audiences}),
        Err(why) => json!({"user": {}, "error": why}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let check = |which: &str, given: Value, expected: (&str, Option<&str>)| {
            let (text, fault) = selector(&json!({which: given}), which);
            assert_eq!((text.as_str(), fault.as_deref()), expected, "{given}");
        };
        check("fieldSelector", Value::Null, ("", None));
        check("fieldSelector", json!({"rawSelector": "spec.nodeName=a"}), ("spec.nodeName=a", None));
        check("fieldSelector", json!({"rawSelector": "a"}), ("", Some("spec.resourceAttributes.fieldSelector ignored due to parse error")));
        let one = json!({"key": "spec.nodeName", "operator": "In", "values": ["a"]});
        check("fieldSelector", json!({"requirements": [one]}), ("spec.nodeName=a", None));
        let bad = json!({"key": "x", "operator": "Exists"});
        check("fieldSelector", json!({"requirements": [one, bad]}), ("spec.nodeName=a", Some("spec.resourceAttributes.fieldSelector partially ignored due to parse error")));
        check("labelSelector", json!({"requirements": [{"key": "a", "operator": "In", "values": ["x", "y"]}, bad]}), ("a in (x,y),x", None));
    }
}
