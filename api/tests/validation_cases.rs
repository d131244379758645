//! What a real API server answered to 610 creates and updates, against decoding, defaulting and validation here.

mod golden;

use std::collections::HashMap;

use serde_json::{Value, json};
use skiff_api::resource::{Resource, find_kind};
use skiff_api::service::normalize_cluster_ips;
use skiff_api::value::{at, items, object_mut, remove, text};
use skiff_api::{Status, defaults, json as reader, validation};

/// The object that the uids of all cases are taken for.
const UID: &str = "00000000-0000-4000-8000-000000000000";

/// Where an answer comes from that is not made here: the API server's own checks, admission, allocation.
fn is_of_the_server(case: &Value) -> bool {
    let message = text(case, &["message"]);
    let words = ["failed to allocate IP", "not configured", "name on the URL", "namespace sent on the request"];
    matches!(case["code"].as_u64(), Some(403 | 409 | 500)) || words.iter().any(|w| message.contains(w))
}

/// Decodes, defaults and validates as the server does on create.
fn admit_create(resource: &Resource, body: &[u8]) -> Result<Value, Status> {
    let kind = resource.kind.as_ref();
    let cannot = |why: String| Status::bad_request(format!("{kind} in version {:?} cannot be handled as a {kind}: {why}", resource.version));
    let parsed = reader::parse(body).map_err(Status::bad_request)?;
    let mut object = parsed.value;
    let mut faults = parsed.duplicates;
    faults.extend(resource.schema().prune(&mut object).map_err(cannot)?.into_iter().map(|path| format!("unknown field {path:?}")));
    if !faults.is_empty() {
        return Err(cannot(format!("strict decoding error: {}", faults.join(", "))));
    }
    defaults::apply(resource, &mut object);
    prepare(resource, &mut object, None);
    refuse(resource, &object, &validation::validate_create(resource, &object))?;
    Ok(object)
}

fn refuse(resource: &Resource, object: &Value, errors: &[skiff_api::field::Error]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(resource.kind_group(), &resource.kind, text(object, &["metadata", "name"]), errors))
}

/// What the server's strategies make of an object before it is validated, as far as these cases need it.
fn prepare(resource: &Resource, object: &mut Value, old: Option<&Value>) {
    let metadata = object_mut(object, &["metadata"]);
    if resource.namespaced {
        metadata.insert("namespace".into(), "default".into());
    }
    metadata.insert("uid".into(), UID.into());
    if resource.kind == "Service" {
        normalize_cluster_ips(object, old);
    }
    match (resource.kind.as_ref(), old) {
        ("Service", Some(old)) => {
            let external = text(object, &["spec", "type"]) == "ExternalName";
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if external {
                    remove(object, &["spec", field]);
                } else if matches!(&object["spec"][field], Value::Null) {
                    object["spec"][field] = old["spec"][field].clone();
                }
            }
        }
        ("Job", None) if object["spec"]["manualSelector"] != true => {
            let name = object["metadata"]["name"].clone();
            let labels = object_mut(object, &["spec", "template", "metadata", "labels"]);
            for prefix in ["", "batch.kubernetes.io/"] {
                labels.insert(format!("{prefix}controller-uid"), UID.into());
                labels.insert(format!("{prefix}job-name"), name.clone());
            }
            object_mut(object, &["spec", "selector", "matchLabels"]).insert("batch.kubernetes.io/controller-uid".into(), UID.into());
        }
        ("Namespace", Some(old)) => object["spec"] = old["spec"].clone(),
        // Admission adds the tolerations that every pod has.
        ("Pod", Some(old)) if items(object, &["spec", "tolerations"]).is_empty() => {
            object["spec"]["tolerations"] = old["spec"]["tolerations"].clone();
        }
        _ => {}
    }
    if let Some(old) = old.filter(|_| resource.subresource("status").is_some()) {
        object["status"] = old["status"].clone();
        object["metadata"]["creationTimestamp"] = old["metadata"]["creationTimestamp"].clone();
    }
}

/// Sets a value at a dotted path; numbers are places in lists.
fn set(object: &mut Value, path: &str, value: Option<Value>) {
    let mut steps: Vec<&str> = path.split('.').collect();
    let last = steps.pop().unwrap_or("");
    let mut here = object;
    for step in steps {
        here = match step.parse::<usize>() {
            Ok(i) if here.is_array() => &mut here[i],
            _ => {
                if here.is_null() {
                    *here = json!({});
                }
                &mut here[step]
            }
        };
    }
    match (value, last.parse::<usize>()) {
        (Some(value), Ok(i)) if here.is_array() => here[i] = value,
        (Some(value), _) => here[last] = value,
        (None, _) => {
            here.as_object_mut().and_then(|map| map.remove(last));
        }
    }
}

/// Long texts are cut in the file: `xxx...[300 characters]`.
fn whole(value: &Value) -> Value {
    match value {
        Value::String(text) => match text.split_once("...[").and_then(|(head, n)| Some((head, n.strip_suffix(" characters]")?.parse::<usize>().ok()?))) {
            Some((head, n)) => head.chars().next().unwrap_or('x').to_string().repeat(n).into(),
            None => text.as_str().into(),
        },
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), whole(v))).collect(),
        Value::Array(list) => list.iter().map(whole).collect(),
        other => other.clone(),
    }
}

/// Whether the text is the one in the file, which may be cut and has uids of its own.
fn agrees(ours: &str, theirs: &str) -> bool {
    let theirs = neutral(theirs);
    let ours = neutral(ours);
    match theirs.rsplit_once("...[").filter(|(_, n)| n.ends_with(" characters]")) {
        Some((head, _)) => ours.starts_with(head),
        None => ours == theirs,
    }
}

/// The text with every uid replaced by one.
fn neutral(text: &str) -> String {
    let is_uid = |s: &str| s.len() == 36 && s.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && s.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    let mut out = text.to_owned();
    let mut i = 0;
    while i + 36 <= out.len() {
        if out.is_char_boundary(i) && out.get(i..i + 36).is_some_and(is_uid) {
            out.replace_range(i..i + 36, UID);
            i += 36;
        } else {
            i += 1;
        }
    }
    out
}

fn compare(case: &Value, answer: &Result<Value, Status>) -> Option<String> {
    let ours = answer.as_ref().err().map(Status::to_value).unwrap_or_default();
    let accepted = matches!(case["code"].as_u64(), Some(200 | 201));
    let fine = match answer {
        Ok(_) => accepted,
        Err(_) if accepted => false,
        Err(status) => {
            let (mine, wanted) = (items(&ours, &["details", "causes"]), items(case, &["causes"]));
            let same_cause = |(a, b): (&Value, &Value)| {
                a["reason"] == b["reason"] && text(a, &["field"]) == text(b, &["field"]) && agrees(text(a, &["message"]), text(b, &["message"]))
            };
            case["code"] == status.code
                && agrees(&status.message, text(case, &["message"]))
                && mine.len() == wanted.len()
                && mine.iter().zip(wanted).all(same_cause)
        }
    };
    (!fine).then(|| format!("{} {} {} -{}\n  ours   {} {}\n  theirs {} {}", case["op"], case["kind"], case["set"], case["deleted"],
        ours["message"], at(&ours, &["details", "causes"]), case["message"], case["causes"]))
}

#[test]
fn answers_are_upstreams() {
    let examples: HashMap<String, Value> =
        golden::lines("create-examples.jsonl").into_iter().map(|line| (text(&line, &["name"]).to_owned(), line)).collect();
    let signing = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "csr-x"},
        "spec": {"request": "eA==", "signerName": "example.com/s", "usages": ["client auth"]}});
    let cases = golden::lines("validation-cases.jsonl");
    let (mut wrong, mut elsewhere) = (Vec::new(), 0);
    let mut stored: HashMap<&str, Value> = HashMap::new();
    for case in &cases {
        let base = text(case, &["base"]);
        let api_version = text(case, &["apiVersion"]);
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let resource = find_kind(group, version, text(case, &["kind"])).unwrap_or_else(|| panic!("{case}"));
        let change = |object: &mut Value| {
            for (path, value) in case["set"].as_object().into_iter().flatten() {
                set(object, path, Some(whole(value)));
            }
            for path in items(case, &["deleted"]).iter().filter_map(Value::as_str) {
                set(object, path, None);
            }
        };
        if is_of_the_server(case) {
            elsewhere += 1;
            continue;
        }
        let answer = if case["op"] == "create" {
            let mut object = examples.get(base).map_or_else(|| signing.clone(), |e| e["input"].clone());
            change(&mut object);
            if object["metadata"]["name"].is_null() && !object["metadata"]["generateName"].is_null() {
                object["metadata"]["name"] = format!("{}7n86c", text(&object, &["metadata", "generateName"])).into();
            }
            admit_create(resource, object.to_string().as_bytes())
        } else {
            let old = stored.entry(base).or_insert_with(|| {
                let text = neutral(&examples[base]["stored"].to_string()).replace("10.96.0.0", "10.96.19.23");
                let mut old: Value = serde_json::from_str(&text).unwrap_or_default();
                if resource.kind == "CustomResourceDefinition" {
                    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
                }
                old
            });
            let mut new = old.clone();
            change(&mut new);
            let unknown = resource.schema().prune(&mut new).unwrap_or_else(|e| panic!("{case}: {e}"));
            assert!(unknown.is_empty(), "{case}: {unknown:?}");
            defaults::apply(resource, &mut new);
            prepare(resource, &mut new, Some(old));
            old["metadata"]["uid"] = UID.into();
            let errors = validation::validate_update(resource, &new, old);
            let answer = refuse(resource, &new, &errors).map(|()| new);
            if let (Ok(new), "ConfigMap" | "Secret" | "Node" | "Lease") = (&answer, base) {
                *old = new.clone();
            }
            answer
        };
        wrong.extend(compare(case, &answer));
    }
    let total = cases.len();
    assert!(wrong.is_empty(), "{} of {total} differ ({elsewhere} are not made here):\n{}", wrong.len(), wrong.join("\n"));
}
