//! The cache of one resource: its current objects, and a window of its recent changes for the watches.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use skiff_api::{Status, fields, labels};
use skiff_store::{Entry, Event, Revision};
use tokio::sync::watch;
use tokio::time::Instant;

use super::object::{Form, Object};

/// How long a change stays in the window at least, unless there are very many: as long as upstream keeps it.
const WINDOW_AGE: Duration = Duration::from_secs(75);
/// How many changes the window holds whatever their age.
const WINDOW_MIN: usize = 512;
/// How many changes the window never exceeds. A watch that is further behind is ended.
const WINDOW_MAX: usize = 50_000;
/// How many bytes of objects the window never exceeds: large ones that change often would fill the memory before they are old.
const WINDOW_BYTES: usize = 64 << 20;
/// How many bytes of old changes stay.
const WINDOW_OLD_BYTES: usize = 4 << 20;

/// A change of an object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision of the change.
    pub revision: Revision,
    /// The object before; `None` when it was created.
    pub old: Option<Arc<Object>>,
    /// The object after; `None` when it was deleted.
    pub new: Option<Arc<Object>>,
}

struct Logged {
    change: Change,
    /// By a clock that never jumps.
    at: Instant,
}

/// Which objects of a resource a reader wants.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this namespace; empty for all.
    pub namespace: String,
    /// By labels.
    pub labels: labels::Selector,
    /// By fields.
    pub fields: fields::Selector,
}

/// A stored value that can't be decrypted, or that is no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to transform key {key:?}: {why}")]
pub struct Unreadable {
    key: Arc<str>,
    why: String,
}

impl From<Unreadable> for Status {
    fn from(error: Unreadable) -> Self {
        Self::internal(error)
    }
}

/// The cache of one resource.
pub struct ResourceCache {
    prefix: Arc<str>,
    form: Form,
    state: RwLock<State>,
    /// The revision of the newest change; watches wait on it.
    bell: watch::Sender<Revision>,
    /// Whether another cache has taken this one's place, or none: nothing more comes.
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    /// What the store holds that can't be read, until it is mended or deleted. What was last read of it stays in `objects` for
    /// the server itself, as upstream's informers keep what they know; clients are refused.
    unreadable: BTreeMap<Arc<str>, (Entry, Unreadable)>,
    window: VecDeque<Logged>,
    /// How many bytes the objects in the window have that it brought.
    bytes: usize,
    /// The revision after which the window knows every change.
    since: Revision,
    /// The revision of the newest change; `since` before there was one.
    newest: Revision,
}

/// What a look at the objects shows.
#[derive(Debug)]
pub struct Listed {
    /// The objects, in key order.
    pub objects: Vec<Arc<Object>>,
    /// How many more the range holds, counted without the selectors.
    pub more: usize,
    /// The revision of the resource's newest change that the look shows.
    pub newest: Revision,
    /// The first thing in the range that can't be read.
    pub unreadable: Option<Unreadable>,
}

impl Listed {
    /// Refuses a look that can't show everything.
    pub fn whole(self) -> Result<Self, Unreadable> {
        self.unreadable.clone().map_or(Ok(self), Err)
    }
}

/// The watch asked for changes that the window has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld {
    /// The oldest revision that a watch can begin at.
    pub oldest: Revision,
}

impl ResourceCache {
    /// An empty cache that knows every change after `since`.
    pub(super) fn new(prefix: &str, form: Form, since: Revision) -> Self {
        Self::with(prefix, form, State { since, newest: since, ..State::default() })
    }

    fn with(prefix: &str, form: Form, state: State) -> Self {
        let bell = watch::Sender::new(state.newest);
        Self { prefix: prefix.into(), form, state: RwLock::new(state), bell, closed: AtomicBool::new(false) }
    }

    /// The same content, read in another form. The old cache is to be closed.
    pub(super) fn reread(&self, form: Form) -> Self {
        let again = |object: &Arc<Object>| {
            let read = Object::new(Arc::clone(&object.key), object.revision, object.stored().clone(), self.prefix.len(), &form);
            read.map_or_else(|_| Arc::clone(object), Arc::new)
        };
        let state = self.look(|state| {
            let logged = |Logged { change, at }: &Logged| {
                let (old, new) = (change.old.as_ref().map(again), change.new.as_ref().map(again));
                Logged { change: Change { revision: change.revision, old, new }, at: *at }
            };
            let window: VecDeque<Logged> = state.window.iter().map(logged).collect();
            State {
                objects: state.objects.iter().map(|(key, object)| (Arc::clone(key), again(object))).collect(),
                unreadable: state.unreadable.clone(),
                bytes: window.iter().map(|logged| logged.change.bytes()).sum(),
                window,
                since: state.since,
                newest: state.newest,
            }
        });
        Self::with(&self.prefix, form, state)
    }

    /// Ends the watches once they have seen everything.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.bell.send_modify(|_| ());
    }

    /// Whether nothing more comes.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// What there is, as the store has it.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let entry = |o: &Arc<Object>| Entry { key: Arc::clone(&o.key), value: o.stored().clone(), created: o.revision, modified: o.revision };
        self.look(|state| {
            let read = state.objects.values().filter(|object| !state.unreadable.contains_key(&object.key)).map(entry);
            read.chain(state.unreadable.values().map(|(entry, _)| entry.clone())).collect()
        })
    }

    /// The resource's key prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Reads stored bytes as an object of this resource.
    pub fn read(&self, key: Arc<str>, revision: Revision, bytes: bytes::Bytes) -> Result<Object, serde_json::Error> {
        Object::new(key, revision, bytes, self.prefix.len(), &self.form)
    }

    /// Takes in what is there from the start.
    pub(super) fn load(&self, entry: Entry) {
        let read = self.read_entry(entry.clone());
        self.write(|state| state.load(entry, read));
    }

    /// Forgets everything but what there is at `since`. Watches that know less are told.
    pub(super) fn reset(&self, entries: Vec<Entry>, since: Revision) {
        let mut next = State { since, newest: since, ..State::default() };
        for entry in entries {
            let read = self.read_entry(entry.clone());
            next.load(entry, read);
        }
        self.write(|state| *state = next);
        self.bell.send_replace(since);
    }

    /// Reads what the store has of an object.
    pub fn read_entry(&self, entry: Entry) -> Result<Object, Unreadable> {
        let key = Arc::clone(&entry.key);
        self.read(entry.key, entry.modified, entry.value).map_err(|error| Unreadable { key, why: error.to_string() })
    }

    /// Takes in a change. Where that can't be read, all watches are told that they are too far behind: who then lists is told why.
    pub(super) fn apply(&self, event: Event) {
        let Event { key, revision, created, value } = event;
        let entry = value.map(|value| Entry { key: Arc::clone(&key), value, created, modified: revision });
        let read = entry.clone().map(|entry| self.read_entry(entry)).transpose();
        self.write(|state| {
            state.newest = revision;
            let new = match (read, entry) {
                (Err(unreadable), Some(entry)) => {
                    state.load(entry, Err(unreadable));
                    (state.since, state.bytes) = (revision, 0);
                    return state.window.clear();
                }
                (new, _) => new.ok().flatten().map(Arc::new),
            };
            state.unreadable.remove(&key);
            let old = match &new {
                Some(object) => state.objects.insert(key, Arc::clone(object)),
                None => state.objects.remove(&key),
            };
            if old.is_some() || new.is_some() {
                state.log(Change { revision, old, new });
            }
        });
        self.bell.send_replace(revision);
    }

    fn write<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn look<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The object with this key.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.look(|state| state.objects.get(key).cloned())
    }

    /// What can't be read under this key, if that is so.
    pub fn unreadable(&self, key: &str) -> Option<Unreadable> {
        self.look(|state| state.unreadable.get(key).map(|(_, unreadable)| unreadable.clone()))
    }

    /// Forgets changes beyond so many bytes, and old ones beyond fewer. Answers how many bytes are left.
    pub(super) fn trim(&self, most: usize) -> usize {
        self.write(|state| {
            state.trim(most);
            state.bytes
        })
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.look(|state| state.objects.len())
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many objects a namespace (empty: all) has; counted up to `most`.
    pub fn count(&self, namespace: &str, most: usize) -> usize {
        if namespace.is_empty() {
            return self.len().min(most);
        }
        let start = format!("{}{namespace}/", self.prefix);
        let end = skiff_store::prefix_end(&start);
        self.look(|state| state.objects.range::<str, _>(bounds(&start, &end)).take(most).count())
    }

    /// The keys that the wanted objects are among.
    fn range(&self, filter: &Filter) -> (String, String) {
        let start = format!("{}{}", self.prefix, filter.range_prefix());
        let end = skiff_store::prefix_end(&start);
        (start, end)
    }

    /// Whether everything can be read that the filter may choose.
    pub fn readable(&self, filter: &Filter) -> Result<(), Unreadable> {
        let (start, end) = self.range(filter);
        self.look(|state| state.unreadable(&start, &end)).map_or(Ok(()), Err)
    }

    /// The objects that pass: at most `limit` (0: all).
    pub fn list(&self, filter: &Filter, limit: usize) -> Listed {
        let (start, end) = self.range(filter);
        let bounds = bounds(&start, &end);
        let limit = if limit == 0 { usize::MAX } else { limit };
        self.look(|state| {
            let mut range = state.objects.range::<str, _>(bounds).map(|(_, object)| object);
            let mut found = Vec::new();
            while found.len() < limit
                && let Some(object) = range.next()
            {
                if self.passes(filter, object) {
                    found.push(Arc::clone(object));
                }
            }
            let more = if limit == usize::MAX { 0 } else { range.count() };
            let unreadable = state.unreadable(&start, &end);
            Listed { objects: found, more, newest: state.newest, unreadable }
        })
    }

    /// Whether the object passes the filter.
    pub fn passes(&self, filter: &Filter, object: &Object) -> bool {
        (filter.namespace.is_empty() || object.namespace() == filter.namespace)
            && (filter.labels.is_empty() || filter.labels.matches(&object.labels))
            && filter.fields.matches(|field| match field {
                "metadata.name" => object.name().into(),
                "metadata.namespace" => object.namespace().into(),
                other => {
                    let index = self.form.fields.iter().position(|field| field.label == other);
                    index.and_then(|i| object.fields.get(i)).map_or("", String::as_str).into()
                }
            })
    }

    /// A look at the revision of the newest change.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.bell.subscribe()
    }

    /// At most `max` changes after `after`.
    pub fn changes(&self, after: Revision, max: usize) -> Result<Vec<Change>, TooOld> {
        self.look(|state| {
            if after < state.since {
                return Err(TooOld { oldest: state.since });
            }
            let first = state.window.partition_point(|logged| logged.change.revision <= after);
            Ok(state.window.iter().skip(first).take(max).map(|logged| logged.change.clone()).collect())
        })
    }
}

impl Change {
    /// The bytes of the object that it brought.
    fn bytes(&self) -> usize {
        self.new.as_ref().map_or(0, |object| object.bytes.len())
    }
}

fn bounds<'a>(start: &'a str, end: &'a str) -> (Bound<&'a str>, Bound<&'a str>) {
    (Bound::Included(start), Bound::Excluded(end))
}

impl State {
    fn unreadable(&self, start: &str, end: &str) -> Option<Unreadable> {
        self.unreadable.range::<str, _>(bounds(start, end)).next().map(|(_, (_, unreadable))| unreadable.clone())
    }

    /// Takes in what the store holds, as far as it could be read; what couldn't is said in the log.
    fn load(&mut self, entry: Entry, read: Result<Object, Unreadable>) {
        match read {
            Ok(object) => drop(self.objects.insert(entry.key, Arc::new(object))),
            Err(unreadable) => {
                tracing::error!(error = %unreadable, revision = entry.modified, "a stored object can't be read: mend or delete it in the store");
                self.unreadable.insert(Arc::clone(&entry.key), (entry, unreadable));
            }
        }
    }

    /// Takes a change into the window.
    fn log(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.window.push_back(Logged { change, at: Instant::now() });
        self.trim(WINDOW_BYTES);
    }

    /// Forgets what is old once there is enough that is not, or more than `most` bytes of all.
    fn trim(&mut self, most: usize) {
        let now = Instant::now();
        while self.window.len() > 1
            && let Some(oldest) = self.window.front()
            && let is_old = now.saturating_duration_since(oldest.at) > WINDOW_AGE
            && (self.bytes > most
                || self.window.len() > WINDOW_MAX
                || is_old && (self.window.len() > WINDOW_MIN || self.bytes > WINDOW_OLD_BYTES))
        {
            self.since = oldest.change.revision;
            self.bytes -= oldest.change.bytes();
            self.window.pop_front();
        }
    }
}

impl Filter {
    /// What the keys of the wanted objects begin with, after the resource's prefix.
    fn range_prefix(&self) -> String {
        match (self.namespace.as_str(), self.fields.required("metadata.name")) {
            ("", _) => String::new(),
            // A name is the end of a key, but every key that begins with it is few enough.
            (namespace, Some(name)) => format!("{namespace}/{name}"),
            (namespace, None) => format!("{namespace}/"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_bounded() {
        let fill = |count: u64, size: usize| {
            let cache = ResourceCache::new("/registry/configmaps/", Form::default(), 0);
            let value = bytes::Bytes::from(format!(r#"{{"metadata":{{"name":"a"}},"data":"{}"}}"#, "x".repeat(size)));
            for revision in 1..=count {
                let key: Arc<str> = format!("/registry/configmaps/n/{revision}").into();
                cache.apply(Event { key, revision, value: Some(value.clone()), created: revision });
            }
            cache
        };
        let small = fill(WINDOW_MIN as u64 + 10, 10);
        assert_eq!(small.changes(0, usize::MAX).map(|changes| changes.len()), Ok(WINDOW_MIN + 10), "what is young stays");
        let large = fill(80, 1 << 20);
        let oldest = large.changes(0, 1).expect_err("it would be too much").oldest;
        let kept = large.changes(oldest, usize::MAX).expect("the rest").len() as u64;
        assert!((60..=64).contains(&kept) && oldest + kept == 80, "{kept} after {oldest}");
    }
}
