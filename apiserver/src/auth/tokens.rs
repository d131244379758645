//! Service account tokens: JSON web tokens bound to an account, and to a pod or secret where one is named.

use std::collections::BTreeMap;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_api::{clock, random, value};

use super::User;
use super::pki::SigningKey;
use crate::server::Server;

/// Who signs, as tokens say it; upstream's default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Signs and verifies tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
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
    /// The node that the pod is on.
    pub node: Option<Bound>,
    /// The secret that it is bound to.
    pub secret: Option<Bound>,
    /// For whom; empty for the API server.
    pub audiences: Vec<String>,
    /// How long it lives, in seconds.
    pub seconds: i64,
}

/// Who a token shows its bearer to be.
pub(crate) struct Authenticated {
    pub user: User,
    /// For whom the token is, of those who were asked for.
    pub audiences: Vec<String>,
}

impl Tokens {
    /// With this key.
    pub fn new(key: &SigningKey) -> Result<Self, KeyError> {
        Ok(Self {
            encoding: EncodingKey::from_ec_pem(key.private_pem.as_bytes())?,
            decoding: DecodingKey::from_ec_pem(key.public_pem.as_bytes())?,
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
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.encoding)
    }

    /// Who the token shows its bearer to be, for one of `audiences` (none: the API server). `None` when it shows nothing:
    /// forged, out of date, or what it is bound to is gone.
    pub(crate) async fn authenticate(&self, server: &Server, token: &str, audiences: &[String]) -> Option<Authenticated> {
        let mut validation = Validation::new(Algorithm::ES256);
        // Times are held against the project's clock below.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.set_issuer(&[ISSUER]);
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation).ok()?.claims;
        let now = clock::now().as_second();
        if claims.exp <= now || claims.nbf > now + 60 {
            return None;
        }
        let own = [ISSUER.to_owned()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let shared: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if shared.is_empty() {
            return None;
        }
        let Kubernetes { namespace, node, pod, secret, serviceaccount } = claims.kubernetes;
        live(server, &format!("/registry/serviceaccounts/{namespace}/{}", serviceaccount.name), &serviceaccount.uid).await?;
        if let Some(pod) = &pod {
            live(server, &format!("/registry/pods/{namespace}/{}", pod.name), &pod.uid).await?;
        }
        if let Some(secret) = &secret {
            live(server, &format!("/registry/secrets/{namespace}/{}", secret.name), &secret.uid).await?;
        }
        let mut user = User::new(claims.sub, ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
        user.uid = serviceaccount.uid;
        let mut extra = BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", claims.jti)])]);
        for (kind, bound) in [("pod", pod), ("node", node)] {
            if let Some(bound) = bound {
                extra.insert(format!("authentication.kubernetes.io/{kind}-name"), vec![bound.name]);
                extra.insert(format!("authentication.kubernetes.io/{kind}-uid"), vec![bound.uid]);
            }
        }
        user.extra = extra;
        Some(Authenticated { user, audiences: shared })
    }
}

/// Whether the object is there and is still the same one.
async fn live(server: &Server, key: &str, uid: &str) -> Option<()> {
    let prefix = &key[..=key.match_indices('/').nth(2)?.0];
    let cached = server.cache.resource(prefix).and_then(|c| c.get(key)).and_then(|o| o.value().ok());
    let object: Value = match cached {
        Some(object) => object,
        None => serde_json::from_slice(&server.store.get(key).await.ok()??.value).ok()?,
    };
    (value::text(&object, &["metadata", "uid"]) == uid).then_some(())
}
