//! What a real API server stored, to protobuf and back.

mod golden;

use serde_json::Value;
use skiff_api::protobuf;

/// Without what reads the same in protobuf whether it is there or not: nulls and empty lists.
fn without_nothings(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(without_nothings);
            map.retain(|_, v| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty()));
        }
        Value::Array(items) => items.iter_mut().for_each(without_nothings),
        _ => {}
    }
}

#[test]
fn stored_objects_come_back_from_protobuf() {
    for line in golden::lines("create-examples.jsonl") {
        let mut object = line["stored"].clone();
        let bytes = protobuf::encode(&object).unwrap_or_else(|e| panic!("{}: {e}", line["name"]));
        let mut back = protobuf::decode(&bytes).unwrap_or_else(|e| panic!("{}: {e}", line["name"]));
        without_nothings(&mut object);
        without_nothings(&mut back);
        assert_eq!(back, object);
    }
}
