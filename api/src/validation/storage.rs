//! Storage: volumes and claims, classes, drivers and attachments.

use std::collections::HashSet;

use serde_json::Value;

use super::check::{At, Errors, same};
use super::volume::csi_driver_name;
use super::{diff, meta, resources, scheduling, sources};
use crate::names;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

/// The sources of a persistent volume, in Go's order.
const SOURCES: [&str; 22] = [
    "gcePersistentDisk", "awsElasticBlockStore", "hostPath", "glusterfs", "nfs", "rbd", "quobyte", "iscsi", "flexVolume", "cinder", "cephfs", "fc",
    "flocker", "azureFile", "vsphereVolume", "azureDisk", "photonPersistentDisk", "portworxVolume", "scaleIO", "local",
    "storageos", "csi",
];

/// The same in the order in which upstream looks at them.
const LOOKED_AT: [&str; 22] = [
    "hostPath", "gcePersistentDisk", "awsElasticBlockStore", "glusterfs", "flocker", "nfs", "rbd", "quobyte", "cephfs", "iscsi", "cinder",
    "fc", "flexVolume", "azureFile", "vsphereVolume", "photonPersistentDisk", "portworxVolume", "azureDisk", "scaleIO", "local",
    "storageos", "csi",
];

fn access_modes(e: &mut Errors, at: &At) {
    for mode in at.items().filter(|m| !ACCESS_MODES.contains(&m.str())) {
        e.unsupported(&mode.called(&at.path), &ACCESS_MODES);
    }
    let modes = at.texts();
    if modes.contains(&"ReadWriteOncePod") && modes.iter().any(|m| *m != "ReadWriteOncePod" && ACCESS_MODES.contains(m)) {
        e.forbidden(at, "may not use ReadWriteOncePod with other access modes");
    }
}

pub(super) fn volume(e: &mut Errors, object: &At) {
    let spec = &object.at("spec");
    e.filled(&spec.at("accessModes"));
    access_modes(e, &spec.at("accessModes"));
    let capacity = spec.at("capacity");
    e.filled(&capacity);
    if !capacity.key("storage").is_set() || capacity.len() > 1 {
        e.unsupported(&capacity, &["storage"]);
    }
    for (_, amount) in capacity.entries() {
        if amount.quantity().is_some_and(|q| q.value() < 0) {
            e.invalid_value(&amount, amount.quantity().map_or(0, |q| q.value()), "must be a valid resource quantity");
        }
        positive(e, &amount);
    }
    let policy = spec.at("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        e.maybe_one_of(&policy, &["Delete", "Recycle", "Retain"]);
    }
    let affinity = spec.at("nodeAffinity");
    if affinity.is_set() {
        if affinity.at("required").is_set() {
            scheduling::node_selector(e, &affinity.at("required"));
        } else {
            e.required(&affinity.at("required"), "must specify required node constraints");
        }
    }
    let found = sources::one_source(e, spec, &LOOKED_AT, |e, kind, source| match kind {
        "csi" => {
            csi_driver_name(e, &source.at("driver"));
            e.filled(&source.at("volumeHandle"));
            for secret in ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"] {
                let secret = source.at(secret);
                if secret.is_set() {
                    e.required_form(&secret.at("name"), names::dns_subdomain);
                    e.required_form(&secret.at("namespace"), names::dns_label);
                }
            }
        }
        "local" => {
            e.filled(&source.at("path"));
            e.no_backsteps(&source.at("path"));
            if !affinity.is_set() {
                e.required(&spec.at("nodeAffinity"), "Local volume requires node affinity");
            }
        }
        _ => sources::rules(e, kind, source, true),
    });
    if found == 0 {
        e.required(spec, "must specify a volume type");
    }
    let path = spec.at("hostPath.path");
    if policy.str() == "Recycle" && path.is_set() && path.str().split('/').all(|part| matches!(part, "" | ".")) {
        e.forbidden(&policy, "may not be 'recycle' for a hostPath mount of '/'");
    }
    e.optional_form(&spec.at("storageClassName"), names::dns_subdomain);
    e.maybe_one_of(&spec.at("volumeMode"), &VOLUME_MODES);
    let class = spec.at("volumeAttributesClassName");
    if class.is_set() {
        e.wanted(&class, "an empty string is disallowed");
        e.optional_form(&class, names::dns_subdomain);
        if !spec.at("csi").is_set() {
            e.required(&spec.at("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn positive(e: &mut Errors, amount: &At) {
    if amount.quantity().is_some_and(|q| q.signum() <= 0) {
        e.invalid(amount, "must be greater than zero");
    }
}

pub(super) fn volume_update(e: &mut Errors, new: &At, old: &Value) {
    let (spec, was) = (new.at("spec"), At::root(&old["spec"]));
    let mut now = spec.value.clone();
    if was.at("csi").is_set() && !was.at("csi.controllerExpandSecretRef").is_set() {
        crate::value::remove(&mut now, &["csi", "controllerExpandSecretRef"]);
    }
    if SOURCES.iter().any(|source| !same(&now[source], was.at(source).value)) {
        let shown = |v: &Value| spec.schema.shown_go_fields(v, &SOURCES, true);
        let difference = diff::unified(&shown(was.value), &shown(&now));
        let at = spec.at("persistentvolumesource");
        e.forbidden(&at, format!("spec.persistentvolumesource is immutable after creation\n{difference}"));
    }
    let mode = spec.at("volumeMode").called("volumeMode");
    if !same(mode.value, was.at("volumeMode").value) {
        e.immutable(&mode);
    }
    let affinity = spec.at("nodeAffinity").called("nodeAffinity");
    if was.at("nodeAffinity").is_set() && !same(&without_beta(affinity.value), &without_beta(was.at("nodeAffinity").value)) {
        e.invalid(&affinity, "field is immutable, except for updating from beta label to GA");
    }
    let class = spec.at("volumeAttributesClassName");
    if was.at("volumeAttributesClassName").is_set() && !class.is_set() {
        e.forbidden(&class, "update from non-nil value to nil is forbidden");
    }
}

/// The affinity with the labels of nodes that took the place of older ones.
fn without_beta(affinity: &Value) -> Value {
    let mut text = affinity.to_string();
    for label in ["arch", "os"] {
        text = text.replace(&format!("\"beta.kubernetes.io/{label}\""), &format!("\"kubernetes.io/{label}\""));
    }
    text = text.replace("\"failure-domain.beta.kubernetes.io/", "\"topology.kubernetes.io/");
    text = text.replace("\"beta.kubernetes.io/instance-type\"", "\"node.kubernetes.io/instance-type\"");
    serde_json::from_str(&text).unwrap_or_default()
}

pub(super) fn claim(e: &mut Errors, claim: &At) {
    claim_spec(e, &claim.at("spec"));
}

/// The spec of a claim, or of a template of claims.
pub(super) fn claim_spec(e: &mut Errors, spec: &At) {
    e.wanted(&spec.at("accessModes"), "at least 1 access mode is required");
    meta::label_selector(e, &spec.at("selector"));
    access_modes(e, &spec.at("accessModes"));
    let storage = spec.at("resources.requests").key("storage").called(format!("{}[storage]", spec.below("resources")));
    if storage.is_set() {
        positive(e, &storage);
    } else {
        e.required(&storage, "");
    }
    e.optional_form(&spec.at("storageClassName"), names::dns_subdomain);
    e.maybe_one_of(&spec.at("volumeMode"), &VOLUME_MODES);
    for source in ["dataSource", "dataSourceRef"].map(|field| spec.at(field)).iter().filter(|source| source.is_set()) {
        e.filled(&source.at("name"));
        e.filled(&source.at("kind"));
        if source.at("apiGroup").is_empty() && source.at("kind").str() != "PersistentVolumeClaim" {
            e.invalid_value(source, source.at("kind").str(), "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
        e.optional_form(&source.at("apiGroup"), names::dns_subdomain);
        e.optional_form(&source.at("namespace"), names::dns_label);
    }
    e.optional_form(&spec.at("volumeAttributesClassName"), names::dns_subdomain);
}

pub(super) fn claim_update(e: &mut Errors, new: &At, old: &Value) {
    let (mut now, mut was) = (new.at("spec").value.clone(), old["spec"].clone());
    let put = |spec: &mut Value, path: &[&str], value: &Value| {
        crate::value::remove(spec, path);
        if let ([parents @ .., last], false) = (path, value.is_null()) {
            crate::value::object_mut(spec, parents).insert((*last).to_owned(), value.clone());
        }
    };
    if At::root(&was).at("volumeName").is_empty() {
        put(&mut was, &["volumeName"], &now["volumeName"]);
    }
    if was["storageClassName"].is_null() && !now["storageClassName"].is_null() {
        put(&mut now, &["storageClassName"], &Value::Null);
    }
    let bound = new.at("status.phase").str() == "Bound";
    let size = |spec: &Value| At::root(spec).at("resources.requests").key("storage").quantity();
    let (old_size, new_size) = (size(&was), size(&now));
    if bound {
        put(&mut now, &["resources", "requests", "storage"], &was["resources"]["requests"]["storage"]);
        put(&mut now, &["volumeAttributesClassName"], &was["volumeAttributesClassName"]);
    }
    let spec = new.at("spec");
    if !same(&now, &was) {
        let words = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        e.forbidden(&spec, format!("{words}\n{}", spec.changes(&was, &now)));
    }
    let given = At::root(old).at("status.capacity").key("storage").quantity().unwrap_or_default();
    if new_size < old_size && new_size.unwrap_or_default() <= given {
        e.forbidden(&spec.at("resources.requests.storage"), "field can not be less than status.capacity");
    }
    let mode = spec.at("volumeMode").called("volumeMode");
    if !same(mode.value, &old["spec"]["volumeMode"]) {
        e.immutable(&mode);
    }
}

pub(super) fn claim_status(e: &mut Errors, new: &At) {
    for (_, amount) in new.at("status.capacity").entries() {
        if let Some(value) = amount.quantity().map(|q| q.value()).filter(|v| *v < 0) {
            e.invalid_value(&amount, value, "must be a valid resource quantity");
        }
    }
    for (name, amount) in new.at("status.allocatedResources").entries() {
        resources::amount(e, &amount, name);
    }
}

/// The name of the driver that a class is for.
fn provisioner(e: &mut Errors, provisioner: &At) {
    if provisioner.is_empty() {
        return e.required(provisioner, "");
    }
    let name = provisioner.str().to_lowercase();
    e.text_form(provisioner, &name, names::qualified_name);
}

pub(super) fn class(e: &mut Errors, class: &At) {
    provisioner(e, &class.at("provisioner"));
    parameters(e, &class.at("parameters"));
    e.maybe_one_of(&class.at("reclaimPolicy"), &["Delete", "Retain"]);
    let mode = class.at("volumeBindingMode");
    if mode.is_set() {
        e.maybe_one_of(&mode, &["Immediate", "WaitForFirstConsumer"]);
    } else {
        e.required(&mode, "");
    }
    for topology in class.at("allowedTopologies").items() {
        let mut keys = HashSet::new();
        for expression in topology.at("matchLabelExpressions").items() {
            let (key, values) = (expression.at("key"), expression.at("values"));
            e.filled(&values);
            e.unique(values.items());
            e.form(&key, names::qualified_name);
            e.once(&key, &mut keys);
        }
    }
}

/// What a class tells its driver.
fn parameters(e: &mut Errors, parameters: &At) {
    if parameters.len() > 512 {
        return e.too_long(parameters, 512);
    }
    for (key, _) in parameters.entries().filter(|(key, _)| key.is_empty()) {
        e.invalid_value(parameters, key, "field can not be empty.");
    }
    let size: usize = parameters.entries().map(|(key, value)| key.len() + value.str().len()).sum();
    if size > 256 * 1024 {
        e.too_long(parameters, 256 * 1024);
    }
}

pub(super) fn attributes_class(e: &mut Errors, class: &At) {
    provisioner(e, &class.at("driverName"));
    parameters(e, &class.at("parameters"));
    e.wanted(&class.at("parameters"), "must contain at least one key/value pair");
}

pub(super) fn attributes_class_update(e: &mut Errors, new: &At, old: &Value) {
    for field in ["driverName", "parameters"] {
        if meta::changed(new, old, field) {
            e.forbidden(&new.at(field), format!("updates to {field} are forbidden."));
        }
    }
}

pub(super) fn capacity(e: &mut Errors, capacity: &At) {
    meta::label_selector(e, &capacity.at("nodeTopology"));
    e.form(&capacity.at("storageClassName"), names::dns_subdomain);
    e.non_negative_quantity(&capacity.at("capacity"));
}

pub(super) fn attachment(e: &mut Errors, attachment: &At) {
    let spec = attachment.at("spec");
    csi_driver_name(e, &spec.at("attacher"));
    let source = spec.at("source");
    match (source.at("inlineVolumeSpec").is_set(), source.at("persistentVolumeName").is_set()) {
        (false, false) => e.required(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        (true, true) => e.forbidden(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
        (false, true) => e.form(&source.at("persistentVolumeName"), names::dns_subdomain),
        (true, false) => {}
    }
    e.form(&spec.at("nodeName"), names::dns_subdomain);
}

pub(super) fn driver(e: &mut Errors, driver: &At) {
    let spec = driver.at("spec");
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if !spec.at(field).is_set() {
            e.required(&spec.at(field).called(spec.below(if field == "attachRequired" { "attachedRequired" } else { field })), "");
        }
    }
    let period = spec.at("nodeAllocatableUpdatePeriodSeconds");
    e.at_least(&period, 10, "must be greater than or equal to 10 seconds");
    e.maybe_one_of(&spec.at("fsGroupPolicy"), &["File", "None", "ReadWriteOnceWithFSType"]);
    spec.at("volumeLifecycleModes").items().for_each(|mode| e.maybe_one_of(&mode, &["Ephemeral", "Persistent"]));
    let in_secrets = spec.at("serviceAccountTokenInSecrets");
    if in_secrets.is_set() && spec.at("tokenRequests").is_empty() {
        e.invalid(&in_secrets, "serviceAccountTokenInSecrets is set but no tokenRequests are specified");
    }
    let mut audiences = HashSet::new();
    for request in spec.at("tokenRequests").items() {
        let (audience, seconds) = (request.at("audience"), request.at("expirationSeconds"));
        e.once(&audience, &mut audiences);
        e.at_least(&seconds, 600, "may not specify a duration less than 10 minutes");
        e.at_most(&seconds, 1 << 32, "may not specify a duration larger than 2^32 seconds");
    }
}

pub(super) fn driver_update(e: &mut Errors, new: &At, old: &Value) {
    let (spec, was) = (new.at("spec"), &old["spec"]);
    for (field, shown) in [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")] {
        if meta::changed(&spec, was, field) {
            e.immutable(&spec.at(field).called(spec.below(shown)));
        }
    }
}

pub(super) fn csi_node(e: &mut Errors, node: &At) {
    let drivers = node.at("spec.drivers");
    for driver in drivers.items() {
        csi_driver_name(e, &driver.at("name"));
        let id = driver.at("nodeID");
        e.filled(&id);
        e.no_longer(&id, 256);
        e.non_negative(&driver.at("allocatable.count"));
        driver.at("topologyKeys").items().for_each(|key| e.form(&key, names::qualified_name));
    }
    e.unique(drivers.items().map(|d| d.at("name")));
}

pub(super) fn csi_node_update(e: &mut Errors, new: &At, old: &Value) {
    let drivers = new.at("spec.drivers");
    for was in At::root(old).at("spec.drivers").items() {
        let now = drivers.items().find(|d| d.at("name").value == was.at("name").value);
        if let Some(now) = now.filter(|now| !same(now.value, was.value)) {
            e.immutable(&now.called(&drivers.path));
        }
    }
}
