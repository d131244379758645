//! What must be equal of two answers, and what can't be: uids, revisions, texts that the reference cuts.

use serde_json::{Value, json};
use skiff_api::value::{at, items, text};

use crate::api::Answer;

/// The object that all uids are taken for.
const UID: &str = "00000000-0000-4000-8000-000000000000";

/// What differs between a recorded answer and ours.
pub fn difference(case: &Value, theirs: &Value, answer: &Answer) -> Option<String> {
    let ours = answer.json();
    let mut differing = Vec::new();
    let mut see = |what: &str, fine: bool, ours: &Value, theirs: &Value| {
        if !fine {
            differing.push(format!("  {what}\n    ours   {ours}\n    theirs {theirs}"));
        }
    };
    see("code", case["code"] == answer.code, &answer.code.into(), &case["code"]);
    // Of writes that were to be judged no headers were recorded.
    for (key, header) in [("warning", "warning"), ("retry_after", "retry-after")].into_iter().filter(|_| case["op"].is_null()) {
        let mine = answer.header(header);
        see(key, mine == text(case, &[key]), &mine.into(), &case[key]);
    }
    match theirs {
        Value::String(body) => see("body", agrees(&answer.body, body), &answer.body.as_str().into(), theirs),
        // Of an object only the kind was recorded.
        _ if theirs.as_object().is_some_and(|map| map.len() == 1) => {
            see("kind", theirs["kind"].is_null() || ours["kind"] == theirs["kind"], &ours["kind"], &theirs["kind"]);
        }
        _ => {
            let refused = ours["kind"] == "Status";
            for key in ["message", "reason", "status"] {
                let mine = if refused { text(&ours, &[key]) } else { "" };
                let recorded = key != "status" || !theirs[key].is_null();
                see(key, !recorded || agrees(mine, text(theirs, &[key])), &mine.into(), &theirs[key]);
            }
            let (mine, wanted) = (items(&ours, &["details", "causes"]), items(theirs, &["details", "causes"]));
            let same = |(a, b): (&Value, &Value)| ["reason", "field", "message"].iter().all(|key| agrees(text(a, &[key]), text(b, &[key])));
            let all = mine.len() == wanted.len() && mine.iter().zip(wanted).all(same);
            see("causes", all, at(&ours, &["details", "causes"]), &json!(wanted));
            if theirs["kind"] == "Status" {
                let details = |status: &Value| match &status["details"] {
                    Value::Object(map) => map.iter().filter(|(key, _)| !matches!(key.as_str(), "causes" | "uid")).map(|(k, v)| (k.clone(), v.clone())).collect(),
                    _ => Value::Null,
                };
                see("details", details(&ours) == details(theirs), &details(&ours), &details(theirs));
            }
        }
    }
    (!differing.is_empty()).then(|| differing.join("\n"))
}

/// The name of a case.
pub fn place(case: &Value) -> &str {
    text(case, &["case"])
}

/// Sets a value at a dotted path; numbers are places in lists.
pub fn set(object: &mut Value, path: &str, value: Option<Value>) {
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
pub fn whole(value: &Value) -> Value {
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

/// Whether the text is the one in the file, which may be cut and has uids and revisions of its own.
fn agrees(ours: &str, theirs: &str) -> bool {
    let (ours, theirs) = (neutral(ours), neutral(theirs));
    match theirs.rsplit_once("...[").filter(|(_, n)| n.ends_with(" characters]")) {
        Some((head, _)) => ours.starts_with(head),
        None => ours == theirs,
    }
}

/// The text with every uid replaced by one, and every current revision and the end of every allocated address by 0.
pub fn neutral(text: &str) -> String {
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
    for before in ["current: ", "ResourceVersion in record ("] {
        if let Some(at) = out.find(before).map(|at| at + before.len()) {
            let digits = out[at..].bytes().take_while(u8::is_ascii_digit).count();
            out.replace_range(at..at + digits, "0");
        }
    }
    let mut from = 0;
    while let Some(at) = out[from..].find("10.96.").map(|at| from + at + "10.96.".len()) {
        let rest = out[at..].bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        out.replace_range(at..at + rest, "0");
        from = at;
    }
    out
}
