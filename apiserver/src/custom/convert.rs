//! Conversion of custom objects by a webhook: upstream's `ConversionReview`, v1 and v1beta1.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_api::custom::Custom;
use skiff_api::value::{at, items, object_mut, text};
use skiff_api::{Status, random};

use crate::server::Server;
use crate::webhook::ClientConfig;

/// How long a webhook is waited for; upstream's figure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has the webhook of a kind put objects into another version. Those that are in it already are not sent.
pub(crate) async fn by_webhook(server: &Server, custom: &Custom, hook: &Value, mut objects: Vec<Value>, version: &str) -> Result<Vec<Value>, Status> {
    let sent: Vec<usize> = (0..objects.len()).filter(|i| objects[*i]["apiVersion"] != version).collect();
    let Some(first) = sent.first().map(|i| &objects[*i]) else { return Ok(objects) };
    let of = kind_of(first);
    let failed = |why: String| Status::new(500, "", format!("conversion webhook for {of} {why}"));
    let versions = items(hook, &["conversionReviewVersions"]);
    let review_version = versions.iter().filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1"));
    let review_version = review_version.ok_or_else(|| Status::new(500, "", "no supported conversion review versions"))?;
    let uid = random::uid();
    let request = json!({"uid": uid, "desiredAPIVersion": version, "objects": sent.iter().map(|i| &objects[*i]).collect::<Vec<_>>()});
    let review = json!({"kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{review_version}"), "request": request});
    let config = ClientConfig::read(at(hook, &["clientConfig"])).map_err(|error| failed(format!("failed: {error}")))?;
    let answer = server.webhooks.call(&config, &review, PATIENCE).await.map_err(|error| failed(format!("failed: {error}")))?;
    let converted = answered(&answer, review_version, &uid).map_err(|why| failed(format!("failed: {why}")))?;
    if converted.len() != sent.len() {
        return Err(failed(format!("returned {} objects, expected {}", converted.len(), sent.len())));
    }
    for (number, (index, mut object)) in sent.into_iter().zip(converted).enumerate() {
        accept(&objects[index], &mut object, version).map_err(|why| failed(format!("returned invalid converted object at index {number}: {why}")))?;
        custom.prune(&mut object);
        objects[index] = object;
    }
    Ok(objects)
}

/// `x.io/v1, Kind=Foo`
fn kind_of(object: &Value) -> String {
    format!("{}, Kind={}", text(object, &["apiVersion"]), text(object, &["kind"]))
}

/// The objects of an answer; an error says why there are none.
fn answered(answer: &Value, version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let expected = ("ConversionReview", format!("apiextensions.k8s.io/{version}"));
    let got = (text(answer, &["kind"]), text(answer, &["apiVersion"]).to_owned());
    let response = at(answer, &["response"]);
    if version == "v1" {
        if got != expected {
            return Err(format!("expected webhook response of {}, Kind={}, got {}, Kind={}", expected.1, expected.0, got.1, got.0));
        }
        let for_uid = text(response, &["uid"]);
        if response.is_object() && for_uid != uid {
            return Err(format!("expected response.uid={uid:?}, got {for_uid:?}"));
        }
    }
    if !response.is_object() {
        return Err("no response provided".into());
    }
    let (status, message) = (text(response, &["result", "status"]), text(response, &["result", "message"]));
    match (status, message) {
        ("Success", _) => Ok(items(response, &["convertedObjects"]).to_vec()),
        (_, "") => Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => Err(message.to_owned()),
    }
}

/// Checks that a converted object is still the same one, and keeps of its metadata only what a webhook may change.
fn accept(original: &Value, converted: &mut Value, version: &str) -> Result<(), String> {
    let got = text(converted, &["apiVersion"]);
    if got != version {
        return Err(format!("invalid groupVersion (expected {version}, received {got})"));
    }
    let (kind, got) = (text(original, &["kind"]), text(converted, &["kind"]));
    if got != kind {
        return Err(format!("invalid kind (expected {kind}, received {got})"));
    }
    if !at(converted, &["metadata"]).is_object() {
        return Err("missing metadata in converted object".into());
    }
    for (field, name) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (before, after) = (text(original, &["metadata", field]), text(converted, &["metadata", field]));
        if before != after {
            return Err(format!("must have the same {name}: {before} != {after}"));
        }
    }
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let given = at(converted, &["metadata", field]).clone();
        let metadata = object_mut(&mut metadata, &[]);
        if given.as_object().is_none_or(serde_json::Map::is_empty) {
            metadata.remove(field);
        } else {
            metadata.insert(field.into(), given);
        }
    }
    converted["metadata"] = metadata;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_looked_at_closely() {
        let answer = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        let check = |answer: Value, expected: Result<usize, &str>| {
            assert_eq!(answered(&answer, "v1", "u").map(|o| o.len()), expected.map_err(str::to_owned), "{answer}");
        };
        check(answer(json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{}]})), Ok(1));
        check(answer(json!({"uid": "x", "result": {"status": "Success"}})), Err("expected response.uid=\"u\", got \"x\""));
        check(answer(json!({"uid": "u", "result": {"status": "Failed", "message": "no"}})), Err("no"));
        check(answer(json!({"uid": "u", "result": {"status": "Failed"}})), Err("response.result.status was 'Failed', not 'Success'"));
        check(answer(Value::Null), Err("no response provided"));
        check(json!({"kind": "Other"}), Err("expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=Other"));
    }

    #[test]
    fn only_labels_and_annotations_change() {
        let original = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "a", "uid": "u", "generation": 3, "labels": {"a": "b"}}});
        let check = |change: Value, expected: Result<Value, &str>| {
            let mut converted = original.clone();
            converted["apiVersion"] = "x.io/v2".into();
            json_merge(&mut converted, change);
            let result = accept(&original, &mut converted, "x.io/v2").map(|()| converted["metadata"].clone());
            assert_eq!(result, expected.map_err(str::to_owned));
        };
        check(json!({"metadata": {"generation": 9, "labels": null, "annotations": {"x": "y"}}}),
            Ok(json!({"name": "a", "uid": "u", "generation": 3, "annotations": {"x": "y"}})));
        check(json!({"metadata": {"name": "b"}}), Err("must have the same name: a != b"));
        check(json!({"kind": "Bar"}), Err("invalid kind (expected Foo, received Bar)"));
        check(json!({"apiVersion": "x.io/v1"}), Err("invalid groupVersion (expected x.io/v2, received x.io/v1)"));
    }

    fn json_merge(target: &mut Value, patch: Value) {
        skiff_api::patch::merge_patch(target, &patch);
    }
}
