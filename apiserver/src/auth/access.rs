//! Who is asked who asks, and who is asked whether they may: put together from the options at the start.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderMap, header};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use serde_json::Value;
use skiff_api::value::{at, items, text};
use skiff_api::{Status, clock};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

use super::jwt::Issuer;
use super::pki::{Authority, user_of};
use super::reload::Current;
use super::remote::{AccessWebhook, TokenWebhook};
use super::tokens::ISSUER;
use super::{Attributes, Authenticated, Decision, MASTERS, User, Verdict, bootstrap, files, node, rbac, said};
use crate::options::{Error, Options};
use crate::server::Server;

/// How long an expression waits for an authorization webhook, and how many do at a time.
const PATIENCE: Duration = Duration::from_secs(10);
const WAITING: usize = 16;
/// What a token goes by among the subprotocols of a WebSocket, for browsers can't set other headers.
const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// One who is asked whether a request may be.
enum Authorizer {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    Webhook(Box<AccessWebhook>),
}

/// Whether those without credentials are served, and on which paths; no paths for all.
type Anonymous = (bool, Vec<String>);

/// Set on requests of connections whose client has shown to be a front proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromProxy;

/// Who a connection's certificate shows its client to be.
pub(crate) enum Peer {
    /// A user.
    User(User),
    /// One who says by headers who asks.
    Proxy,
}

/// The proxies that say by headers who asks.
struct FrontProxy {
    verifier: Arc<dyn ClientCertVerifier>,
    /// The verifier of other clients.
    clients: Arc<dyn ClientCertVerifier>,
    /// The authorities' certificates, PEM.
    authorities: String,
    /// Common names; empty for any.
    names: Vec<String>,
    user: Vec<String>,
    uid: Vec<String>,
    group: Vec<String>,
    extra: Vec<String>,
}

/// Who may do what.
pub(crate) struct Access {
    /// Users by their static tokens.
    tokens: HashMap<String, User>,
    issuers: Current<Vec<Issuer>>,
    webhook: Option<TokenWebhook>,
    proxy: Option<FrontProxy>,
    anonymous: Anonymous,
    /// What the options say of them.
    said_of_anonymous: Anonymous,
    authorizers: Current<Vec<Authorizer>>,
    /// What was said when the server came up.
    options: Options,
    /// Places for those who hold up a thread until an authorizer answers.
    waiting: Semaphore,
    /// The audiences that tokens for this server have.
    audiences: Vec<String>,
    /// The authorities of client certificates, PEM: the cluster's own, and those of `--client-ca-file`.
    authorities: String,
}

fn or_default(given: &[String], default: &str) -> Vec<String> {
    if given.is_empty() { vec![default.to_owned()] } else { given.to_vec() }
}

fn verifier(pem: &str) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map(|v| v as _).map_err(|e| e.to_string())
}

/// The certificates in a file, PEM: there must be one.
fn certificates(flag: &'static str, path: Option<&Path>) -> Result<Option<String>, Error> {
    let Some(path) = path else { return Ok(None) };
    let pem = String::from_utf8(files::bytes(flag, path)?).map_err(|e| Error::new(flag, e))?;
    verifier(&pem).map_err(|e| Error::new(flag, format!("{}: {e}", path.display())))?;
    Ok(Some(pem))
}

impl FrontProxy {
    fn of_flags(options: &Options, clients: &str) -> Result<Option<Self>, Error> {
        let flag = "requestheader-client-ca-file";
        let Some(authorities) = certificates(flag, options.requestheader_client_ca_file.as_deref())? else { return Ok(None) };
        Ok(Some(Self {
            verifier: verifier(&authorities).map_err(|e| Error::new(flag, e))?,
            clients: verifier(clients).map_err(|e| Error::new(flag, e))?,
            authorities,
            names: options.requestheader_allowed_names.clone(),
            user: or_default(&options.requestheader_username_headers, "X-Remote-User"),
            uid: or_default(&options.requestheader_uid_headers, "X-Remote-Uid"),
            group: or_default(&options.requestheader_group_headers, "X-Remote-Group"),
            extra: or_default(&options.requestheader_extra_headers_prefix, "X-Remote-Extra-"),
        }))
    }

    /// Who the headers say asks.
    fn user(&self, headers: &HeaderMap) -> Option<User> {
        let first = |names: &[String]| names.iter().find_map(|n| headers.get(n).map(said).filter(|v| !v.is_empty()));
        let groups = self.group.iter().flat_map(|n| headers.get_all(n)).map(said);
        let mut user = User::new(first(&self.user)?, groups);
        user.uid = first(&self.uid).unwrap_or_default();
        user.extra = extra(headers, &self.extra);
        Some(user)
    }
}

/// What else headers with these beginnings say of a user; keys are lower-case and may be percent-encoded.
pub(super) fn extra(headers: &HeaderMap, prefixes: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let key = prefixes.iter().find_map(|prefix| name.as_str().strip_prefix(&prefix.to_ascii_lowercase()));
        if let Some(key) = key {
            // A plus is itself here.
            let escaped = key.replace('+', "%2B");
            let key = form_urlencoded::parse(escaped.as_bytes()).next().map_or_else(|| key.to_owned(), |(key, _)| key.into_owned());
            extra.entry(key).or_default().push(said(value));
        }
    }
    extra
}

/// Users by the lines of a token file: token, user, uid and groups.
fn static_tokens(table: &str) -> Result<HashMap<String, User>, String> {
    let mut users = HashMap::new();
    for record in files::csv(table) {
        let [token, name, uid, rest @ ..] = record.as_slice() else {
            return Err(format!("token file must have at least 3 columns (token, user name, user uid), found {}", record.len()));
        };
        if token.is_empty() {
            return Err("a token must not be empty".into());
        }
        let groups = rest.first().map_or("", String::as_str).split(',').map(str::trim).filter(|g| !g.is_empty());
        users.insert(token.clone(), User { uid: uid.clone(), ..User::new(name, groups) });
    }
    Ok(users)
}

impl Access {
    /// Reads what the options name.
    pub fn read(options: &Options, authority: &Authority) -> Result<Self, Error> {
        let tokens = match &options.token_auth_file {
            Some(path) => static_tokens(&String::from_utf8_lossy(&files::bytes("token-auth-file", path)?)).map_err(|e| Error::new("token-auth-file", e))?,
            None => HashMap::new(),
        };
        let (issuers, said_of_anonymous) = issuers(options)?;
        let mut anonymous = said_of_anonymous.clone();
        // Who may do everything must at least say who they are. Upstream's rule.
        if anonymous.0 && options.authorization_mode.iter().any(|mode| mode == "AlwaysAllow") {
            tracing::warn!("anonymous requests are not served: the authorizer AlwaysAllow would allow them everything");
            anonymous.0 = false;
        }
        let more = certificates("client-ca-file", options.client_ca_file.as_deref())?;
        let authorities = [Some(authority.pair.certificate.clone()), more].into_iter().flatten().collect::<Vec<_>>().join("\n");
        Ok(Self {
            tokens,
            issuers: Current::new(issuers, options.authentication_config.as_deref()),
            webhook: TokenWebhook::of_flags(options)?,
            proxy: FrontProxy::of_flags(options, &authorities)?,
            anonymous,
            said_of_anonymous,
            authorizers: Current::new(authorizers(options)?, options.authorization_config.as_deref()),
            options: options.clone(),
            waiting: Semaphore::new(WAITING),
            audiences: or_default(&options.api_audiences, ISSUER),
            authorities,
        })
    }

    /// The audiences that tokens for this server have.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The authorities of clients' certificates, PEM.
    pub fn authorities(&self) -> &str {
        &self.authorities
    }

    /// The authorities whose clients may connect, be they users or front proxies, PEM.
    pub fn client_authorities(&self) -> String {
        format!("{}\n{}", self.authorities, self.proxy.as_ref().map_or("", |p| &p.authorities))
    }

    /// Who a verified chain of certificates shows a client to be.
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer> {
        let (leaf, between) = chain.split_first()?;
        let user = user_of(leaf);
        let Some(proxy) = &self.proxy else { return user.map(Peer::User) };
        let seconds = u64::try_from(clock::now().as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let named = || proxy.names.is_empty() || user.as_ref().is_some_and(|u| proxy.names.contains(&u.name));
        if proxy.verifier.verify_client_cert(leaf, between, now).is_ok() && named() {
            return Some(Peer::Proxy);
        }
        user.filter(|_| proxy.clients.verify_client_cert(leaf, between, now).is_ok()).map(Peer::User)
    }

    /// Whether there are configurations that may change.
    pub fn can_change(&self) -> bool {
        self.options.authentication_config.is_some() || self.options.authorization_config.is_some()
    }

    /// Reads the configurations that have changed: by flag, whether one had. As upstream has it, those without credentials, and
    /// the authorizers that are no webhooks, stay what they were.
    pub fn renew(&self) -> Vec<(&'static str, Result<bool, Error>)> {
        let (options, mut renewed) = (&self.options, Vec::new());
        if let Some(path) = &options.authentication_config {
            let flag = "authentication-config";
            let made = || {
                let (issuers, anonymous) = issuers(options)?;
                if anonymous == self.said_of_anonymous { Ok(issuers) } else { Err(Error::new(flag, "anonymous: changed from initial configuration file")) }
            };
            renewed.push((flag, self.issuers.renew(flag, path, made)));
        }
        if let Some(path) = &options.authorization_config {
            let flag = "authorization-config";
            let fixed = |list: &[Authorizer]| -> HashSet<_> { list.iter().filter(|a| !matches!(a, Authorizer::Webhook(_))).map(std::mem::discriminant).collect() };
            let made = || {
                let list = authorizers(options)?;
                let same = fixed(&list) == fixed(&self.authorizers.now());
                if same { Ok(list) } else { Err(Error::new(flag, "authorizers of other types than Webhook can't be added or taken away while the server runs")) }
            };
            renewed.push((flag, self.authorizers.renew(flag, path, made)));
        }
        renewed
    }

    /// Whether every decision is made in this process.
    fn decides_here(&self) -> bool {
        !self.authorizers.now().iter().any(|a| matches!(a, Authorizer::Webhook(_)))
    }
}

/// Whose tokens are believed, and what is said of those without credentials.
fn issuers(options: &Options) -> Result<(Vec<Issuer>, Anonymous), Error> {
    let (mut issuers, mut anonymous) = (Vec::new(), (options.anonymous_auth.unwrap_or(true), Vec::new()));
    issuers.extend(Issuer::of_flags(options)?);
    if let Some(path) = &options.authentication_config {
        let flag = "authentication-config";
        let config = files::yaml(flag, path, "AuthenticationConfiguration")?;
        for (i, jwt) in items(&config, &["jwt"]).iter().enumerate() {
            issuers.push(Issuer::of_config(jwt).map_err(|e| Error::new(flag, format!("jwt[{i}]: {e}")))?);
        }
        if at(&config, &["anonymous"]).is_object() {
            let paths = items(&config, &["anonymous", "conditions"]).iter().map(|c| text(c, &["path"]).to_owned()).collect();
            anonymous = (at(&config, &["anonymous", "enabled"]) == &Value::Bool(true), paths);
        }
    }
    Ok((issuers, anonymous))
}

fn authorizers(options: &Options) -> Result<Vec<Authorizer>, Error> {
    let simple = |mode: &str| match mode {
        "Node" => Some(Authorizer::Node),
        "RBAC" => Some(Authorizer::Rbac),
        "AlwaysAllow" => Some(Authorizer::AlwaysAllow),
        "AlwaysDeny" => Some(Authorizer::AlwaysDeny),
        _ => None,
    };
    let Some(path) = &options.authorization_config else {
        let modes = if options.authorization_mode.is_empty() { vec!["Node".to_owned(), "RBAC".to_owned()] } else { options.authorization_mode.clone() };
        let webhook = || AccessWebhook::of_flags(options).map(|w| Authorizer::Webhook(Box::new(w)));
        return modes.iter().map(|mode| simple(mode).map_or_else(webhook, Ok)).collect();
    };
    let flag = "authorization-config";
    let config = files::yaml(flag, path, "AuthorizationConfiguration")?;
    let list = items(&config, &["authorizers"]).iter().map(|authorizer| match text(authorizer, &["type"]) {
        "Webhook" => AccessWebhook::of_config(at(authorizer, &["webhook"])).map(|w| Authorizer::Webhook(Box::new(w))),
        mode => simple(mode).ok_or_else(|| Error::new(flag, format!("type {mode:?} is not known"))),
    });
    let list = list.collect::<Result<Vec<_>, _>>()?;
    if list.is_empty() { Err(Error::new(flag, "it has no authorizers")) } else { Ok(list) }
}

/// Finds out who asks. `peer` is who the TLS connection, or the process itself, has shown to be.
pub(crate) async fn authenticate(server: &Arc<Server>, peer: Option<&User>, parts: &Parts) -> Result<User, Status> {
    let access = &server.access;
    if parts.extensions.get::<FromProxy>().is_some()
        && let Some(user) = access.proxy.as_ref().and_then(|proxy| proxy.user(&parts.headers))
    {
        return Ok(user);
    }
    if let Some(user) = peer {
        return Ok(user.clone());
    }
    if let Some(token) = bearer(&parts.headers) {
        return match identify(server, &token, &access.audiences).await {
            Ok(found) => Ok(found.user),
            Err(why) => {
                tracing::debug!(why, "unable to authenticate the request");
                Err(Status::unauthorized())
            }
        };
    }
    let (served, paths) = &access.anonymous;
    let anonymous = *served && (paths.is_empty() || paths.iter().any(|p| p == parts.uri.path()));
    if anonymous { Ok(User::anonymous()) } else { Err(Status::unauthorized()) }
}

/// How the request tries to show who asks, for the audit log.
pub(crate) fn attempted(headers: &HeaderMap) -> &'static str {
    let scheme = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.split(' ').next()).unwrap_or("");
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => "bearer",
        "basic" => "basic",
        _ => "",
    }
}

/// The token that a request bears.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or("bearer ?"));
    if let Some((scheme, token)) = authorization.and_then(|text| text.split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
        && !token.trim().is_empty()
    {
        return Some(token.trim().to_owned());
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let encoded = protocols.map(str::trim).find_map(|p| p.strip_prefix(WEBSOCKET_TOKEN))?;
    Some(URL_SAFE_NO_PAD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_else(|| "?".into()))
}

/// Finds out who bears a token that is for one of these audiences. The error is what a review tells.
pub(crate) async fn identify(server: &Arc<Server>, token: &str, audiences: &[String]) -> Result<Authenticated, String> {
    let access = &server.access;
    // What knows nothing of audiences vouches for this server's own.
    let own: Vec<String> = audiences.iter().filter(|a| access.audiences.contains(a)).cloned().collect();
    if !own.is_empty() {
        if let Some(user) = access.tokens.get(token) {
            return Ok(Authenticated { user: user.clone(), audiences: own });
        }
        if let Some((id, secret)) = bootstrap::parts(token)
            && let Some(user) = bootstrap::authenticate(server, id, secret)
        {
            return Ok(Authenticated { user, audiences: own });
        }
    }
    let mut errors = vec!["invalid bearer token".to_owned()];
    match server.tokens.authenticate(server, token, audiences).await {
        Ok(Some(found)) => return Ok(found),
        Ok(None) => {}
        Err(why) => errors.push(why),
    }
    if !own.is_empty() {
        for issuer in access.issuers.now().iter() {
            match issuer.authenticate(&server.webhooks, token).await {
                Ok(Some(user)) => return Ok(Authenticated { user, audiences: own }),
                Ok(None) => {}
                Err(why) => errors.push(why),
            }
        }
    }
    if let Some(webhook) = &access.webhook {
        match webhook.authenticate(&server.webhooks, token, audiences).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(why) => errors.push(why),
        }
    }
    Err(if errors.len() == 1 { errors.remove(0) } else { format!("[{}]", errors.join(", ")) })
}

/// Whether the user may do that, and why.
pub(crate) async fn decide(server: &Server, user: &User, a: &Attributes<'_>) -> Decision {
    if user.in_group(MASTERS) {
        return Decision::allow("");
    }
    let (mut reasons, mut errors) = (Vec::new(), Vec::new());
    for authorizer in server.access.authorizers.now().iter() {
        let decision = match authorizer {
            Authorizer::Node => node::decide(server, user, a),
            Authorizer::Rbac => rbac::decide(server, user, a),
            Authorizer::AlwaysAllow => Decision::allow(""),
            Authorizer::AlwaysDeny => Decision::no_opinion("Everything is forbidden."),
            Authorizer::Webhook(webhook) => webhook.decide(&server.webhooks, user, a).await,
        };
        if decision.verdict != Verdict::NoOpinion {
            return decision;
        }
        reasons.push(decision.reason);
        errors.push(decision.error);
    }
    let joined = |list: Vec<String>, between: &str| list.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(between);
    Decision { verdict: Verdict::NoOpinion, reason: joined(reasons, "\n"), error: joined(errors, ", ") }
}

/// The same for those who can't wait, as expressions. Where a webhook is asked, this thread waits for it; how many do so, and how
/// long, is bounded, for they are taken from all other requests.
pub(crate) fn decide_now(server: &Server, user: &User, a: &Attributes<'_>) -> Decision {
    let unknown = |why: &str| Decision { error: why.to_owned(), ..Decision::no_opinion("") };
    if server.access.decides_here()
        && let Some(decision) = decide(server, user, a).now_or_never()
    {
        return decision;
    }
    let handle = Handle::current();
    if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
        return unknown("no authorization webhook can be asked from here");
    }
    let Ok(_place) = server.access.waiting.try_acquire() else { return unknown("too many expressions wait for the authorization webhook") };
    let decided = tokio::task::block_in_place(|| handle.block_on(tokio::time::timeout(PATIENCE, decide(server, user, a))));
    decided.unwrap_or_else(|_| unknown("the authorization webhook didn't answer in time"))
}

/// Whose rules a review can't list, and why: upstream's words.
pub(crate) fn unlisted(server: &Server, user: &User) -> Vec<&'static str> {
    let why = |authorizer: &Authorizer| match authorizer {
        Authorizer::Node if user.node().is_some() => Some("node authorizer does not support user rule resolution"),
        Authorizer::Webhook(_) => Some("webhook authorizer does not support user rule resolution"),
        _ => None,
    };
    server.access.authorizers.now().iter().filter_map(why).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_token_files() {
        let users = static_tokens("t1,jane,42,\"dev,ops\"\nt2,joe,43\n").expect("users");
        assert_eq!(users["t1"], User { uid: "42".into(), ..User::new("jane", ["dev", "ops"]) });
        assert_eq!(users["t2"].groups, ["system:authenticated"]);
        assert_eq!(static_tokens("t1,jane").expect_err("two columns"), "token file must have at least 3 columns (token, user name, user uid), found 2");
        assert!(static_tokens(",jane,1").is_err());
    }

    #[test]
    fn configurations_are_read_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let (who, what) = (dir.path().join("who"), dir.path().join("what"));
        let issuers = |list: &str, more: &str| std::fs::write(&who, format!("kind: AuthenticationConfiguration\njwt: [{list}]\n{more}")).expect("written");
        let authorizers = |list: &str| std::fs::write(&what, format!("kind: AuthorizationConfiguration\nauthorizers: [{list}]\n")).expect("written");
        issuers("", "");
        authorizers("{type: Node}, {type: RBAC}");
        let options = Options { authentication_config: Some(who.clone()), authorization_config: Some(what.clone()), ..Options::default() };
        let access = Access::read(&options, &Authority::generate().expect("an authority")).expect("readable");
        let check = |expected: [Result<bool, &str>; 2], counts: (usize, usize)| {
            let renewed: Vec<Result<bool, String>> = access.renew().into_iter().map(|(_, renewed)| renewed.map_err(|e| e.to_string())).collect();
            for (renewed, expected) in renewed.iter().zip(expected) {
                let same = match (renewed, expected) {
                    (Err(why), Err(expected)) => why.contains(expected),
                    (renewed, expected) => renewed.as_ref().ok() == expected.as_ref().ok(),
                };
                assert!(same, "{renewed:?} {expected:?}");
            }
            assert_eq!((access.issuers.now().len(), access.authorizers.now().len()), counts);
        };
        check([Ok(false), Ok(false)], (0, 2));
        issuers("{issuer: {url: 'https://a', audiences: [b]}, claimMappings: {username: {claim: sub, prefix: ''}}}", "");
        authorizers("{type: RBAC}, {type: Node}");
        check([Ok(true), Ok(true)], (1, 2));
        issuers("{issuer: {url: 'http://a'}}", "");
        authorizers("{type: Node}");
        check([Err("must be an https:// URL"), Err("of other types than Webhook")], (1, 2));
        issuers("", "anonymous: {enabled: false}\n");
        check([Err("anonymous: changed"), Err("of other types than Webhook")], (1, 2));
        issuers("", "");
        authorizers("{type: RBAC}, {type: Node}");
        check([Ok(true), Ok(false)], (0, 2));
    }

    #[test]
    fn where_tokens_stand() {
        let check = |name: &'static str, value: &str, expected: Option<&str>| {
            let headers = HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().expect("a value"))]);
            assert_eq!(bearer(&headers).as_deref(), expected, "{name}: {value}");
        };
        check("authorization", "Bearer abc", Some("abc"));
        check("authorization", "bearer  abc ", Some("abc"));
        check("authorization", "Basic abc", None);
        check("authorization", "Bearer ", None);
        check("sec-websocket-protocol", "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj", Some("abc"));
        check("sec-websocket-protocol", "v4.channel.k8s.io", None);
    }
}
