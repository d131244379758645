//! The pods that wait for a node.
//!
//! A pod is *active* (to be looked at next), in *backoff* (to be looked at after a while), *unschedulable* (to be looked
//! at when something happens that can help it), *gated*, or *away* (its binding is under way).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::PodFacts;

/// The first wait after a failure; it doubles from failure to failure.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// After so long a pod that nothing helped is looked at again.
const GIVE_UP_WAITING: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the heap; left by `pop`.
    Active,
    /// In the timers until this instant; then active.
    Backoff(Instant),
    /// Until an event helps, or the timer that was set at this instant fires.
    Unschedulable(Instant),
    /// Until the gates are taken off.
    Gated,
    /// Being placed or bound; left by `failed` or `remove`.
    Away,
}

/// A pod that waits.
#[derive(Debug)]
struct Waiting {
    pod: Arc<PodFacts>,
    /// How often it was tried.
    attempts: u32,
    state: State,
    /// Names of the plugins that refused it last time.
    refused_by: Vec<&'static str>,
    /// Its turn among pods of the same priority.
    turn: u64,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    /// By priority, then by turn. May hold pods that have moved on; `pop` skips them.
    active: BinaryHeap<(i32, Reverse<u64>, String)>,
    /// When to look at whom again. May hold pods that have moved on.
    timers: BinaryHeap<Reverse<(Instant, String)>>,
    turns: u64,
}

impl Queue {
    /// Takes in a pod, new or changed. A change that can matter for its scheduling gives it another try.
    pub fn set(&mut self, pod: PodFacts) {
        let pod = Arc::new(pod);
        let gated = !pod.gates.is_empty();
        match self.pods.get_mut(&pod.uid) {
            None => {
                let uid = pod.uid.clone();
                self.turns += 1;
                let turn = self.turns;
                let waiting = Waiting { pod, attempts: 0, state: State::Gated, refused_by: Vec::new(), turn };
                self.pods.insert(uid.clone(), waiting);
                if !gated {
                    self.activate(&uid);
                }
            }
            Some(waiting) => {
                let changed = !waiting.pod.schedules_like(&pod);
                waiting.pod = pod.clone();
                match waiting.state {
                    State::Gated if !gated => self.activate(&pod.uid),
                    State::Unschedulable(_) if changed => self.retry(&pod.uid),
                    _ => {}
                }
            }
        }
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// A waiting pod.
    pub fn get(&self, uid: &str) -> Option<&Arc<PodFacts>> {
        self.pods.get(uid).map(|w| &w.pod)
    }

    /// Uids of all waiting pods.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// Takes the most important pod whose turn it is.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodFacts>> {
        self.fire(now);
        while let Some((_, Reverse(turn), uid)) = self.active.pop() {
            if let Some(waiting) = self.pods.get_mut(&uid)
                && waiting.state == State::Active
                && waiting.turn == turn
            {
                waiting.state = State::Away;
                waiting.attempts += 1;
                return Some(waiting.pod.clone());
            }
        }
        None
    }

    /// When the next timer fires.
    pub fn next_timer(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, uid))) = self.timers.peek() {
            let live = self.pods.get(uid).is_some_and(|w| match w.state {
                State::Backoff(until) => until == *at,
                State::Unschedulable(since) => since + GIVE_UP_WAITING == *at,
                _ => false,
            });
            if live {
                return Some(*at);
            }
            self.timers.pop();
        }
        None
    }

    fn fire(&mut self, now: Instant) {
        while self.next_timer().is_some_and(|at| at <= now) {
            if let Some(Reverse((_, uid))) = self.timers.pop() {
                self.activate(&uid);
            }
        }
    }

    /// Puts a pod back that no node could take.
    pub fn unschedulable(&mut self, uid: &str, refused_by: Vec<&'static str>, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.state = State::Unschedulable(now);
            waiting.refused_by = refused_by;
            self.timers.push(Reverse((now + GIVE_UP_WAITING, uid.to_owned())));
        }
    }

    /// Puts a pod back whose placing failed for no fault of its own.
    pub fn failed(&mut self, uid: &str) {
        if self.pods.contains_key(uid) {
            self.retry(uid);
        }
    }

    /// Something happened: pods that it can help, as `helps` judges by the pod and who refused it, are tried again.
    pub fn happened(&mut self, helps: impl Fn(&PodFacts, &str) -> bool) {
        let helped: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, w)| matches!(w.state, State::Unschedulable(_)))
            .filter(|(_, w)| w.refused_by.is_empty() || w.refused_by.iter().any(|plugin| helps(&w.pod, plugin)))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in helped {
            self.retry(&uid);
        }
    }

    fn activate(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.state = State::Active;
            self.active.push((waiting.pod.priority, Reverse(waiting.turn), uid.to_owned()));
        }
    }

    /// Has a pod tried again once its backoff is over, counted from its last try.
    fn retry(&mut self, uid: &str) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let backoff = FIRST_BACKOFF.saturating_mul(1 << waiting.attempts.saturating_sub(1).min(10)).min(MAX_BACKOFF);
        let from = match waiting.state {
            State::Unschedulable(since) => since,
            _ => Instant::now(),
        };
        let until = from + backoff;
        if waiting.attempts == 0 || until <= Instant::now() {
            self.activate(uid);
        } else {
            waiting.state = State::Backoff(until);
            self.timers.push(Reverse((until, uid.to_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32) -> PodFacts {
        let value = serde_json::json!({ "metadata": { "name": name, "uid": name }, "spec": { "priority": priority, "containers": [] } });
        PodFacts::new(&serde_json::from_value(value).expect("a pod"))
    }

    fn next(queue: &mut Queue) -> Option<String> {
        queue.pop(Instant::now()).map(|pod| pod.name.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn the_important_go_first_and_then_who_came_first() {
        let mut queue = Queue::default();
        [pod("a", 0), pod("b", 0), pod("c", 9)].into_iter().for_each(|p| queue.set(p));
        let order: Vec<_> = std::iter::from_fn(|| next(&mut queue)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_refused_waits_for_help_and_for_its_turn() {
        let mut queue = Queue::default();
        queue.set(pod("a", 0));
        for wait in [1, 2, 4, 8, 10, 10] {
            assert_eq!(next(&mut queue).as_deref(), Some("a"));
            queue.unschedulable("a", vec!["NodeResourcesFit"], Instant::now());
            queue.happened(|_, plugin| plugin == "NodeAffinity");
            assert_eq!(queue.next_timer().map(|at| at - Instant::now()), Some(GIVE_UP_WAITING), "nothing helped");
            queue.happened(|_, plugin| plugin == "NodeResourcesFit");
            assert_eq!(queue.next_timer().map(|at| at - Instant::now()), Some(Duration::from_secs(wait)));
            assert_eq!(next(&mut queue), None);
            tokio::time::advance(Duration::from_secs(wait)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let mut queue = Queue::default();
        queue.set(pod("a", 0));
        next(&mut queue);
        queue.unschedulable("a", vec!["NodeAffinity"], Instant::now());
        tokio::time::advance(GIVE_UP_WAITING).await;
        assert_eq!(next(&mut queue).as_deref(), Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn gates_hold_back() {
        let mut queue = Queue::default();
        queue.set(PodFacts { gates: vec!["g".into()], ..pod("a", 0) });
        assert_eq!(next(&mut queue), None);
        queue.set(pod("a", 0));
        assert_eq!(next(&mut queue).as_deref(), Some("a"));
        queue.remove("a");
        queue.failed("a");
        assert_eq!(next(&mut queue), None);
    }
}
