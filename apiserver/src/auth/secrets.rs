//! Tokens that are kept in Secrets, `kubernetes.io/service-account-token`: filled in when such a Secret names an account, and
//! removed with it. Upstream's controller of them stands where the signing key is, and so does this one.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use skiff_api::Status;
use skiff_api::value::{at, text};

use super::tokens::{Bound, LegacyClaims};
use crate::bootstrap;
use crate::cache::Filter;
use crate::server::Server;

const SECRETS: &str = "/registry/secrets/";
const ACCOUNTS: &str = "/registry/serviceaccounts/";
const KIND: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

/// What is to be done about a Secret.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Its account is gone, or is another one by now.
    Delete,
    /// It lacks some of these: data that isn't the token, and whether it lacks the token.
    Fill(Value, bool),
}

/// Decides; `account` is the one that the Secret names, if it is there.
fn plan(secret: &Value, account: Option<&Value>, ca: &str) -> Plan {
    let name = text(secret, &["metadata", "annotations", NAME]);
    if secret["type"] != KIND || name.is_empty() || !at(secret, &["metadata", "deletionTimestamp"]).is_null() {
        return Plan::Nothing;
    }
    let (named, uid) = (text(secret, &["metadata", "annotations", UID]), account.map_or("", |a| text(a, &["metadata", "uid"])));
    if account.is_none() || (!named.is_empty() && named != uid) {
        return Plan::Delete;
    }
    let wanted = [("ca.crt", STANDARD.encode(ca)), ("namespace", STANDARD.encode(text(secret, &["metadata", "namespace"])))];
    let mut lacking = serde_json::Map::new();
    lacking.extend(wanted.into_iter().filter(|(key, value)| text(secret, &["data", key]) != value).map(|(key, value)| (key.to_owned(), Value::from(value))));
    let no_token = text(secret, &["data", "token"]).is_empty();
    if lacking.is_empty() && !no_token && named == uid { Plan::Nothing } else { Plan::Fill(lacking.into(), no_token) }
}

/// Looks after the Secrets, each time that one of them or an account changes. Ends with the server.
pub(crate) async fn run(server: Arc<Server>) {
    let (Some(secrets), Some(accounts)) = (server.cache.resource(SECRETS), server.cache.resource(ACCOUNTS)) else { return };
    let (mut changed, mut accounts_changed) = (secrets.subscribe(), accounts.subscribe());
    loop {
        changed.mark_unchanged();
        accounts_changed.mark_unchanged();
        // Only Secrets of this type are read whole.
        let of_kind = skiff_api::fields::Selector { requirements: vec![skiff_api::fields::Requirement { field: "type".into(), value: KIND.into(), equal: true }] };
        for secret in secrets.list(&Filter { fields: of_kind, ..Filter::default() }, 0).objects.iter().filter_map(|o| o.value().ok()) {
            // A conflict rings the bell again.
            if let Err(error) = settle(&server, &secret).await
                && error.code != 409
            {
                tracing::warn!(name = text(&secret, &["metadata", "name"]), error = error.message, "token secret not settled");
            }
        }
        let ended = tokio::select! {
            rung = changed.changed() => rung.is_err(),
            rung = accounts_changed.changed() => rung.is_err(),
        };
        if ended {
            return;
        }
    }
}

async fn settle(server: &Arc<Server>, secret: &Value) -> Result<(), Status> {
    let (namespace, name) = (text(secret, &["metadata", "namespace"]), text(secret, &["metadata", "name"]));
    let account_name = text(secret, &["metadata", "annotations", NAME]);
    // The cache may be behind an account that was made a moment ago: nobody is taken for gone without asking the store.
    let account = super::tokens::find(server, "serviceaccounts", namespace, account_name).await?;
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    match plan(secret, account.as_ref(), &server.authority.pair.certificate) {
        Plan::Nothing => Ok(()),
        Plan::Delete => {
            let uid = at(secret, &["metadata", "uid"]);
            bootstrap::send(server, Method::DELETE, &path, &json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}})).await
        }
        Plan::Fill(mut data, no_token) => {
            let uid = account.as_ref().map_or("", |a| text(a, &["metadata", "uid"]));
            if no_token {
                let account = Bound { name: account_name.into(), uid: uid.into() };
                let token = server.tokens.sign_legacy(&LegacyClaims::new(namespace, name, &account)).map_err(Status::internal)?;
                data["token"] = STANDARD.encode(token).into();
            }
            let metadata = json!({"resourceVersion": at(secret, &["metadata", "resourceVersion"]), "annotations": {UID: uid}});
            bootstrap::patch(server, &path, &json!({"metadata": metadata, "data": data})).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans() {
        let secret = |annotations: Value, data: Value| json!({"type": KIND, "metadata": {"namespace": "n", "annotations": annotations}, "data": data});
        let account = json!({"metadata": {"uid": "1"}});
        let check = |secret: &Value, account: Option<&Value>, expected: Plan| assert_eq!(plan(secret, account, "ca"), expected, "{secret}");
        let whole = json!({"ca.crt": STANDARD.encode("ca"), "namespace": STANDARD.encode("n"), "token": "x"});
        check(&secret(json!({NAME: "a", UID: "1"}), whole.clone()), Some(&account), Plan::Nothing);
        check(&secret(json!({NAME: "a", UID: "2"}), whole.clone()), Some(&account), Plan::Delete);
        check(&secret(json!({NAME: "a"}), json!({})), None, Plan::Delete);
        check(&secret(json!({}), json!({})), Some(&account), Plan::Nothing);
        let lacking = json!({"ca.crt": STANDARD.encode("ca"), "namespace": STANDARD.encode("n")});
        check(&secret(json!({NAME: "a"}), json!({})), Some(&account), Plan::Fill(lacking, true));
        check(&secret(json!({NAME: "a"}), whole), Some(&account), Plan::Fill(json!({}), false));
    }
}
