//! The entries of `metadata.managedFields`.

use serde_json::{Map, Value};

use super::set::{FieldSet, shown};
use super::walk::Comparison;
use super::{Conflict, Error, Manager, Operation};
use crate::value::{at, items, object_mut, text};

/// More entries of updates than this are merged, the oldest first.
const MAX_UPDATERS: usize = 10;

/// What no manager owns: identity and what the server sets.
const STRIPPED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// The owners of an object's fields.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: FieldSet,
}

impl Entry {
    fn new(manager: &Manager, fields: FieldSet) -> Self {
        Self {
            name: manager.name.clone(),
            operation: manager.operation,
            api_version: manager.api_version.clone(),
            subresource: manager.subresource.clone(),
            time: Some(shown_time(manager)),
            fields,
        }
    }

    /// Appliers are the same in whichever version they write.
    fn is(&self, manager: &Manager) -> bool {
        self.name == manager.name
            && self.operation == manager.operation
            && self.subresource == manager.subresource
            && (self.operation == Operation::Apply || self.api_version == manager.api_version)
    }

    /// As conflicts name it.
    fn shown(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

fn shown_time(manager: &Manager) -> String {
    manager.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn stripped() -> FieldSet {
    let mut set = FieldSet::default();
    for path in STRIPPED {
        set.insert(&path.iter().map(|name| format!("f:{name}")).collect::<Vec<_>>());
    }
    set
}

impl Managed {
    /// Reads `metadata.managedFields`; entries that make no sense are left out.
    pub fn read(list: &Value) -> Self {
        let entries = list.as_array().into_iter().flatten().filter_map(|entry| {
            let operation = match text(entry, &["operation"]) {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            Some(Entry {
                name: text(entry, &["manager"]).to_owned(),
                operation,
                api_version: text(entry, &["apiVersion"]).to_owned(),
                subresource: text(entry, &["subresource"]).to_owned(),
                time: at(entry, &["time"]).as_str().map(str::to_owned),
                fields: FieldSet::from_json(&entry["fieldsV1"]),
            })
        });
        Self { entries: entries.collect() }
    }

    /// Writes `metadata.managedFields`.
    pub fn write(&self, object: &mut Value) {
        let mut entries: Vec<&Entry> = self.entries.iter().filter(|e| !e.fields.is_empty()).collect();
        entries.sort_by_key(|e| (e.operation, e.time.as_deref(), e.name.as_str(), e.api_version.as_str(), e.subresource.as_str()));
        let list = entries.into_iter().map(|e| {
            let mut map = Map::new();
            map.insert("manager".into(), e.name.as_str().into());
            map.insert("operation".into(), format!("{:?}", e.operation).into());
            map.insert("apiVersion".into(), e.api_version.as_str().into());
            map.insert("fieldsType".into(), "FieldsV1".into());
            map.insert("fieldsV1".into(), e.fields.to_json());
            if let Some(time) = &e.time {
                map.insert("time".into(), time.as_str().into());
            }
            if !e.subresource.is_empty() {
                map.insert("subresource".into(), e.subresource.as_str().into());
            }
            Value::Object(map)
        });
        let list: Vec<Value> = list.collect();
        let metadata = object_mut(object, &["metadata"]);
        if list.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".into(), list.into());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every field that somebody owns.
    pub fn all_fields(&self) -> FieldSet {
        self.entries.iter().fold(FieldSet::default(), |all, e| all.union(&e.fields))
    }

    /// Sets the fields of an applier, and gives what it had.
    pub fn replace(&mut self, manager: &Manager, fields: FieldSet) -> Option<FieldSet> {
        match self.entries.iter_mut().find(|e| e.is(manager)) {
            Some(entry) => {
                entry.api_version.clone_from(&manager.api_version);
                Some(std::mem::replace(&mut entry.fields, fields))
            }
            None => {
                self.entries.push(Entry { time: None, ..Entry::new(manager, fields) });
                None
            }
        }
    }

    /// Takes from all but the manager what changed; without `force` a changed field of theirs is a conflict.
    pub fn give_way(&mut self, manager: &Manager, changes: &Comparison, force: bool) -> Result<(), Error> {
        let changed = changes.added.union(&changes.modified);
        let mut conflicts = Vec::new();
        let others = || self.entries.iter().filter(|e| !e.is(manager));
        for entry in others().filter(|_| !force) {
            for path in entry.fields.intersection(&changed).paths() {
                conflicts.push(Conflict { owner: entry.shown(), field: shown(&path) });
            }
        }
        if !conflicts.is_empty() {
            return Err(Error::Conflicts(conflicts));
        }
        let lost = changed.union(&changes.removed);
        for entry in self.entries.iter_mut().filter(|e| !e.is(manager)) {
            entry.fields = entry.fields.difference(&lost);
        }
        self.entries.retain(|e| !e.fields.is_empty());
        Ok(())
    }

    /// Strips the applier's fields, and dates its entry unless nothing changed.
    pub fn settle(&mut self, manager: &Manager, unchanged: bool) {
        if let Some(entry) = self.entries.iter_mut().find(|e| e.is(manager)) {
            entry.fields = entry.fields.difference(&stripped());
            if !unchanged || entry.time.is_none() {
                entry.time = Some(shown_time(manager));
            }
        }
    }

    /// Records what an updater changed.
    pub fn update(&mut self, manager: &Manager, changes: &Comparison) {
        let changed = changes.added.union(&changes.modified);
        let lost = changed.union(&changes.removed);
        for entry in &mut self.entries {
            entry.fields = entry.fields.difference(&lost);
        }
        let taken = changed.difference(&stripped());
        if !taken.is_empty() {
            match self.entries.iter_mut().find(|e| e.is(manager)) {
                Some(entry) => {
                    entry.fields = entry.fields.union(&taken);
                    entry.time = Some(shown_time(manager));
                }
                None => self.entries.push(Entry::new(manager, taken)),
            }
        }
        self.entries.retain(|e| !e.fields.is_empty());
        self.cap();
    }

    /// Merges the oldest updaters of a version into one entry while there are too many.
    fn cap(&mut self) {
        let updaters = |entries: &[Entry]| entries.iter().filter(|e| e.operation == Operation::Update).count();
        if updaters(&self.entries) <= MAX_UPDATERS {
            return;
        }
        self.entries.sort_by(|a, b| (&a.time, &a.name).cmp(&(&b.time, &b.name)));
        let mut i = 0;
        while i < self.entries.len() && updaters(&self.entries) > MAX_UPDATERS {
            let version = self.entries[i].api_version.clone();
            let earlier = |e: &Entry| e.operation == Operation::Update && e.api_version == version;
            match self.entries[..i].iter().position(earlier) {
                Some(bucket) if self.entries[i].operation == Operation::Update => {
                    let merged = self.entries.remove(i);
                    let bucket = &mut self.entries[bucket];
                    bucket.name = "ancient-changes".into();
                    bucket.subresource.clear();
                    bucket.fields = bucket.fields.union(&merged.fields);
                    bucket.time = merged.time;
                }
                _ => i += 1,
            }
        }
    }
}

/// Puts the old entries back where the new object differs from the old one in nothing but their times.
pub(super) fn keep_times(old: &Value, new: &mut Value) {
    let entries = |object: &Value| items(object, &["metadata", "managedFields"]).to_vec();
    let (of_old, of_new) = (entries(old), entries(new));
    let same_entry = |(a, b): (&Value, &Value)| same_but(a, b, &["time"]);
    let same = of_old.len() == of_new.len()
        && of_old.iter().zip(&of_new).all(same_entry)
        && same_but(&old["metadata"], &new["metadata"], &["managedFields", "resourceVersion"])
        && same_but(old, new, &["metadata"]);
    if same && !of_old.is_empty() {
        object_mut(new, &["metadata"]).insert("managedFields".into(), of_old.into());
    }
}

/// Whether two objects are equal but for some members.
fn same_but(a: &Value, b: &Value, ignored: &[&str]) -> bool {
    match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            let counted = |(key, _): &(&String, &Value)| !ignored.contains(&key.as_str());
            a.iter().filter(counted).eq(b.iter().filter(counted))
        }
        _ => a == b,
    }
}
