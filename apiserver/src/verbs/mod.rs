//! The verbs: one path for every kind. What is special about a kind stands in its strategy, never here.

mod create;
mod delete;
mod list;
mod options;
mod patch;
mod update;
mod view;
mod watch;
pub(crate) mod websocket;
mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use serde_json::Value;
use skiff_api::Status;
use skiff_api::resource::{Resource, Subresource};
use skiff_store::Revision;

use crate::audit::Record;
use crate::auth::User;
use crate::cache::ResourceCache;
use crate::convert;
use crate::http::body::Reply;
use crate::http::encode::{Encoder, Include, Shown};
use crate::http::info::RequestInfo;
use crate::http::negotiate::{self, Shape};
use crate::http::query::Query;
use crate::server::Server;
use crate::strategy::Strategy;
use crate::subresources;

pub(crate) use create::namespace_matches;
pub(crate) use delete::{DeleteOptions, delete_object};
pub(crate) use options::FieldValidation;
pub(crate) use patch::{apply_error, put};
pub(crate) use view::View;
pub(crate) use write::{Transaction, Write, decode_as, now_text, stamp, transact};

/// One request of a resource, understood and authorized.
pub(crate) struct Call {
    pub server: Arc<Server>,
    pub info: RequestInfo,
    pub query: Query,
    pub headers: HeaderMap,
    pub user: User,
    pub resource: Arc<Resource>,
    pub shape: Shape,
    /// The client's connection, should it become something else than HTTP.
    pub upgrade: Option<subresources::Upgrade>,
    /// What the answer says besides: shared by the calls that one request comes to.
    pub notes: Arc<Notes>,
}

/// What is said of a request besides its answer.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// `Warning` headers.
    pub warnings: Mutex<Vec<String>>,
    /// Annotations for the audit log.
    pub annotations: Mutex<BTreeMap<String, String>>,
    /// What the audit log is told.
    record: OnceLock<Option<Arc<Record>>>,
}

impl Notes {
    /// Warns the client, once of each thing.
    pub fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Annotates the request in the audit log.
    pub fn annotate(&self, key: String, value: String) {
        self.annotations.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }

    /// The request is told of in the audit log.
    pub fn begin(&self, record: Option<Record>) {
        let _ = self.record.set(record.map(Arc::new));
    }

    /// What the audit log is told, if it is.
    pub fn audited(&self) -> Option<&Arc<Record>> {
        self.record.get()?.as_ref()
    }

    /// Tells the audit log what was sent.
    pub fn sent(&self, object: &Value) {
        if let Some(record) = self.audited() {
            record.sent(object);
        }
    }

    /// Puts the warnings into an answer.
    pub fn add_to(&self, reply: &mut Reply) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|warning| add_warning(reply, warning));
    }
}

/// Adds a `Warning` header to an answer.
pub(crate) fn add_warning(reply: &mut Reply, warning: &str) {
    let clean: String = warning.chars().filter(|c| !c.is_control()).collect();
    let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
    if let Ok(header) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
        reply.headers_mut().append(http::header::WARNING, header);
    }
}

impl Call {
    /// The same client's call about another object.
    pub fn about(&self, resource: &Arc<Resource>, namespace: &str, name: &str, subresource: &str) -> Self {
        let info = RequestInfo {
            group: resource.group.to_string(),
            version: resource.version.to_string(),
            resource: resource.plural.to_string(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
            ..self.info.clone()
        };
        Self {
            server: Arc::clone(&self.server),
            info,
            query: self.query.clone(),
            headers: self.headers.clone(),
            user: self.user.clone(),
            resource: Arc::clone(resource),
            shape: self.shape,
            upgrade: None,
            notes: Arc::clone(&self.notes),
        }
    }

    /// The cache of the resource's objects.
    pub fn cache(&self) -> Result<Arc<ResourceCache>, Status> {
        self.server.cache.resource(&self.resource.storage_prefix).ok_or_else(Status::no_such_resource)
    }

    /// The store's key of the object that the request names.
    pub fn key(&self) -> String {
        self.server.key(&self.resource, &self.info.namespace, &self.info.name)
    }

    /// The subresource asked for.
    pub fn subresource(&self) -> Option<&Subresource> {
        self.resource.subresource(&self.info.subresource)
    }

    /// How answers of this request are written.
    pub fn encoder(&self) -> Encoder<'_> {
        let include = match self.query.get("includeObject") {
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        };
        Encoder { resource: &self.resource, shape: self.shape, include, pretty: negotiate::pretty(&self.headers, self.query.get("pretty")) }
    }

    /// What is special about the resource's kind.
    pub fn strategy(&self) -> &Arc<dyn Strategy> {
        self.server.strategies.of(&self.resource)
    }

    /// The object that the request names, as the store has it: not older than the resource version that is asked for.
    pub async fn read(&self) -> Result<Shown, Status> {
        let cache = self.cache()?;
        match self.query.get("resourceVersion").unwrap_or("") {
            "0" if cache.unreadable(&self.key()).is_none() => return self.ready(cache.get(&self.key()).map(Shown::Stored).ok_or_else(|| self.not_found())?).await,
            "" | "0" => {}
            text => {
                let fault = || format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
                let wanted: Revision = text.parse().map_err(|_| Status::new(500, "", fault()))?;
                self.server.cache.reached(wanted, list::FUTURE_TIMEOUT).await.map_err(|current| list::too_large(wanted, current))?;
            }
        }
        let entry = self.server.store.get(&self.key()).await?.ok_or_else(|| self.not_found())?;
        // Mostly the cache has this very version, already read.
        if let Some(object) = cache.get(&entry.key).filter(|object| object.revision == entry.modified) {
            return self.ready(Shown::Stored(object)).await;
        }
        let object = cache.read_entry(entry)?;
        self.ready(Shown::Stored(Arc::new(object))).await
    }

    /// The object, ready to be shown in the version asked for.
    pub async fn ready(&self, shown: Shown) -> Result<Shown, Status> {
        let mut all = convert::shown(&self.server, &self.resource, vec![shown]).await?;
        all.pop().ok_or_else(|| self.not_found())
    }

    /// Waits until what a write of this revision did is heeded, where the kind promises that.
    pub async fn settle(&self, revision: Revision) {
        self.strategy().settle(self, revision).await;
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(self.resource.group_resource(), &self.info.name)
    }

    /// The name that a write goes by: the `fieldManager` asked for, or the client's own.
    pub fn field_manager(&self) -> String {
        if let Some(manager) = self.query.get("fieldManager") {
            return manager.to_owned();
        }
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
        let name = agent.split('/').next().unwrap_or("").trim();
        let printable: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
        if printable.is_empty() { "unknown".to_owned() } else { printable }
    }
}

/// Carries a request out. What takes or gives back claims goes on to its end when its client goes away, or its time is over: in
/// the middle, something would be claimed that nobody has.
pub(crate) async fn serve(call: Call, body: Bytes) -> Result<Reply, Status> {
    if !call.strategy().claims() || matches!(call.info.verb, "get" | "list" | "watch") {
        return carry_out(call, body).await;
    }
    let serving = call.server.serving.token();
    let task = tokio::spawn(async move {
        let _serving = serving;
        carry_out(call, body).await
    });
    task.await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Err(Status::internal(error)),
    })
}

async fn carry_out(call: Call, body: Bytes) -> Result<Reply, Status> {
    if let Some(warning) = call.resource.deprecation().map(str::to_owned) {
        call.notes.warn(warning);
    }
    let resource = Arc::clone(&call.resource);
    if call.info.subresource.is_empty() {
        if !resource.verbs.has(call.info.verb) {
            return Err(Status::method_not_allowed());
        }
        return match call.info.verb {
            "get" => {
                let shown = match call.strategy().made(&call.server).await {
                    Some(made) => made.into_iter().map(Shown::Value).find(|s| s.is_named(&call.info.name)).ok_or_else(|| call.not_found())?,
                    None => call.read().await?,
                };
                call.encoder().object(200, &shown)
            }
            "list" => list::list(&call).await,
            "watch" => watch::watch(&call).await,
            "create" if !call.info.name.is_empty() => Err(Status::method_not_allowed()),
            "create" if resource.storage_prefix.is_empty() => subresources::review(&call, &body).await,
            "create" => create::create(&call, &body).await,
            "update" if call.info.name.is_empty() => Err(Status::method_not_allowed()),
            "update" => update::update(&call, &body, view::View::whole(&resource)).await,
            "patch" if call.info.name.is_empty() => Err(Status::method_not_allowed()),
            "patch" => patch::patch(&call, &body, view::View::whole(&resource)).await,
            "delete" => delete::delete(&call, &body).await,
            "deletecollection" => delete::delete_collection(&call, &body).await,
            _ => Err(Status::method_not_allowed()),
        };
    }
    let Some(sub) = call.subresource() else { return Err(Status::no_such_resource()) };
    if !sub.verbs.has(call.info.verb) {
        return Err(Status::method_not_allowed());
    }
    if let Some(view) = view::View::of(&resource, sub) {
        return match call.info.verb {
            "get" => view.get(&call).await,
            "update" => update::update(&call, &body, view).await,
            "patch" => patch::patch(&call, &body, view).await,
            _ => Err(Status::method_not_allowed()),
        };
    }
    subresources::serve(&call, &body).await
}
