//! Who may do what, asked of a server within this process. Issuers and webhooks are little TLS servers on loopback.

mod common;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use skiff_apiserver::auth::User;
use skiff_apiserver::auth::pki::{Authority, SigningKey};
use skiff_apiserver::http::body::full;
use skiff_apiserver::http::serve;
use skiff_apiserver::options::Options;
use skiff_apiserver::{Config, Server};
use skiff_store::{Memory, Store};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::{CancellationToken, DropGuard};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SELF: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

struct Api {
    server: Arc<Server>,
    authority: Authority,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Api {
    async fn start(options: Options) -> Self {
        Self::over(options, Arc::new(Memory::new())).await
    }

    async fn over(options: Options, store: Arc<dyn Store>) -> Self {
        let stop = CancellationToken::new();
        let config = Config { options, ..common::config(store) };
        let authority = config.authority.clone();
        let server = Server::start(config, stop.clone()).await.expect("a server");
        Self { server, authority, stop: stop.clone(), _guard: stop.drop_guard() }
    }

    async fn ask(&self, user: Option<User>, method: Method, path: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
        let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let mut request = Request::builder().method(method).uri(path).header("content-type", content);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = self.server.handle(request.body(full(body)).expect("a request"), user).await;
        assert!(reply.headers().contains_key("audit-id"), "every answer names its request");
        let code = reply.status().as_u16();
        let body = reply.into_body().collect().await.expect("a body").to_bytes();
        (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn admin(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        self.ask(Some(User::new("alice", ["system:masters"])), method, path, &[], body).await
    }

    /// Who the bearer of the token is: the user's name and groups, or the refusal's code.
    async fn bearer(&self, token: &str) -> Result<(String, Vec<String>), u16> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let (code, said) = self.ask(None, Method::POST, SELF, &[("authorization", &format!("Bearer {token}"))], &review).await;
        let info = &said["status"]["userInfo"];
        let groups = serde_json::from_value(info["groups"].clone()).unwrap_or_default();
        if code == 201 { Ok((info["username"].as_str().unwrap_or("").to_owned(), groups)) } else { Err(code) }
    }
}

/// Tries until it holds: what runs beside the request comes about in its own time.
macro_rules! until {
    ($holds:expr) => {{
        let mut tries = 0;
        while !$holds {
            tries += 1;
            assert!(tries < 2_000, "{} never came to be", stringify!($holds));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }};
}

/// A directory that is gone with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("skiff-access-{}-{}", std::process::id(), skiff_api::random::suffix(8)));
        std::fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("written");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Answer = dyn Fn(&str, Value) -> Value + Send + Sync;

/// A TLS server on loopback that answers by path and body.
struct Remote {
    url: String,
    authority: Authority,
}

impl Remote {
    async fn start(answer: Arc<Answer>) -> Self {
        let authority = Authority::generate().expect("an authority");
        let pair = authority.server("remote", &[], &[IpAddr::V4(Ipv4Addr::LOCALHOST)]).expect("a certificate");
        let acceptor = TlsAcceptor::from(serve::tls(&pair, &authority.pair.certificate).expect("TLS"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(|request: Request<Incoming>| {
                        let answer = Arc::clone(&answer);
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                            let said = answer(&path, serde_json::from_slice(&body).unwrap_or_default());
                            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said.to_string()))))
                        }
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { url, authority }
    }

    /// A kubeconfig that leads here.
    fn kubeconfig(&self) -> String {
        let client = self.authority.client(&User::new("apiserver", [""; 0])).expect("a certificate");
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "r", "cluster": {"server": format!("{}/hook", self.url), "certificate-authority-data": STANDARD.encode(&self.authority.pair.certificate)}}],
            "users": [{"name": "u", "user": {"client-certificate-data": STANDARD.encode(&client.certificate), "client-key-data": STANDARD.encode(&client.key)}}],
            "contexts": [{"name": "c", "context": {"cluster": "r", "user": "u"}}],
        })
        .to_string()
    }
}

fn set_up() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[tokio::test]
async fn static_tokens_and_the_anonymous() {
    let dir = Dir::new();
    let table = dir.file("tokens.csv", "secret-1,jane,42,\"dev,ops\"\n");
    let api = Api::start(Options { token_auth_file: Some(table), anonymous_auth: Some(false), ..Options::default() }).await;
    let groups = ["dev", "ops", "system:authenticated"].map(str::to_owned).to_vec();
    assert_eq!(api.bearer("secret-1").await, Ok(("jane".into(), groups)));
    assert_eq!(api.bearer("secret-2").await, Err(401));
    let (code, said) = api.ask(None, Method::GET, "/readyz", &[], &Value::Null).await;
    assert_eq!((code, &said["reason"], &said["message"]), (401, &json!("Unauthorized"), &json!("Unauthorized")));
    let open = Api::start(Options::default()).await;
    assert_eq!(open.ask(None, Method::GET, "/readyz", &[], &Value::Null).await.0, 200);
    assert_eq!(open.bearer("secret-1").await, Err(401), "a bad token is worse than none");
}

#[tokio::test]
async fn reasons_and_impersonation() {
    let api = Api::start(Options::default()).await;
    let jane = || Some(User::new("jane", ["dev"]));
    let (_, said) = api.ask(jane(), Method::GET, CONFIG_MAPS, &[], &Value::Null).await;
    assert_eq!(said["message"], r#"configmaps is forbidden: User "jane" cannot list resource "configmaps" in API group "" in the namespace "default""#);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let binding = json!({
        "metadata": {"name": "view"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "Group", "name": "dev", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    let mut dangling = binding.clone();
    (dangling["metadata"]["name"], dangling["roleRef"]["name"]) = ("gone".into(), "gone".into());
    for object in [&binding, &dangling] {
        assert_eq!(api.admin(Method::POST, &format!("{rbac}/namespaces/default/rolebindings"), object).await.0, 201);
    }
    until!(api.ask(jane(), Method::GET, CONFIG_MAPS, &[], &Value::Null).await.0 == 200);
    let review = |verb: &str| {
        json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "jane", "groups": ["dev"], "resourceAttributes": {"verb": verb, "resource": "configmaps", "namespace": "default"}},
        })
    };
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let (_, said) = api.admin(Method::POST, reviews, &review("get")).await;
    assert_eq!(said["status"], json!({"allowed": true, "reason": r#"RBAC: allowed by RoleBinding "view/default" of ClusterRole "view" to Group "dev""#}));
    let (_, said) = api.admin(Method::POST, reviews, &review("delete")).await;
    assert_eq!(said["status"], json!({"allowed": false, "reason": r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#}));

    let as_other = [("impersonate-user", "joe"), ("impersonate-uid", "7"), ("impersonate-extra-team", "a")];
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (_, said) = api.ask(Some(User::new("alice", ["system:masters"])), Method::POST, SELF, &as_other, &body).await;
    let expected = json!({"username": "joe", "uid": "7", "groups": ["system:authenticated"], "extra": {"team": ["a"]}});
    assert_eq!(said["status"]["userInfo"], expected);
    let (code, said) = api.ask(jane(), Method::POST, SELF, &as_other, &body).await;
    let expected = r#"selfsubjectreviews.authentication.k8s.io is forbidden: User "jane" cannot impersonate-on:user-info:create resource "selfsubjectreviews" in API group "authentication.k8s.io" at the cluster scope"#;
    assert!(code == 403 && said["message"].as_str().is_some_and(|m| m.starts_with(expected)), "{said}");
}

#[tokio::test]
async fn who_acts_as_another_may_be_held_to_what_that_is_for() {
    let api = Api::start(Options::default()).await;
    let rule = |verbs: &[&str], group: &str, resource: &str, names: &[&str]| json!({"verbs": verbs, "apiGroups": [group], "resources": [resource], "resourceNames": names});
    let rules = json!([
        rule(&["impersonate:user-info"], "authentication.k8s.io", "users", &["joe"]),
        rule(&["impersonate-on:user-info:list"], "", "configmaps", &[]),
        rule(&["impersonate:associated-node"], "authentication.k8s.io", "nodes", &["*"]),
        rule(&["impersonate-on:associated-node:get"], "", "nodes", &[]),
    ]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let create = async |plural: &str, object: Value| assert_eq!(api.admin(Method::POST, &format!("{rbac}/{plural}"), &object).await.0, 201);
    create("clusterroles", json!({"metadata": {"name": "acting"}, "rules": rules})).await;
    let of_group = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    let user = |name: &str| json!({"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"});
    let agent = "system:serviceaccount:kube-system:agent";
    create("clusterrolebindings", json!({"metadata": {"name": "acting"}, "roleRef": of_group("acting"), "subjects": [user("jane"), user(agent)]})).await;
    create("clusterrolebindings", json!({"metadata": {"name": "joe"}, "roleRef": of_group("cluster-admin"), "subjects": [user("joe")]})).await;
    let ask = async |asker: User, path: &str, other: &str| api.ask(Some(asker), Method::GET, path, &[("impersonate-user", other)], &Value::Null).await;
    let jane = || User::new("jane", ["dev"]);
    until!(ask(jane(), CONFIG_MAPS, "joe").await.0 == 200);
    let refused = |(code, said): (u16, Value), why: &str| assert!(code == 403 && said["message"].as_str().is_some_and(|m| m.contains(why)), "{said}");
    refused(ask(jane(), "/api/v1/nodes", "joe").await, "cannot impersonate-on:user-info:list resource \"nodes\"");
    refused(ask(jane(), CONFIG_MAPS, "jim").await, "users.authentication.k8s.io \"jim\" is forbidden: User \"jane\" cannot impersonate:user-info resource \"users\"");
    let on = |node: &str| User { extra: [("authentication.kubernetes.io/node-name".to_owned(), vec![node.to_owned()])].into(), ..User::new(agent, ["system:serviceaccounts"]) };
    assert_eq!(ask(on("a"), "/api/v1/nodes/a", "system:node:a").await.0, 404, "as its own node it may look");
    refused(ask(on("b"), "/api/v1/nodes/a", "system:node:a").await, "cannot impersonate-on:arbitrary-node:get");
}

#[tokio::test]
async fn clients_of_a_further_authority_are_known() {
    let (own, further) = (Authority::generate().expect("an authority"), Authority::generate().expect("an authority"));
    let dir = Dir::new();
    let options = Options { client_ca_file: Some(dir.file("clients.pem", &further.pair.certificate)), ..Options::default() };
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let config = Config { options, authority: own.clone(), ..common::config(Arc::new(Memory::new())) };
    let server = Server::start(config, stop).await.expect("a server");
    let known = server.client_authorities();
    assert!([&own, &further].iter().all(|authority| known.contains(authority.pair.certificate.trim())), "{known}");
    let bad = Options { client_ca_file: Some(dir.file("bad.pem", "nothing")), ..Options::default() };
    let config = Config { options: bad, ..common::config(Arc::new(Memory::new())) };
    assert!(Server::start(config, CancellationToken::new()).await.err().is_some_and(|e| e.to_string().starts_with("--client-ca-file: ")));
}

#[tokio::test]
async fn open_id_tokens_are_believed_while_their_keys_rotate() {
    set_up();
    type Keys = Arc<Mutex<(String, Value)>>;
    let keys: Keys = Arc::default();
    let issuer = Remote::start({
        let keys = Arc::clone(&keys);
        Arc::new(move |path, _| {
            let (url, set) = keys.lock().expect("keys").clone();
            if path == "/keys" { set } else { json!({"issuer": url, "jwks_uri": format!("{url}/keys")}) }
        })
    })
    .await;
    let dir = Dir::new();
    let sign = |kid: &str, key: &SigningKey, audience: &str| {
        let body: String = key.public_pem.lines().filter(|l| !l.starts_with('-')).collect();
        let der = STANDARD.decode(body).expect("base64");
        let (x, y) = der[der.len() - 64..].split_at(32);
        let jwk = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)});
        *keys.lock().expect("keys") = (issuer.url.clone(), json!({"keys": [jwk]}));
        let claims = json!({"iss": issuer.url, "aud": audience, "sub": "1", "email": "a@b", "teams": ["x"], "exp": 99_999_999_999_i64});
        let header = jsonwebtoken::Header { kid: Some(kid.into()), ..jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_ec_pem(key.private_pem.as_bytes()).expect("a key")).expect("signed")
    };
    let options = Options {
        oidc_issuer_url: Some(issuer.url.clone()),
        oidc_client_id: "skiff".into(),
        oidc_username_claim: Some("email".into()),
        oidc_groups_claim: "teams".into(),
        oidc_groups_prefix: "team:".into(),
        oidc_signing_algs: vec!["ES256".into()],
        oidc_ca_file: Some(dir.file("ca.pem", &issuer.authority.pair.certificate)),
        ..Options::default()
    };
    let api = Api::start(options).await;
    let (first, second) = (SigningKey::generate().expect("a key"), SigningKey::generate().expect("a key"));
    let token = sign("k1", &first, "skiff");
    let jane = ("a@b".to_owned(), vec!["team:x".to_owned(), "system:authenticated".to_owned()]);
    assert_eq!(api.bearer(&token).await, Ok(jane.clone()));
    assert_eq!(api.bearer(&sign("k1", &first, "other")).await, Err(401), "for somebody else");
    assert_eq!(api.bearer(&sign("k1", &second, "skiff")).await, Err(401), "another key under a known name");
    let token = sign("k2", &second, "skiff");
    until!(api.bearer(&token).await == Ok(jane.clone()));
}

#[tokio::test]
async fn webhooks_know_users_and_rights() {
    set_up();
    let asked: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let hook = Remote::start({
        let asked = Arc::clone(&asked);
        Arc::new(move |_, body| {
            let kind = body["kind"].as_str().unwrap_or("").to_owned();
            *asked.lock().expect("counts").entry(kind.clone()).or_default() += 1;
            let status = if kind == "TokenReview" {
                json!({"authenticated": body["spec"]["token"] == "good", "user": {"username": "jane", "groups": ["dev"]}})
            } else {
                let read = &body["spec"]["resourceAttributes"];
                json!({"allowed": read["resource"] == "configmaps" && body["spec"]["user"] == "jane", "denied": read["resource"] == "secrets", "reason": "the hook says so"})
            };
            json!({"apiVersion": body["apiVersion"], "kind": kind, "status": status})
        })
    })
    .await;
    let dir = Dir::new();
    let config = dir.file("hook.kubeconfig", hook.kubeconfig());
    let options = Options {
        authentication_token_webhook_config_file: Some(config.clone()),
        authorization_mode: vec!["RBAC".into(), "Webhook".into()],
        authorization_webhook_config_file: Some(config.clone()),
        authorization_webhook_version: Some("v1".into()),
        ..Options::default()
    };
    let api = Api::start(options).await;
    let with = |token: &'static str| [("authorization", token)];
    for _ in 0..3 {
        assert_eq!(api.ask(None, Method::GET, CONFIG_MAPS, &with("Bearer good"), &Value::Null).await.0, 200);
    }
    assert_eq!(*asked.lock().expect("counts"), BTreeMap::from([("SubjectAccessReview".into(), 1), ("TokenReview".into(), 1)]), "answers hold for a while");
    assert_eq!(api.ask(None, Method::GET, CONFIG_MAPS, &with("Bearer bad"), &Value::Null).await.0, 401);
    let (code, said) = api.ask(None, Method::GET, "/api/v1/namespaces/default/secrets", &with("Bearer good"), &Value::Null).await;
    assert_eq!(code, 403);
    assert!(said["message"].as_str().is_some_and(|m| m.ends_with(": the hook says so")), "{said}");
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}});
    let (_, said) = api.admin(Method::POST, "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review).await;
    assert_eq!((&said["status"]["incomplete"], &said["status"]["evaluationError"]), (&json!(true), &json!("webhook authorizer does not support user rule resolution")));

    let file = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [{"type": "Webhook", "name": "hook", "webhook": {
            "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny", "timeout": "3s", "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": config},
            "matchConditions": [{"expression": "has(request.resourceAttributes) && request.resourceAttributes.resource == 'configmaps'"}],
        }}],
    });
    let options = Options { authorization_config: Some(dir.file("authorization.json", file.to_string())), ..Options::default() };
    let api = Api::start(options).await;
    let jane = || Some(User::new("jane", ["dev"]));
    assert_eq!(api.ask(jane(), Method::GET, CONFIG_MAPS, &[], &Value::Null).await.0, 200);
    let before = asked.lock().expect("counts")["SubjectAccessReview"];
    assert_eq!(api.ask(jane(), Method::GET, "/api/v1/nodes", &[], &Value::Null).await.0, 403);
    assert_eq!(asked.lock().expect("counts")["SubjectAccessReview"], before, "what doesn't match isn't asked about");
}

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn the_audit_log_tells_what_the_policy_wants() {
    let dir = Dir::new();
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "omitManagedFields": true,
        "rules": [
            {"level": "None", "users": ["system:apiserver"]},
            {"level": "RequestResponse", "resources": [{"group": "", "resources": ["configmaps"]}]},
            {"level": "Metadata"},
        ],
    });
    let log = dir.0.join("audit.log");
    let options = Options { audit_policy_file: Some(dir.file("policy.yaml", policy.to_string())), audit_log_path: Some(log.clone()), ..Options::default() };
    let api = Api::start(options).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let headers = [("audit-id", "mine"), ("user-agent", "test"), ("impersonate-user", "bob"), ("impersonate-group", "system:masters")];
    let (code, _) = api.ask(Some(User::new("alice", ["system:masters"])), Method::POST, CONFIG_MAPS, &headers, &map).await;
    assert_eq!(code, 201);
    assert_eq!(api.ask(Some(User::new("jane", ["dev"])), Method::GET, "/api/v1/nodes", &[], &Value::Null).await.0, 403);
    assert_eq!(api.bearer("nonsense").await, Err(401));
    let watch = Request::builder().uri("/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=600").body(full("")).expect("a request");
    let reply = api.server.handle(watch, Some(User::new("alice", ["system:masters"]))).await;
    until!(events(&log).len() == 4);
    drop(reply);
    until!(events(&log).len() == 5);
    let events = events(&log);
    let created = &events[0];
    let expected = json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"});
    assert_eq!((&created["auditID"], &created["stage"], &created["level"], &created["objectRef"]), (&json!("mine"), &json!("ResponseComplete"), &json!("RequestResponse"), &expected));
    assert_eq!((&created["user"]["username"], &created["impersonatedUser"]["username"], &created["userAgent"]), (&json!("alice"), &json!("bob"), &json!("test")));
    assert_eq!((&created["requestObject"]["data"]["k"], &created["responseObject"]["data"]["k"], &created["responseStatus"]["code"]), (&json!("v"), &json!("v"), &json!(201)));
    assert!(created["responseObject"]["metadata"]["managedFields"].is_null() && created["responseObject"]["metadata"]["uid"].is_string());
    assert_eq!(created["annotations"], json!({"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""}));
    let refused = &events[1];
    assert_eq!((&refused["responseStatus"]["code"], &refused["responseStatus"]["reason"], &refused["annotations"]["authorization.k8s.io/decision"]), (&json!(403), &json!("Forbidden"), &json!("forbid")));
    assert!(refused["requestObject"].is_null() && refused["responseObject"].is_null());
    assert_eq!((&events[2]["stage"], &events[2]["responseStatus"]["message"]), (&json!("ResponseStarted"), &json!("Authentication failed, attempted: bearer")));
    assert_eq!((&events[3]["stage"], &events[4]["stage"], events[3]["auditID"] == events[4]["auditID"]), (&json!("ResponseStarted"), &json!("ResponseComplete"), true));
}

#[tokio::test]
async fn secrets_are_encrypted_in_the_store() {
    let dir = Dir::new();
    let key = |name: &str, byte: u8| json!({"name": name, "secret": STANDARD.encode([byte; 32])});
    let config = |name: &str, keys: Value| {
        let providers = json!([{"aesgcm": {"keys": keys}}, {"identity": {}}]);
        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration", "resources": [{"resources": ["secrets"], "providers": providers}]});
        Options { encryption_provider_config: Some(dir.file(name, config.to_string())), ..Options::default() }
    };
    let store = Arc::new(Memory::new());
    let stored = async |key: &str| store.get(key).await.expect("read").expect("there").value;
    let api = Api::over(config("one.yaml", json!([key("k1", 1)])), store.clone()).await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "hidden"}});
    assert_eq!(api.admin(Method::POST, secrets, &secret).await.0, 201);
    assert_eq!(api.admin(Method::POST, CONFIG_MAPS, &json!({"metadata": {"name": "open"}})).await.0, 201);
    assert!(stored("/registry/secrets/default/s").await.starts_with(b"k8s:enc:aesgcm:v1:k1:"));
    assert!(stored("/registry/configmaps/default/open").await.starts_with(b"{"));
    let (_, read) = api.admin(Method::GET, &format!("{secrets}/s"), &Value::Null).await;
    assert_eq!(read["data"]["a"], STANDARD.encode("hidden"));
    drop(api);
    let api = Api::over(config("two.yaml", json!([key("k2", 2), key("k1", 1)])), store.clone()).await;
    let (_, mut read) = api.admin(Method::GET, &format!("{secrets}/s"), &Value::Null).await;
    assert_eq!(read["data"]["a"], STANDARD.encode("hidden"), "read by the older key");
    read["metadata"]["resourceVersion"] = Value::Null;
    assert_eq!(api.admin(Method::PUT, &format!("{secrets}/s"), &read).await.0, 200);
    let front = "/registry/skiff.io/front-proxy-ca";
    until!(store.get(front).await.expect("read").is_some_and(|entry| entry.value.starts_with(b"k8s:enc:aesgcm:v1:k2:")));
    assert!(stored("/registry/secrets/default/s").await.starts_with(b"k8s:enc:aesgcm:v1:k2:"), "a write that changes nothing brings the newer key");
    let revision = store.revision().await.expect("a revision");
    assert_eq!(api.admin(Method::PUT, &format!("{secrets}/s"), &read).await.0, 200);
    assert_eq!(store.revision().await.expect("a revision"), revision, "and then writes no more");
}

#[tokio::test]
async fn tokens_last_as_long_as_what_they_are_bound_to() {
    let api = Api::start(Options::default()).await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(api.admin(Method::POST, accounts, &json!({"metadata": {"name": "robot"}})).await.0, 201);
    let secret = json!({"metadata": {"name": "old", "annotations": {"kubernetes.io/service-account.name": "robot"}}, "type": "kubernetes.io/service-account-token"});
    let secrets = "/api/v1/namespaces/default/secrets";
    assert_eq!(api.admin(Method::POST, secrets, &secret).await.0, 201);
    let path = format!("{secrets}/old");
    until!(api.admin(Method::GET, &path, &Value::Null).await.1["data"]["token"].is_string());
    let data = api.admin(Method::GET, &path, &Value::Null).await.1["data"].clone();
    assert!(data["ca.crt"].is_string() && data["namespace"] == STANDARD.encode("default"));
    let token = String::from_utf8(STANDARD.decode(data["token"].as_str().unwrap_or("")).expect("base64")).expect("a token");
    assert_eq!(api.bearer(&token).await.expect("a user").0, "system:serviceaccount:default:robot");

    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": {"kind": "Secret", "apiVersion": "v1", "name": "old"}}});
    let (_, made) = api.admin(Method::POST, &format!("{accounts}/robot/token"), &request).await;
    let bound = made["status"]["token"].as_str().unwrap_or("").to_owned();
    assert!(api.bearer(&bound).await.is_ok());
    let review = |token: &str, audiences: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": audiences}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (_, said) = api.admin(Method::POST, reviews, &review(&bound, json!(["elsewhere"]))).await;
    assert!(said["status"]["error"].as_str().is_some_and(|e| e.contains("is invalid for the target audiences")), "{said}");
    assert_eq!(api.admin(Method::DELETE, &path, &Value::Null).await.0, 200);
    until!(api.bearer(&bound).await == Err(401) && api.bearer(&token).await == Err(401));
    let (_, said) = api.admin(Method::POST, reviews, &review(&bound, Value::Null)).await;
    assert_eq!(said["status"]["error"], "[invalid bearer token, service account token has been invalidated]");

    assert_eq!(api.admin(Method::POST, secrets, &secret).await.0, 201);
    until!(api.admin(Method::GET, &path, &Value::Null).await.1["data"]["token"].is_string());
    assert_eq!(api.admin(Method::DELETE, &format!("{accounts}/robot"), &Value::Null).await.0, 200);
    until!(api.admin(Method::GET, &path, &Value::Null).await.0 == 404);
}

#[tokio::test]
async fn front_proxies_say_who_asks() {
    set_up();
    let proxies = Authority::generate().expect("an authority");
    let dir = Dir::new();
    let options = Options {
        requestheader_client_ca_file: Some(dir.file("proxies.pem", &proxies.pair.certificate)),
        requestheader_allowed_names: vec!["front".into()],
        ..Options::default()
    };
    let api = Api::start(options).await;
    let pair = api.authority.server("apiserver", &[], &[IpAddr::V4(Ipv4Addr::LOCALHOST)]).expect("a certificate");
    let tls = serve::tls(&pair, &api.server.client_authorities()).expect("TLS");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(serve::serve(Arc::clone(&api.server), listener, tls, api.stop.clone()));
    let ask = async |authority: &Authority, name: &str| -> (u16, Value) {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
        let client = authority.client(&User::new(name, [""; 0])).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(api.authority.pair.certificate.as_bytes()).expect("PEM")).expect("a root");
        let chain = vec![CertificateDer::from_pem_slice(client.certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).expect("PEM");
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain, key).expect("TLS");
        let stream = TcpStream::connect(address).await.expect("a connection");
        let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("127.0.0.1").expect("a name"), stream).await.expect("TLS");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
        let request = Request::post(SELF)
            .header("host", "skiff")
            .header("content-type", "application/json")
            .header("x-remote-user", "carol")
            .header("x-remote-group", "ops")
            .header("x-remote-extra-scopes", "all");
        let reply = sender.send_request(request.body(Full::new(Bytes::from(body))).expect("a request")).await.expect("an answer");
        let code = reply.status().as_u16();
        (code, serde_json::from_slice(&reply.into_body().collect().await.expect("a body").to_bytes()).unwrap_or_default())
    };
    let (code, said) = ask(&proxies, "front").await;
    assert_eq!((code, &said["status"]["userInfo"]), (201, &json!({"username": "carol", "groups": ["ops", "system:authenticated"], "extra": {"scopes": ["all"]}})));
    let (code, said) = ask(&api.authority, "front").await;
    assert_eq!((code, &said["status"]["userInfo"]["username"]), (201, &json!("front")), "a client of that name is no proxy");
    assert_eq!(ask(&proxies, "mallory").await.1["status"]["userInfo"]["username"], Value::Null, "neither a proxy that is allowed, nor a client");
}
