//! Rows that a real API server printed, against those printed here.

mod golden;

use serde_json::{Value, json};
use skiff_api::value::{text, time};
use skiff_api::{print, resource};

#[test]
fn rows_are_printed_as_upstream_prints_them() {
    let mut wrong = Vec::new();
    let lines = golden::lines("table-examples.jsonl");
    for line in &lines {
        let object = &line["object"];
        let (group, version) = text(object, &["apiVersion"]).rsplit_once('/').unwrap_or(("", text(object, &["apiVersion"])));
        let resource = resource::find_kind(group, version, text(object, &["kind"])).unwrap_or_else(|| panic!("{object}"));
        // Objects were printed within the second of their creation.
        let now = time(object, &["metadata", "creationTimestamp"]).unwrap_or_else(|| panic!("{object}"));
        let names: Vec<Value> = print::columns(resource).iter().map(|c| c.name.as_ref().into()).collect();
        let conditions = print::row_conditions(resource, object);
        let ours = json!({
            "columns": names,
            "cells": print::cells(resource, object, now),
            "row_conditions": if conditions.is_empty() { Value::Null } else { conditions.into() },
        });
        for part in ["columns", "cells", "row_conditions"] {
            if ours[part] != line[part] {
                wrong.push(format!("{}\n  ours   {}\n  theirs {}", line["case"], ours[part], line[part]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
}
