//! The patch types that need no ownership: JSON patch, merge patch, strategic merge patch.

mod operations;
mod strategic;

use serde_json::Value;

pub use operations::json_patch;
pub use strategic::strategic_merge;

/// The most operations that a JSON patch may have.
pub const MAX_OPERATIONS: usize = 10_000;

/// Why a patch could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself makes no sense: 400.
    #[error("{0}")]
    BadRequest(String),
    /// The patch has too many operations: 413.
    #[error("{0}")]
    TooLarge(String),
    /// The patch makes sense but not for this object (a missing path): 422.
    #[error("{0}")]
    Unprocessable(String),
    /// The object isn't what the patch tests for: 422.
    #[error("{0}")]
    TestFailed(String),
}

/// What strict validation says of members that an operation of a JSON patch doesn't have.
pub fn unknown_members(patch: &Value) -> Vec<String> {
    let operations = patch.as_array().into_iter().flatten().enumerate();
    let members = operations.flat_map(|(i, operation)| operation.as_object().into_iter().flat_map(|o| o.keys()).map(move |name| (i, name)));
    let unknown = members.filter(|(_, name)| !matches!(name.as_str(), "op" | "path" | "from" | "value"));
    unknown.map(|(i, name)| format!("json patch unknown field \"[{i}].{name}\"")).collect()
}

/// The value as Go prints it with `%v`, as errors about strategic merge patches show them: `map[a:[1 <nil>]]`.
pub fn as_go_prints(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(as_go_prints).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let members: Vec<String> = map.iter().map(|(name, member)| format!("{name}:{}", as_go_prints(member))).collect();
            format!("map[{}]", members.join(" "))
        }
    }
}

/// Applies a merge patch (RFC 7386).
pub fn merge_patch(target: &mut Value, patch: &Value) {
    json_patch::merge(target, patch);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_about_patches() {
        let patch = json!({"metadata": {"labels": "x", "q": [1, 2.5, null, {"a": true}]}});
        assert_eq!(as_go_prints(&patch), "map[metadata:map[labels:x q:[1 2.5 <nil> map[a:true]]]]");
        assert_eq!(unknown_members(&json!([{"op": "add", "foo": 1}])), [r#"json patch unknown field "[0].foo""#]);
    }

    #[test]
    fn json_patches_fail_whole_and_never_panic() {
        let check = |patch: Value, expected: Result<Value, ()>| {
            let mut target = json!({"a": 1, "l": [1, 2]});
            let result = json_patch(&mut target, &patch).map(|()| target.clone()).map_err(|_| ());
            assert_eq!(result, expected, "{patch}");
            if result.is_err() {
                assert_eq!(target, json!({"a": 1, "l": [1, 2]}), "{patch}");
            }
        };
        check(json!([{"op": "add", "path": "/l/-", "value": 3}]), Ok(json!({"a": 1, "l": [1, 2, 3]})));
        check(json!([{"op": "remove", "path": "/a"}, {"op": "remove", "path": "/none"}]), Err(()));
        check(json!([{"op": "test", "path": "/a", "value": 2}]), Err(()));
        assert!(matches!(json_patch(&mut json!({"a": 1}), &json!([{"op": "test", "path": "/a", "value": 2}])), Err(Error::TestFailed(_))));
        assert!(matches!(json_patch(&mut json!({"a": 1}), &json!([{"op": "test", "path": "/l/2", "value": 2}])), Err(Error::Unprocessable(_))));
        check(json!([{"op": "add", "path": "/x"}]), Ok(json!({"a": 1, "l": [1, 2], "x": null})));
        check(json!([{"op": "replace", "path": "/l/9", "value": 1}]), Err(()));
        check(json!([{"op": "move", "from": "/l", "path": "/l/0"}]), Err(()));
        check(json!([{"op": "add", "path": "/l/18446744073709551616", "value": 1}]), Err(()));
        check(json!({"op": "add"}), Err(()));
        check(json!([{"op": "nonsense", "path": "/a"}]), Err(()));
        let many: Vec<Value> = vec![json!({"op": "test", "path": "/a", "value": 1}); MAX_OPERATIONS + 1];
        assert!(matches!(json_patch(&mut json!({"a": 1}), &many.into()), Err(Error::TooLarge(_))));
    }

    #[test]
    fn merge_patches() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        merge_patch(&mut target, &json!({"a": {"b": null, "d": 3}, "l": [2, 3]}));
        assert_eq!(target, json!({"a": {"c": 2, "d": 3}, "l": [2, 3]}));
    }
}
