//! What a definition's status says: which names it has got, whether it is up, and what else there is to know.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use skiff_api::validation;
use skiff_api::value::{at, condition, items, object_mut, text};

/// The finalizer that holds a definition until its objects are gone.
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

const APPROVAL: &str = "api-approved.kubernetes.io";

/// The names that definitions of a group have got.
#[derive(Debug, Default)]
pub(super) struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Taken {
    /// Adds the names that a definition has got.
    pub fn add(&mut self, definition: &Value) {
        let names = at(definition, &["status", "acceptedNames"]);
        let short = items(names, &["shortNames"]).iter().filter_map(Value::as_str);
        self.resources.extend([text(names, &["plural"]), text(names, &["singular"])].into_iter().chain(short).map(str::to_owned));
        self.kinds.extend(["kind", "listKind"].map(|name| text(names, &[name]).to_owned()));
    }
}

/// Whether all its names were accepted.
pub(super) fn is(definition: &Value, kind: &str) -> bool {
    condition(definition, kind).is_some_and(|c| c["status"] == "True")
}

/// Whether its resources are served.
pub(super) fn served(definition: &Value) -> bool {
    is(definition, "NamesAccepted") || is(definition, "Established")
}

/// Whether it is on its way out, so that no object may be created.
pub(super) fn terminating(definition: &Value) -> bool {
    is_deleted(definition) || is(definition, "Terminating")
}

pub(super) fn is_deleted(definition: &Value) -> bool {
    !at(definition, &["metadata", "deletionTimestamp"]).is_null()
}

/// Whether it waits for its objects to go.
pub(super) fn waits(definition: &Value) -> bool {
    is_deleted(definition) && items(definition, &["metadata", "finalizers"]).iter().any(|f| f == FINALIZER)
}

/// The spec's names without what is empty.
fn wanted(definition: &Value) -> Map<String, Value> {
    let names = at(definition, &["spec", "names"]).as_object().cloned().unwrap_or_default();
    names.into_iter().filter(|(_, v)| !v.is_null() && v != "" && v.as_array().is_none_or(|a| !a.is_empty())).collect()
}

/// Whether the definition has got the very names that it wants.
pub(super) fn named(definition: &Value) -> bool {
    let accepted = at(definition, &["status", "acceptedNames"]);
    let got = accepted.as_object().is_some_and(|got| *got == wanted(definition));
    got && condition(definition, "NamesAccepted").is_some()
}

/// The definition's status as it should be. `taken` is asked for what the group's definitions, this one included, have got.
pub(super) fn status(definition: &Value, taken: impl FnOnce() -> Taken, now: &str) -> Value {
    let mut next = at(definition, &["status"]).clone();
    if !named(definition) {
        name(&mut next, definition, &taken());
    }
    let (mut set, mut unset) = (Vec::new(), Vec::new());
    let whole = json!({"status": next});
    if is(&whole, "NamesAccepted") && !is(&whole, "Established") {
        set.push(("Established", "True", "InitialNamesAccepted", "the initial names have been accepted".to_owned()));
    }
    let violations = validation::non_structural(definition);
    if violations.is_empty() {
        unset.push("NonStructuralSchema");
    } else {
        let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
        let message = if all.len() == 1 { all.concat() } else { format!("[{}]", all.join(", ")) };
        set.push(("NonStructuralSchema", "True", "Violations", message));
    }
    set.extend(approval(definition));
    for (kind, status, reason, message) in set {
        set_condition(&mut next, kind, status, reason, &message, now);
    }
    if let Some(conditions) = next["conditions"].as_array_mut() {
        conditions.retain(|c| !unset.iter().any(|kind| c["type"] == *kind));
    }
    for condition in next["conditions"].as_array_mut().into_iter().flatten() {
        // Those of the naming were made without a time.
        if condition["lastTransitionTime"].is_null() {
            condition["lastTransitionTime"] = now.into();
        }
    }
    next
}

/// Gives the definition what of its names is free.
fn name(status: &mut Value, definition: &Value, taken: &Taken) {
    let wanted = wanted(definition);
    let accepted = at(definition, &["status", "acceptedNames"]);
    let mut got = accepted.as_object().cloned().unwrap_or_default();
    got.retain(|_, value| value != "");
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str, used: &BTreeSet<String>| used.contains(name).then(|| format!("{name:?} is already in use"));
    for (field, used, reason) in [
        ("plural", &taken.resources, "PluralConflict"),
        ("singular", &taken.resources, "SingularConflict"),
        ("shortNames", &taken.resources, "ShortNamesConflict"),
        ("kind", &taken.kinds, "KindConflict"),
        ("listKind", &taken.kinds, "ListKindConflict"),
    ] {
        let faults: Vec<String> = match wanted.get(field) {
            Some(Value::Array(names)) => {
                let mine = items(accepted, &[field]);
                names.iter().filter(|n| !mine.contains(n)).filter_map(|n| in_use(n.as_str().unwrap_or(""), used)).collect()
            }
            Some(Value::String(name)) if name != text(accepted, &[field]) => in_use(name, used).into_iter().collect(),
            _ => Vec::new(),
        };
        match (faults.as_slice(), wanted.get(field)) {
            ([], Some(value)) => drop(got.insert(field.into(), value.clone())),
            ([], None) => drop(got.remove(field)),
            ([one], _) => conflict = Some((reason, one.clone())),
            (many, _) => conflict = Some((reason, format!("[{}]", many.join(", ")))),
        }
    }
    match wanted.get("categories") {
        Some(categories) => drop(got.insert("categories".into(), categories.clone())),
        None => drop(got.remove("categories")),
    }
    object_mut(status, &[]).insert("acceptedNames".into(), got.into());
    let established = is(definition, "Established");
    let (accepted, reason, message) = match conflict {
        Some((reason, message)) => ("False", reason, message),
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
    };
    set_condition(status, "NamesAccepted", accepted, reason, &message, "");
    if !established && accepted == "False" {
        set_condition(status, "Established", "False", "NotAccepted", "not all names are accepted", "");
    }
}

/// Whether a group that is Kubernetes' own was approved to be used.
fn approval(definition: &Value) -> Option<(&'static str, &'static str, &'static str, String)> {
    const KIND: &str = "KubernetesAPIApprovalPolicyConformant";
    let group = text(definition, &["spec", "group"]);
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|own| group == *own || group.ends_with(&format!(".{own}")));
    if !protected {
        return None;
    }
    let given = text(definition, &["metadata", "annotations", APPROVAL]);
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let (status, reason, message) = if given.is_empty() {
        ("False", "MissingAnnotation", format!("protected groups must have approval annotation {APPROVAL:?}, {see}"))
    } else if given.starts_with("unapproved") {
        ("False", "UnapprovedAnnotation", format!("not approved: {given:?}"))
    } else if given.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/')) {
        ("True", "ApprovedAnnotation", format!("approved in {given}"))
    } else {
        let words = "with either a URL or a reason starting with \"unapproved\"";
        ("False", "InvalidAnnotation", format!("protected groups must have approval annotation {APPROVAL:?} {words}, {see}"))
    };
    Some((KIND, status, reason, message))
}

/// Sets a condition; its time only changes with its status. An empty time is filled in later.
pub(crate) fn set_condition(status: &mut Value, kind: &str, is: &str, reason: &str, message: &str, now: &str) {
    let conditions = object_mut(status, &[]).entry("conditions").or_insert(Value::Null);
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    let time = if now.is_empty() { Value::Null } else { now.into() };
    let before = list.iter().position(|c| c["type"] == kind);
    let since = before.map(|i| &list[i]).filter(|c| c["status"] == is).map_or(time, |c| c["lastTransitionTime"].clone());
    let condition = json!({"type": kind, "status": is, "lastTransitionTime": since, "reason": reason, "message": message});
    match before {
        Some(i) => list[i] = condition,
        None => list.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn definition(names: Value) -> Value {
        json!({"metadata": {"name": "x"}, "spec": {"group": "x.io", "names": names, "versions": []}, "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}}})
    }

    fn names(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short})
    }

    fn told(status: &Value) -> Vec<String> {
        items(status, &["conditions"]).iter().map(|c| format!("{}={} {}: {}", text(c, &["type"]), text(c, &["status"]), text(c, &["reason"]), text(c, &["message"]))).collect()
    }

    /// The conditions that a definition gets beside another, which was there first.
    fn check(first: Value, second: Value, expected: &[&str], got: Value) {
        let mut first = definition(first);
        first["status"] = status(&first, Taken::default, NOW);
        let second = definition(second);
        let taken = || {
            let mut taken = Taken::default();
            taken.add(&first);
            taken.add(&second);
            taken
        };
        let next = status(&second, taken, NOW);
        assert_eq!(told(&next), expected);
        assert_eq!(next["acceptedNames"], got);
    }

    #[test]
    fn names_are_given_once() {
        let foos = names("foos", "Foo", &["f"]);
        let fine = ["NamesAccepted=True NoConflicts: no conflicts found", "Established=True InitialNamesAccepted: the initial names have been accepted"];
        check(foos.clone(), names("bars", "Bar", &["b"]), &fine, names("bars", "Bar", &["b"]));
        let refused = |why: &str| [format!("NamesAccepted=False {why}"), "Established=False NotAccepted: not all names are accepted".into()];
        let why = refused("ShortNamesConflict: \"f\" is already in use");
        check(foos.clone(), names("bars", "Bar", &["f"]), &why.each_ref().map(String::as_str),
            json!({"plural": "bars", "singular": "bar", "kind": "Bar", "listKind": "BarList"}));
        let why = refused("ListKindConflict: \"FooList\" is already in use");
        check(foos.clone(), names("bars", "Foo", &["b"]), &why.each_ref().map(String::as_str), json!({"plural": "bars", "shortNames": ["b"]}));
        check(foos.clone(), foos.clone(), &refused("ListKindConflict: \"FooList\" is already in use").each_ref().map(String::as_str), json!({}));
    }

    #[test]
    fn a_settled_status_stays() {
        let mut one = definition(names("foos", "Foo", &[]));
        one["status"] = status(&one, Taken::default, NOW);
        assert_eq!(status(&one, || unreachable!("its names are settled"), "2026-02-01T00:00:00Z"), one["status"]);
    }

    #[test]
    fn groups_of_kubernetes_need_approval() {
        let check = |annotation: &str, expected: &str| {
            let mut one = definition(names("foos", "Foo", &[]));
            one["spec"]["group"] = "x.k8s.io".into();
            one["metadata"]["annotations"] = json!({APPROVAL: annotation});
            let all = told(&status(&one, Taken::default, NOW));
            assert!(all.last().is_some_and(|c| c.starts_with(&format!("KubernetesAPIApprovalPolicyConformant={expected}"))), "{all:?}");
        };
        check("https://github.com/kubernetes/kubernetes/pull/1", "True ApprovedAnnotation: approved in https");
        check("unapproved, a test", "False UnapprovedAnnotation: not approved");
        check("because", "False InvalidAnnotation");
        check("", "False MissingAnnotation");
    }
}
