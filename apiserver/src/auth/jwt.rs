//! JSON web tokens of issuers elsewhere: OpenID Connect, by flags or by an `AuthenticationConfiguration`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};
use skiff_api::cel::{Env, Program, Type, Val};
use skiff_api::{clock, names};
use skiff_api::value::{at, items, text};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{User, files};
use crate::options::{Error, Options};
use crate::webhook::Webhooks;

/// How long an issuer may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How soon an issuer is asked again about a key that it didn't have.
const AGAIN: Duration = Duration::from_secs(1);
/// By how much an issuer's clock may be ahead, in seconds.
const LEEWAY: i64 = 300;

/// How a fact about the user is found in the claims.
enum Mapping {
    Claim { claim: String, prefix: String },
    Expression(Program),
}

/// What must be true of the claims, or of the user.
struct Rule {
    program: Program,
    message: String,
}

/// An issuer whose tokens are believed.
pub(super) struct Issuer {
    url: String,
    /// Where its metadata is.
    discovery: String,
    /// The authorities that are believed about its certificate; empty for the system's.
    ca: Vec<u8>,
    audiences: Vec<String>,
    algorithms: Vec<Algorithm>,
    required: Vec<(String, String)>,
    claim_rules: Vec<Rule>,
    user_rules: Vec<Rule>,
    username: Mapping,
    groups: Option<Mapping>,
    uid: Option<Mapping>,
    extra: Vec<(String, Program)>,
    /// The keys that were fetched last.
    keys: RwLock<Option<Arc<JwkSet>>>,
    /// When they were asked for. Held while they are fetched, so that they are fetched once; tokens of known keys don't wait for it.
    asked: Mutex<Option<Instant>>,
}

fn algorithm(name: &str) -> Result<Algorithm, String> {
    let known = name.parse::<Algorithm>().ok().filter(|_| !name.starts_with("HS"));
    known.ok_or_else(|| format!("signing algorithm {name:?} is not supported"))
}

impl Issuer {
    /// The issuer of the `--oidc` flags, if there is one.
    pub fn of_flags(options: &Options) -> Result<Option<Self>, Error> {
        let Some(url) = options.oidc_issuer_url.clone() else { return Ok(None) };
        if !url.starts_with("https://") {
            return Err(Error::new("oidc-issuer-url", format!("{url:?}: it must be an https:// URL")));
        }
        if options.oidc_client_id.is_empty() {
            return Err(Error::new("oidc-client-id", "must be set together with --oidc-issuer-url"));
        }
        let claim = options.oidc_username_claim.clone().unwrap_or_else(|| "sub".into());
        let prefix = match options.oidc_username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if claim == "email" => String::new(),
            None => format!("{url}#"),
        };
        let pair = |given: &String| given.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| Error::new("oidc-required-claim", format!("{given:?} is not NAME=VALUE")));
        let algorithms: Vec<Algorithm> = options.oidc_signing_algs.iter().map(|name| algorithm(name)).collect::<Result<_, _>>().map_err(|e| Error::new("oidc-signing-algs", e))?;
        let groups = Mapping::Claim { claim: options.oidc_groups_claim.clone(), prefix: options.oidc_groups_prefix.clone() };
        Ok(Some(Self {
            discovery: discovery(&url),
            ca: options.oidc_ca_file.as_deref().map(|path| files::bytes("oidc-ca-file", path)).transpose()?.unwrap_or_default(),
            audiences: vec![options.oidc_client_id.clone()],
            algorithms: if algorithms.is_empty() { vec![Algorithm::RS256] } else { algorithms },
            required: options.oidc_required_claim.iter().map(pair).collect::<Result<_, _>>()?,
            claim_rules: Vec::new(),
            user_rules: Vec::new(),
            username: Mapping::Claim { claim, prefix },
            groups: (!options.oidc_groups_claim.is_empty()).then_some(groups),
            uid: None,
            extra: Vec::new(),
            keys: RwLock::default(),
            asked: Mutex::default(),
            url,
        }))
    }

    /// One of `jwt` in an `AuthenticationConfiguration`.
    pub fn of_config(config: &Value) -> Result<Self, String> {
        let env = Env::default().with("claims", Type::Dyn);
        let user_env = Env::default().with("user", Type::Dyn);
        let compile = |env: &Env, source: &str, types: &[Type]| Program::compile_to(env, source, types).map_err(|e| format!("{source:?}: {e}"));
        let texts = [Type::String, Type::list(Type::String), Type::Dyn, Type::Null];
        let mapping = |name: &str| -> Result<Option<Mapping>, String> {
            let given = at(config, &["claimMappings", name]);
            let (claim, prefix, source) = (text(given, &["claim"]), at(given, &["prefix"]).as_str(), text(given, &["expression"]));
            // Whose names are taken as they are must be said: a user by chance named as another has that one's rights.
            match (claim, source, prefix) {
                ("", "", _) => Ok(None),
                (claim, "", None) if name != "uid" => Err(format!("claimMappings.{name}.prefix: Required value: prefix is required when claim is set ({claim:?}). It can be set to an empty string to disable prefixing")),
                (claim, "", prefix) => Ok(Some(Mapping::Claim { claim: claim.into(), prefix: prefix.unwrap_or_default().into() })),
                ("", source, None) => compile(&env, source, &texts).map(|p| Some(Mapping::Expression(p))),
                ("", _, Some(_)) => Err(format!("claimMappings.{name}.prefix: may not be specified when expression is set")),
                _ => Err(format!("claimMappings.{name}: claim and expression can't both be set")),
            }
        };
        let rules = |list: &str, env: &Env| -> Result<Vec<Rule>, String> {
            let given = items(config, &[list]).iter().filter(|r| !text(r, &["expression"]).is_empty());
            given.map(|r| Ok(Rule { program: compile(env, text(r, &["expression"]), &[Type::Bool, Type::Dyn])?, message: text(r, &["message"]).into() })).collect()
        };
        let url = text(config, &["issuer", "url"]).to_owned();
        if !url.starts_with("https://") {
            return Err(format!("issuer.url {url:?} must be an https:// URL"));
        }
        let audiences: Vec<String> = items(config, &["issuer", "audiences"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
        if audiences.is_empty() {
            return Err("issuer.audiences must not be empty".into());
        }
        let extra = items(config, &["claimMappings", "extra"]).iter().map(|e| {
            let key = text(e, &["key"]);
            let domain = key.split_once('/').filter(|(domain, rest)| names::dns_subdomain(domain).is_empty() && !rest.is_empty()).map(|(domain, _)| domain);
            match domain.ok_or_else(|| format!("claimMappings.extra: key {key:?} must be a domain-prefixed path (such as \"acme.io/foo\")"))? {
                own if ["k8s.io", "kubernetes.io"].iter().any(|of| own == *of || own.ends_with(&format!(".{of}"))) => {
                    Err(format!("claimMappings.extra: key {key:?}: k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"))
                }
                _ if key != key.to_lowercase() => Err(format!("claimMappings.extra: key {key:?} must be lowercase")),
                _ => Ok((key.to_owned(), compile(&env, text(e, &["valueExpression"]), &texts)?)),
            }
        });
        let required = items(config, &["claimValidationRules"]).iter().filter(|r| !text(r, &["claim"]).is_empty());
        Ok(Self {
            discovery: match text(config, &["issuer", "discoveryURL"]) {
                "" => discovery(&url),
                given => given.to_owned(),
            },
            ca: text(config, &["issuer", "certificateAuthority"]).as_bytes().to_vec(),
            audiences,
            algorithms: ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512"].into_iter().map(algorithm).collect::<Result<_, _>>()?,
            required: required.map(|r| (text(r, &["claim"]).to_owned(), text(r, &["requiredValue"]).to_owned())).collect(),
            claim_rules: rules("claimValidationRules", &env)?,
            user_rules: rules("userValidationRules", &user_env)?,
            username: mapping("username")?.ok_or("claimMappings.username: claim or expression is required")?,
            groups: mapping("groups")?,
            uid: mapping("uid")?,
            extra: extra.collect::<Result<_, String>>()?,
            keys: RwLock::default(),
            asked: Mutex::default(),
            url,
        })
    }

    /// Who the token shows its bearer to be, and for whom it is; `None` when it is of another issuer.
    pub async fn authenticate(&self, webhooks: &Webhooks, token: &str) -> Result<Option<User>, String> {
        // Nothing is believed yet: this only says whose token it claims to be.
        let Ok(unverified) = jsonwebtoken::dangerous::insecure_decode::<Value>(token) else { return Ok(None) };
        if text(&unverified.claims, &["iss"]) != self.url {
            return Ok(None);
        }
        let header = unverified.header;
        if !self.algorithms.contains(&header.alg) {
            return Err(format!("oidc: verify token: signing algorithm {:?} is not accepted", header.alg));
        }
        let kid = header.kid.as_deref();
        let known = |set: &JwkSet| kid.is_none_or(|kid| set.find(kid).is_some());
        let set = self.keys(webhooks, known).await?;
        let mut validation = Validation::new(header.alg);
        // Times and audiences are held against the project's clock and this issuer's list below.
        (validation.validate_exp, validation.validate_aud) = (false, false);
        validation.required_spec_claims.clear();
        let candidates = set.keys.iter().filter(|key| kid.is_none() || key.common.key_id.as_deref() == kid);
        let verified = candidates.filter_map(|key| DecodingKey::from_jwk(key).ok()).find_map(|key| jsonwebtoken::decode::<Value>(token, &key, &validation).ok());
        let claims = verified.ok_or("oidc: verify token: failed to verify signature")?.claims;
        self.judge(&claims, clock::now().as_second()).map(Some).map_err(|e| format!("oidc: {e}"))
    }

    /// The issuer's keys; asked for anew where the known ones don't suffice.
    async fn keys(&self, webhooks: &Webhooks, suffices: impl Fn(&JwkSet) -> bool) -> Result<Arc<JwkSet>, String> {
        let known = || self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(set) = known().filter(|set| suffices(set)) {
            return Ok(set);
        }
        let mut asked = self.asked.lock().await;
        let lately = asked.is_some_and(|asked| asked.elapsed() < AGAIN);
        if let Some(set) = known().filter(|set| lately || suffices(set)) {
            return Ok(set);
        }
        if lately {
            return Err("oidc: authenticator not initialized".into());
        }
        *asked = Some(Instant::now());
        let metadata = webhooks.get(&self.discovery, &self.ca, TIMEOUT).await.map_err(|e| format!("oidc: read the issuer's metadata: {e}"))?;
        if text(&metadata, &["issuer"]) != self.url {
            return Err(format!("oidc: issuer did not match the issuer returned by provider, expected {:?} got {:?}", self.url, text(&metadata, &["issuer"])));
        }
        let fetched = webhooks.get(text(&metadata, &["jwks_uri"]), &self.ca, TIMEOUT).await.map_err(|e| format!("oidc: fetch keys: {e}"))?;
        // Keys of kinds that aren't known here don't hide the others.
        let read = items(&fetched, &["keys"]).iter().filter_map(|key| serde_json::from_value(key.clone()).ok()).collect();
        let set = Arc::new(JwkSet { keys: read });
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&set));
        Ok(set)
    }

    /// The user that verified claims speak of.
    fn judge(&self, claims: &Value, now: i64) -> Result<User, String> {
        let seconds = |claim: &str| claims[claim].as_f64().map(|s| s as i64);
        if seconds("exp").is_none_or(|exp| exp <= now) {
            return Err("verify token: token is expired".into());
        }
        if seconds("nbf").is_some_and(|nbf| nbf > now + LEEWAY) {
            return Err("verify token: current time is before the nbf (not before) time".into());
        }
        let audiences = strings(&claims["aud"]);
        if !self.audiences.iter().any(|wanted| audiences.contains(wanted)) {
            return Err(format!("verify token: expected audience in {:?} got {audiences:?}", self.audiences));
        }
        for (claim, wanted) in &self.required {
            let found = claims[claim].as_str().ok_or_else(|| format!("required claim {claim} not present in ID token"))?;
            if found != wanted {
                return Err(format!("required claim {claim} value does not match. Got = {found}, want = {wanted}"));
            }
        }
        for rule in &self.claim_rules {
            hold(rule, "claims", claims)?;
        }
        let name = self.username.find(claims)?;
        let name = name.as_str().filter(|n| !n.is_empty()).ok_or("username claim must be a string that is not empty")?;
        if let Mapping::Claim { claim, .. } = &self.username
            && claim == "email"
            && claims.get("email_verified").is_some_and(|verified| *verified != true)
        {
            return Err("email not verified".into());
        }
        let groups = self.groups.as_ref().map(|mapping| mapping.find(claims)).transpose()?.unwrap_or_default();
        let mut user = User::new(name, strings(&groups));
        user.uid = self.uid.as_ref().map(|mapping| mapping.find(claims)).transpose()?.as_ref().and_then(Value::as_str).unwrap_or("").to_owned();
        let mut extra = BTreeMap::new();
        for (key, program) in &self.extra {
            let values: Vec<String> = strings(&evaluate(program, "claims", claims)?).into_iter().filter(|v| !v.is_empty()).collect();
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        user.extra = extra;
        let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        for rule in &self.user_rules {
            hold(rule, "user", &shown)?;
        }
        Ok(user)
    }
}

fn discovery(url: &str) -> String {
    format!("{}/.well-known/openid-configuration", url.trim_end_matches('/'))
}

/// A text or a list of texts.
fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        list => list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
    }
}

impl Mapping {
    /// The claim's value, each text with the prefix; null when the token doesn't have it.
    fn find(&self, claims: &Value) -> Result<Value, String> {
        match self {
            Self::Expression(program) => evaluate(program, "claims", claims),
            Self::Claim { claim, prefix } => Ok(match &claims[claim] {
                Value::String(one) => format!("{prefix}{one}").into(),
                Value::Array(_) => strings(&claims[claim]).into_iter().map(|one| Value::from(format!("{prefix}{one}"))).collect(),
                _ => Value::Null,
            }),
        }
    }
}

fn evaluate(program: &Program, variable: &str, value: &Value) -> Result<Value, String> {
    let given = [(variable, Val::json(value, &Type::Dyn))];
    program.eval(&given.as_slice()).0.map_err(|fault| fault.to_string())?.to_json()
}

fn hold(rule: &Rule, variable: &str, value: &Value) -> Result<(), String> {
    match evaluate(&rule.program, variable, value)? {
        Value::Bool(true) => Ok(()),
        _ if rule.message.is_empty() => Err("validation expression failed".into()),
        _ => Err(format!("validation expression failed: {}", rule.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(issuer: &Issuer, change: Value, expected: Result<(&str, &[&str]), &str>) {
        let mut claims = json!({"iss": "https://i", "aud": "c", "sub": "jane", "exp": 100, "groups": ["dev", "ops"], "team": "a"});
        for (key, value) in change.as_object().into_iter().flatten() {
            claims[key] = value.clone();
        }
        let found = issuer.judge(&claims, 50);
        let expected = expected.map(|(name, groups)| User::new(name, groups.iter().copied())).map_err(str::to_owned);
        assert_eq!(found, expected, "{change}");
    }

    #[test]
    fn claims_by_flags() {
        let options = Options {
            oidc_issuer_url: Some("https://i".into()),
            oidc_client_id: "c".into(),
            oidc_groups_claim: "groups".into(),
            oidc_groups_prefix: "o:".into(),
            oidc_required_claim: vec!["team=a".into()],
            ..Options::default()
        };
        let issuer = Issuer::of_flags(&options).expect("options").expect("an issuer");
        check(&issuer, json!({}), Ok(("https://i#jane", &["o:dev", "o:ops"])));
        check(&issuer, json!({"groups": "one", "aud": ["b", "c"]}), Ok(("https://i#jane", &["o:one"])));
        check(&issuer, json!({"exp": 50}), Err("verify token: token is expired"));
        check(&issuer, json!({"nbf": 351}), Err("verify token: current time is before the nbf (not before) time"));
        check(&issuer, json!({"aud": "d"}), Err(r#"verify token: expected audience in ["c"] got ["d"]"#));
        check(&issuer, json!({"team": "b"}), Err("required claim team value does not match. Got = b, want = a"));
        check(&issuer, json!({"team": null}), Err("required claim team not present in ID token"));
        let email = Options { oidc_username_claim: Some("email".into()), oidc_required_claim: Vec::new(), oidc_groups_claim: String::new(), ..options };
        let email = Issuer::of_flags(&email).expect("options").expect("an issuer");
        check(&email, json!({"email": "a@b"}), Ok(("a@b", &[])));
        check(&email, json!({"email": "a@b", "email_verified": false}), Err("email not verified"));
    }

    #[test]
    fn claims_by_configuration() {
        let issuer = Issuer::of_config(&json!({
            "issuer": {"url": "https://i", "audiences": ["c"]},
            "claimValidationRules": [{"expression": "claims.team in ['a', 'b']", "message": "no such team"}],
            "claimMappings": {
                "username": {"expression": "'x-' + claims.sub"}, "groups": {"expression": "claims.groups"},
                "extra": [{"key": "example.com/team", "valueExpression": "claims.team"}],
            },
            "userValidationRules": [{"expression": "!user.username.startsWith('x-system:')", "message": "reserved"}],
        }));
        let issuer = issuer.expect("a configuration");
        let user = issuer.judge(&json!({"aud": "c", "sub": "jane", "exp": 100, "groups": ["dev"], "team": "a"}), 50).expect("a user");
        assert_eq!((user.name.as_str(), user.groups.len(), &user.extra["example.com/team"]), ("x-jane", 2, &vec!["a".to_owned()]));
        check(&issuer, json!({"team": "z"}), Err("validation expression failed: no such team"));
        check(&issuer, json!({"sub": "system:x"}), Err("validation expression failed: reserved"));
        let refused = |url: &str, mappings: Value| {
            let config = json!({"issuer": {"url": url, "audiences": ["c"]}, "claimMappings": mappings});
            assert!(Issuer::of_config(&config).is_err(), "{config}");
        };
        refused("http://i", json!({"username": {"claim": "sub", "prefix": ""}}));
        refused("https://i", json!({"username": {"claim": "sub"}}));
        refused("https://i", json!({"username": {"expression": "claims.sub", "prefix": "x"}}));
        for key in ["plain", "Example.com/x", "authentication.kubernetes.io/node-name"] {
            refused("https://i", json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": key, "valueExpression": "claims.team"}]}));
        }
    }
}
