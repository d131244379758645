//! `Status`: the API's one form of refusal. Tools match on its code, reason, message and causes.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::field;

/// A refusal. Converted to JSON by [`Status::to_value`].
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable word, `NotFound` for instance; may be empty.
    pub reason: Cow<'static, str>,
    /// The sentence for people.
    pub message: String,
    /// What it is about; boxed, for refusals travel in `Result`s.
    pub details: Option<Box<Details>>,
    /// Where an expired list can go on, though not as it began; `None` for other refusals.
    pub continues: Option<Box<str>>,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// The object's name.
    pub name: String,
    /// The API group, empty for the core one.
    pub group: String,
    /// The resource (plural), or the kind for invalid objects.
    pub kind: String,
    /// The object's uid.
    pub uid: String,
    /// The single faults.
    pub causes: Vec<Cause>,
    /// After how many seconds to try again; 0 for no advice.
    pub retry_after_seconds: u32,
}

/// One fault among a [`Status`]'s.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    /// The machine-readable word.
    pub reason: String,
    /// The sentence.
    pub message: String,
    /// The field it is about.
    pub field: String,
}

/// The plural and group that a refusal names, `deployments.apps`.
#[derive(Clone, Copy, Debug)]
pub struct GroupResource<'a> {
    /// The API group, empty for the core one.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
}

impl fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

impl Status {
    /// A refusal without details.
    pub fn new(code: u16, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None, continues: None }
    }

    /// A refusal about an object.
    fn about(code: u16, reason: &'static str, gr: GroupResource<'_>, name: &str, message: String) -> Self {
        let details = Details { name: name.into(), group: gr.group.into(), kind: gr.resource.into(), ..Details::default() };
        Self { details: Some(Box::new(details)), ..Self::new(code, reason, message) }
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: no one known asks.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: who asks may not. `why` follows the resource and name.
    pub fn forbidden(gr: GroupResource<'_>, name: &str, why: impl fmt::Display) -> Self {
        let message = match (gr.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{gr} is forbidden: {why}"),
            (false, false) => format!("{gr} {name:?} is forbidden: {why}"),
        };
        Self::about(403, "Forbidden", gr, name, message)
    }

    /// 404: the object isn't there.
    pub fn not_found(gr: GroupResource<'_>, name: &str) -> Self {
        Self::about(404, "NotFound", gr, name, format!("{gr} {name:?} not found"))
    }

    /// 404: there is no such resource type.
    pub fn no_such_resource() -> Self {
        Self { details: Some(Box::default()), ..Self::new(404, "NotFound", "the server could not find the requested resource") }
    }

    /// 405: the resource doesn't take this method.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some(Box::default()), ..Self::new(405, "MethodNotAllowed", message) }
    }

    /// 409: the name is taken.
    pub fn already_exists(gr: GroupResource<'_>, name: &str) -> Self {
        Self::about(409, "AlreadyExists", gr, name, format!("{gr} {name:?} already exists"))
    }

    /// 409: the object is not what the request takes it for.
    pub fn conflict(gr: GroupResource<'_>, name: &str, why: impl fmt::Display) -> Self {
        Self::about(409, "Conflict", gr, name, format!("Operation cannot be fulfilled on {gr} {name:?}: {why}"))
    }

    /// 409: somebody wrote the object since the caller read it.
    pub fn stale(gr: GroupResource<'_>, name: &str) -> Self {
        Self::conflict(gr, name, "the object has been modified; please apply your changes to the latest version and try again")
    }

    /// 410: the revision asked for is past the history that is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 422: the object breaks the rules of its kind.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[field::Error]) -> Self {
        let causes = errors.iter().map(|e| Cause { reason: e.kind.reason().into(), message: e.message(), field: e.path.clone() }).collect();
        let mut shown: Vec<String> = Vec::new();
        for error in errors.iter().map(ToString::to_string) {
            if !shown.contains(&error) {
                shown.push(error);
            }
        }
        let list = if shown.len() == 1 { shown.concat() } else { format!("[{}]", shown.join(", ")) };
        let gk = GroupResource { group, resource: kind };
        let details = Details { name: name.into(), group: group.into(), kind: kind.into(), causes, ..Details::default() };
        Self { details: Some(Box::new(details)), ..Self::new(422, "Invalid", format!("{gk} {name:?} is invalid: {list}")) }
    }

    /// 500: the server failed.
    pub fn internal(why: impl fmt::Display) -> Self {
        let details = Details { causes: vec![Cause { message: why.to_string(), ..Cause::default() }], ..Details::default() };
        let message = format!("Internal error occurred: {why}");
        Self { details: Some(Box::new(details)), ..Self::new(500, "InternalError", message) }
    }

    /// The object that goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.as_ref().into();
        }
        if let Some(token) = &self.continues {
            status["metadata"]["continue"] = token.as_ref().into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
        }
        status
    }
}

/// The members that say something.
fn filled<const N: usize>(members: [(&str, &String); N]) -> Map<String, Value> {
    members.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.to_owned(), text.as_str().into())).collect()
}

impl Details {
    fn to_value(&self) -> Value {
        let mut map = filled([("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]);
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| filled([("reason", &c.reason), ("message", &c.message), ("field", &c.field)]));
            map.insert("causes".into(), causes.map(Value::Object).collect());
        }
        if self.retry_after_seconds > 0 {
            map.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(map)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
