//! `AdmissionReview`: the question that a webhook is asked, and its answer.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use skiff_api::resource::Resource;
use skiff_api::{Status, value};

use super::super::Request;
use crate::subresources::user_info;

/// A webhook's answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub allowed: bool,
    /// What the webhook says of its refusal: a `Status`.
    pub result: Value,
    /// The JSON patch; null for none.
    pub patch: Value,
    pub warnings: Vec<String>,
    pub annotations: Vec<(String, String)>,
}

/// What a review's `request` says of the request, apart from the objects: also CEL's `request`.
pub(in crate::admission) fn request(request: &Request<'_>, matched: &Resource, object: Option<&Value>) -> Value {
    let call = request.call;
    let named = |[group, version, last]: [String; 3], what: &str| json!({"group": group, "version": version, what: last});
    let plural = |r: &Resource| [r.group.to_string(), r.version.to_string(), r.plural.to_string()];
    let mut shown = json!({
        "kind": named(request.kind(matched), "kind"),
        "resource": named(plural(matched), "resource"),
        "requestKind": named(request.kind(&call.resource), "kind"),
        "requestResource": named(plural(&call.resource), "resource"),
        "operation": request.operation.as_str(),
        "userInfo": user_info(&call.user),
        "dryRun": request.dry_run,
        "options": request.options,
    });
    let optional = [
        ("name", request.name(object)),
        ("namespace", request.namespace(object)),
        ("subResource", call.info.subresource.clone()),
        ("requestSubResource", call.info.subresource.clone()),
    ];
    for (key, text) in optional.into_iter().filter(|(_, text)| !text.is_empty()) {
        shown[key] = text.into();
    }
    shown
}

/// The review that is sent. `version` is `v1` or `v1beta1`.
pub(super) fn review(version: &str, uid: &str, mut request: Value, object: Value, old: Value) -> Value {
    request["uid"] = uid.into();
    request["object"] = object;
    request["oldObject"] = old;
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request})
}

/// Reads an answer; an error says what upstream says of one that makes no sense.
pub(super) fn answer(version: &str, uid: &str, mutating: bool, review: &Value) -> Result<Answer, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    let (patch, patch_type) = (value::text(response, &["patch"]), response.get("patchType").and_then(Value::as_str));
    if version == "v1" {
        let got = value::text(response, &["uid"]);
        if got != uid {
            return Err(format!("expected response.uid={uid:?}, got {got:?}"));
        }
        let (api, kind) = (value::text(review, &["apiVersion"]), value::text(review, &["kind"]));
        if (api, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
            let got = if api.is_empty() { format!("/, Kind={kind}") } else { format!("{api}, Kind={kind}") };
            return Err(format!("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {got}"));
        }
        match (mutating, patch.is_empty(), patch_type) {
            (true, false, None) => return Err("webhook returned response.patch but not response.patchType".into()),
            (true, true, Some(_)) => return Err("webhook returned response.patchType but not response.patch".into()),
            (true, false, Some("")) => return Err("webhook returned invalid response.patchType of \"\"".into()),
            (true, false, Some(other)) if other != "JSONPatch" => return Err(format!("unsupported patch type {other:?}")),
            (false, false, _) => return Err("validating webhook may not return response.patch".into()),
            (false, true, Some(_)) => return Err("validating webhook may not return response.patchType".into()),
            _ => {}
        }
    }
    let patch = if patch.is_empty() || !mutating {
        Value::Null
    } else {
        let bytes = STANDARD.decode(patch).map_err(|e| format!("response.patch is no base64: {e}"))?;
        serde_json::from_slice(&bytes).map_err(|e| format!("response.patch is no JSON: {e}"))?
    };
    Ok(Answer {
        allowed: response["allowed"] == true,
        result: value::at(response, &["status"]).clone(),
        patch,
        warnings: value::items(response, &["warnings"]).iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        annotations: pairs(value::at(response, &["auditAnnotations"]).as_object()),
    })
}

fn pairs(map: Option<&Map<String, Value>>) -> Vec<(String, String)> {
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// The refusal that a webhook's `Status` comes to: its code, reason and details, its message behind upstream's words.
pub(super) fn denial(name: &str, result: &Value) -> Status {
    let denied = format!("admission webhook {name:?} denied the request");
    let (message, reason) = (value::text(result, &["message"]), value::text(result, &["reason"]));
    let message = match (message, reason) {
        ("", "") => format!("{denied} without explanation"),
        ("", why) | (why, _) => format!("{denied}: {why}"),
    };
    let code = result["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c)).unwrap_or(400);
    let details = result.get("details").filter(|d| d.is_object()).map(|given| {
        let text = |key: &str| value::text(given, &[key]).to_owned();
        let cause = |c: &Value| skiff_api::status::Cause {
            reason: value::text(c, &["reason"]).to_owned(),
            message: value::text(c, &["message"]).to_owned(),
            field: value::text(c, &["field"]).to_owned(),
        };
        Box::new(skiff_api::status::Details {
            name: text("name"),
            group: text("group"),
            kind: text("kind"),
            uid: text("uid"),
            causes: value::items(given, &["causes"]).iter().map(cause).collect(),
            retry_after_seconds: given["retryAfterSeconds"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        })
    });
    Status { details, ..Status::new(code, reason.to_owned(), message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mutating: bool, response: Value, expected: Result<Value, &str>) {
        let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        assert_eq!(answer("v1", "u", mutating, &review).map(|a| a.patch), expected.map_err(str::to_owned));
    }

    #[test]
    fn answers() {
        let patch = STANDARD.encode("[]");
        check(true, json!({"uid": "u", "allowed": true}), Ok(Value::Null));
        check(true, json!({"uid": "u", "patch": patch, "patchType": "JSONPatch"}), Ok(json!([])));
        check(true, json!({"uid": "x"}), Err("expected response.uid=\"u\", got \"x\""));
        check(true, json!({"uid": "u", "patch": patch}), Err("webhook returned response.patch but not response.patchType"));
        check(true, json!({"uid": "u", "patchType": "JSONPatch"}), Err("webhook returned response.patchType but not response.patch"));
        check(false, json!({"uid": "u", "patch": patch, "patchType": "JSONPatch"}), Err("validating webhook may not return response.patch"));
        check(true, Value::Null, Err("webhook response was absent"));
        let wrong = json!({"kind": "X", "apiVersion": "y/v1", "response": {"uid": "u"}});
        let error = answer("v1", "u", true, &wrong).expect_err("wrong kind");
        assert_eq!(error, "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got y/v1, Kind=X");
    }

    #[test]
    fn denials() {
        let said = |result: Value| {
            let status = denial("a.b.c", &result);
            (status.code, status.reason.to_string(), status.message)
        };
        let denied = "admission webhook \"a.b.c\" denied the request";
        assert_eq!(said(Value::Null), (400, String::new(), format!("{denied} without explanation")));
        assert_eq!(said(json!({"code": 403, "reason": "Forbidden", "message": "no"})), (403, "Forbidden".into(), format!("{denied}: no")));
        assert_eq!(said(json!({"code": 200, "reason": "Why"})), (400, "Why".into(), format!("{denied}: Why")));
    }
}
