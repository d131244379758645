//! Who owns whom: every object of the cluster with its owners and dependents, and what follows when one changes.
//! All the judgement is here; nothing here does IO.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::kind::Key;
use crate::resources::Resource;

/// The finalizer of an object that goes after its dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents stay.
pub const ORPHAN: &str = "orphan";
/// How many owners known to be absent are remembered.
const ABSENT_KEPT: usize = 500;

/// The identity of an object.
pub type Uid = Arc<str>;

/// Something to look into.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Whether this object is to be deleted, or its own deletion to be completed.
    Judge(Uid),
    /// This object's dependents are to be set free.
    Orphan(Uid),
}

/// An owner as an object names it, with the namespace where it must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Its uid.
    pub uid: String,
    /// Its API version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The namespace of the object that names it; empty for a cluster-wide one.
    pub namespace: String,
}

impl Claim {
    fn new(owner: &OwnerReference, namespace: &str) -> Self {
        Self {
            uid: owner.uid.clone(),
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            namespace: namespace.to_owned(),
        }
    }
}

/// An object.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it is.
    pub resource: Arc<Resource>,
    /// Where it is.
    pub key: Key,
    /// The revision that all this is about.
    pub version: Option<String>,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// What must be done before it goes.
    pub finalizers: Vec<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl Object {
    /// Reads an object's metadata.
    pub fn new(resource: &Arc<Resource>, meta: &ObjectMeta) -> Self {
        Self {
            resource: resource.clone(),
            key: Key::of(meta),
            version: meta.resource_version.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    fn waits_for(&self, finalizer: &str) -> bool {
        self.deleting && self.finalizers.iter().any(|f| f == finalizer)
    }

    /// Whether the object is what a dependent takes it for.
    fn answers(&self, claim: &Claim) -> bool {
        let group = |api_version: &str| api_version.split_once('/').map_or(String::new(), |(group, _)| group.to_owned());
        self.key.name == claim.name
            && self.resource.api.kind == claim.kind
            && self.resource.api.group == group(&claim.api_version)
            && (self.key.namespace.is_empty() || self.key.namespace == claim.namespace)
    }
}

#[derive(Debug, Default)]
struct Node {
    /// None for one that is only named by others.
    object: Option<Object>,
    /// Objects that name it as an owner.
    dependents: HashSet<Uid>,
}

/// An owner that was just found to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// As it is named.
    pub claim: Claim,
    /// Whether objects of its kind are watched, so that it will be observed too.
    pub watched: bool,
}

/// What is to be done about an object.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Leave,
    /// Nothing, but judge again soon: an owner is there whose watch hasn't told of it yet, and would go unseen if it went before.
    Await,
    /// Find out whether these owners exist, then judge again.
    Verify(Vec<Claim>),
    /// Look into these first.
    After(Vec<Task>),
    /// Take a finalizer off: nothing is left to wait for.
    Release(&'static str),
    /// Take these owners off, which are gone or wait for it; others remain.
    Disown(Vec<String>),
    /// Delete it, with `foregroundDeletion`, `orphan` or neither. Before that, with `unblock`, take care that its
    /// owners don't wait for it, for it would wait for them.
    Delete {
        /// The finalizer whose way it goes.
        way: Option<&'static str>,
        /// Whether it must stop blocking its owners first.
        unblock: bool,
    },
}

/// The graph.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Owners that aren't there, as somebody names them; the oldest first.
    absent: VecDeque<Claim>,
}

impl Graph {
    /// Takes in an object, new or changed.
    pub fn observe(&mut self, uid: &str, object: Object) -> Vec<Task> {
        let uid: Uid = self.nodes.get_key_value(uid).map_or_else(|| uid.into(), |(known, _)| known.clone());
        let mut tasks = Vec::new();
        let old = self.nodes.entry(uid.clone()).or_default().object.replace(object.clone());
        let before = old.as_ref().map(|o| o.owners.as_slice()).unwrap_or_default();
        for owner in &object.owners {
            let node = self.nodes.entry(owner.uid.as_str().into()).or_default();
            node.dependents.insert(uid.clone());
            let answers = node.object.as_ref().map(|o| o.answers(&Claim::new(owner, &object.key.namespace)));
            let known = before.iter().any(|b| b.uid == owner.uid);
            let waits = node.object.as_ref().is_some_and(|o| o.waits_for(FOREGROUND));
            match answers {
                Some(true) if waits && !known => tasks.push(Task::Judge(uid.clone())),
                // An owner that waits may now wait for one thing less.
                Some(true) if waits => tasks.push(Task::Judge(owner.uid.as_str().into())),
                Some(true) => {}
                // Not there, or something else: whether that is so must be found out.
                _ if !known => tasks.push(Task::Judge(uid.clone())),
                _ => {}
            }
        }
        for owner in before.iter().filter(|b| !object.owners.iter().any(|o| o.uid == b.uid)) {
            self.unlink(&owner.uid, &uid);
            if self.waits(&owner.uid, FOREGROUND) {
                tasks.push(Task::Judge(owner.uid.as_str().into()));
            }
        }
        let was = |finalizer| old.as_ref().is_some_and(|o| o.waits_for(finalizer));
        if object.waits_for(ORPHAN) && !was(ORPHAN) {
            tasks.push(Task::Orphan(uid.clone()));
        }
        if object.waits_for(FOREGROUND) {
            if !was(FOREGROUND) {
                tasks.extend(self.dependents(&uid).into_iter().map(Task::Judge));
            }
            tasks.push(Task::Judge(uid));
        }
        tasks
    }

    /// Takes out an object that is gone.
    pub fn gone(&mut self, uid: &str) -> Vec<Task> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut tasks: Vec<Task> = Vec::new();
        for owner in node.object.iter().flat_map(|o| &o.owners) {
            self.unlink(&owner.uid, uid);
            if self.waits(&owner.uid, FOREGROUND) {
                tasks.push(Task::Judge(owner.uid.as_str().into()));
            }
        }
        if !node.dependents.is_empty() {
            tasks.extend(node.dependents.iter().cloned().map(Task::Judge));
            // It stays in the graph as one that is only named, for as long as it is.
            for dependent in &node.dependents {
                let claim = self.claim(dependent, uid);
                claim.into_iter().for_each(|claim| self.note_absent(claim));
            }
            self.nodes.insert(uid.into(), Node { object: None, dependents: node.dependents });
        }
        tasks
    }

    fn claim(&self, dependent: &str, owner: &str) -> Option<Claim> {
        let object = self.object(dependent)?;
        let owner = object.owners.iter().find(|o| o.uid == owner)?;
        Some(Claim::new(owner, &object.key.namespace))
    }

    /// Remembers that an owner isn't there.
    pub fn note_absent(&mut self, claim: Claim) {
        if !self.absent.contains(&claim) {
            self.absent.push_back(claim);
            if self.absent.len() > ABSENT_KEPT {
                self.absent.pop_front();
            }
        }
    }

    /// All objects of the resources that `of` selects.
    pub fn uids_of(&self, of: impl Fn(&Resource) -> bool) -> Vec<Uid> {
        let own = |node: &Node| node.object.as_ref().is_some_and(|o| of(&o.resource));
        self.nodes.iter().filter(|(_, node)| own(node)).map(|(uid, _)| uid.clone()).collect()
    }

    /// An object.
    pub fn object(&self, uid: &str) -> Option<&Object> {
        self.nodes.get(uid)?.object.as_ref()
    }

    /// The objects that name this one as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<Uid> {
        self.nodes.get(uid).map(|n| n.dependents.iter().cloned().collect()).unwrap_or_default()
    }

    fn waits(&self, uid: &str, finalizer: &str) -> bool {
        self.object(uid).is_some_and(|o| o.waits_for(finalizer))
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(node) = self.nodes.get_mut(owner) {
            node.dependents.remove(dependent);
            if node.object.is_none() && node.dependents.is_empty() {
                self.nodes.remove(owner);
            }
        }
    }

    /// Judges an object. `verified` are owners that were just found to be there.
    pub fn judge(&self, uid: &str, verified: &[Found]) -> Verdict {
        let Some(object) = self.object(uid) else { return Verdict::Leave };
        if object.waits_for(FOREGROUND) {
            return self.judge_waiting(uid);
        }
        if object.deleting || object.owners.is_empty() {
            return Verdict::Leave;
        }
        let (mut solid, mut unseen) = (0, false);
        let (mut gone, mut waiting, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for owner in &object.owners {
            let claim = Claim::new(owner, &object.key.namespace);
            match self.object(&owner.uid) {
                Some(found) if found.answers(&claim) && found.waits_for(FOREGROUND) => waiting.push(owner.uid.clone()),
                Some(found) if found.answers(&claim) => solid += 1,
                seen if let Some(found) = verified.iter().find(|found| found.claim == claim) => {
                    solid += 1;
                    unseen |= found.watched && seen.is_none();
                }
                _ if self.absent.contains(&claim) => gone.push(owner.uid.clone()),
                _ => unknown.push(claim),
            }
        }
        if !unknown.is_empty() {
            return Verdict::Verify(unknown);
        }
        let dependents = self.dependents(uid);
        if solid > 0 {
            gone.extend(waiting);
            return match (gone.is_empty(), unseen) {
                (true, false) => Verdict::Leave,
                (true, true) => Verdict::Await,
                (false, _) => Verdict::Disown(gone),
            };
        }
        if !waiting.is_empty() && !dependents.is_empty() {
            let unblock = dependents.iter().any(|d| self.waits(d, FOREGROUND));
            return Verdict::Delete { way: Some(FOREGROUND), unblock };
        }
        let way = [ORPHAN, FOREGROUND].into_iter().find(|way| object.finalizers.iter().any(|f| f == way));
        Verdict::Delete { way, unblock: false }
    }

    /// Judges an object that goes after its dependents.
    fn judge_waiting(&self, uid: &str) -> Verdict {
        let blocks = |dependent: &Uid| {
            let object = self.object(dependent);
            object.is_some_and(|o| o.owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true)))
        };
        let blocking: Vec<Uid> = self.dependents(uid).into_iter().filter(blocks).collect();
        if blocking.is_empty() {
            return Verdict::Release(FOREGROUND);
        }
        let idle = blocking.into_iter().filter(|d| !self.object(d).is_some_and(|o| o.deleting));
        Verdict::After(idle.map(Task::Judge).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::discovery::ApiResource;

    fn resource(kind: &str) -> Arc<Resource> {
        let api = ApiResource {
            group: String::new(), version: "v1".into(), api_version: "v1".into(), kind: kind.into(), plural: kind.to_lowercase(),
        };
        Arc::new(Resource { api, namespaced: true, delete_collection: true, watchable: true })
    }

    /// An object `name` (also its uid) owned by `owners`; `!` before an owner: it doesn't block it.
    fn object(name: &str, owners: &[&str], finalizers: &[&str], deleting: bool) -> Object {
        let owner = |text: &&str| OwnerReference {
            api_version: "v1".into(),
            kind: "Thing".into(),
            name: text.trim_start_matches('!').into(),
            uid: text.trim_start_matches('!').into(),
            block_owner_deletion: Some(!text.starts_with('!')),
            controller: None,
        };
        Object {
            resource: resource("Thing"),
            key: Key::new("default", name),
            version: None,
            owners: owners.iter().map(owner).collect(),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            deleting,
        }
    }

    fn graph(objects: &[(&str, &[&str], &[&str], bool)]) -> Graph {
        let mut graph = Graph::default();
        for (name, owners, finalizers, deleting) in objects {
            graph.observe(name, object(name, owners, finalizers, *deleting));
        }
        graph
    }

    fn judged(tasks: &[Task]) -> Vec<String> {
        let mut names: Vec<_> = tasks
            .iter()
            .map(|t| match t {
                Task::Judge(uid) => uid.to_string(),
                Task::Orphan(uid) => format!("orphan {uid}"),
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    const DELETE: Verdict = Verdict::Delete { way: None, unblock: false };

    #[test]
    fn dependents_follow_their_last_owner() {
        let mut graph = graph(&[("a", &[], &[], false), ("b", &[], &[], false), ("c", &["a"], &[], false), ("d", &["a", "b"], &[], false)]);
        assert_eq!(graph.judge("c", &[]), Verdict::Leave);
        assert_eq!(judged(&graph.gone("a")), ["c", "d"]);
        assert_eq!(graph.judge("c", &[]), DELETE);
        assert_eq!(graph.judge("d", &[]), Verdict::Disown(vec!["a".into()]));
    }

    #[test]
    fn owners_never_seen_are_verified() {
        let mut graph = Graph::default();
        assert_eq!(judged(&graph.observe("c", object("c", &["x"], &[], false))), ["c"]);
        let Verdict::Verify(claims) = graph.judge("c", &[]) else { panic!("must be verified") };
        let found = |watched| [Found { claim: claims[0].clone(), watched }];
        assert_eq!(graph.judge("c", &found(false)), Verdict::Leave, "it is there after all");
        assert_eq!(graph.judge("c", &found(true)), Verdict::Await, "and is to be seen");
        let mut seen = Graph::default();
        seen.observe("c", object("c", &["x"], &[], false));
        seen.observe("x", Object { key: Key::new("elsewhere", "x"), ..object("x", &[], &[], false) });
        assert_eq!(seen.judge("c", &found(true)), Verdict::Leave, "it was seen, though under another name");
        graph.note_absent(claims[0].clone());
        assert_eq!(graph.judge("c", &[]), DELETE);
    }

    #[test]
    fn an_owner_in_another_namespace_is_none() {
        let mut graph = graph(&[("a", &[], &[], false)]);
        let mut stray = object("c", &["a"], &[], false);
        stray.key = Key::new("elsewhere", "c");
        assert_eq!(judged(&graph.observe("c", stray)), ["c"]);
        assert!(matches!(graph.judge("c", &[]), Verdict::Verify(_)));
    }

    #[test]
    fn foreground_waits_for_those_that_block() {
        let mut graph = graph(&[("a", &[], &[], false), ("b", &["a"], &[], false), ("c", &["!a"], &[], false)]);
        let tasks = graph.observe("a", object("a", &[], &[FOREGROUND], true));
        assert_eq!(judged(&tasks), ["a", "b", "c"]);
        assert_eq!(graph.judge("b", &[]), DELETE);
        assert_eq!(graph.judge("a", &[]), Verdict::After(vec![Task::Judge("b".into())]));
        graph.observe("b", object("b", &["a"], &[], true));
        assert_eq!(graph.judge("a", &[]), Verdict::After(vec![]), "it is on its way");
        assert_eq!(judged(&graph.gone("b")), ["a"]);
        assert_eq!(graph.judge("a", &[]), Verdict::Release(FOREGROUND), "c doesn't block");
    }

    #[test]
    fn foreground_goes_down_the_tree() {
        let graph = graph(&[("a", &[], &[FOREGROUND], true), ("b", &["a"], &[], false), ("c", &["b"], &[], false)]);
        assert_eq!(graph.judge("b", &[]), Verdict::Delete { way: Some(FOREGROUND), unblock: false });
    }

    #[test]
    fn a_circle_is_cut() {
        let graph = graph(&[("a", &["b"], &[FOREGROUND], true), ("b", &["a"], &[], false)]);
        assert_eq!(graph.judge("b", &[]), Verdict::Delete { way: Some(FOREGROUND), unblock: true });
    }

    #[test]
    fn orphans_are_set_free() {
        let mut graph = graph(&[("a", &[], &[], false), ("b", &["a"], &[], false)]);
        assert_eq!(judged(&graph.observe("a", object("a", &[], &[ORPHAN], true))), ["orphan a"]);
        assert_eq!(graph.dependents("a"), ["b".into()]);
        graph.observe("b", object("b", &[], &[], false));
        assert!(graph.dependents("a").is_empty());
    }
}
