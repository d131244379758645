//! The way of a request through the server: who asks, whose turn it is, whether they may, what it is about; then its verb.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body::Body;
use skiff_api::Status;
use skiff_api::resource::Resource;
use tokio::time::Instant;

use crate::audit;
use crate::auth::{self, User};
use crate::flow::{self, Marks, Ticket};
use crate::http::body::{self, Reply};
use crate::http::info::RequestInfo;
use crate::http::negotiate::{Offer, Shape};
use crate::http::query::Query;
use crate::http::turns::Place;
use crate::http::{encode, gzip, limits};
use crate::metrics::Timer;
use crate::server::Server;
use crate::verbs::{self, Call, Notes};
use crate::{publish, subresources};

/// A request that took longer is told in the log, as upstream's traces are.
const SLOW: Duration = Duration::from_millis(500);

/// A request's head, understood.
struct Head {
    parts: Parts,
    query: Query,
    info: RequestInfo,
    /// What its path can answer with.
    offer: Offer,
    /// The form that was asked for.
    negotiated: Result<Shape, Status>,
    /// Whether it may take as long as it likes.
    long: bool,
}

impl Head {
    fn read(parts: Parts) -> Self {
        let query = Query::parse(parts.uri.query().unwrap_or(""));
        let info = RequestInfo::new(&parts.method, parts.uri.path(), &query);
        let offer = Offer { streams: matches!(info.verb, "list" | "watch"), watch: info.verb == "watch", ..Offer::default() };
        let negotiated = Shape::negotiate(&parts.headers, offer);
        Self { negotiated, offer, long: limits::long_running(&info), query, info, parts }
    }

    fn is_apply(&self) -> bool {
        self.parts.headers.get(http::header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/apply-patch"))
    }

    /// The form of refusals, and of what isn't negotiated.
    fn shape(&self) -> Shape {
        *self.negotiated.as_ref().unwrap_or(&Shape::JSON)
    }

    /// The form of the answer about a resource.
    fn shape_of(&self, resource: &Resource) -> Result<Shape, Status> {
        if subresources::streams(&self.info) {
            Ok(self.shape())
        } else {
            let verbs = resource.subresource(&self.info.subresource).map_or(&resource.verbs, |subresource| &subresource.verbs);
            Shape::negotiate(&self.parts.headers, Offer { custom: resource.custom().is_some(), answers: !verbs.has("get"), ..self.offer })
        }
    }

    fn ending(&self) -> Ending {
        Ending {
            id: audit::id(&self.parts.headers),
            shape: self.shape(),
            gzip: gzip::is_accepted(&self.parts.headers),
            watch: self.info.verb == "watch",
            long: self.long,
            line: (self.parts.method.clone(), self.parts.uri.path().to_owned()),
        }
    }
}

/// What of the head the end of the way needs.
struct Ending {
    id: HeaderValue,
    /// The form of refusals.
    shape: Shape,
    gzip: bool,
    watch: bool,
    long: bool,
    /// Method and path, for the log.
    line: (Method, String),
}

/// What comes up on the way.
#[derive(Default)]
struct Way {
    notes: Arc<Notes>,
    /// The flow that it belongs to, and its place there until it is answered.
    turn: Option<(Marks, Option<Ticket>)>,
    /// Whether there is something at its path. Paths are anybody's to make up, and are counted only then.
    known: bool,
    /// How long it waited for its turn.
    waited: Duration,
    /// How long its body took.
    read: Duration,
}

impl Server {
    /// Answers a request. `peer` is who the connection has shown to be, if anybody. Never fails: what goes wrong is said
    /// in the answer.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, peer: Option<User>) -> Reply
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _serving = self.serving.token();
        let (parts, body) = request.into_parts();
        let head = Head::read(parts);
        let timer = self.metrics.begin(&head.info, head.query.get("dryRun").is_some(), head.is_apply(), head.long);
        let ending = head.ending();
        let mut way = Way::default();
        let (result, panicked) = match limits::deadline(&head.info, &head.query) {
            Ok(limit) => caught(limit, self.serve(head, body, peer, &ending.id, &mut way)).await,
            Err(status) => (Err(status), false),
        };
        self.finish(ending, way, timer, result, panicked).await
    }

    /// Who asks: who they have shown to be, or whom they act for.
    async fn asker(self: &Arc<Self>, head: &mut Head, peer: Option<&User>, id: &HeaderValue, notes: &Notes) -> Result<User, Status> {
        let user = auth::authenticate(self, peer, &head.parts).await.inspect_err(|_| self.auditor.refused(&head.parts, &head.info, id))?;
        if let Some(place) = head.parts.extensions.get::<Place>() {
            place.is_of(&user.name);
        }
        notes.begin(self.auditor.begin(&head.parts, &head.info, Some(&user), id));
        let Some(other) = auth::impersonate(self, &user, &mut head.parts.headers, &head.info).await? else { return Ok(user) };
        if let Some(record) = notes.audited() {
            record.impersonates(&other.user, other.constraint);
        }
        Ok(other.user)
    }

    async fn serve<B>(self: &Arc<Self>, mut head: Head, body: B, peer: Option<User>, id: &HeaderValue, way: &mut Way) -> Result<Reply, Status>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let user = self.asker(&mut head, peer.as_ref(), id, &way.notes).await?;
        if !head.long || head.info.verb == "watch" {
            let before = Instant::now();
            let (marks, ticket) = self.flow.admit(&user, &head.info, || self.objects_of(&head.info, &head.query)).await;
            way.waited = before.elapsed();
            let refused = ticket.is_none();
            way.turn = Some((marks, ticket));
            if refused {
                way.known = self.registry.now().find(&head.info.group, &head.info.version, &head.info.resource).is_some();
                return Ok(flow::refusal());
            }
        }
        auth::admit(self, &user, &head.info, &way.notes).await?;
        if let Some(remote) = self.aggregator.find(head.info.path.strip_prefix("/openapi/v3").unwrap_or(&head.info.path)) {
            let reply = remote.proxy(&self.cache, &user, head.parts, body::collect(body).await?).await?;
            way.known = reply.status() != StatusCode::NOT_FOUND;
            return Ok(reply);
        }
        if !head.info.is_resource {
            let reply = publish::serve(self, &head.info, &head.query, &head.parts.headers).await?;
            way.known = reply.status() != StatusCode::NOT_FOUND;
            return Ok(reply);
        }
        let served = self.registry.now();
        let Some(resource) = served.find(&head.info.group, &head.info.version, &head.info.resource).cloned() else {
            return if served.has_group(&head.info.group) { Err(Status::no_such_resource()) } else { Ok(publish::no_such_path()) };
        };
        way.known = head.info.subresource.is_empty() || resource.subresource(&head.info.subresource).is_some();
        in_scope(&resource, &head.info)?;
        if head.parts.method == Method::HEAD && !subresources::streams(&head.info) {
            return Err(Status::method_not_allowed());
        }
        let shape = head.shape_of(&resource)?;
        let Head { parts, query, info, .. } = head;
        let upgrade = parts.extensions.get::<subresources::Upgrade>().cloned();
        let notes = Arc::clone(&way.notes);
        let call = Call { server: Arc::clone(self), info, query, headers: parts.headers, user, resource, shape, upgrade, notes };
        if subresources::streams(&call.info) {
            return subresources::connect(&call, parts.method, parts.uri, body).await;
        }
        let before = Instant::now();
        let body = body::collect(body).await?;
        way.read = before.elapsed();
        verbs::serve(call, body).await
    }

    /// Puts into the answer what belongs to every one, and tells metrics, audit and log of it.
    async fn finish(&self, ending: Ending, way: Way, timer: Timer, result: Result<Reply, Status>, panicked: bool) -> Reply {
        let Ending { id, shape, gzip, watch, long, line } = ending;
        let refused = result.as_ref().err().cloned();
        let mut reply = result.unwrap_or_else(|status| encode::refusal(&status, shape));
        way.notes.add_to(&mut reply);
        if let Some(record) = way.notes.audited() {
            reply = record.answered(reply, refused.as_ref(), panicked, &way.notes).await;
        }
        audit::sign(&mut reply, id);
        let (code, took) = (reply.status().as_u16(), timer.elapsed());
        if took > SLOW && !long {
            let ((method, path), Way { waited, read, .. }) = (line, &way);
            tracing::warn!(%method, path, code, ?took, ?waited, ?read, "slow request");
        }
        let sizes = self.metrics.end(timer, code, way.known);
        let (marks, ticket) = way.turn.unzip();
        if let Some(marks) = marks {
            marks.add_to(reply.headers_mut());
        }
        let reply = if gzip { gzip::compress(reply) } else { reply };
        limits::held(reply, watch, ticket.flatten(), sizes, long)
    }

    /// How many objects a list or the begin of a watch looks at.
    fn objects_of(&self, info: &RequestInfo, query: &Query) -> usize {
        // A watch from a revision on looks at none, and what is named is one.
        let from = query.get("resourceVersion").is_some_and(|version| version != "0") && !query.flag("sendInitialEvents");
        if !info.name.is_empty() || (info.verb == "watch" && from) {
            return 1;
        }
        let most = query.int("limit").ok().flatten().and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let served = self.registry.now();
        let cache = served.find(&info.group, &info.version, &info.resource).and_then(|resource| self.cache.resource(&resource.storage_prefix));
        cache.map_or(1, |cache| cache.count(&info.namespace, most))
    }
}

/// Refuses a path with a namespace for a resource that has none, or the reverse for all but reads of all namespaces.
fn in_scope(resource: &Resource, info: &RequestInfo) -> Result<(), Status> {
    let of_all = resource.namespaced && info.namespace.is_empty();
    let stray = !resource.namespaced && !info.namespace.is_empty() && (resource.plural != "namespaces" || info.namespace != info.name);
    if stray || (of_all && (info.is_object() || !resource.verbs.has("list"))) {
        return Err(Status::no_such_resource());
    }
    if of_all && !matches!(info.verb, "list" | "watch") {
        return Err(Status::method_not_allowed());
    }
    Ok(())
}

/// Carries out within the limit, and survives a panic; the second value says that there was one.
async fn caught(limit: Option<Duration>, serve: impl Future<Output = Result<Reply, Status>>) -> (Result<Reply, Status>, bool) {
    let serve = AssertUnwindSafe(serve).catch_unwind();
    let served = match limit {
        Some(limit) => tokio::time::timeout(limit, serve).await.unwrap_or_else(|_| Ok(Err(limits::timed_out()))),
        None => serve.await,
    };
    match served {
        Ok(result) => (result, false),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("");
            tracing::error!(panic = text, "request handler panicked");
            (Err(Status::internal("this request caused the server to panic; look in its log")), true)
        }
    }
}
