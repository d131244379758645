//! What every controller is: a kube-runtime controller over a shared kind, fed by shared watches.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::Controller as Runtime;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::ObjectRef;
use skiff_api::typed::pods::controller_of;

use crate::Context;
use crate::error::Error;
use crate::kind::{Change, Key, Kind, Object, is_conflict};

/// How many objects of a kind may be reconciled at once.
const CONCURRENCY: u16 = 64;
/// The wait after the first failure; it doubles from failure to failure.
const FIRST_RETRY: Duration = Duration::from_millis(20);
/// The longest wait.
const LAST_RETRY: Duration = Duration::from_secs(120);

/// When to look at an object again although nothing changes; `None` when only a change matters.
pub type Again = Option<Duration>;

/// A controller that is being put together.
pub struct Controller<K: Object> {
    name: &'static str,
    kind: Arc<Kind<K>>,
    runtime: Runtime<K>,
}

impl<K: Object> Controller<K> {
    /// A controller of the objects of `kind`, reconciled whenever they change.
    pub fn new(name: &'static str, kind: &Arc<Kind<K>>) -> Self {
        let own = kind.changes(|change: &Change<K>| change.new.iter().map(|o| ObjectRef::from_obj(&**o)).collect());
        let runtime = Runtime::for_shared_stream(futures::stream::pending(), kind.store())
            .reconcile_on(own)
            .with_config(Config::default().concurrency(CONCURRENCY));
        Self { name, kind: kind.clone(), runtime }
    }

    /// Reconciles the objects that `map` makes of each change of another kind.
    pub fn on<O: Object>(
        self,
        other: &Kind<O>,
        map: impl Fn(&Change<O>) -> Vec<ObjectRef<K>> + Send + Sync + 'static,
    ) -> Self {
        let triggers = other.changes(map);
        self.on_stream(triggers)
    }

    /// Reconciles the objects that the stream names.
    pub fn on_stream(self, triggers: impl Stream<Item = ObjectRef<K>> + Send + 'static) -> Self {
        Self { runtime: self.runtime.reconcile_on(triggers), ..self }
    }

    /// Reconciles the object that controls, or controlled, an object of another kind that changed.
    pub fn owns<O: Object>(self, other: &Kind<O>) -> Self {
        self.on(other, owners)
    }

    /// Runs for ever, once all caches are filled.
    pub async fn run<F, R>(self, context: Arc<Context>, reconcile: F)
    where
        F: Fn(Arc<Context>, Arc<K>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Again, Error>> + Send + 'static,
    {
        context.kinds.ready().await;
        self.kind.ready().await;
        let name = self.name;
        let failures = Arc::new(Failures::default());
        let done = failures.clone();
        let act = move |object: Arc<K>, context: Arc<Context>| {
            let key = Key::of(object.meta());
            let done = done.clone();
            let work = reconcile(context, object);
            // The runtime carries it on in a task of its own.
            crate::carried(async move {
                let again = work.await?;
                done.forget(&key);
                Ok(again.map_or_else(Action::await_change, Action::requeue))
            })
        };
        let retry = move |object: Arc<K>, error: &Error, _: Arc<Context>| {
            let key = Key::of(object.meta());
            match error.cause() {
                Some(cause) if is_conflict(cause) => tracing::debug!(controller = name, ?key, %error, "trying again"),
                _ => tracing::warn!(controller = name, ?key, %error, "reconciling failed, trying again"),
            }
            Action::requeue(failures.delay(&key))
        };
        self.runtime
            .run(act, retry, context)
            // Failures were dealt with above; what else comes here is an object that vanished before its turn.
            .for_each(|_| std::future::ready(()))
            .await;
    }
}

/// The objects of kind `K` that control, or controlled, what changed.
pub fn owners<O: Object, K: Object>(change: &Change<O>) -> Vec<ObjectRef<K>> {
    let mut owners: Vec<ObjectRef<K>> = Vec::new();
    for object in change.states() {
        let Some(owner) = controller_of(object.meta()) else { continue };
        if owner.kind != K::kind(&()) || owner.api_version != K::api_version(&()) {
            continue;
        }
        let reference = Key::new(object.meta().namespace.as_deref().unwrap_or(""), &owner.name).reference();
        if !owners.contains(&reference) {
            owners.push(reference);
        }
    }
    owners
}

/// Counts failures in a row, by object.
#[derive(Default)]
struct Failures(Mutex<HashMap<Key, u32>>);

impl Failures {
    fn delay(&self, key: &Key) -> Duration {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_default();
        *count += 1;
        FIRST_RETRY.saturating_mul(1u32 << (*count - 1).min(20)).min(LAST_RETRY)
    }

    fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
