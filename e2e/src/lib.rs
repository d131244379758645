//! Helpers of the end-to-end tests.

pub mod alone;
pub mod kubectl;
pub mod up;

use std::path::{Path, PathBuf};

use serde_json::Value;
use skiff::Cluster;
use skiff_apiserver::auth::User;
use skiff_apiserver::http::body;

/// Says that a test can't run here, in the form that the test script counts.
pub fn skip(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
}

/// The folder of upstream's reference data, where there is one: `$SKIFF_SPEC`, or `shared/spec` beside the checkout.
pub fn spec(test: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/spec");
    let path = std::env::var_os("SKIFF_SPEC").map_or(beside, PathBuf::from);
    if path.join("README.md").exists() {
        return Some(path);
    }
    skip(test, "upstream's reference data isn't at hand (set SKIFF_SPEC)");
    None
}

/// The lines of a file of JSON lines.
pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).collect()
}

/// A request as a client would send it.
#[derive(Clone, Debug, Default)]
pub struct Ask<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The body's type.
    pub content_type: &'a str,
    /// The wanted answer's type.
    pub accept: &'a str,
    /// A bearer token.
    pub token: &'a str,
    /// The body.
    pub body: String,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The `Warning` headers, joined.
    pub warning: String,
    /// The body as JSON; as text where it is none.
    pub body: Value,
}

/// Asks the cluster's API server, as the administrator, or without `admin` as nobody. Of a watch only the head is read,
/// for its body may go on for ever.
pub async fn ask(cluster: &Cluster, ask: &Ask<'_>, admin: bool) -> Answer {
    send(cluster, ask, admin.then(|| User::new("kubernetes-admin", ["system:masters"]))).await
}

/// The same as a user without groups.
pub async fn ask_as(cluster: &Cluster, ask: &Ask<'_>, user: &str) -> Answer {
    send(cluster, ask, Some(User::new(user, std::iter::empty::<String>()))).await
}

async fn send(cluster: &Cluster, ask: &Ask<'_>, user: Option<User>) -> Answer {
    let mut request = http::Request::builder().method(ask.method).uri(ask.path);
    for (name, value) in [("content-type", ask.content_type), ("accept", ask.accept)] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    if !ask.token.is_empty() {
        request = request.header("authorization", format!("Bearer {}", ask.token));
    }
    let request = request.body(body::full(ask.body.clone())).expect("a request");
    let reply = cluster.server().handle(request, user).await;
    let warning: Vec<&str> = reply.headers().get_all("warning").iter().filter_map(|v| v.to_str().ok()).collect();
    let (code, warning) = (reply.status().as_u16(), warning.join(","));
    if code == 200 && ask.path.contains("watch=") {
        return Answer { code, warning, body: Value::Null };
    }
    let bytes = body::collect(reply.into_body()).await.expect("a body");
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Answer { code, warning, body }
}
