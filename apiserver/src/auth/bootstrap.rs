//! Bootstrap tokens, by which machines ask to become nodes: `ID.SECRET`, each a Secret of `kube-system`, as kubeadm makes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use skiff_api::value::text;

use super::User;
use crate::server::Server;

const SECRETS: &str = "/registry/secrets/";
const GROUP: &str = "system:bootstrappers";

/// The two parts of a text that has the form of such a token.
pub(super) fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// Who bears the token.
pub(super) fn authenticate(server: &Server, id: &str, secret: &str) -> Option<User> {
    let key = format!("{SECRETS}kube-system/bootstrap-token-{id}");
    let object = server.cache.resource(SECRETS)?.get(&key)?.value().ok()?;
    bearer(&object, id, secret, skiff_api::clock::now())
}

/// Who bears the token of this Secret; nobody where it doesn't fit, has expired, or is for something else.
fn bearer(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<User> {
    let data = |key: &str| {
        let bytes = STANDARD.decode(text(object, &["data", key])).ok()?;
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    let deleted = !object["metadata"]["deletionTimestamp"].is_null();
    let known = data("token-secret")?;
    // Each byte is compared, so that the time tells nothing of how many fit.
    let same = known.len() == secret.len() && known.bytes().zip(secret.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0;
    if deleted || object["type"] != "bootstrap.kubernetes.io/token" || data("token-id")? != id || !same || data("usage-bootstrap-authentication")? != "true" {
        return None;
    }
    if let Some(expiration) = data("expiration")
        && expiration.parse::<Timestamp>().ok().is_none_or(|at| at <= now)
    {
        return None;
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let extra: Vec<&str> = extra.split(',').filter(|group| !group.is_empty()).collect();
    let allowed = extra.iter().all(|group| group.strip_prefix(GROUP).is_some_and(|rest| rest.starts_with(':')));
    allowed.then(|| User::new(format!("system:bootstrap:{id}"), [GROUP].into_iter().chain(extra)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(change: Value, expected: Option<&[&str]>) {
        let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"});
        for (key, member) in change.as_object().into_iter().flatten() {
            data[key] = member.clone();
        }
        let data: Value = data.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), json!(STANDARD.encode(v.as_str().unwrap_or(""))))).collect();
        let object = json!({"metadata": {}, "type": "bootstrap.kubernetes.io/token", "data": data});
        let now = "2026-01-01T00:00:00Z".parse().expect("a moment");
        let found = bearer(&object, "abcdef", "0123456789abcdef", now);
        assert_eq!(found, expected.map(|groups| User::new("system:bootstrap:abcdef", groups.iter().copied())), "{change}");
    }

    #[test]
    fn who_bears_a_token() {
        check(json!({}), Some(&[GROUP]));
        check(json!({"auth-extra-groups": "system:bootstrappers:a,system:bootstrappers:b"}), Some(&[GROUP, "system:bootstrappers:a", "system:bootstrappers:b"]));
        check(json!({"auth-extra-groups": "system:masters"}), None);
        check(json!({"token-secret": "0123456789abcdeX"}), None);
        check(json!({"usage-bootstrap-authentication": "false"}), None);
        check(json!({"expiration": "2026-01-01T00:00:01Z"}), Some(&[GROUP]));
        check(json!({"expiration": "2026-01-01T00:00:00Z"}), None);
        check(json!({"expiration": "soon"}), None);
    }

    #[test]
    fn the_form_of_tokens() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in ["abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "a.b.c", "abcdef.0123456789abcdef0"] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
