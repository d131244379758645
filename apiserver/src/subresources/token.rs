//! `serviceaccounts/token`: a token for an account, bound to a pod where one asks for it.

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::{Status, clock, field, value};

use crate::admission::{self, Operation};
use crate::auth::tokens::{Bound, Request};
use crate::http::body::Reply;
use crate::http::encode::answer;
use crate::verbs::{Call, decode_as};

/// Upstream's shortest and default lives of a token, in seconds.
const MIN_SECONDS: i64 = 600;
const DEFAULT_SECONDS: i64 = 3_600;
const MAX_SECONDS: i64 = 1 << 32;

fn bound(object: &Value) -> Bound {
    let text = |key: &str| value::text(object, &["metadata", key]).to_owned();
    Bound { name: text("name"), uid: text("uid") }
}

/// Makes a token.
pub(super) async fn create(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    let mut request = decode_as(call, body, "TokenRequest", "authentication.k8s.io/v1", "io.k8s.api.authentication.v1.TokenRequest")?;
    let account = call.read().await?.value()?;
    admission::validate_other(call, Operation::Create, &mut request, false).await?;
    let seconds = match value::at(&request, &["spec", "expirationSeconds"]) {
        Value::Null => DEFAULT_SECONDS,
        given => given.as_i64().unwrap_or(0),
    };
    let limit = if seconds < MIN_SECONDS {
        Some("may not specify a duration less than 10 minutes")
    } else if seconds > MAX_SECONDS {
        Some("may not specify a duration larger than 2^32 seconds")
    } else {
        None
    };
    if let Some(detail) = limit {
        let error = field::Error::invalid("spec.expirationSeconds", seconds, detail);
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    }
    let mut audiences: Vec<String> =
        value::items(&request, &["spec", "audiences"]).iter().filter_map(Value::as_str).filter(|a| !a.is_empty()).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences = call.server.access.audiences().to_vec();
    }
    let mut wanted =
        Request { namespace: call.info.namespace.clone(), account: bound(&account), audiences: audiences.clone(), seconds, ..Request::default() };
    if let Some(reference) = request["spec"].get("boundObjectRef").filter(|r| r.is_object()) {
        bind(call, reference, &mut wanted).await?;
    }
    let token = call.server.tokens.sign(wanted).map_err(Status::internal)?;
    let expires = clock::now() + jiff::SignedDuration::from_secs(seconds);
    let spec = value::object_mut(&mut request, &["spec"]);
    spec.insert("expirationSeconds".into(), json!(seconds));
    spec.insert("audiences".into(), json!(audiences));
    request["status"] = json!({"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    request["metadata"] = json!({"name": call.info.name, "namespace": call.info.namespace, "creationTimestamp": crate::verbs::now_text()});
    Ok(answer(201, &request, call.shape.whole(), call.encoder().pretty))
}

/// Binds the token to an object of the account's namespace.
async fn bind(call: &Call, reference: &Value, wanted: &mut Request) -> Result<(), Status> {
    let (kind, name, uid) = (value::text(reference, &["kind"]), value::text(reference, &["name"]), value::text(reference, &["uid"]));
    let namespace = &call.info.namespace;
    let (group, version) = value::text(reference, &["apiVersion"]).rsplit_once('/').unwrap_or(("", value::text(reference, &["apiVersion"])));
    let unbindable = || Status::bad_request(format!("cannot bind token to object of type {group}/{version}, Kind={kind}"));
    if !group.is_empty() {
        return Err(unbindable());
    }
    let (plural, key) = match kind {
        "Pod" => ("pods", format!("/registry/pods/{namespace}/{name}")),
        "Secret" => ("secrets", format!("/registry/secrets/{namespace}/{name}")),
        "Node" => ("nodes", format!("/registry/minions/{name}")),
        _ => return Err(unbindable()),
    };
    let gr = skiff_api::status::GroupResource { group: "", resource: plural };
    let entry = call.server.store.get(&key).await?.ok_or_else(|| Status::not_found(gr, name))?;
    let object: Value = serde_json::from_slice(&entry.value).map_err(Status::internal)?;
    let found = bound(&object);
    if !uid.is_empty() && uid != found.uid {
        let why = format!("the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated");
        return Err(Status::conflict(gr, name, why));
    }
    match kind {
        "Secret" => wanted.secret = Some(found),
        "Node" => wanted.node = Some(found),
        _ => return bind_pod(call, &object, found, wanted).await,
    }
    Ok(())
}

/// Binds the token to a pod, and names its node.
async fn bind_pod(call: &Call, object: &Value, found: Bound, wanted: &mut Request) -> Result<(), Status> {
    if value::text(object, &["spec", "serviceAccountName"]) != wanted.account.name {
        let why = format!("cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.", wanted.account.name);
        return Err(Status::bad_request(why));
    }
    let node = value::text(object, &["spec", "nodeName"]);
    if let Some(entry) = call.server.store.get(&format!("/registry/minions/{node}")).await? {
        wanted.node = Some(bound(&serde_json::from_slice(&entry.value).map_err(Status::internal)?));
    }
    wanted.pod = Some(found);
    Ok(())
}
