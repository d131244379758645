//! The server: its parts, and how it comes up.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use skiff_api::resource::Resource;
use skiff_api::Status;
use skiff_store::{Entry, Revision, Store};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Acting, Hooks, Ledger, Policies, watch_policies};
use crate::aggregate::{self, Aggregator};
use crate::audit::Auditor;
use crate::auth::pki::{Authority, SigningKey};
use crate::auth::rbac::Rbac;
use crate::auth::tokens::Tokens;
use crate::auth::{self, Access};
use crate::cache::{Cache, Form};
use crate::dial::Dialer;
use crate::encryption::{self, Encrypted, Encryption};
use crate::flow::{self, Flow};
use crate::metrics::Metrics;
use crate::options::{self, Options};
use crate::registry::Registry;
use crate::strategy::{Allocator, Strategies, give_back};
use crate::webhook::Webhooks;
use crate::{bootstrap, custom, expiry, identity, publish, signer};

/// How often history is given up, and how much of it stays: upstream's five minutes.
const COMPACTION_PERIOD: Duration = Duration::from_secs(300);

/// How long requests are given to end when the server does.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// How long reading the store's recent history may take at the start.
const CATCH_UP: Duration = Duration::from_secs(60);

/// What a server is made with.
pub struct Config {
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// The cluster's certificate authority.
    pub authority: Authority,
    /// The key of service account tokens.
    pub signing_key: SigningKey,
    /// Where cluster IPs come from: `10.96.0.0/16`.
    pub service_cidr: String,
    /// The address and port that the `kubernetes` Service leads to.
    pub advertise: (IpAddr, u16),
    /// How kubelets are reached.
    pub dialer: Arc<dyn Dialer>,
    /// Who may do what, what is told of it, and what is encrypted.
    pub options: Options,
    /// What `/version` says behind `v1.36.2+`: `skiff.0.1.0`.
    pub build: String,
}

/// A server can't come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store is out of order.
    #[error("read the store: {0}")]
    Store(#[from] skiff_store::Error),
    /// The key of service account tokens can't be used.
    #[error(transparent)]
    Key(#[from] auth::tokens::KeyError),
    /// The range of cluster IPs can't be used.
    #[error("service CIDR: {0}")]
    ServiceCidr(String),
    /// An option can't be followed.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// Nothing can be encrypted.
    #[error(transparent)]
    Encryption(#[from] encryption::Error),
    /// What every cluster begins with couldn't be written.
    #[error("write the cluster's first objects: {0}")]
    Bootstrap(Status),
}

/// The API server. It is shared by all its connections and the components of this process.
pub struct Server {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) registry: Registry,
    pub(crate) strategies: Strategies,
    pub(crate) allocator: Allocator,
    pub(crate) tokens: Tokens,
    pub(crate) rbac: Rbac,
    pub(crate) quota_ledger: Arc<Ledger>,
    pub(crate) authority: Authority,
    pub(crate) advertise: (IpAddr, u16),
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) acting: Acting,
    pub(crate) access: Access,
    pub(crate) auditor: Auditor,
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) hooks: Hooks,
    pub(crate) policies: Policies,
    pub(crate) build: String,
    pub(crate) metrics: Metrics,
    /// What other servers serve behind this one.
    pub(crate) aggregator: Aggregator,
    /// OpenAPI documents that were asked for.
    pub(crate) openapi: publish::OpenApi,
    pub(crate) flow: Arc<Flow>,
    /// Requests that are being served: what they need ends after them.
    pub(crate) serving: TaskTracker,
    /// What else of the control plane runs in this process.
    components: Mutex<Vec<(&'static str, AbortHandle)>>,
    /// The revision up to which the definitions of custom resources are served.
    pub(crate) definitions: watch::Sender<Revision>,
    /// Ends watches, and then the server.
    stop: CancellationToken,
}

impl Server {
    /// Reads the store, writes what every cluster begins with, and is ready. `stop` ends it.
    pub async fn start(config: Config, stop: CancellationToken) -> Result<Arc<Self>, Error> {
        // What has begun by then ends when something goes wrong.
        let stop = stop.child_token();
        let unready = stop.clone().drop_guard();
        let registry = Registry::default();
        let options = &config.options;
        let store = match &options.encryption_provider_config {
            Some(path) => Arc::new(Encrypted::new(config.store, Encryption::read(path)?)),
            None => config.store,
        };
        let config = Config { store, ..config };
        let cache = Cache::load(Arc::clone(&config.store), kept(&registry.now().ordered)).await?;
        let cache = Arc::new(cache);
        let webhooks = Arc::new(Webhooks::new(Arc::clone(&cache)));
        let metrics = Metrics::default();
        let server = Arc::new(Self {
            store: config.store,
            hooks: Hooks::default(),
            policies: Policies::default(),
            acting: Acting::read(&config.options)?,
            access: Access::read(&config.options, &config.authority)?,
            auditor: Auditor::open(&config.options, &webhooks, metrics.audit.clone())?,
            webhooks,
            cache,
            registry,
            strategies: Strategies::new(),
            allocator: config.service_cidr.parse().map_err(Error::ServiceCidr)?,
            tokens: Tokens::new(&config.signing_key)?,
            rbac: Rbac::default(),
            quota_ledger: Arc::default(),
            authority: config.authority,
            advertise: config.advertise,
            dialer: config.dialer,
            build: config.build,
            metrics,
            aggregator: Aggregator::default(),
            openapi: publish::OpenApi::default(),
            flow: Arc::default(),
            serving: TaskTracker::new(),
            components: Mutex::default(),
            definitions: watch::Sender::new(0),
            stop,
        });
        let newest = server.store.revision().await?;
        // Before the cache moves on, so that watches of custom resources too go on from where they were.
        let definitions = custom::Controller::new(&server);
        tokio::spawn({
            let server = Arc::clone(&server);
            async move {
                let ended = CancellationToken::new();
                let _guard = ended.clone().drop_guard();
                let (follow, drained) = (server.cache.follow(ended), server.drained());
                tokio::select! {
                    () = follow => {}
                    () = drained => {}
                }
            }
        });
        server.cache.reached(newest, CATCH_UP).await.map_err(|applied| {
            skiff_store::Error::Unavailable(format!("after {CATCH_UP:?} its changes are read up to revision {applied} of {newest}"))
        })?;
        server.spawn(|server| async move { server.compact().await });
        if let Some(mut definitions) = definitions {
            // What came since is served from the start too.
            definitions.look();
            server.spawn(|_| definitions.run());
        }
        bootstrap::write(&server).await.map_err(Error::Bootstrap)?;
        server.spawn(bootstrap::keep);
        server.spawn(identity::run);
        server.spawn(flow::follow);
        server.spawn(watch_policies);
        server.spawn(signer::run);
        server.spawn(auth::fill_secrets);
        server.spawn(auth::reload);
        server.spawn(aggregate::run);
        server.spawn(expiry::run);
        unready.disarm();
        Ok(server)
    }

    /// Has a task of the server's own done, until it is to end.
    fn spawn<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, task: impl FnOnce(Arc<Self>) -> F) {
        let (stop, task) = (self.stop.clone(), task(Arc::clone(self)));
        tokio::spawn(async move { stop.run_until_cancelled(task).await });
    }

    /// Gives up history that is older than the period, once a period.
    async fn compact(&self) {
        let mut before = None;
        loop {
            if let Some(revision) = before
                && let Err(error) = self.store.compact(revision).await
            {
                tracing::warn!(%error, revision, "compaction failed");
            }
            self.cache.forget();
            before = Some(self.cache.applied());
            tokio::time::sleep(COMPACTION_PERIOD).await;
        }
    }

    /// The authorities whose clients may connect, PEM: what [`crate::http::serve::tls`] wants.
    pub fn client_authorities(&self) -> String {
        self.access.client_authorities()
    }

    /// Resolves when the server is to end and nobody waits for an answer any more.
    async fn drained(&self) {
        self.stopping().await;
        self.serving.close();
        let _ = tokio::time::timeout(GRACE, self.serving.wait()).await;
    }

    /// Whether the server is to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Resolves when the server is to end.
    pub(crate) async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// The store's key of an object.
    pub(crate) fn key(&self, resource: &Resource, namespace: &str, name: &str) -> String {
        let prefix = &resource.storage_prefix;
        if resource.namespaced { format!("{prefix}{namespace}/{name}") } else { format!("{prefix}{name}") }
    }

    /// Tidies up behind an object that is gone.
    pub(crate) async fn deleted(&self, resource: &Resource, entry: &Entry) {
        let Ok(object) = serde_json::from_slice::<Value>(&entry.value) else { return };
        for key in self.strategies.of(resource).claims_of(&object) {
            give_back(self, &key).await;
        }
    }

    /// Counts a task of this process among the control plane's components that `componentstatuses` shows.
    pub fn add_component(&self, name: &'static str, task: AbortHandle) {
        self.components.lock().unwrap_or_else(PoisonError::into_inner).push((name, task));
    }

    /// The components of this process, and how they are.
    pub(crate) fn components(&self) -> Vec<(String, Result<(), String>)> {
        let components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        let health = |task: &AbortHandle| if task.is_finished() { Err("it has ended".to_owned()) } else { Ok(()) };
        components.iter().map(|(name, task)| ((*name).to_owned(), health(task))).collect()
    }
}

/// The prefixes of the resources that are stored, each once, and how their objects are read.
fn kept(resources: &[Arc<Resource>]) -> Vec<(String, Form)> {
    let prefixes: BTreeSet<&str> = resources.iter().map(|r| r.storage_prefix.as_ref()).filter(|prefix| !prefix.is_empty()).collect();
    let form = |prefix: &str| Form::of(resources.iter().filter(|r| r.storage_prefix == prefix).map(Arc::as_ref), None);
    prefixes.into_iter().map(|prefix| (prefix.to_owned(), form(prefix))).collect()
}
