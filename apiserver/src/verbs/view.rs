//! The parts of an object that an endpoint shows for writing: the whole, `status`, `scale` and the like.
//!
//! A write through a view keeps everything else as it was.

use serde_json::{Map, Value, json};
use skiff_api::resource::{Resource, Subresource};
use skiff_api::{Status, value};

use super::Call;
use crate::http::body::Reply;
use crate::http::encode::{Encoder, Shown};
use crate::subresources::scale;

/// What an endpoint lets clients write of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Everything but the status, for resources that have a `status` subresource.
    Main {
        /// Whether the status is written elsewhere.
        has_status: bool,
    },
    /// The members at these paths, and the metadata that isn't the system's.
    Part(&'static [&'static [&'static str]]),
    /// The replica count, in the form of a `Scale`.
    Scale,
}

/// The subresources that are views, and what of the object they write.
const PARTS: &[(&str, &[&[&str]])] = &[
    ("status", &[&["status"]]),
    ("finalize", &[&["spec", "finalizers"]]),
    ("ephemeralcontainers", &[&["spec", "ephemeralContainers"]]),
    ("resize", &[&["spec", "containers"], &["spec", "initContainers"]]),
    ("approval", &[&["status", "conditions"]]),
];

impl View {
    /// The view of the resource itself.
    pub fn whole(resource: &Resource) -> Self {
        Self::Main { has_status: resource.subresource("status").is_some() }
    }

    /// The view that a subresource is, if it is one.
    pub fn of(_resource: &Resource, sub: &Subresource) -> Option<Self> {
        if sub.name == "scale" {
            return Some(Self::Scale);
        }
        PARTS.iter().find(|(name, _)| *name == sub.name).map(|(_, paths)| Self::Part(paths))
    }

    /// Carries out a GET through the view.
    pub async fn get(self, call: &Call) -> Result<Reply, Status> {
        let shown = call.read().await?;
        if self == Self::Scale {
            scale::check(&call.resource, &shown.value()?)?;
        }
        self.answer(call, 200, &shown)
    }

    /// Shows the object as the view does.
    pub fn answer(self, call: &Call, code: u16, shown: &Shown) -> Result<Reply, Status> {
        if self != Self::Scale {
            return call.encoder().object(code, shown);
        }
        let scale = Shown::Value(scale::show(&call.resource, &shown.value()?));
        Encoder { resource: &scale::resource(), ..call.encoder() }.object(code, &scale)
    }

    /// What becomes of `old` when a client sends `new` through this view.
    pub fn merge(self, mut new: Value, old: &Value) -> Value {
        match self {
            Self::Main { has_status } => {
                if has_status {
                    copy(old, &mut new, &["status"]);
                }
                new
            }
            Self::Part(paths) => {
                let mut merged = old.clone();
                if let Some(metadata) = value::remove(&mut new, &["metadata"]) {
                    merged["metadata"] = metadata;
                }
                for path in paths {
                    copy(&new, &mut merged, path);
                }
                merged
            }
            Self::Scale => new,
        }
    }

    /// Whether the generation counts changes of the status too: where that is written like everything else.
    pub fn counts_status(self) -> bool {
        self == Self::Main { has_status: false }
    }

    /// Whether a write through this view is one of the object's status.
    pub fn is_status(self) -> bool {
        matches!(self, Self::Part([["status"]]))
    }
}

/// Makes the member at `path` of `to` what it is in `from`, absent included.
fn copy(from: &Value, to: &mut Value, path: &[&str]) {
    let Some((last, parents)) = path.split_last() else { return };
    let member = parents.iter().try_fold(from, |v, key| v.get(key)).and_then(|v| v.get(last));
    match member {
        Some(member) => drop(value::object_mut(to, parents).insert((*last).into(), member.clone())),
        None => drop(value::remove(to, path)),
    }
}

/// Keeps of the new metadata what clients may write, and of the old what they may not.
pub(crate) fn keep_system_metadata(new: &mut Value, old: &Value) {
    const SYSTEM: [&str; 8] =
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"];
    let before = value::at(old, &["metadata"]).as_object().cloned().unwrap_or_else(Map::new);
    let metadata = value::object_mut(new, &["metadata"]);
    for key in SYSTEM {
        match before.get(key) {
            Some(member) => drop(metadata.insert(key.into(), member.clone())),
            None => drop(metadata.remove(key)),
        }
    }
    // A name can't be changed, but its absence is filled in; generateName stays what it was.
    if !metadata.contains_key("generateName")
        && let Some(base) = before.get("generateName")
    {
        metadata.insert("generateName".into(), base.clone());
    }
    metadata.remove("resourceVersion");
}

/// The next generation, when what the generation counts has changed, of the metadata only the members `counted`.
pub(crate) fn bump_generation(new: &mut Value, old: &Value, counted: &[&str], counts_status: bool) {
    let mut parts: Vec<&str> =
        new.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).chain(old.as_object().into_iter().flatten().map(|(key, _)| key.as_str())).collect();
    parts.retain(|key| !matches!(*key, "metadata" | "apiVersion" | "kind") && (counts_status || *key != "status"));
    let changed = parts.iter().any(|key| new.get(key) != old.get(key))
        || counted.iter().any(|key| value::at(new, &["metadata", key]) != value::at(old, &["metadata", key]));
    let generation = value::at(old, &["metadata", "generation"]).as_i64().unwrap_or(0);
    if changed {
        value::object_mut(new, &["metadata"]).insert("generation".into(), json!(generation + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(view: View, new: Value, old: Value, expected: Value) {
        assert_eq!(view.merge(new, &old), expected);
    }

    #[test]
    fn a_view_writes_its_own_part_alone() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"x": 1}, "status": {"y": 1}});
        let new = json!({"metadata": {"name": "a"}, "spec": {"x": 2}, "status": {"y": 2}});
        check(View::Main { has_status: true }, new.clone(), old.clone(), json!({"metadata": {"name": "a"}, "spec": {"x": 2}, "status": {"y": 1}}));
        check(View::Main { has_status: false }, new.clone(), old.clone(), new.clone());
        check(View::Part(&[&["status"]]), new, old.clone(), json!({"metadata": {"name": "a"}, "spec": {"x": 1}, "status": {"y": 2}}));
        check(View::Part(&[&["status"]]), json!({}), old, json!({"metadata": {"name": "a"}, "spec": {"x": 1}}));
    }

    #[test]
    fn generations() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"x": 1}});
        let mut new = json!({"metadata": {"generation": 3, "annotations": {"a": "b"}}, "spec": {"x": 1}, "status": {}});
        bump_generation(&mut new, &old, &[], false);
        assert_eq!(new["metadata"]["generation"], 3);
        bump_generation(&mut new, &old, &["annotations"], false);
        assert_eq!(new["metadata"]["generation"], 4);
        let mut new = json!({"metadata": {}, "spec": {"x": 2}});
        bump_generation(&mut new, &old, &[], false);
        assert_eq!(new["metadata"]["generation"], 4);
    }
}
