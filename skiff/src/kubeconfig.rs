//! Kubeconfigs: a cluster's own, and its entry in the one that kubectl reads.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use skiff_apiserver::auth::pki::Pair;

use crate::data_dir::write_private;

/// A kubeconfig can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no YAML, or no kubeconfig.
    #[error("read {path}: {why}; mend it, or use --no-merge")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// What it names or holds can't be read.
    #[error("read {what} of the kubeconfig {path}: {why}")]
    Part {
        /// Which file.
        path: PathBuf,
        /// Which part of it.
        what: String,
        /// Why.
        why: String,
    },
    /// It can't be made into YAML.
    #[error("write a kubeconfig: {0}")]
    Write(String),
    /// Its file can't be written.
    #[error(transparent)]
    File(#[from] crate::data_dir::Error),
}

/// The context that a cluster has in kubeconfigs.
pub fn context(cluster: &str) -> String {
    format!("skiff-{cluster}")
}

/// A kubeconfig with one cluster, one user and one context.
pub fn make(cluster: &str, server: &str, authority_pem: &str, user: &Pair) -> Value {
    let name = context(cluster);
    let data = |pem: &str| BASE64.encode(pem);
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": data(authority_pem)}}],
        "users": [{"name": name, "user": {"client-certificate-data": data(&user.certificate), "client-key-data": data(&user.key)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    })
}

/// The lists of named entries.
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

/// Puts the entries of `own` into `into` (in place of those of the same names), and switches to its context.
pub fn merge(mut into: Value, own: &Value) -> Value {
    if !into.is_object() {
        into = json!({"apiVersion": "v1", "kind": "Config"});
    }
    for list in LISTS {
        let mut entries = into[list].as_array().cloned().unwrap_or_default();
        for entry in own[list].as_array().into_iter().flatten() {
            match entries.iter_mut().find(|e| e["name"] == entry["name"]) {
                Some(existing) => *existing = entry.clone(),
                None => entries.push(entry.clone()),
            }
        }
        into[list] = entries.into();
    }
    into["current-context"] = own["current-context"].clone();
    into
}

/// Takes the entries of a cluster out of `from`; `None` when it has none.
pub fn remove(mut from: Value, cluster: &str) -> Option<Value> {
    let name = context(cluster);
    let mut found = false;
    for list in LISTS {
        if let Some(entries) = from[list].as_array_mut() {
            let before = entries.len();
            entries.retain(|e| e["name"] != name.as_str());
            found |= entries.len() != before;
        }
    }
    if from["current-context"] == name.as_str() {
        from["current-context"] = "".into();
    }
    found.then_some(from)
}

/// The kubeconfig that kubectl reads: the first of `$KUBECONFIG`, or `~/.kube/config`.
pub fn default_path() -> Option<PathBuf> {
    let listed = std::env::var("KUBECONFIG").unwrap_or_default();
    match listed.split(':').find(|p| !p.is_empty()) {
        Some(path) => Some(path.into()),
        None => Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config")),
    }
}

/// Reads a kubeconfig; null when there is no file.
pub fn read(path: &Path) -> Result<Value, Error> {
    let fail = |why: String| Error::Read { path: path.into(), why };
    match fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(Value::Null),
        Ok(text) => serde_saphyr::from_str(&text).map_err(|e| fail(e.to_string().lines().next().unwrap_or("").to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// The cluster and the user of the kubeconfig's current context; null for what there is not.
pub fn current(config: &Value) -> (Value, Value) {
    let named = |list: &str, name: &str| config[list].as_array().into_iter().flatten().find(|e| e["name"] == name).cloned();
    let context = config["current-context"].as_str().and_then(|name| named("contexts", name)).unwrap_or_default();
    let part = |list: &str, key: &str| context["context"][key].as_str().and_then(|name| named(list, name)).map(|e| e[key].clone());
    (part("clusters", "cluster").unwrap_or_default(), part("users", "user").unwrap_or_default())
}

/// The PEM that an entry of the kubeconfig `path` holds as `key-data`, or names the file of as `key`.
pub fn pem(path: &Path, entry: &Value, key: &str) -> Result<Option<String>, Error> {
    let fail = |why: String| Error::Part { path: path.into(), what: key.into(), why };
    if let Some(data) = entry[format!("{key}-data")].as_str() {
        let bytes = BASE64.decode(data).map_err(|e| fail(e.to_string()))?;
        return String::from_utf8(bytes).map(Some).map_err(|e| fail(e.to_string()));
    }
    let beside = path.parent().unwrap_or(Path::new(""));
    let file = entry[key].as_str().map(|file| beside.join(file));
    file.map(|file| fs::read_to_string(&file).map_err(|e| fail(format!("{}: {e}", file.display())))).transpose()
}

/// The kubeconfig as YAML.
pub fn yaml(config: &Value) -> Result<String, Error> {
    serde_saphyr::to_string(config).map_err(|e| Error::Write(e.to_string()))
}

/// Writes a kubeconfig that only its owner reads.
pub fn write(path: &Path, config: &Value) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|source| crate::data_dir::Error::Io { path: parent.into(), source })?;
    }
    Ok(write_private(path, &yaml(config)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_is_others() {
        let own = make("default", "https://127.0.0.1:6443", "ca", &Pair { certificate: "c".into(), key: "k".into() });
        let theirs = json!({"current-context": "prod", "clusters": [{"name": "prod"}], "preferences": {"colors": true}});
        let merged = merge(theirs, &own);
        assert_eq!(merged["clusters"].as_array().map(Vec::len), Some(2));
        assert_eq!(merged["current-context"], "skiff-default");
        assert_eq!(merged["preferences"]["colors"], true);
        assert_eq!(merge(merged.clone(), &own), merged, "again changes nothing");
        let text = yaml(&merged).expect("yaml");
        assert_eq!(serde_saphyr::from_str::<Value>(&text).expect("the same"), merged);
        let left = remove(merged, "default").expect("something to remove");
        assert_eq!(left["clusters"], json!([{"name": "prod"}]));
        assert_eq!(left["current-context"], "");
        assert_eq!(remove(left, "default"), None);
    }
}
