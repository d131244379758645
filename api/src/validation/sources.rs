//! The sources of volumes that pods and persistent volumes share.

use super::check::{At, Errors};
use crate::names;

/// The fields that must be filled in of sources without other rules.
const FILLED: [(&str, &[&str]); 17] = [
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("glusterfs", &["endpoints", "path"]),
    ("rbd", &["monitors", "image"]),
    ("cinder", &["volumeID"]),
    ("cephfs", &["monitors"]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("local", &["path"]),
];

/// Exactly one source, which keeps its rules. Gives how many there are.
pub(super) fn one_source(e: &mut Errors, holder: &At, kinds: &[&str], rules: impl Fn(&mut Errors, &str, &At)) -> usize {
    let mut found = 0;
    for kind in kinds {
        let source = holder.at(kind);
        if !source.is_set() {
            continue;
        }
        found += 1;
        // Upstream calls one of them by another name here, and never refuses the persistent volumes of another.
        if found > 1 && !(*kind == "flexVolume" && kinds.contains(&"local")) {
            let path = if *kind == "cephfs" { holder.below("cephFS") } else { source.path.clone() };
            e.forbidden(&source.called(path), "may not specify more than 1 volume type");
        } else {
            // Upstream calls this one by another name.
            let path = if *kind == "gcePersistentDisk" { holder.below("persistentDisk") } else { source.path.clone() };
            rules(e, kind, &source.called(path));
        }
    }
    found
}

/// The rules of a source. `lasting` is one of a persistent volume, whose secrets are of any namespace.
pub(super) fn rules(e: &mut Errors, kind: &str, source: &At, lasting: bool) {
    for field in FILLED.iter().find(|(k, _)| *k == kind).map_or(&[][..], |(_, fields)| fields) {
        e.filled(&source.at(field));
    }
    match kind {
        "hostPath" => {
            let path = source.at("path");
            if path.is_empty() {
                e.required(&path, "");
            } else {
                e.no_backsteps(&path);
            }
            let kinds = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            e.maybe_one_of(&source.at("type"), &kinds);
        }
        "nfs" => {
            e.filled(&source.at("server"));
            e.filled(&source.at("path"));
            if !source.at("path").str().starts_with('/') {
                e.invalid_value(&source.at("path"), source.at("path").str(), "must be an absolute path");
            }
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            // Upstream's words are stricter than its rule.
            if !(0..=255).contains(&source.at("partition").number()) {
                e.invalid(&source.at("partition"), names::range_error(1, 255));
            }
        }
        "cinder" => secret(e, &source.at("secretRef"), lasting),
        "storageos" => {
            e.required_form(&source.at("volumeName"), names::dns_label);
            e.optional_form(&source.at("volumeNamespace"), names::dns_label);
            secret(e, &source.at("secretRef"), lasting);
        }
        "azureFile" if lasting && source.at("secretNamespace").is_set() => e.filled(&source.at("secretNamespace")),
        "glusterfs" if lasting && source.at("endpointsNamespace").is_set() => {
            let namespace = source.at("endpointsNamespace");
            if namespace.is_empty() {
                e.invalid(&namespace, "if the endpointnamespace is set, it must be a valid namespace name");
            } else {
                e.form(&namespace, names::dns_label);
            }
        }
        "flocker" => {
            let (name, uuid) = (source.at("datasetName"), source.at("datasetUUID"));
            match (name.is_empty(), uuid.is_empty()) {
                (true, true) => e.required(source, "one of datasetName and datasetUUID is required"),
                (false, false) => e.invalid_value(source, "resource", "datasetName and datasetUUID can not be specified simultaneously"),
                _ => {}
            }
            if name.str().contains('/') {
                e.invalid(&name, "must not contain '/'");
            }
        }
        "quobyte" => {
            const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
            let registry = source.at("registry");
            if registry.is_empty() {
                e.required(&registry, PAIRS);
            } else if source.at("tenant").str().len() >= 65 {
                e.required(&source.at("tenant"), "must be a UUID and may not exceed a length of 64 characters");
            } else {
                registry.str().split(',').filter(|pair| !is_host_port(pair)).for_each(|_| e.invalid(&registry, PAIRS));
            }
            e.filled(&source.at("volume"));
        }
        "flexVolume" => {
            for (key, at) in source.at("options").entries() {
                let namespace = format!(".{}", key.split('/').next().unwrap_or("").to_lowercase());
                if [".kubernetes.io", ".k8s.io"].iter().any(|reserved| namespace.ends_with(reserved)) {
                    e.invalid_value(&at, key, "kubernetes.io and k8s.io namespaces are reserved");
                }
            }
        }
        "fc" => {
            let (targets, ids, lun) = (source.at("targetWWNs"), source.at("wwids"), source.at("lun"));
            if targets.is_empty() && ids.is_empty() {
                e.required(&targets, "must specify either targetWWNs or wwids, but not both");
            }
            if !targets.is_empty() && !ids.is_empty() {
                e.invalid(&targets, "targetWWNs and wwids can not be specified simultaneously");
            }
            if !targets.is_empty() && !lun.is_set() {
                e.required(&lun, "lun is required if targetWWNs is specified");
            } else if !targets.is_empty() {
                e.in_range(&lun, 0, 255);
            }
        }
        "iscsi" => iscsi(e, source, lasting),
        "azureDisk" => azure_disk(e, source),
        _ => {}
    }
}

/// A reference to a secret: by its name, and for a persistent volume its namespace.
fn secret(e: &mut Errors, at: &At, lasting: bool) {
    if at.is_set() {
        e.filled(&at.at("name"));
        if lasting {
            e.filled(&at.at("namespace"));
        }
    }
}

fn is_host_port(pair: &str) -> bool {
    let host = pair.rsplit_once(':').map(|(host, _)| host);
    host.is_some_and(|host| !host.contains(':') && !host.contains(['[', ']']) || host.starts_with('[') && host.find(']') == Some(host.len() - 1))
}

fn azure_disk(e: &mut Errors, disk: &At) {
    e.maybe_one_of(&disk.at("cachingMode"), &["None", "ReadOnly", "ReadWrite"]);
    e.maybe_one_of(&disk.at("kind"), &["Dedicated", "Managed", "Shared"]);
    let uri = disk.at("diskURI");
    let (prefix, form) = match disk.at("kind").str() {
        "Managed" => ("/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"),
        _ => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
    };
    if disk.at("kind").is_set() && !uri.str().starts_with(prefix) {
        e.push(crate::field::Error::not_supported(&uri.path, uri.str(), &[form]));
    }
}

fn iscsi(e: &mut Errors, source: &At, lasting: bool) {
    let unknown = if lasting { "must be valid format" } else { "must be valid format starting with iqn, eui, or naa" };
    let mut name = |at: &At, path: String| {
        let text = at.str();
        let fault = match text.get(..3) {
            Some("iqn") => (!is_iqn(text)).then_some("must be valid format"),
            Some(kind @ ("eui" | "naa")) => {
                let rest = text.get(4..).unwrap_or("");
                let good = rest.len() == if kind == "eui" { 16 } else { 32 } && rest.bytes().all(|b| b.is_ascii_alphanumeric());
                (!good).then_some("must be valid format")
            }
            _ => Some(unknown),
        };
        if let Some(fault) = fault {
            e.invalid_value(&at.called(path), text, fault);
        }
    };
    let (iqn, initiator) = (source.at("iqn"), source.at("initiatorName"));
    if !iqn.is_empty() {
        name(&iqn, iqn.path.clone());
    }
    if initiator.is_set() {
        name(&initiator, source.below("initiatorname"));
    }
    e.in_range(&source.at("lun"), 0, 255);
    if (source.at("chapAuthDiscovery").flag() || source.at("chapAuthSession").flag()) && !source.at("secretRef").is_set() {
        e.required(&source.at("secretRef"), "");
    }
    if lasting {
        secret(e, &source.at("secretRef"), false);
    }
}

/// `iqn.2001-04.com.example:storage`
fn is_iqn(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| text.get(range).is_some_and(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let rest = text.get(12..).unwrap_or("");
    let (authority, name) = rest.split_once(':').unwrap_or(("", ""));
    text.starts_with("iqn.") && digits(4..8) && text.get(8..9) == Some("-") && digits(9..11) && text.get(11..12) == Some(".")
        && !authority.is_empty() && authority.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        && !name.is_empty() && !name.contains([',', ';', '*', '&', '$', '|']) && !name.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(kind: &str, source: Value, expected: &[&str]) {
        let mut e = Errors::default();
        rules(&mut e, kind, &At::root(&source).called("s"), false);
        assert_eq!(e.0.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{kind} {source}");
    }

    #[test]
    fn sources() {
        check("iscsi", json!({"targetPortal": "a", "iqn": "iqn.2001-04.com.example:disk"}), &[]);
        check("iscsi", json!({"targetPortal": "a", "iqn": "iqn.2001"}), &["s.iqn: Invalid value: \"iqn.2001\": must be valid format"]);
        check("iscsi", json!({"targetPortal": "a", "iqn": "eui.0123456789abcdef", "lun": 300}), &["s.lun: Invalid value: 300: must be between 0 and 255, inclusive"]);
        check("fc", json!({"targetWWNs": ["a"]}), &["s.lun: Required value: lun is required if targetWWNs is specified"]);
        check("quobyte", json!({"registry": "a:1,[::1]:2", "volume": "v"}), &[]);
        check("quobyte", json!({"registry": "a", "volume": "v"}), &["s.registry: Invalid value: \"a\": must be a host:port pair or multiple pairs separated by commas"]);
        check("azureDisk", json!({"kind": "Managed", "diskName": "d", "diskURI": "/subscriptions/x"}), &[]);
        check("flocker", json!({}), &["s: Required value: one of datasetName and datasetUUID is required"]);
    }
}
