//! The files that a volume of API data holds. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume};

use super::writer::{File, Files, is_safe};
use crate::env::{self, About};
use crate::objects::Kind;
use crate::pod;

/// The permissions of files where none are said: upstream's `ConfigMapVolumeSourceDefaultMode` and its like.
const DEFAULT_MODE: i32 = 0o644;

/// What keeps a volume's files from being made; the texts are upstream's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An object, a key or a field.
    #[error(transparent)]
    Source(#[from] env::Error),
    /// A key that was asked for isn't there.
    #[error("{kind} references non-existent config key: {key}")]
    NoKey {
        /// `configmap` or `secret`.
        kind: Kind,
        /// The key.
        key: String,
    },
    /// A path leads out of the volume.
    #[error("invalid path: {0:?}")]
    Path(String),
    /// A token wasn't given.
    #[error("no token for the projection {0:?}")]
    NoToken(String),
}

/// The tokens that projections ask for, by audience, expiry (seconds) and path.
pub type Tokens = BTreeMap<TokenKey, String>;

/// What a token is asked for with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey {
    /// Whom it is for; the API itself when empty.
    pub audience: String,
    /// How long it holds, in seconds.
    pub expiration_seconds: i64,
}

impl From<&ServiceAccountTokenProjection> for TokenKey {
    fn from(source: &ServiceAccountTokenProjection) -> Self {
        Self { audience: source.audience.clone().unwrap_or_default(), expiration_seconds: source.expiration_seconds.unwrap_or(3600) }
    }
}

/// The tokens that a pod's volumes ask for.
pub fn wanted_tokens(pod: &k8s_openapi::api::core::v1::Pod) -> Vec<TokenKey> {
    let volumes = pod::spec(pod).and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let sources = volumes.iter().filter_map(|v| v.projected.as_ref()).flat_map(|p| p.sources.iter().flatten());
    let mut keys: Vec<_> = sources.filter_map(|s| s.service_account_token.as_ref()).map(TokenKey::from).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// The files of a volume made of API data, `None` for any other.
pub fn files(about: &About<'_>, volume: &Volume, tokens: &Tokens, owner: TokenOwner) -> Result<Option<Files>, Error> {
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let of = Object { kind: Kind::ConfigMap, name: &source.name, optional: source.optional };
        of.add(about, source.items.as_deref(), source.default_mode, &mut files)?;
    } else if let Some(source) = &volume.secret {
        let of = Object { kind: Kind::Secret, name: source.secret_name.as_deref().unwrap_or_default(), optional: source.optional };
        of.add(about, source.items.as_deref(), source.default_mode, &mut files)?;
    } else if let Some(source) = &volume.downward_api {
        downward(about, source.items.as_deref(), source.default_mode, &mut files)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let of = Object { kind: Kind::ConfigMap, name: &map.name, optional: map.optional };
                of.add(about, map.items.as_deref(), mode, &mut files)?;
            } else if let Some(secret) = &source.secret {
                let of = Object { kind: Kind::Secret, name: &secret.name, optional: secret.optional };
                of.add(about, secret.items.as_deref(), mode, &mut files)?;
            } else if let Some(fields) = &source.downward_api {
                downward(about, fields.items.as_deref(), mode, &mut files)?;
            } else if let Some(token) = &source.service_account_token {
                let data = tokens.get(&TokenKey::from(token)).ok_or_else(|| Error::NoToken(token.path.clone()))?;
                // A token is for its own user's eyes where that is known.
                let closed = owner.user.is_some() || owner.group.is_some();
                let mode = if closed { 0o600 } else { mode.unwrap_or(DEFAULT_MODE) };
                add(&mut files, &token.path, data.clone().into_bytes(), mode, owner.user)?;
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

/// Who reads the tokens of a pod: its user, if all its containers have the same, and its group for files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenOwner {
    /// The user.
    pub user: Option<u32>,
    /// The group.
    pub group: Option<u32>,
}

fn add(files: &mut Files, path: &str, data: Vec<u8>, mode: i32, owner: Option<u32>) -> Result<(), Error> {
    let at = PathBuf::from(path);
    if !is_safe(&at) {
        return Err(Error::Path(path.into()));
    }
    files.insert(at, File { data, mode: mode.unsigned_abs(), owner });
    Ok(())
}

struct Object<'a> {
    kind: Kind,
    name: &'a str,
    optional: Option<bool>,
}

impl Object<'_> {
    fn add(&self, about: &About<'_>, items: Option<&[KeyToPath]>, mode: Option<i32>, files: &mut Files) -> Result<(), Error> {
        let optional = self.optional.unwrap_or(false);
        let Some(content) = about.content(self.kind, self.name, optional)? else { return Ok(()) };
        let default = mode.unwrap_or(DEFAULT_MODE);
        let items = items.unwrap_or_default();
        if items.is_empty() {
            for (key, data) in content.data.iter().chain(&content.binary) {
                add(files, key, data.clone(), default, None)?;
            }
        }
        for item in items {
            match content.data.get(&item.key).or_else(|| content.binary.get(&item.key)) {
                Some(data) => add(files, &item.path, data.clone(), item.mode.unwrap_or(default), None)?,
                None if optional => {}
                None => return Err(Error::NoKey { kind: self.kind, key: item.key.clone() }),
            }
        }
        Ok(())
    }
}

fn downward(about: &About<'_>, items: Option<&[DownwardAPIVolumeFile]>, mode: Option<i32>, files: &mut Files) -> Result<(), Error> {
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => about.field(field)?,
            (None, Some(field)) => about.resource(field, None)?,
            (None, None) => continue,
        };
        add(files, &item.path, value.into_bytes(), item.mode.or(mode).unwrap_or(DEFAULT_MODE), None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::env::Contents;
    use crate::objects::{Content, Key};

    fn check(volume: Value, expected: Result<&[(&str, &str, u32)], &str>) {
        let content = Content { data: [("k".to_owned(), b"v".to_vec())].into(), binary: [("b".to_owned(), vec![0xff])].into(), type_: String::new() };
        let key = Key { kind: Kind::ConfigMap, namespace: "ns".into(), name: "cm".into() };
        let contents: Contents = [(key, Ok(Some(Arc::new(content))))].into();
        let pod = crate::testing::pod(json!({"containers": [{"name": "a", "resources": {"limits": {"memory": "1Mi"}}}]}));
        let about = About { pod: &pod, pod_ip: String::new(), host_ip: String::new(), node: (0, 0), contents: &contents };
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).expect("a volume");
        let tokens = Tokens::from([(TokenKey { audience: String::new(), expiration_seconds: 3607 }, "token".to_owned())]);
        let files = files(&about, &volume, &tokens, TokenOwner::default());
        let shown = files.map(|files| {
            let files = files.expect("a volume of API data");
            files.into_iter().map(|(p, f)| (p.display().to_string(), String::from_utf8_lossy(&f.data).into_owned(), f.mode)).collect::<Vec<_>>()
        });
        let expected = expected.map(|list| list.iter().map(|(p, d, m)| ((*p).to_owned(), (*d).to_owned(), *m)).collect());
        assert_eq!(shown.map_err(|e| e.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn objects() {
        check(json!({"configMap": {"name": "cm"}}), Ok(&[("b", "\u{fffd}", 0o644), ("k", "v", 0o644)]));
        check(
            json!({"configMap": {"name": "cm", "defaultMode": 0o400, "items": [{"key": "k", "path": "x/y"}, {"key": "k", "path": "z", "mode": 0o777}]}}),
            Ok(&[("x/y", "v", 0o400), ("z", "v", 0o777)]),
        );
        check(json!({"configMap": {"name": "cm", "items": [{"key": "none", "path": "x"}]}}), Err("configmap references non-existent config key: none"));
        check(json!({"configMap": {"name": "cm", "optional": true, "items": [{"key": "none", "path": "x"}]}}), Ok(&[]));
        check(json!({"configMap": {"name": "cm", "items": [{"key": "k", "path": "../x"}]}}), Err("invalid path: \"../x\""));
        check(json!({"secret": {"secretName": "none"}}), Err("secret \"none\" not found"));
        check(json!({"secret": {"secretName": "none", "optional": true}}), Ok(&[]));
    }

    #[test]
    fn several_sources_in_one() {
        let volume = json!({"projected": {"defaultMode": 0o440, "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                {"path": "limit", "resourceFieldRef": {"containerName": "a", "resource": "limits.memory"}, "mode": 0o600}]}}]}});
        check(volume, Ok(&[("ca.crt", "v", 0o440), ("limit", "1048576", 0o600), ("namespace", "ns", 0o440), ("token", "token", 0o440)]));
    }
}
