//! Names and passwords for registries, from the Secrets that a pod names for its images. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::objects::Content;
use crate::runtime::RegistryAuth;

/// Where images without a registry come from, and what Docker calls it in its own files.
const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_KEYS: [&str; 2] = ["index.docker.io", "docker.io"];

/// The registry of an image and the path in it.
fn registry(image: &str) -> (&str, &str) {
    match image.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
        _ => (DEFAULT_REGISTRY, image),
    }
}

/// The key of an entry without its scheme and API version.
fn plain(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

/// How well an entry's key fits an image: the more of the path it names, the better.
fn fit(key: &str, image: &str) -> Option<usize> {
    let (host, path) = registry(image);
    let (key_host, key_path) = plain(key).split_once('/').unwrap_or((plain(key), ""));
    let same_host = key_host == host
        || (host == DEFAULT_REGISTRY && DEFAULT_KEYS.contains(&key_host))
        || key_host.strip_prefix("*.").is_some_and(|domain| host.split_once('.').is_some_and(|(_, rest)| rest == domain));
    (same_host && path.starts_with(key_path)).then_some(key_path.len())
}

fn auth(server: &str, entry: &Value) -> Option<RegistryAuth> {
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        let decoded = STANDARD.decode(text("auth")).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, pass) = decoded.split_once(':')?;
        (username, password) = (user.to_owned(), pass.to_owned());
    }
    Some(RegistryAuth { username, password, server: server.to_owned() })
}

/// The best of the credentials that the Secrets have for an image.
pub fn find<'a>(secrets: impl Iterator<Item = &'a Content>, image: &str) -> Option<RegistryAuth> {
    let mut best: Option<(usize, RegistryAuth)> = None;
    for secret in secrets {
        // The newer form keeps the entries below `auths`, the older one at the top.
        let (key, newer) = if secret.type_ == "kubernetes.io/dockercfg" { (".dockercfg", false) } else { (".dockerconfigjson", true) };
        let Some(config) = secret.data.get(key).and_then(|data| serde_json::from_slice::<Value>(data).ok()) else { continue };
        let entries = if newer { &config["auths"] } else { &config };
        for (server, entry) in entries.as_object().into_iter().flatten() {
            if let (Some(fit), Some(auth)) = (fit(server, image), auth(server, entry))
                && best.as_ref().is_none_or(|(other, _)| fit > *other)
            {
                best = Some((fit, auth));
            }
        }
    }
    best.map(|(_, auth)| auth)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_best_entry_is_found() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
            "registry.example.com": {"auth": STANDARD.encode("all:secret")},
            "registry.example.com/team": {"username": "team", "password": "p"},
            "*.wild.example": {"username": "wild", "password": "p"},
            "broken.example": {"auth": "?"}}});
        let secret = Content {
            data: [(".dockerconfigjson".to_owned(), config.to_string().into_bytes())].into(),
            type_: "kubernetes.io/dockerconfigjson".into(),
            ..Content::default()
        };
        let check = |image: &str, expected: Option<&str>| {
            assert_eq!(find([&secret].into_iter(), image).map(|auth| auth.username), expected.map(str::to_owned), "{image}");
        };
        check("nginx", Some("hub"));
        check("library/nginx:1", Some("hub"));
        check("registry.example.com/a:1", Some("all"));
        check("registry.example.com/team/a:1", Some("team"));
        check("a.wild.example/x", Some("wild"));
        check("broken.example/x", None);
        check("other.example/x", None);
    }
}
