//! JSON patch (RFC 6902) as upstream's library applies it: a member that isn't there is as good as null, so that it can
//! be tested for and replaced; indices may count from the end.

use serde_json::Value;

use super::{Error, MAX_OPERATIONS};
use crate::json::{MAX_DEPTH, TOO_DEEP, depth};
use crate::schema::shown_value;

/// How many bytes all copies of a patch may add; upstream's figure.
const MAX_COPIED: usize = 3 * 1024 * 1024;
/// What errors end with.
const MISSING: &str = "missing value";
const FAILED: &str = "test failed";
const BAD_INDEX: &str = "invalid index referenced";

/// Applies a JSON patch. After an error the target is as it was.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), Error> {
    let undecodable = |what: &str, of: &str| Error::BadRequest(format!("error decoding patch: json: cannot unmarshal {what} into Go {of}"));
    let Some(operations) = patch.as_array() else { return Err(undecodable(shown_value(patch), "value of type []handlers.jsonPatchOp")) };
    if operations.len() > MAX_OPERATIONS {
        let words = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}", operations.len());
        return Err(Error::TooLarge(words));
    }
    for operation in operations {
        let Some(members) = operation.as_object() else { return Err(undecodable(shown_value(operation), "value of type handlers.jsonPatchOp")) };
        let wrong = ["op", "path", "from"].into_iter().find_map(|name| Some((name, members.get(name).filter(|m| !m.is_string() && !m.is_null())?)));
        if let Some((name, member)) = wrong {
            return Err(undecodable(shown_value(member), &format!("struct field jsonPatchOp.{name} of type string")));
        }
    }
    let mut document = target.clone();
    let mut copied = 0;
    for operation in operations {
        let of_test = operation["op"] == "test";
        apply(&mut document, operation, &mut copied).map_err(|why| if of_test && why.ends_with(FAILED) { Error::TestFailed(why) } else { Error::Unprocessable(why) })?;
    }
    *target = document;
    Ok(())
}

fn apply(document: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), String> {
    let op = operation["op"].as_str().unwrap_or("unknown");
    let text = |name: &str| operation[name].as_str().map(str::to_owned);
    // One of them leaves out which field it is that is missing.
    let path = |also: &str| text("path").ok_or_else(|| format!("{op} operation failed to decode path: {also}{MISSING}"));
    let from = || text("from").ok_or_else(|| format!("{op} operation failed to decode from: operation, missing from field: {MISSING}"));
    let value = || operation.get("value").cloned().unwrap_or_default();
    const FIELD: &str = "operation missing path field: ";
    let lost = |what: &str, path: &str| format!("{op} operation does not apply: {what}: {path}: {MISSING}");
    match op {
        "add" | "remove" => {
            let path = path("")?;
            let (container, key) = find(document, &path).ok_or_else(|| lost("doc is missing path", &format!("{path:?}")))?;
            let done = if op == "add" { fits(&path, &value()).and_then(|()| add(container, &key, value())) } else { remove(container, &key).map(drop) };
            done.map_err(|why| format!("error in {op} for path: '{path}': {why}"))
        }
        "replace" => {
            let path = path(FIELD)?;
            if path.is_empty() {
                let value = value();
                if !value.is_object() && !value.is_array() {
                    return Err("replace operation value must be object or array: %!w(<nil>)".into());
                }
                *document = value;
                return Ok(());
            }
            let (container, key) = find(document, &path).ok_or_else(|| lost("doc is missing path", &path))?;
            get(container, &key).map_err(|_| lost("doc is missing key", &path))?;
            fits(&path, &value())?;
            set(container, &key, value()).map_err(|why| format!("error in remove for path: '{path}': {why}"))
        }
        "test" => {
            let path = path(FIELD)?;
            let found = match path.as_str() {
                "" => &*document,
                _ => {
                    let (container, key) = find(document, &path).ok_or_else(|| lost("is missing path", &path))?;
                    get(container, &key).map_err(|why| format!("error in test for path: '{path}': {why}"))?
                }
            };
            if *found == value() { Ok(()) } else { Err(format!("testing value {path} failed: {FAILED}")) }
        }
        "move" => {
            let from = from()?;
            let (container, key) = find(document, &from).ok_or_else(|| lost("doc is missing from path", &from))?;
            let moved = remove(container, &key).map_err(|why| format!("error in move for path: '{key}': {why}"))?;
            let path = path(FIELD)?;
            fits(&path, &moved)?;
            let (container, key) = find(document, &path).ok_or_else(|| lost("doc is missing destination path", &path))?;
            add(container, &key, moved).map_err(|why| format!("error in move for path: '{path}': {why}"))
        }
        "copy" => {
            let from = from()?;
            let (container, key) = find(document, &from).ok_or_else(|| lost("doc is missing from path", &from))?;
            let copy = get(container, &key).map_err(|why| format!("error in copy for from: '{from}': {why}"))?.clone();
            let path = path("")?;
            fits(&path, &copy)?;
            *copied += copy.to_string().len();
            if *copied > MAX_COPIED {
                return Err(format!("Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"));
            }
            let (container, key) = find(document, &path).ok_or_else(|| lost("doc is missing destination path", &path))?;
            add(container, &key, copy).map_err(|why| format!("error while adding value during copy: {why}"))
        }
        _ => Err(format!("Unexpected kind: {op}")),
    }
}

/// Refuses to put the value where the document would nest too deeply: a patch may build by its operations what no body has.
fn fits(path: &str, value: &Value) -> Result<(), String> {
    if path.matches('/').count() + depth(value) > MAX_DEPTH { Err(TOO_DEEP.to_owned()) } else { Ok(()) }
}

/// What holds the last step of the path, and that step.
fn find<'a>(document: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let decoded = |step: &str| step.replace("~1", "/").replace("~0", "~");
    let (parents, key) = path.rsplit_once('/')?;
    let mut here = document;
    for step in parents.split('/').skip(1) {
        let step = decoded(step);
        here = match here {
            Value::Object(map) => map.get_mut(&step)?,
            Value::Array(items) => {
                let at = index(&step, items.len()).ok()?;
                items.get_mut(at)?
            }
            _ => return None,
        };
    }
    (here.is_object() || here.is_array()).then(|| (here, decoded(key)))
}

/// The place that the step names among so many, of which negative ones count from the end.
fn index(step: &str, len: usize) -> Result<usize, String> {
    let number: i64 = step.parse().map_err(|_| format!("strconv.Atoi: parsing {step:?}: invalid syntax"))?;
    let at = if number < 0 { number + len as i64 } else { number };
    usize::try_from(at).ok().filter(|at| *at < len).ok_or_else(|| format!("Unable to access invalid index: {number}: {BAD_INDEX}"))
}

fn get<'a>(container: &'a Value, key: &str) -> Result<&'a Value, String> {
    match container {
        Value::Array(items) => Ok(&items[index(key, items.len())?]),
        other => Ok(other.get(key).unwrap_or(&Value::Null)),
    }
}

fn set(container: &mut Value, key: &str, value: Value) -> Result<(), String> {
    match container {
        Value::Array(items) => {
            let at = index(key, items.len())?;
            items[at] = value;
        }
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        _ => {}
    }
    Ok(())
}

fn add(container: &mut Value, key: &str, value: Value) -> Result<(), String> {
    let Value::Array(items) = container else { return set(container, key, value) };
    if key == "-" {
        items.push(value);
        return Ok(());
    }
    if key.parse::<i64>().is_err() {
        return Err(format!("value was not a proper array index: '{key}': strconv.Atoi: parsing {key:?}: invalid syntax"));
    }
    let at = index(key, items.len() + 1)?;
    items.insert(at, value);
    Ok(())
}

fn remove(container: &mut Value, key: &str) -> Result<Value, String> {
    match container {
        Value::Array(items) => {
            let at = index(key, items.len())?;
            Ok(items.remove(at))
        }
        other => other.as_object_mut().and_then(|map| map.remove(key)).ok_or_else(|| format!("Unable to remove nonexistent key: {key}: {MISSING}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(operation: Value, expected: Result<Value, &str>) {
        let before = json!({"a": 1, "l": [1, 2], "o": {"x/y": null}});
        let mut target = before.clone();
        let result = json_patch(&mut target, &json!([operation])).map_err(|e| e.to_string());
        match expected {
            Ok(after) => assert_eq!((result, target), (Ok(()), after), "{operation}"),
            Err(why) => assert_eq!((result, target), (Err(why.to_owned()), before), "{operation}"),
        }
    }

    #[test]
    fn what_is_not_there_is_null() {
        let same = || Ok(json!({"a": 1, "l": [1, 2], "o": {"x/y": null}}));
        check(json!({"op": "test", "path": "/finalizers", "value": null}), same());
        check(json!({"op": "test", "path": "/finalizers"}), same());
        check(json!({"op": "test", "path": "/o/x~1y", "value": null}), same());
        check(json!({"op": "test", "path": "/finalizers", "value": []}), Err("testing value /finalizers failed: test failed"));
        check(json!({"op": "replace", "path": "/o/z", "value": 2}), Ok(json!({"a": 1, "l": [1, 2], "o": {"x/y": null, "z": 2}})));
        check(json!({"op": "copy", "from": "/n", "path": "/m"}), Ok(json!({"a": 1, "l": [1, 2], "o": {"x/y": null}, "m": null})));
    }

    #[test]
    fn places_in_lists() {
        let with = |list: Value| Ok(json!({"a": 1, "l": list, "o": {"x/y": null}}));
        check(json!({"op": "add", "path": "/l/-", "value": 3}), with(json!([1, 2, 3])));
        check(json!({"op": "add", "path": "/l/-1", "value": 3}), with(json!([1, 2, 3])));
        check(json!({"op": "add", "path": "/l/0", "value": 3}), with(json!([3, 1, 2])));
        check(json!({"op": "remove", "path": "/l/-1"}), with(json!([1])));
        check(json!({"op": "move", "from": "/l/0", "path": "/l/1"}), with(json!([2, 1])));
        check(json!({"op": "add", "path": "/l/9", "value": 3}), Err("error in add for path: '/l/9': Unable to access invalid index: 9: invalid index referenced"));
        check(json!({"op": "replace", "path": "/l/2", "value": 3}), Err("replace operation does not apply: doc is missing key: /l/2: missing value"));
    }

    #[test]
    fn no_patch_makes_a_document_deeper_than_a_body() {
        let nest = json!({"op": "copy", "from": "/o", "path": "/o/o"});
        let mut target = json!({"o": {}});
        let deepest = json_patch(&mut target, &vec![nest.clone(); MAX_DEPTH - 2].into());
        assert_eq!((deepest, depth(&target)), (Ok(()), MAX_DEPTH));
        assert_eq!(json_patch(&mut target, &json!([nest])), Err(Error::Unprocessable(TOO_DEEP.into())));
        let deep = "/o".repeat(MAX_DEPTH);
        for operation in [json!({"op": "add", "path": deep, "value": {}}), json!({"op": "replace", "path": deep, "value": []}), json!({"op": "move", "from": deep, "path": format!("{deep}/o")})] {
            assert!(json_patch(&mut target, &json!([operation])).is_err(), "{operation}");
        }
    }

    #[test]
    fn refusals() {
        check(json!({"op": "remove", "path": "/b"}), Err("error in remove for path: '/b': Unable to remove nonexistent key: b: missing value"));
        check(json!({"op": "add", "path": "/b/c", "value": 1}), Err("add operation does not apply: doc is missing path: \"/b/c\": missing value"));
        check(json!({"op": "add", "value": 1}), Err("add operation failed to decode path: missing value"));
        check(json!({"op": "jump", "path": "/a"}), Err("Unexpected kind: jump"));
        let of = |what: &str| format!("error decoding patch: json: cannot unmarshal {what}");
        check(json!(5), Err(&of("number into Go value of type handlers.jsonPatchOp")));
        check(json!({"op": 1}), Err(&of("number into Go struct field jsonPatchOp.op of type string")));
    }
}
