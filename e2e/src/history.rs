//! Checks what clients were told against what a watch saw: that no acknowledged write is lost, none happens twice, and none
//! happens that nobody asked for.

use std::collections::BTreeMap;

/// What a writer was told of its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; at this revision, where the answer says.
    Done(Option<u64>),
    /// It was refused: it must not have happened.
    Refused,
    /// No answer came: it may have happened, before the writer's next one.
    Unknown,
}

/// One write. Every key has one writer, which writes one after the other, and never the same value twice.
#[derive(Clone, Debug)]
pub struct Write {
    /// The key.
    pub key: String,
    /// The value; `None` deletes.
    pub value: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
}

/// One change, as a watch told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// The value; `None` was deleted.
    pub value: Option<String>,
}

/// What is wrong with a history: the `writes` of each key in the order in which they were made, the changes `seen` in the
/// order in which the watch told of them, and what a list showed at the `end`. Empty when all is well.
pub fn faults(writes: &[Write], seen: &[Change], end: &BTreeMap<String, String>) -> Vec<String> {
    let mut faults = Vec::new();
    for pair in seen.windows(2) {
        if pair[1].revision <= pair[0].revision {
            faults.push(format!("the watch told of revision {} after {}: {:?}", pair[1].revision, pair[0].revision, pair[1]));
        }
    }
    let mut by_key: BTreeMap<&str, (Vec<&Write>, Vec<&Change>)> = BTreeMap::new();
    writes.iter().for_each(|write| by_key.entry(&write.key).or_default().0.push(write));
    seen.iter().for_each(|change| by_key.entry(&change.key).or_default().1.push(change));
    for (key, (writes, changes)) in by_key {
        let mut changes = changes.into_iter().peekable();
        let mut last = None;
        for write in writes {
            let happened = changes.peek().is_some_and(|change| change.value == write.value) && write.outcome != Outcome::Refused;
            match (write.outcome, happened.then(|| changes.next()).flatten()) {
                (Outcome::Done(Some(told)), Some(change)) if told != change.revision => {
                    faults.push(format!("{key}: {:?} was acknowledged at revision {told} and seen at {}", write.value, change.revision));
                }
                (Outcome::Done(at), None) => faults.push(format!("{key}: {:?} was acknowledged ({at:?}) and never seen", write.value)),
                _ => {}
            }
            if happened {
                last = write.value.clone();
            }
        }
        faults.extend(changes.map(|change| format!("{key}: seen, but not as it was written: {change:?}")));
        if end.get(key) != last.as_ref() {
            faults.push(format!("{key}: {:?} in the end, where {last:?} was seen last", end.get(key)));
        }
    }
    let unseen = end.iter().filter(|(key, _)| !writes.iter().any(|write| write.key == **key));
    faults.extend(unseen.map(|(key, value)| format!("{key}: {value:?} in the end, which nobody wrote")));
    faults
}

#[cfg(test)]
mod tests {
    use super::Outcome::{Done, Refused, Unknown};
    use super::*;

    fn change(revision: u64, key: &str, value: &str) -> Change {
        Change { revision, key: key.into(), value: (!value.is_empty()).then(|| value.into()) }
    }

    /// A history of one key: what was written, what was seen, what was there in the end, and whether that is well.
    fn check(writes: &[(&str, Outcome)], seen: &[(u64, &str)], end: &str, fault: Option<&str>) {
        let writes: Vec<_> = writes.iter().map(|(value, outcome)| Write { key: "k".into(), value: (!value.is_empty()).then(|| (*value).into()), outcome: *outcome }).collect();
        let seen: Vec<_> = seen.iter().map(|(revision, value)| change(*revision, "k", value)).collect();
        let end = if end.is_empty() { BTreeMap::new() } else { BTreeMap::from([("k".to_owned(), end.to_owned())]) };
        let found = faults(&writes, &seen, &end);
        match fault {
            None => assert_eq!(found, Vec::<String>::new()),
            Some(fault) => assert!(found.iter().any(|f| f.contains(fault)), "{fault} is not in {found:?}"),
        }
    }

    #[test]
    fn histories() {
        let two = [("a", Done(Some(1))), ("b", Done(Some(2)))];
        check(&two, &[(1, "a"), (2, "b")], "b", None);
        check(&[("a", Done(Some(1))), ("", Done(None))], &[(1, "a"), (2, "")], "", None);
        // A write without an answer may have happened or not; one that was refused may not.
        check(&[("a", Unknown), ("b", Done(Some(2)))], &[(2, "b")], "b", None);
        check(&[("a", Unknown), ("b", Done(Some(2)))], &[(1, "a"), (2, "b")], "b", None);
        check(&[("a", Refused), ("b", Done(Some(2)))], &[(1, "a"), (2, "b")], "b", Some("not as it was written"));
    }

    #[test]
    fn each_fault_is_found() {
        let two = [("a", Done(Some(1))), ("b", Done(Some(2)))];
        check(&two, &[(1, "a")], "a", Some("acknowledged (Some(2)) and never seen"));
        check(&two, &[(1, "a"), (2, "b")], "a", Some("in the end"));
        check(&two, &[(1, "a"), (2, "b")], "", Some("None in the end"));
        check(&two, &[(1, "a"), (2, "b"), (2, "b")], "b", Some("told of revision 2 after 2"));
        check(&two, &[(2, "b"), (1, "a")], "b", Some("told of revision 1 after 2"));
        check(&two, &[(1, "a"), (3, "b")], "b", Some("acknowledged at revision 2 and seen at 3"));
        check(&two, &[(1, "a"), (2, "b"), (3, "c")], "b", Some("not as it was written"));
        check(&[], &[], "x", Some("nobody wrote"));
    }
}
