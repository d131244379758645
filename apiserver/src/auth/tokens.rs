//! Service account tokens: JSON web tokens bound to an account, and to a pod or secret where one is named.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skiff_api::{Status, clock, random, value};
use tokio::sync::Semaphore;

use super::pki::SigningKey;
use super::{Authenticated, User};
use crate::bootstrap;
use crate::server::Server;

/// Who signs, as tokens say it; upstream's default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Who signs tokens that are kept in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// The label by which upstream's cleaner takes a token out of use before it deletes it.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// The label that says on which day a Secret's token was last used.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// For how long what is being deleted still counts, in seconds: upstream's leeway.
const LEEWAY: i64 = 60;

/// Signs and verifies tokens.
pub struct Tokens {
    /// The public key as others verify by it.
    jwk: Value,
    encoding: EncodingKey,
    decoding: DecodingKey,
    /// What tokens say whose signature was verified: that takes longer than most requests. Whether they still count is
    /// looked up each time.
    seen: Mutex<Seen>,
    /// Held while the use of a Secret's token is noted on it.
    noting: Arc<Semaphore>,
}

/// How many tokens a generation of [`Seen`] holds.
const SEEN_KEPT: usize = 256;

/// Tokens that were seen lately, in two generations: when the young one is full, it takes the place of the old one.
#[derive(Default)]
struct Seen {
    young: HashMap<Box<str>, Arc<Value>>,
    old: HashMap<Box<str>, Arc<Value>>,
}

impl Seen {
    fn get(&mut self, token: &str) -> Option<Arc<Value>> {
        if let Some(claims) = self.young.get(token) {
            return Some(Arc::clone(claims));
        }
        let claims = self.old.remove(token)?;
        self.put(token, Arc::clone(&claims));
        Some(claims)
    }

    fn put(&mut self, token: &str, claims: Arc<Value>) {
        if self.young.len() >= SEEN_KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(token.into(), claims);
    }
}

/// The key can't be used.
#[derive(Debug, thiserror::Error)]
#[error("read the service account key: {0}")]
pub struct KeyError(#[from] jsonwebtoken::errors::Error);

#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Kubernetes {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    node: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pod: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    secret: Option<Bound>,
    serviceaccount: Bound,
}

/// An object that a token is bound to.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What a new token is to say.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub account: Bound,
    /// The pod that it is bound to.
    pub pod: Option<Bound>,
    /// The node that the pod is on, or that it is bound to.
    pub node: Option<Bound>,
    /// The secret that it is bound to.
    pub secret: Option<Bound>,
    /// For whom; empty for the API server.
    pub audiences: Vec<String>,
    /// How long it lives, in seconds.
    pub seconds: i64,
}

/// What a token says that is kept in a Secret.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct LegacyClaims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

impl LegacyClaims {
    pub fn new(namespace: &str, secret: &str, account: &Bound) -> Self {
        Self {
            iss: LEGACY_ISSUER.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.name.clone(),
            uid: account.uid.clone(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
        }
    }
}

impl Tokens {
    /// With this key.
    pub fn new(key: &SigningKey) -> Result<Self, KeyError> {
        Ok(Self {
            encoding: EncodingKey::from_ec_pem(key.private_pem.as_bytes())?,
            decoding: DecodingKey::from_ec_pem(key.public_pem.as_bytes())?,
            jwk: jwk(&key.public_pem),
            seen: Mutex::default(),
            noting: Arc::new(Semaphore::new(1)),
        })
    }

    /// A new token.
    pub fn sign(&self, request: Request) -> Result<String, jsonwebtoken::errors::Error> {
        let now = clock::now().as_second();
        let audiences = if request.audiences.is_empty() { vec![ISSUER.into()] } else { request.audiences };
        let claims = Claims {
            aud: audiences,
            exp: now + request.seconds,
            iat: now,
            iss: ISSUER.into(),
            jti: random::uid(),
            nbf: now,
            sub: format!("system:serviceaccount:{}:{}", request.namespace, request.account.name),
            kubernetes: Kubernetes {
                namespace: request.namespace,
                node: request.node,
                pod: request.pod,
                secret: request.secret,
                serviceaccount: request.account,
            },
        };
        jsonwebtoken::encode(&self.header(), &claims, &self.encoding)
    }

    /// A new token to be kept in a Secret. It lasts as long as the Secret.
    pub(super) fn sign_legacy(&self, claims: &LegacyClaims) -> Result<String, jsonwebtoken::errors::Error> {
        jsonwebtoken::encode(&self.header(), claims, &self.encoding)
    }

    fn header(&self) -> Header {
        Header { kid: self.jwk["kid"].as_str().map(str::to_owned), ..Header::new(Algorithm::ES256) }
    }

    /// The keys by which others verify tokens: a JSON web key set.
    pub(crate) fn key_set(&self) -> Value {
        json!({"keys": [self.jwk]})
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verified(&self, token: &str) -> Option<Arc<Value>> {
        if let Some(claims) = self.seen().get(token) {
            return Some(claims);
        }
        let mut validation = Validation::new(Algorithm::ES256);
        // Times, audiences and issuers are held against what is known here.
        (validation.validate_exp, validation.validate_aud) = (false, false);
        validation.required_spec_claims.clear();
        let claims = Arc::new(jsonwebtoken::decode::<Value>(token, &self.decoding, &validation).ok()?.claims);
        self.seen().put(token, Arc::clone(&claims));
        Some(claims)
    }

    /// Who the token shows its bearer to be, for one of `audiences`; `None` when it is no token of this server. The error
    /// says why one of its tokens shows nothing: it is out of date, or what it is bound to is gone.
    pub(crate) async fn authenticate(&self, server: &Arc<Server>, token: &str, audiences: &[String]) -> Result<Option<Authenticated>, String> {
        let Some(whole) = self.verified(token) else { return Ok(None) };
        match whole["iss"].as_str() {
            Some(ISSUER) => {}
            Some(LEGACY_ISSUER) => return legacy(server, token, &whole, audiences).await,
            _ => return Ok(None),
        }
        let Ok(claims) = Claims::deserialize(&*whole) else { return Ok(None) };
        let now = clock::now().as_second();
        if claims.exp <= now {
            return Err("service account token has expired".into());
        }
        if claims.nbf > now + LEEWAY {
            return Err("service account token is not valid yet".into());
        }
        let shared: Vec<String> = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if shared.is_empty() {
            return Err(format!("token audiences {:?} is invalid for the target audiences {audiences:?}", claims.aud));
        }
        let Kubernetes { namespace, node, pod, secret, serviceaccount } = claims.kubernetes;
        live(server, "serviceaccounts", &namespace, &serviceaccount).await?;
        for (resource, bound) in [("pods", &pod), ("secrets", &secret)] {
            if let Some(bound) = bound {
                live(server, resource, &namespace, bound).await.map_err(|why| if why.contains("UID") { why } else { INVALIDATED.into() })?;
            }
        }
        // A token that is bound to a node alone goes with it; one that is bound to a pod names the node for the record.
        if let (Some(node), None) = (&node, &pod) {
            live(server, "minions", "", node).await.map_err(|_| INVALIDATED)?;
        }
        let mut user = account(&namespace, claims.sub, serviceaccount.uid);
        user.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", claims.jti)]);
        for (kind, bound) in [("pod", pod), ("node", node)] {
            if let Some(bound) = bound {
                user.extra.insert(format!("authentication.kubernetes.io/{kind}-name"), vec![bound.name]);
                user.extra.insert(format!("authentication.kubernetes.io/{kind}-uid"), vec![bound.uid]);
            }
        }
        Ok(Some(Authenticated { user, audiences: shared }))
    }
}

const INVALIDATED: &str = "service account token has been invalidated";

fn account(namespace: &str, name: String, uid: String) -> User {
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    User { uid, ..User::new(name, groups) }
}

/// Who bears a token that is kept in a Secret: it must still be there.
async fn legacy(server: &Arc<Server>, token: &str, claims: &Value, audiences: &[String]) -> Result<Option<Authenticated>, String> {
    let Ok(claims) = LegacyClaims::deserialize(claims) else { return Ok(None) };
    let own: Vec<String> = audiences.iter().filter(|a| server.access.audiences().contains(a)).cloned().collect();
    if own.is_empty() {
        return Ok(None);
    }
    let secret = find(server, "secrets", &claims.namespace, &claims.secret).await.map_err(|status| status.message)?;
    let secret = vouching(secret.as_ref(), token)?;
    live(server, "serviceaccounts", &claims.namespace, &Bound { name: claims.account.clone(), uid: claims.uid.clone() }).await?;
    note_use(server, secret);
    counts(secret, &claims)?;
    Ok(Some(Authenticated { user: account(&claims.namespace, claims.sub, claims.uid), audiences: own }))
}

/// The Secret, if it is still there and keeps this token.
fn vouching<'a>(secret: Option<&'a Value>, token: &str) -> Result<&'a Value, String> {
    let there = |secret: &&Value| value::at(secret, &["metadata", "deletionTimestamp"]).is_null();
    let secret = secret.filter(there).ok_or("Token has been invalidated")?;
    let same = STANDARD.decode(value::text(secret, &["data", "token"])).unwrap_or_default() == token.as_bytes();
    if same { Ok(secret) } else { Err("Token does not match server's copy".into()) }
}

/// Whether the Secret's token hasn't been taken out of use.
fn counts(secret: &Value, claims: &LegacyClaims) -> Result<(), String> {
    let LegacyClaims { namespace, secret: name, account, .. } = claims;
    match value::text(secret, &["metadata", "labels", INVALID_SINCE]) {
        "" => Ok(()),
        _ => Err(format!(
            "the token in secret {namespace}/{name} for service account {namespace}/{account} has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
        )),
    }
}

/// The day of the use, if the Secret doesn't tell of it. Another server's day may have begun already.
fn unnoted(secret: &Value, now: jiff::Timestamp) -> Option<String> {
    let day = |hours| (now + jiff::SignedDuration::from_hours(hours)).strftime("%Y-%m-%d").to_string();
    let noted = value::text(secret, &["metadata", "labels", LAST_USED]);
    (noted != day(0) && noted != day(24)).then(|| day(0))
}

/// Notes on the Secret on which day its token was last used. One at a time: a use that isn't noted will be next time.
fn note_use(server: &Arc<Server>, secret: &Value) {
    let Some(today) = unnoted(secret, clock::now()) else { return };
    let Ok(turn) = Arc::clone(&server.tokens.noting).try_acquire_owned() else { return };
    let (server, metadata) = (Arc::clone(server), &secret["metadata"]);
    let path = format!("/api/v1/namespaces/{}/secrets/{}", value::text(metadata, &["namespace"]), value::text(metadata, &["name"]));
    let patch = json!({"metadata": {"uid": metadata["uid"], "labels": {LAST_USED: today}}});
    tokio::spawn(async move {
        let _turn = turn;
        if let Err(error) = bootstrap::patch(&server, &path, &patch).await {
            tracing::warn!(%error, path, "the use of a token can't be noted on its secret");
        }
    });
}

/// An object as the cache shows it, or as the store has it where the cache doesn't know it (yet).
pub(super) async fn find(server: &Server, resource: &str, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
    let prefix = format!("/registry/{resource}/");
    let key = if namespace.is_empty() { format!("{prefix}{name}") } else { format!("{prefix}{namespace}/{name}") };
    if let Some(object) = server.cache.resource(&prefix).and_then(|c| c.get(&key)) {
        return object.value().map(Some).map_err(Status::internal);
    }
    server.store.get(&key).await?.map(|entry| serde_json::from_slice(&entry.value).map_err(Status::internal)).transpose()
}

/// Whether the object is there, is still the same one, and isn't about to go.
async fn live(server: &Server, resource: &str, namespace: &str, bound: &Bound) -> Result<(), String> {
    let object = find(server, resource, namespace, &bound.name).await.map_err(|status| status.message)?;
    let object = object.ok_or_else(|| format!("{resource} {:?} not found", bound.name))?;
    let uid = value::text(&object, &["metadata", "uid"]);
    if uid != bound.uid {
        return Err(format!("{} UID ({uid}) does not match claim ({})", if resource == "serviceaccounts" { "service account" } else { resource }, bound.uid));
    }
    let going = value::text(&object, &["metadata", "deletionTimestamp"]).parse::<jiff::Timestamp>();
    if going.is_ok_and(|at| at.as_second() < clock::now().as_second() - LEEWAY) {
        return Err(format!("{resource} {namespace}/{} has been deleted", bound.name));
    }
    Ok(())
}

/// A public key of the curve P-256 as a JSON web key, under upstream's kind of name: a digest of the key.
fn jwk(public_pem: &str) -> Value {
    let body: String = public_pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).unwrap_or_default();
    // The point's two coordinates are the last 64 bytes.
    let point = der.get(der.len().saturating_sub(64)..).unwrap_or_default();
    let (x, y) = point.split_at(point.len() / 2);
    let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({"use": "sig", "kty": "EC", "kid": base64(&Sha256::digest(&der)), "crv": "P-256", "alg": "ES256", "x": base64(x), "y": base64(y)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_verified_once() {
        let tokens = Tokens::new(&SigningKey::generate().expect("a key")).expect("tokens");
        let sign = |name: &str| tokens.sign(Request { namespace: name.into(), seconds: 600, ..Request::default() }).expect("signed");
        let first = sign("a");
        let claims = tokens.verified(&first).expect("verified");
        assert!(Arc::ptr_eq(&claims, &tokens.verified(&first).expect("known")));
        let (others, signature) = (sign("b"), first.rsplit_once('.').expect("a signature").1);
        let forged = format!("{}.{signature}", others.rsplit_once('.').expect("a signature").0);
        assert!(tokens.verified(&forged).is_none() && tokens.verified(&forged).is_none(), "another's signature");
        let mut seen = Seen::default();
        for n in 0..3 * SEEN_KEPT {
            seen.put(&n.to_string(), Arc::clone(&claims));
            assert!(seen.get("0").is_some(), "what is used stays");
        }
        assert!(seen.young.len() + seen.old.len() <= 2 * SEEN_KEPT && seen.get("1").is_none(), "what isn't goes");
    }

    #[test]
    fn whether_a_secret_vouches_for_its_token() {
        let claims = LegacyClaims::new("n", "s", &Bound { name: "a".into(), uid: "u".into() });
        let check = |secret: Option<Value>, expected: &str| {
            let said = vouching(secret.as_ref(), "t").and_then(|secret| counts(secret, &claims)).err().unwrap_or_default();
            assert!(said.starts_with(expected) && said.is_empty() == expected.is_empty(), "{said}");
        };
        let secret = |metadata: Value, token: &str| Some(json!({"metadata": metadata, "data": {"token": STANDARD.encode(token)}}));
        check(secret(json!({}), "t"), "");
        check(None, "Token has been invalidated");
        check(secret(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), "t"), "Token has been invalidated");
        check(secret(json!({}), "other"), "Token does not match server's copy");
        check(secret(json!({"labels": {INVALID_SINCE: "2026-01-01"}}), "t"), "the token in secret n/s for service account n/a has been marked invalid");
    }

    #[test]
    fn a_use_is_noted_once_a_day() {
        let check = |noted: &str, expected: Option<&str>| {
            let now = "2026-03-31T23:00:00Z".parse().expect("a time");
            assert_eq!(unnoted(&json!({"metadata": {"labels": {LAST_USED: noted}}}), now).as_deref(), expected, "{noted}");
        };
        check("", Some("2026-03-31"));
        check("2026-03-30", Some("2026-03-31"));
        check("2026-03-31", None);
        check("2026-04-01", None);
    }

    #[test]
    fn others_verify_by_the_published_key() {
        let tokens = Tokens::new(&SigningKey::generate().expect("a key")).expect("tokens");
        let signed = tokens.sign(Request { namespace: "n".into(), seconds: 600, ..Request::default() }).expect("signed");
        let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(tokens.key_set()).expect("a key set");
        let kid = jsonwebtoken::decode_header(&signed).expect("a header").kid.expect("a key's name");
        let key = DecodingKey::from_jwk(set.find(&kid).expect("the key")).expect("usable");
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[ISSUER]);
        assert!(jsonwebtoken::decode::<Value>(&signed, &key, &validation).is_ok());
    }
}
