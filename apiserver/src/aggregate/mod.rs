//! Aggregation: group versions that other servers serve behind this one. API services say which; this watches them, has
//! requests carried on to those servers, says in each one's condition whether it can be reached, and registers an API
//! service for everything that is served here.

pub(crate) mod merge;
mod plan;
mod remote;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use skiff_api::value::{at, text};
use skiff_api::{Status, resource};
use skiff_store::{Guard, Revision};
use tokio::time::Instant;

use crate::auth::User;
use crate::auth::pki::{Authority, Pair};
use crate::bootstrap;
use crate::cache::{Filter, ResourceCache};
use crate::server::Server;
use crate::verbs::now_text;
use plan::{Step, Verdict};
pub(crate) use remote::{Documents, Remote};

const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
/// Where the authority of the certificate that is shown to other servers is kept: one for all API servers of a store.
pub(crate) const FRONT_KEY: &str = "/registry/skiff.io/front-proxy-ca";
/// The name in that certificate.
const FRONT_NAME: &str = "front-proxy-client";
/// How often a server that answered is asked again.
const PERIOD: Duration = Duration::from_secs(30);
/// How soon one that didn't is asked again the first time; then it takes twice as long each time, up to the period.
const RETRY: Duration = Duration::from_secs(1);

/// The group versions of others, as of one moment.
pub(crate) type Remotes = Arc<Vec<Arc<Remote>>>;

/// What is known of other servers.
#[derive(Default)]
pub(crate) struct Aggregator {
    remotes: RwLock<Remotes>,
    front: OnceLock<Pair>,
}

impl Aggregator {
    /// Everything that others serve.
    pub fn now(&self) -> Remotes {
        Arc::clone(&self.remotes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who serves that path, if it is somebody else.
    pub fn find(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes.read().unwrap_or_else(PoisonError::into_inner);
        remotes.iter().find(|remote| remote.serves(path)).cloned()
    }
}

/// What was found out about an API service of somebody else.
struct Known {
    /// The revisions of what the answer hung on: the API service's spec, its Service, the slices.
    basis: (Value, Vec<Revision>),
    condition: (bool, &'static str, String),
    documents: Arc<Documents>,
    /// When to ask again; `None` when only a change can help.
    again: Option<Instant>,
    failures: u32,
}

struct Controller {
    server: Arc<Server>,
    services: Arc<ResourceCache>,
    known: BTreeMap<String, Known>,
}

/// Follows API services. Ends with the server.
pub(crate) async fn run(server: Arc<Server>) {
    let cache = |group: &str, kind: &str| resource::find_kind(group, "v1", kind).and_then(|r| server.cache.resource(&r.storage_prefix));
    let caches = (cache("apiregistration.k8s.io", "APIService"), cache("", "Service"), cache("discovery.k8s.io", "EndpointSlice"));
    let (Some(api_services), Some(services), Some(slices)) = caches else { return };
    while let Err(error) = introduce(&server).await {
        tracing::warn!(error = error.message, "what extension API servers need to know isn't written yet");
        tokio::time::sleep(RETRY).await;
    }
    let mut bells = [api_services.subscribe(), services.subscribe(), slices.subscribe()];
    let mut definitions = server.definitions.subscribe();
    let mut controller = Controller { server: Arc::clone(&server), services: api_services, known: BTreeMap::new() };
    let mut start = true;
    loop {
        bells.iter_mut().for_each(|bell| bell.mark_unchanged());
        definitions.mark_unchanged();
        let written = controller.look(start).await;
        start &= !written;
        let mut wake = controller.known.values().filter_map(|k| k.again).min();
        if !written {
            wake = Some(Instant::now() + RETRY);
        }
        let [first, second, third] = &mut bells;
        // Services and slices matter to others' API services alone.
        let remote = !controller.known.is_empty();
        tokio::select! {
            changed = first.changed() => if changed.is_err() { return },
            changed = second.changed(), if remote => if changed.is_err() { return },
            changed = third.changed(), if remote => if changed.is_err() { return },
            changed = definitions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

impl Controller {
    /// Registers, finds out and writes. Answers whether all that was to be written is.
    async fn look(&mut self, start: bool) -> bool {
        let listed = self.services.list(&Filter::default(), 0).objects;
        let existing: BTreeMap<String, Value> = listed.iter().filter_map(|o| Some((o.name().to_owned(), o.value().ok()?))).collect();
        let mut written = self.register(&existing, start).await;
        self.known.retain(|name, _| existing.get(name).is_some_and(|s| at(s, &["spec", "service"]).is_object()));
        self.find_out(&existing).await;
        let now = now_text();
        for (name, service) in &existing {
            let (status, reason, message) = match self.known.get(name) {
                Some(known) => known.condition.clone(),
                None => match plan::verdict(service, None, &[]) {
                    Verdict::Is(status, reason, message) => (status, reason, message),
                    Verdict::Ask => continue,
                },
            };
            if let Some(told) = plan::with_condition(service, (status, reason, &message), &now) {
                written &= settled(bootstrap::replace(&self.server, &format!("{PATH}/{name}/status"), &told).await);
            }
        }
        self.publish(&existing);
        written
    }

    async fn register(&self, existing: &BTreeMap<String, Value>, start: bool) -> bool {
        let mut written = true;
        for step in plan::registrations(&self.server.registry.now(), existing, start) {
            written &= settled(match step {
                Step::Create(service) => bootstrap::create(&self.server, PATH, &service).await,
                Step::Replace(service) => bootstrap::replace(&self.server, &format!("{PATH}/{}", text(&service, &["metadata", "name"])), &service).await,
                Step::Delete(name) => bootstrap::delete(&self.server, &format!("{PATH}/{name}")).await,
            });
        }
        written
    }

    /// Looks at what others' API services hang on, and asks the servers whose turn it is.
    async fn find_out(&mut self, existing: &BTreeMap<String, Value>) {
        let cache = &self.server.cache;
        let now = Instant::now();
        let mut asked = Vec::new();
        for (name, service) in existing.iter().filter(|(_, s)| at(s, &["spec", "service"]).is_object()) {
            let (namespace, target, _) = plan::target_of(&service["spec"]["service"]);
            let found = cache.resource("/registry/services/specs/").and_then(|c| c.get(&format!("/registry/services/specs/{namespace}/{target}")));
            let filter = Filter { namespace: namespace.to_owned(), ..Filter::default() };
            let mut slices = cache.resource("/registry/endpointslices/").map_or_else(Vec::new, |c| c.list(&filter, 0).objects);
            slices.retain(|s| s.labels.get("kubernetes.io/service-name").is_some_and(|s| s == target));
            let revisions = found.iter().chain(&slices).map(|o| o.revision).collect();
            let basis = (service["spec"].clone(), revisions);
            let before = self.known.get(name);
            if before.is_some_and(|k| k.basis == basis && k.again.is_none_or(|again| again > now)) {
                continue;
            }
            let slices: Vec<Value> = slices.iter().filter_map(|s| s.value().ok()).collect();
            let verdict = plan::verdict(service, found.and_then(|f| f.value().ok()).as_ref(), &slices);
            let documents = before.map_or_else(Arc::default, |k| Arc::clone(&k.documents));
            match verdict {
                Verdict::Is(status, reason, message) => {
                    let known = Known { basis, condition: (status, reason, message), documents, again: None, failures: 0 };
                    self.known.insert(name.clone(), known);
                }
                Verdict::Ask => {
                    let failures = before.filter(|k| k.basis == basis).map_or(0, |k| k.failures);
                    let remote = self.server.aggregator.front.get().and_then(|front| Remote::read(service, front, documents));
                    asked.extend(remote.map(|remote| (remote, basis, failures)));
                }
            }
        }
        let answers = asked.into_iter().map(|(remote, basis, failures)| async move {
            let known = match remote.check(cache).await {
                Ok(()) => {
                    let documents = Arc::new(remote.describe(cache).await);
                    let condition = (true, "Passed", "all checks passed".to_owned());
                    Known { basis, condition, documents, again: Some(Instant::now() + PERIOD), failures: 0 }
                }
                Err(why) => {
                    let wait = RETRY.saturating_mul(1 << failures.min(5)).min(PERIOD);
                    let condition = (false, "FailedDiscoveryCheck", why);
                    Known { basis, condition, documents: Arc::clone(&remote.documents), again: Some(Instant::now() + wait), failures: failures + 1 }
                }
            };
            (remote.name, known)
        });
        self.known.extend(join_all(answers).await);
    }

    /// Has requests go where they are to go from now on.
    fn publish(&self, existing: &BTreeMap<String, Value>) {
        let aggregator = &self.server.aggregator;
        let Some(front) = aggregator.front.get() else { return };
        let remotes = existing.iter().filter_map(|(name, service)| {
            let known = self.known.get(name)?;
            let mut remote = Remote::read(service, front, Arc::clone(&known.documents))?;
            remote.available = known.condition.0;
            Some(Arc::new(remote))
        });
        let remotes: Vec<_> = remotes.collect();
        if !(remotes.is_empty() && aggregator.now().is_empty()) {
            *aggregator.remotes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(remotes);
        }
    }
}

/// Whether a write went well. Who was quicker rings the bell.
fn settled(result: Result<(), Status>) -> bool {
    match result {
        Err(error) if !matches!(error.code, 404 | 409) => {
            tracing::warn!(error = error.message, "API service not written");
            false
        }
        _ => true,
    }
}

/// Makes the certificate that is shown to other servers, and tells them whom to believe.
async fn introduce(server: &Arc<Server>) -> Result<(), Status> {
    let authority = front_authority(server).await?;
    let user = User { name: FRONT_NAME.into(), ..User::default() };
    let pair = authority.client(&user).map_err(Status::internal)?;
    let _ = server.aggregator.front.set(pair);
    let data = json!({
        "client-ca-file": server.access.authorities(),
        "requestheader-allowed-names": json!([FRONT_NAME]).to_string(),
        "requestheader-client-ca-file": authority.pair.certificate,
        "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
        "requestheader-group-headers": r#"["X-Remote-Group"]"#,
        "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
        "requestheader-username-headers": r#"["X-Remote-User"]"#,
    });
    let (collection, name) = ("/api/v1/namespaces/kube-system/configmaps", "extension-apiserver-authentication");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-system"}, "data": data});
    bootstrap::create(server, collection, &map).await?;
    let known = server.store.get(&format!("/registry/configmaps/kube-system/{name}")).await?;
    let same = known.and_then(|e| serde_json::from_slice::<Value>(&e.value).ok()).is_some_and(|known| known["data"] == map["data"]);
    if same { Ok(()) } else { bootstrap::patch(server, &format!("{collection}/{name}"), &json!({"data": map["data"]})).await }
}

/// The authority of that certificate, made by whoever comes first.
async fn front_authority(server: &Server) -> Result<Authority, Status> {
    if server.store.get(FRONT_KEY).await?.is_none() {
        let Pair { certificate, key } = Authority::named("front-proxy-ca").map_err(Status::internal)?.pair;
        let made = json!({"metadata": {"name": "front-proxy-ca"}, "certificate": certificate, "key": key}).to_string();
        match server.store.commit(FRONT_KEY, Guard::Absent, Some(made.into())).await {
            Ok(_) | Err(skiff_store::Error::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let entry = server.store.get(FRONT_KEY).await?.ok_or_else(|| Status::internal("the front proxy's authority is gone"))?;
    if server.store.is_stale(FRONT_KEY) {
        // It was kept plain, or by a key that is to go. Should another server be quicker, it has done the same.
        match server.store.commit(FRONT_KEY, Guard::Modified(entry.modified), Some(entry.value.clone())).await {
            Ok(_) | Err(skiff_store::Error::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let kept: Value = serde_json::from_slice(&entry.value).map_err(Status::internal)?;
    let part = |key: &str| text(&kept, &[key]).to_owned();
    Ok(Authority { pair: Pair { certificate: part("certificate"), key: part("key") } })
}
