//! Who may ask the kubelet: as upstream's, it asks the API whether the bearer of a client certificate may use the node's subresources.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::Method;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use skiff_api::clock;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::context::Context;

/// How long an answer is remembered; upstream's for yes and no.
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
/// How many answers are remembered.
const REMEMBERED: usize = 1024;

/// Who a client certificate says its bearer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    /// The common name.
    pub(super) name: String,
    /// The organizations.
    pub(super) groups: Vec<String>,
}

impl User {
    /// Reads a certificate that the TLS layer verified.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        Some(Self { name, groups })
    }
}

/// What a request is about, in the words of RBAC: the verb, and the subresource of the node.
fn attributes(method: &Method, path: &str) -> (&'static str, &'static str) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresource = match first {
        "stats" => "stats",
        "metrics" => "metrics",
        "healthz" => "healthz",
        "pods" => "pods",
        _ => "proxy",
    };
    (verb, subresource)
}

type Question = (User, &'static str, &'static str);

/// Asks the API, and remembers what it says.
#[derive(Debug, Default)]
pub(super) struct Authorizer {
    answers: Mutex<HashMap<Question, (bool, Timestamp)>>,
}

impl Authorizer {
    /// Whether the user may do that; no if nobody can tell.
    pub(super) async fn allows(&self, ctx: &Context, user: &User, method: &Method, path: &str) -> bool {
        let (verb, subresource) = attributes(method, path);
        if self.ask(ctx, user, verb, subresource).await {
            return true;
        }
        // Upstream: who may use the proxy may use all.
        subresource != "proxy" && self.ask(ctx, user, verb, "proxy").await
    }

    async fn ask(&self, ctx: &Context, user: &User, verb: &'static str, subresource: &'static str) -> bool {
        let question = (user.clone(), verb, subresource);
        let now = clock::now();
        let known = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(&question).copied();
        if let Some((allowed, _)) = known.filter(|(_, until)| *until > now) {
            return allowed;
        }
        let reviews: Api<SubjectAccessReview> = Api::all(ctx.client.clone());
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            groups: Some(user.groups.clone()),
            extra: Some(BTreeMap::new()),
            resource_attributes: Some(ResourceAttributes {
                resource: Some("nodes".into()),
                subresource: Some(subresource.into()),
                verb: Some(verb.into()),
                name: Some(ctx.config.node_name.clone()),
                version: Some("v1".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let allowed = match reviews.create(&PostParams::default(), &review).await {
            Ok(review) => review.status.is_some_and(|s| s.allowed),
            Err(error) => {
                tracing::warn!(%error, user = user.name, "asking whether a user may use the kubelet failed");
                return false;
            }
        };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= REMEMBERED {
            answers.retain(|_, (_, until)| *until > now);
        }
        answers.insert(question, (allowed, now + if allowed { ALLOWED } else { DENIED }));
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_about_subresources() {
        assert_eq!(attributes(&Method::GET, "/containerLogs/a/b/c"), ("get", "proxy"));
        assert_eq!(attributes(&Method::POST, "/exec/a/b/c"), ("create", "proxy"));
        assert_eq!(attributes(&Method::GET, "/stats/summary"), ("get", "stats"));
        assert_eq!(attributes(&Method::GET, "/metrics/resource"), ("get", "metrics"));
    }
}
