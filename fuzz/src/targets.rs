//! What the fuzzer feeds: each function takes any bytes, and must come back without a panic and in little time.
//!
//! `apiserver/tests/fuzz.rs` runs the same functions on seeded random input in every test run.

use std::sync::{Arc, OnceLock};

use base64::Engine;
use serde_json::{Value, json};
use skiff_api::apply::{Manager, Operation, apply};
use skiff_api::cel::{Env, Program, Type, Val};
use skiff_api::fields;
use skiff_api::jsonpath::JsonPath;
use skiff_api::labels;
use skiff_api::patch::{json_patch, merge_patch, strategic_merge};
use skiff_api::quantity::Quantity;
use skiff_api::resource::{self, Resource};
use skiff_api::{cbor, defaults, json, protobuf};

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const ALL: &[(&str, Target)] = &[
    ("json", decode_json),
    ("yaml", decode_yaml),
    ("protobuf", decode_protobuf),
    ("cbor", decode_cbor),
    ("json_patch", patch_json),
    ("merge_patch", patch_merge),
    ("strategic_merge_patch", patch_strategic),
    ("apply", patch_apply),
    ("label_selector", select_labels),
    ("field_selector", select_fields),
    ("cel", evaluate),
    ("jsonpath", find),
    ("quantity", quantity),
    ("continue_token", go_on),
];

fn pod() -> &'static Arc<Resource> {
    static POD: OnceLock<&'static Arc<Resource>> = OnceLock::new();
    POD.get_or_init(|| resource::find_kind("", "v1", "Pod").expect("pods are in the catalogue"))
}

/// A pod to be patched.
pub fn object() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "b", "labels": {"x": "y"}, "finalizers": ["example.com/a"]},
        "spec": {
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}], "env": [{"name": "A", "value": "1"}]}],
            "tolerations": [{"key": "k", "operator": "Exists"}],
        },
    })
}

/// A decoded object goes through what every body goes through: it is pruned and defaulted, and may be shown.
fn take_in(mut object: Value) {
    let of = |key: &str| object[key].as_str().unwrap_or("").to_owned();
    let (version, kind) = (of("apiVersion"), of("kind"));
    let (group, short) = version.split_once('/').unwrap_or(("", &version));
    let resource = resource::find_kind(group, short, &kind).unwrap_or(pod());
    if resource.schema().prune(&mut object).is_ok() {
        defaults::apply(resource, &mut object);
        skiff_api::print::cells(resource, &object, jiff::Timestamp::UNIX_EPOCH);
    }
}

/// JSON bodies.
pub fn decode_json(data: &[u8]) {
    if let Ok(parsed) = json::parse(data) {
        take_in(parsed.value);
    }
}

/// YAML bodies.
pub fn decode_yaml(data: &[u8]) {
    if let Ok(read) = std::str::from_utf8(data).map_err(|e| e.to_string()).and_then(skiff_apiserver::http::yaml::parse) {
        take_in(read.value);
    }
}

/// CBOR bodies; what was read is written as it was meant.
pub fn decode_cbor(data: &[u8]) {
    if let Ok(object) = cbor::decode(data) {
        let written = cbor::encode(&object).expect("memory");
        assert_eq!(cbor::decode(&written).expect("what was written"), object);
        take_in(object);
    }
}

/// Protobuf bodies.
pub fn decode_protobuf(data: &[u8]) {
    if let Ok(object) = protobuf::decode(data) {
        take_in(object);
    }
}

fn patch(data: &[u8]) -> Option<Value> {
    json::parse(data).ok().map(|parsed| parsed.value)
}

/// JSON patches.
pub fn patch_json(data: &[u8]) {
    let mut target = object();
    if let Some(patch) = patch(data)
        && json_patch(&mut target, &patch).is_ok()
    {
        take_in(target);
    }
}

/// Merge patches: applying one again changes nothing.
pub fn patch_merge(data: &[u8]) {
    if let Some(patch) = patch(data) {
        let mut target = object();
        merge_patch(&mut target, &patch);
        let mut again = target.clone();
        merge_patch(&mut again, &patch);
        assert_eq!(again, target);
        take_in(target);
    }
}

/// Strategic merge patches.
pub fn patch_strategic(data: &[u8]) {
    let mut target = object();
    if let Some(patch) = patch(data)
        && strategic_merge(pod().schema(), &mut target, &patch).is_ok()
    {
        take_in(target);
    }
}

/// Applied configurations.
pub fn patch_apply(data: &[u8]) {
    let manager = Manager {
        name: "fuzz".into(),
        operation: Operation::Apply,
        api_version: "v1".into(),
        subresource: String::new(),
        time: jiff::Timestamp::UNIX_EPOCH,
    };
    if let Some(config) = patch(data).filter(Value::is_object)
        && let Ok(first) = apply(pod().schema(), Some(&object()), &config, &manager, true, &[&["status"]])
    {
        // Applied again it changes nothing, wherever it can be applied again.
        if let Ok(second) = apply(pod().schema(), Some(&first), &config, &manager, true, &[&["status"]]) {
            assert_eq!(second["spec"], first["spec"]);
        }
    }
}

/// Label selectors.
pub fn select_labels(data: &[u8]) {
    if let Ok(selector) = labels::Selector::parse(&String::from_utf8_lossy(data)) {
        selector.matches_object(&object());
    }
}

/// Field selectors.
pub fn select_fields(data: &[u8]) {
    if let Ok(selector) = fields::Selector::parse(&String::from_utf8_lossy(data)) {
        selector.matches(|field| field.to_owned().into());
    }
}

/// CEL expressions.
pub fn evaluate(data: &[u8]) {
    let env = Env::default().with("object", Type::Dyn);
    if let Ok(program) = Program::compile(&env, &String::from_utf8_lossy(data)) {
        let object = object();
        let given: &[(&str, Val<'_>)] = &[("object", Val::json(&object, &Type::Dyn))];
        // An error is an answer, too.
        let _ = program.eval(&given);
    }
}

/// JSONPath.
pub fn find(data: &[u8]) {
    if let Ok(path) = JsonPath::parse(&String::from_utf8_lossy(data)) {
        path.find(&object());
    }
}

/// Quantities: what is read is written so that it is read as the same.
pub fn quantity(data: &[u8]) {
    if let Ok(quantity) = Quantity::parse(&String::from_utf8_lossy(data)) {
        let shown = quantity.to_string();
        assert_eq!(Quantity::parse(&shown).map(|again| again.to_string()).as_ref(), Ok(&shown));
        let _ = (quantity.milli_value(), quantity.value(), quantity.round_up_to_milli());
    }
}

/// Continue tokens: whatever they say, they lead below the prefix, and what is written again leads there too.
pub fn go_on(data: &[u8]) {
    use skiff_apiserver::http::continuation;
    const PREFIX: &str = "/registry/pods/";
    let text = String::from_utf8_lossy(data);
    // As it comes, and as what a token holds.
    for token in [text.as_ref().to_owned(), base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(data)] {
        if let Ok((revision, key)) = continuation::read(&token, PREFIX) {
            let path = key.strip_prefix(PREFIX).expect("below the prefix");
            assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            assert_eq!(continuation::read(&continuation::write(revision, path), PREFIX).ok(), Some((revision, key)));
        }
    }
}
