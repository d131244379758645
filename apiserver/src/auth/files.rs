//! The files that say who may do what: tables of tokens, kubeconfigs of webhooks, configurations.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use skiff_api::value::{items, text};

use crate::options::Error;
use crate::webhook::ClientConfig;

/// Reads a file.
pub(crate) fn bytes(flag: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| Error::new(flag, format!("read {}: {e}", path.display())))
}

/// Reads a file of YAML or JSON that must be of this kind.
pub(crate) fn yaml(flag: &'static str, path: &Path, kind: &str) -> Result<Value, Error> {
    let read = String::from_utf8(bytes(flag, path)?).map_err(|e| Error::new(flag, format!("read {}: {e}", path.display())))?;
    let value: Value = serde_saphyr::from_str(&read).map_err(|e| Error::new(flag, format!("read {}: {e}", path.display())))?;
    match text(&value, &["kind"]) {
        found if found == kind || kind == "Config" => Ok(value),
        found => Err(Error::new(flag, format!("{} holds a {found:?}, not a {kind}", path.display()))),
    }
}

/// Reads where a webhook is, and what is shown to it, from the current context of a kubeconfig.
pub(crate) fn kubeconfig(flag: &'static str, path: &Path) -> Result<ClientConfig, Error> {
    let config = yaml(flag, path, "Config")?;
    let named = |list: &str, name: &str, part: &str| {
        let mut entries = items(&config, &[list]).iter();
        entries.find(|e| e["name"] == name).map(|e| e[part].clone()).unwrap_or_default()
    };
    // Upstream takes the only cluster and user where there is no context.
    let context = named("contexts", text(&config, &["current-context"]), "context");
    let (cluster, user) = (named("clusters", text(&context, &["cluster"]), "cluster"), named("users", text(&context, &["user"]), "user"));
    let pem = |entry: &Value, key: &str| -> Result<Option<Vec<u8>>, Error> {
        if let Some(data) = entry[format!("{key}-data")].as_str() {
            return STANDARD.decode(data).map(Some).map_err(|e| Error::new(flag, format!("{}: {key}-data: {e}", path.display())));
        }
        entry[key].as_str().map(|file| bytes(flag, &path.parent().unwrap_or(Path::new("")).join(file))).transpose()
    };
    let url = text(&cluster, &["server"]).to_owned();
    if !url.starts_with("https://") {
        return Err(Error::new(flag, format!("{}: the current context's server must be an https:// URL, not {url:?}", path.display())));
    }
    let identity = pem(&user, "client-certificate")?.zip(pem(&user, "client-key")?);
    let token = match user["tokenFile"].as_str() {
        Some(file) => String::from_utf8_lossy(&bytes(flag, &path.parent().unwrap_or(Path::new("")).join(file))?).trim().to_owned(),
        None => text(&user, &["token"]).to_owned(),
    };
    Ok(ClientConfig { url, service: None, ca: pem(&cluster, "certificate-authority")?.unwrap_or_default(), identity, token })
}

/// The fields of the lines of a table with commas, where a field may stand in quotes. Empty lines and comments are skipped.
pub(super) fn csv(table: &str) -> Vec<Vec<String>> {
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(fields).collect()
}

fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field).trim().to_owned()),
            c => field.push(c),
        }
    }
    fields.push(field.trim().to_owned());
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let table = "a,b,c\n\n# a comment\nt,\"x y\",1,\"g1,g2\"\n\"say \"\"hi\"\"\",,";
        assert_eq!(csv(table), [vec!["a", "b", "c"], vec!["t", "x y", "1", "g1,g2"], vec!["say \"hi\"", "", ""]]);
    }
}
