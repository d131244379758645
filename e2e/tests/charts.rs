//! The plain manifests beside a chart are what the chart renders to with its own values.
//!
//! The templates use values alone (`{{ .Values.a.b }}`), so that this is the whole of a renderer for them. Run with
//! `UPDATE=1` to write the manifests anew.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts")
}

fn render(template: &str, values: &Value) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, tail)) = rest.split_once("{{") {
        let (action, tail) = tail.split_once("}}").expect("an action that ends");
        let path = action.trim().strip_prefix(".Values.").unwrap_or_else(|| panic!("{action}: only values are rendered here"));
        let value = path.split('.').fold(values, |v, key| &v[key]);
        out.push_str(before);
        match value {
            Value::String(text) => out.push_str(text),
            Value::Null => panic!("{path} is in no values.yaml"),
            other => out.push_str(&other.to_string()),
        }
        rest = tail;
    }
    out + rest
}

#[test]
fn dockercoins_manifests_are_rendered_from_the_chart() {
    let chart = charts().join("dockercoins");
    let values: Value = serde_saphyr::from_str(&fs::read_to_string(chart.join("values.yaml")).expect("values")).expect("YAML");
    let mut templates: Vec<PathBuf> = fs::read_dir(chart.join("templates")).expect("templates").map(|f| f.expect("a file").path()).collect();
    templates.sort();
    let mut rendered = String::from("# Rendered from charts/dockercoins with its own values: change it there.\n");
    for template in &templates {
        rendered.push_str("---\n");
        rendered.push_str(&render(&fs::read_to_string(template).expect("a template"), &values));
    }
    let path = charts().join("dockercoins.yaml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &rendered).expect("write the manifests");
    }
    assert!(fs::read_to_string(&path).expect("the manifests") == rendered, "out of date: UPDATE=1 cargo test -p skiff-e2e --test charts");
}
