//! The volumes of pods.

use super::check::{At, Errors};
use super::container::{FILE_FIELDS, field_ref, resource_ref};
use super::{meta, sources};
use super::storage::claim_spec;
use crate::names;

/// The kinds of volume, in the order in which upstream looks at them.
const KINDS: [&str; 30] = [
    "emptyDir", "hostPath", "gitRepo", "gcePersistentDisk", "awsElasticBlockStore", "secret", "nfs", "iscsi", "glusterfs", "flocker",
    "persistentVolumeClaim", "rbd", "cinder", "cephfs", "quobyte", "downwardAPI", "fc", "flexVolume", "configMap", "azureFile",
    "vsphereVolume", "photonPersistentDisk", "portworxVolume", "azureDisk", "storageos", "projected", "scaleIO", "csi", "ephemeral", "image",
];

/// The volumes of a pod named `pod_name` (empty for a template). Gives those that are well formed.
pub(super) fn volumes<'a>(e: &mut Errors, list: &At<'a>, pod_name: &str) -> Vec<At<'a>> {
    let mut good: Vec<At> = Vec::new();
    for volume in list.items() {
        let before = e.0.len();
        sources::one_source(e, &volume, &KINDS, source_rules);
        let name = volume.at("name");
        e.required_form(&name, names::dns_label);
        if good.iter().any(|v| v.at("name").str() == name.str()) {
            e.duplicate(&name);
        }
        let is_good = !e.has_since(before);
        let claim = volume.at("persistentVolumeClaim.claimName");
        let made = |v: &At| v.at("ephemeral").is_set() && format!("{pod_name}-{}", v.at("name").str()) == claim.str();
        if !pod_name.is_empty() && !claim.is_empty() && list.items().any(|v| made(&v)) {
            e.invalid(&claim, "must not reference a PVC that gets created for an ephemeral volume");
        }
        if is_good {
            good.push(volume);
        }
    }
    good
}

fn source_rules(e: &mut Errors, kind: &str, source: &At) {
    match kind {
        "emptyDir" => {
            if source.at("sizeLimit").quantity().is_some_and(|q| q.signum() < 0) {
                e.forbidden(&source.at("sizeLimit"), "SizeLimit field must be a valid resource quantity");
            }
        }
        "secret" | "configMap" => {
            e.filled(&source.at(if kind == "secret" { "secretName" } else { "name" }));
            e.mode(&source.at("defaultMode"));
            source.at("items").items().for_each(|item| key_to_path(e, &item));
        }
        "downwardAPI" => {
            e.mode(&source.at("defaultMode"));
            // Upstream's errors are of the source, without the item.
            source.at("items").items().for_each(|file| downward_file(e, &file.called(&source.path)));
        }
        "projected" => projected(e, source),
        "csi" => {
            csi_driver_name(e, &source.at("driver"));
            if source.at("nodePublishSecretRef").is_set() {
                e.required_form(&source.at("nodePublishSecretRef.name"), names::dns_subdomain);
            }
        }
        "ephemeral" => {
            let template = source.at("volumeClaimTemplate");
            if !template.is_set() {
                return e.required(&template, "");
            }
            meta::annotations(e, &template.at("metadata.annotations"));
            meta::labels(e, &template.at("metadata.labels"));
            for (field, value) in template.at("metadata").value.as_object().into_iter().flatten() {
                if !matches!(field.as_str(), "annotations" | "labels") && !At::root(value).is_empty() {
                    e.forbidden(&template.at("metadata").at(field), "cannot be set");
                }
            }
            claim_spec(e, &template.at("spec"));
        }
        "image" => {
            e.filled(&source.at("reference"));
            e.maybe_one_of(&source.at("pullPolicy"), &["Always", "IfNotPresent", "Never"]);
        }
        _ => sources::rules(e, kind, source, false),
    }
}

/// The name of a storage driver.
pub(super) fn csi_driver_name(e: &mut Errors, at: &At) {
    if at.is_empty() {
        return e.required(at, "");
    }
    e.no_longer(at, 63);
    for fault in names::dns_subdomain(&at.str().to_lowercase()) {
        e.invalid(at, fault);
    }
}

fn key_to_path(e: &mut Errors, item: &At) {
    e.filled(&item.at("key"));
    e.filled(&item.at("path"));
    e.local_path(&item.at("path"));
    e.mode(&item.at("mode"));
}

fn downward_file(e: &mut Errors, file: &At) {
    e.filled(&file.at("path"));
    e.local_path(&file.at("path"));
    let (field, resource) = (file.at("fieldRef"), file.at("resourceFieldRef"));
    if field.is_set() {
        field_ref(e, &field, &FILE_FIELDS);
        if resource.is_set() {
            e.invalid_value(file, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously");
        }
    } else if resource.is_set() {
        resource_ref(e, &resource, true);
    } else {
        e.required(file, "one of fieldRef and resourceFieldRef is required");
    }
    e.mode(&file.at("mode"));
}

fn projected(e: &mut Errors, at: &At) {
    e.mode(&at.at("defaultMode"));
    let mut paths: Vec<String> = Vec::new();
    let mut claim = |e: &mut Errors, path: &str, shown: &str| {
        if path.is_empty() {
            return;
        }
        if paths.iter().any(|p| p == path) {
            e.invalid_value(at, shown, "conflicting duplicate paths");
        }
        paths.push(path.to_owned());
    };
    for source in at.at("sources").items() {
        for kind in ["secret", "configMap"] {
            let list = source.at(kind);
            if list.is_set() {
                e.filled(&list.at("name"));
                for item in list.at("items").items() {
                    key_to_path(e, &item);
                    claim(e, item.at("path").str(), list.at("name").str());
                }
            }
        }
        let downward = source.at("downwardAPI");
        for file in downward.at("items").items() {
            downward_file(e, &file.called(&downward.path));
            claim(e, file.at("path").str(), file.at("path").str());
        }
        let token = source.at("serviceAccountToken");
        if token.is_set() {
            let (seconds, path) = (token.at("expirationSeconds"), token.at("path").called(at.below("path")));
            e.at_least(&seconds, 600, "may not specify a duration less than 10 minutes");
            e.at_most(&seconds, 1 << 32, "may not specify a duration larger than 2^32 seconds");
            if path.is_empty() {
                e.required(&path, "");
            } else {
                e.local_path(&path);
            }
        }
        let kinds = ["secret", "configMap", "downwardAPI", "serviceAccountToken", "podCertificate"];
        if kinds.iter().filter(|kind| source.at(kind).is_set()).count() > 1 {
            e.forbidden(&source, "may not specify more than 1 volume type per source");
        }
    }
}
