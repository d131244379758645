//! Webhooks that say who bears a token, and webhooks that say who may do what. Their answers hold for a while.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skiff_api::cel::{Env, Program, Type, Val};
use skiff_api::value::{at, items, text};
use skiff_api::{fields, labels};
use tokio::time::Instant;

use super::{Attributes, Authenticated, Decision, User, Verdict, files};
use crate::options::{Error, Options};
use crate::subresources::user_info;
use crate::webhook::{ClientConfig, Webhooks};

/// How many answers are kept; upstream's figure.
const KEPT: usize = 8_192;
/// Answers about longer texts of clients are not kept, or anybody could fill the memory; upstream's figure, in bytes.
const MAX_KEPT_TEXT: usize = 10_000;
/// Upstream's time for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a webhook that doesn't answer is left alone at first; upstream's figure.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Answers by a digest of the question, each until its time.
struct Answers<V>(Mutex<HashMap<[u8; 32], (Instant, V)>>);

impl<V: Clone> Answers<V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, key: &[u8; 32]) -> Option<V> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, answer)| answer.clone())
    }

    fn keep(&self, key: [u8; 32], answer: V, ttl: Duration) {
        let now = Instant::now();
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= KEPT {
            answers.retain(|_, (until, _)| *until > now);
        }
        if answers.len() >= KEPT {
            answers.clear();
        }
        if !ttl.is_zero() {
            answers.insert(key, (now + ttl, answer));
        }
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// A webhook of `TokenReview`s.
pub(super) struct TokenWebhook {
    config: ClientConfig,
    version: String,
    ttl: Duration,
    answers: Answers<Option<(User, Vec<String>)>>,
}

impl TokenWebhook {
    pub fn of_flags(options: &Options) -> Result<Option<Self>, Error> {
        let Some(path) = &options.authentication_token_webhook_config_file else { return Ok(None) };
        Ok(Some(Self {
            config: files::kubeconfig("authentication-token-webhook-config-file", path)?,
            version: options.authentication_token_webhook_version.clone().unwrap_or_else(|| "v1beta1".into()),
            ttl: options.authentication_token_webhook_cache_ttl.unwrap_or(Duration::from_secs(120)),
            answers: Answers::new(),
        }))
    }

    /// Who bears the token, for one of these audiences.
    pub async fn authenticate(&self, webhooks: &Webhooks, token: &str, audiences: &[String]) -> Result<Option<Authenticated>, String> {
        let key = digest(&format!("{token}\n{audiences:?}"));
        let answer = match self.answers.get(&key) {
            Some(answer) => answer,
            None => {
                let body = json!({
                    "apiVersion": format!("authentication.k8s.io/{}", self.version), "kind": "TokenReview",
                    "metadata": {"creationTimestamp": null}, "spec": {"token": token, "audiences": audiences}, "status": {"user": {}},
                });
                let review = webhooks.ask(&self.config, &body, TIMEOUT, FIRST_WAIT).await.map_err(|e| e.to_string())?;
                let answer = self.read(&review, audiences)?;
                self.answers.keep(key, answer.clone(), self.ttl);
                answer
            }
        };
        Ok(answer.map(|(user, audiences)| Authenticated { user, audiences }))
    }

    fn read(&self, review: &Value, audiences: &[String]) -> Result<Option<(User, Vec<String>)>, String> {
        let list = |path: &[&str]| -> Vec<String> { items(review, path).iter().filter_map(Value::as_str).map(str::to_owned).collect() };
        if at(review, &["status", "authenticated"]) != &Value::Bool(true) {
            return match text(review, &["status", "error"]) {
                "" => Ok(None),
                error => Err(error.to_owned()),
            };
        }
        let confirmed = list(&["status", "audiences"]);
        // A webhook that knows no audiences vouches for the API server's own.
        let shared: Vec<String> = if confirmed.is_empty() { audiences.to_vec() } else { audiences.iter().filter(|a| confirmed.contains(a)).cloned().collect() };
        if shared.is_empty() && !audiences.is_empty() {
            return Ok(None);
        }
        let extra: BTreeMap<String, Vec<String>> = serde_json::from_value(at(review, &["status", "user", "extra"]).clone()).unwrap_or_default();
        let mut user = User::new(text(review, &["status", "user", "username"]), list(&["status", "user", "groups"]));
        (user.uid, user.extra) = (text(review, &["status", "user", "uid"]).to_owned(), extra);
        Ok(Some((user, shared)))
    }
}

/// A webhook of `SubjectAccessReview`s.
pub(crate) struct AccessWebhook {
    config: ClientConfig,
    version: String,
    timeout: Duration,
    authorized_ttl: Duration,
    unauthorized_ttl: Duration,
    /// What is decided where the webhook fails.
    on_failure: Verdict,
    /// It is asked about requests of which all of these hold.
    conditions: Vec<Program>,
    answers: Answers<Value>,
}

impl AccessWebhook {
    pub fn of_flags(options: &Options) -> Result<Self, Error> {
        let flag = "authorization-webhook-config-file";
        let path = options.authorization_webhook_config_file.as_ref().ok_or_else(|| Error::new(flag, "authorization-mode Webhook needs it"))?;
        Ok(Self {
            config: files::kubeconfig(flag, path)?,
            version: options.authorization_webhook_version.clone().unwrap_or_else(|| "v1beta1".into()),
            timeout: TIMEOUT,
            authorized_ttl: options.authorization_webhook_cache_authorized_ttl.unwrap_or(Duration::from_secs(300)),
            unauthorized_ttl: options.authorization_webhook_cache_unauthorized_ttl.unwrap_or(Duration::from_secs(30)),
            on_failure: Verdict::NoOpinion,
            conditions: Vec::new(),
            answers: Answers::new(),
        })
    }

    /// The `webhook` of one of `authorizers` in an `AuthorizationConfiguration`.
    pub fn of_config(config: &Value) -> Result<Self, Error> {
        let flag = "authorization-config";
        let duration = |key: &str, default: u64| match text(config, &[key]) {
            "" => Ok(Duration::from_secs(default)),
            given => given.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()).ok_or_else(|| Error::new(flag, format!("{key}: {given:?} is no duration"))),
        };
        let env = Env::default().with("request", Type::Dyn);
        let conditions = items(config, &["matchConditions"]).iter().map(|condition| {
            let source = text(condition, &["expression"]);
            Program::compile_to(&env, source, &[Type::Bool, Type::Dyn]).map_err(|e| Error::new(flag, format!("{source:?}: {e}")))
        });
        let kind = text(config, &["connectionInfo", "type"]);
        if kind != "KubeConfigFile" {
            return Err(Error::new(flag, format!("connectionInfo.type {kind:?} is not supported")));
        }
        let version = text(config, &["subjectAccessReviewVersion"]);
        if !matches!(version, "v1" | "v1beta1") {
            return Err(Error::new(flag, format!("subjectAccessReviewVersion {version:?} must be v1 or v1beta1")));
        }
        let on_failure = match text(config, &["failurePolicy"]) {
            "NoOpinion" => Verdict::NoOpinion,
            "Deny" => Verdict::Deny,
            other => return Err(Error::new(flag, format!("failurePolicy {other:?} must be NoOpinion or Deny"))),
        };
        Ok(Self {
            config: files::kubeconfig(flag, text(config, &["connectionInfo", "kubeConfigFile"]).as_ref())?,
            version: version.to_owned(),
            timeout: duration("timeout", 30)?,
            authorized_ttl: duration("authorizedTTL", 300)?,
            unauthorized_ttl: duration("unauthorizedTTL", 30)?,
            on_failure,
            conditions: conditions.collect::<Result<_, _>>()?,
            answers: Answers::new(),
        })
    }

    /// Asks whether the user may do that.
    pub async fn decide(&self, webhooks: &Webhooks, user: &User, a: &Attributes<'_>) -> Decision {
        let spec = spec(user, a);
        match matches(&self.conditions, &spec) {
            Ok(true) => {}
            Ok(false) => return Decision::no_opinion(""),
            Err(error) => return Decision { verdict: self.on_failure, reason: String::new(), error },
        }
        let key = digest(&spec.to_string());
        let status = match self.answers.get(&key) {
            Some(status) => status,
            None => {
                let version = &self.version;
                let mut sent = spec;
                // The older version's groups go by another name.
                if version == "v1beta1"
                    && let Some(groups) = sent.as_object_mut().and_then(|s| s.remove("groups"))
                {
                    sent["group"] = groups;
                }
                let body = json!({
                    "apiVersion": format!("authorization.k8s.io/{version}"), "kind": "SubjectAccessReview",
                    "metadata": {"creationTimestamp": null}, "spec": sent, "status": {"allowed": false},
                });
                let review = match webhooks.ask(&self.config, &body, self.timeout, FIRST_WAIT).await {
                    Ok(review) => review,
                    Err(error) => {
                        tracing::error!(%error, "failed to make webhook authorizer request");
                        return Decision { verdict: self.on_failure, reason: String::new(), error: error.to_string() };
                    }
                };
                let status = review["status"].clone();
                let ttl = if status["allowed"] == true { self.authorized_ttl } else { self.unauthorized_ttl };
                if a.namespace.len() + a.resource.len() + a.subresource.len() + a.name.len() + a.path.len() + a.group.len() < MAX_KEPT_TEXT {
                    self.answers.keep(key, status.clone(), ttl);
                }
                status
            }
        };
        let reason = text(&status, &["reason"]).to_owned();
        match (status["allowed"] == true, status["denied"] == true) {
            (true, true) => Decision { verdict: Verdict::Deny, reason, error: "webhook subject access review returned both allow and deny response".into() },
            (false, true) => Decision { verdict: Verdict::Deny, reason, error: String::new() },
            (true, false) => Decision { verdict: Verdict::Allow, reason, error: String::new() },
            (false, false) => Decision::no_opinion(reason),
        }
    }
}

/// Whether all conditions hold: one that doesn't is enough for no, whatever others fail.
fn matches(conditions: &[Program], spec: &Value) -> Result<bool, String> {
    let mut failed = None;
    for condition in conditions {
        let given = [("request", Val::json(spec, &Type::Dyn))];
        match condition.eval(&given.as_slice()).0 {
            Ok(Val::Bool(true)) => {}
            Ok(Val::Bool(false)) => return Ok(false),
            Ok(_) => failed = Some("a match condition gave no bool".to_owned()),
            Err(fault) => failed = Some(fault.to_string()),
        }
    }
    failed.map_or(Ok(true), Err)
}

/// The `spec` of a review.
fn spec(user: &User, a: &Attributes<'_>) -> Value {
    let mut spec = user_info(user);
    if let Some(map) = spec.as_object_mut()
        && let Some(name) = map.remove("username")
    {
        map.insert("user".into(), name);
    }
    let filled = |pairs: &[(&str, &str)]| -> Value { pairs.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect() };
    if !a.path.is_empty() {
        spec["nonResourceAttributes"] = filled(&[("path", a.path), ("verb", a.verb)]);
        return spec;
    }
    let mut resource = filled(&[
        ("namespace", a.namespace),
        ("verb", a.verb),
        ("group", a.group),
        ("version", a.version),
        ("resource", a.resource),
        ("subresource", a.subresource),
        ("name", a.name),
    ]);
    if let Ok(selector) = fields::Selector::parse(a.field_selector)
        && !selector.is_empty()
    {
        let one = |r: &fields::Requirement| json!({"key": r.field, "operator": if r.equal { "In" } else { "NotIn" }, "values": [r.value]});
        resource["fieldSelector"] = json!({"requirements": selector.requirements.iter().map(one).collect::<Vec<_>>()});
    }
    if let Ok(selector) = labels::Selector::parse(a.label_selector)
        && !selector.requirements().is_empty()
    {
        let requirements: Vec<Value> = selector.requirements().iter().filter_map(label_requirement).collect();
        resource["labelSelector"] = json!({"requirements": requirements});
    }
    spec["resourceAttributes"] = resource;
    spec
}

/// A requirement as reviews have it; the operators that they don't have are left out, which asks about more.
fn label_requirement(requirement: &labels::Requirement) -> Option<Value> {
    use labels::Operator::{DoesNotExist, DoubleEquals, Equals, Exists, In, NotEquals, NotIn};
    let operator = match requirement.operator {
        In | Equals | DoubleEquals => "In",
        NotIn | NotEquals => "NotIn",
        Exists => return Some(json!({"key": requirement.key, "operator": "Exists"})),
        DoesNotExist => return Some(json!({"key": requirement.key, "operator": "DoesNotExist"})),
        _ => return None,
    };
    Some(json!({"key": requirement.key, "operator": operator, "values": requirement.values}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_webhook_is_sent() {
        let user = User::new("jane", ["dev"]);
        let list = Attributes { verb: "list", resource: "pods", namespace: "n", version: "v1", field_selector: "spec.nodeName=a", label_selector: "x in (1,2),!y", ..Attributes::default() };
        let expected = json!({
            "user": "jane", "groups": ["dev", "system:authenticated"],
            "resourceAttributes": {
                "verb": "list", "resource": "pods", "namespace": "n", "version": "v1",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["a"]}]},
                "labelSelector": {"requirements": [{"key": "x", "operator": "In", "values": ["1", "2"]}, {"key": "y", "operator": "DoesNotExist"}]},
            },
        });
        assert_eq!(spec(&user, &list), expected);
        let path = Attributes { verb: "get", path: "/x", ..Attributes::default() };
        assert_eq!(spec(&user, &path)["nonResourceAttributes"], json!({"verb": "get", "path": "/x"}));
    }

    #[test]
    fn conditions() {
        let env = Env::default().with("request", Type::Dyn);
        let check = |sources: &[&str], expected: Result<bool, ()>| {
            let programs: Vec<Program> = sources.iter().map(|s| Program::compile_to(&env, s, &[Type::Bool, Type::Dyn]).expect("compiles")).collect();
            let spec = json!({"user": "jane", "resourceAttributes": {"namespace": "n"}});
            assert_eq!(matches(&programs, &spec).map_err(drop), expected, "{sources:?}");
        };
        check(&[], Ok(true));
        check(&["has(request.resourceAttributes)", "request.user == 'jane'"], Ok(true));
        check(&["request.resourceAttributes.namespace == 'kube-system'"], Ok(false));
        check(&["request.nothing == 'x'"], Err(()));
        check(&["request.nothing == 'x'", "request.user == 'joe'"], Ok(false));
    }
}
