//! What nodes are and may do: new ones are tainted until they are ready, and each writes only about itself.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skiff_api::value::{at, items, text};
use skiff_api::{Status, value};

use super::{Operation, Plugin, Request};
use crate::auth::node::claims;
use crate::auth::{self, Attributes, pki};
use crate::server::Server;
use crate::verbs::Call;

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    async fn mutate(&self, request: &Request<'_>, node: &mut Value) -> Result<(), Status> {
        if !request.creates("", "nodes") {
            return Ok(());
        }
        let key = "node.kubernetes.io/not-ready";
        if let Value::Array(taints) = value::object_mut(node, &["spec"]).entry("taints").or_insert_with(|| json!([]))
            && !taints.iter().any(|t| t["key"] == key && t["effect"] == "NoSchedule")
        {
            taints.push(json!({"key": key, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        restrict(request.call, request.operation, object, request.old).await
    }
}

/// Refuses what the node that asks may not do.
pub(super) async fn restrict(call: &Call, operation: Operation, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let Some(node) = call.user.node() else { return Ok(()) };
    let (resource, info) = (&call.resource, &call.info);
    let refuse = |why: String| Status::forbidden(resource.group_resource(), text(object, &["metadata", "name"]), why);
    let what = (resource.group.as_ref(), resource.plural.as_ref(), info.subresource.as_str());
    // Evictions and tokens are about a pod that they name.
    let named = match what {
        ("", "pods", "eviction") => info.name.as_str(),
        ("", "serviceaccounts", "token") => text(object, &["spec", "boundObjectRef", "name"]),
        _ => "",
    };
    let found = call.server.cache.resource("/registry/pods/").and_then(|pods| pods.get(&format!("/registry/pods/{}/{named}", info.namespace)));
    let pod = found.map_or(Ok(Value::Null), |pod| pod.value().map_err(Status::internal))?;
    fault(node, what, operation, object, old.unwrap_or(&Value::Null), &pod).map_err(refuse)?;
    if what == ("", "serviceaccounts", "token") {
        let audience = match items(object, &["spec", "audiences"]) {
            [] => "",
            [one] => one.as_str().unwrap_or(""),
            _ => return Err(refuse("node may only request 0 or 1 audiences".into())),
        };
        let may = Attributes { verb: "request-serviceaccounts-token-audience", version: "v1", resource: audience, namespace: &info.namespace, name: &info.name, ..Attributes::default() };
        if !audiences(&call.server, &pod).iter().any(|known| known == audience) && !auth::allowed(&call.server, &call.user, &may).await {
            let user = &call.user.name;
            return Err(refuse(format!("audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this audience")));
        }
    }
    Ok(())
}

/// What is wrong with what a node does. `what` is group, plural and subresource; `pod` the one that it is about, where
/// it isn't the object.
fn fault(node: &str, what: (&str, &str, &str), operation: Operation, object: &Value, old: &Value, pod: &Value) -> Result<(), String> {
    let name = text(object, &["metadata", "name"]);
    let bound = |object: &Value| text(object, &["spec", "nodeName"]) == node;
    let differs = |path: &[&str]| at(object, path) != at(old, path);
    let why = match (what, operation) {
        (("", "pods", ""), Operation::Create) => return mirror(node, object),
        (("", "pods", ""), Operation::Delete) if !bound(old) => format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
        (("", "pods", ""), Operation::Update) => format!("unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"),
        (("", "pods", "status"), _) if !bound(old) => format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"),
        (("", "pods", "status"), _) if differs(&["metadata", "labels"]) => format!("node {node:?} cannot update labels through pod status"),
        (("", "pods", "status"), _) if differs(&["status", "resourceClaimStatuses"]) => format!("node {node:?} cannot update resource claim statues"),
        (("", "pods", "status"), _) if differs(&["status", "extendedResourceClaimStatus"]) => {
            format!("node {node:?} cannot update extended resource claim status")
        }
        (("", "pods", "eviction"), _) if !bound(pod) => format!("node {node} can only evict pods with spec.nodeName set to itself"),
        (("", "pods", sub), _) if !matches!(sub, "" | "status" | "eviction") => {
            format!("unexpected pod subresource {sub:?}, only 'status' and 'eviction' are allowed")
        }
        (("", "nodes", _), _) if name != node => format!("node {node:?} is not allowed to modify node {name:?}"),
        (("", "nodes", _), Operation::Create | Operation::Update) => {
            let (made, source) = (operation == Operation::Create, ["spec", "configSource"]);
            let labels = restricted_labels(object, old).join(", ");
            if !at(object, &source).is_null() && differs(&source) {
                let does = if made { "create pods with a" } else { "update configSource to a new" };
                format!("node {node:?} is not allowed to {does} non-nil configSource")
            } else if !made && differs(&["spec", "taints"]) {
                format!("node {node:?} is not allowed to modify taints")
            } else if !made && differs(&["metadata", "ownerReferences"]) {
                format!("node {node:?} is not allowed to modify ownerReferences")
            } else if labels.is_empty() {
                return Ok(());
            } else if made {
                format!("node {node:?} is not allowed to set the following labels: {labels}")
            } else {
                format!("is not allowed to modify labels: {labels}")
            }
        }
        (("", "persistentvolumeclaims", "status"), Operation::Update) if rest_of_claim(object) != rest_of_claim(old) => {
            format!("node {node:?} is not allowed to update fields other than status.quantity and status.conditions")
        }
        (("", "serviceaccounts", "token"), _) => {
            let bound_to = |key| text(object, &["spec", "boundObjectRef", key]);
            if (bound_to("apiVersion"), bound_to("kind")) != ("v1", "Pod") || pod.is_null() {
                "node requested token not bound to a pod".into()
            } else if bound_to("uid").is_empty() {
                "node requested token with a pod binding without a uid".into()
            } else if bound_to("uid") != text(pod, &["metadata", "uid"]) {
                let uid = bound_to("uid");
                format!("the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated")
            } else if !bound(pod) {
                "node requested token bound to a pod scheduled on a different node".into()
            } else {
                return Ok(());
            }
        }
        (("coordination.k8s.io", "leases", _), _) if name != node => "can only access node lease with the same name as the requesting node".into(),
        (("storage.k8s.io", "csinodes", _), _) if name != node => "can only access CSINode with the same name as the requesting node".into(),
        (("resource.k8s.io", "resourceslices", _), Operation::Create) if !bound(object) => {
            "can only create ResourceSlice with the same NodeName as the requesting node".into()
        }
        (("resource.k8s.io", "resourceslices", _), Operation::Delete) if !bound(old) => {
            "can only delete ResourceSlice with the same NodeName as the requesting node".into()
        }
        (("certificates.k8s.io", "podcertificaterequests", _), _) if !bound(object) => {
            let other = text(object, &["spec", "nodeName"]);
            format!("PodCertificateRequest.Spec.NodeName={other:?}, which is not the requesting node {node:?}")
        }
        (("certificates.k8s.io", "certificatesigningrequests", ""), Operation::Create) => {
            if !matches!(text(object, &["spec", "signerName"]), "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
                return Ok(());
            }
            let pem = STANDARD.decode(text(object, &["spec", "request"])).unwrap_or_default();
            let mine = format!("system:node:{node}");
            match pki::Request::parse(&pem) {
                Ok(request) if request.common_name == mine => return Ok(()),
                _ => format!("can only create a node CSR with CN={mine}"),
            }
        }
        _ => return Ok(()),
    };
    Err(why)
}

/// Pods that a node makes tell of its static pods, and give it nothing that it didn't have.
fn mirror(node: &str, pod: &Value) -> Result<(), String> {
    let only = |which: &str| Err(format!("node {node:?} can only create pods with {which} set to itself"));
    if at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_null() {
        return Err(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"));
    }
    if text(pod, &["spec", "nodeName"]) != node {
        return only("spec.nodeName");
    }
    let owner = match items(pod, &["metadata", "ownerReferences"]) {
        [owner] => owner,
        [] => return only("an owner reference"),
        _ => return only("a single owner reference"),
    };
    if (text(owner, &["apiVersion"]), text(owner, &["kind"]), text(owner, &["name"])) != ("v1", "Node", node) {
        return only("an owner reference");
    }
    if owner["controller"] != true {
        return only("a controller owner reference");
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    match REFERENCES.iter().find(|(key, _)| refers(&pod["spec"], key)) {
        Some((_, what)) => Err(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// The fields of a pod's spec that name other objects.
const REFERENCES: [(&str, &str); 17] = [
    ("serviceAccountName", "serviceaccounts"),
    ("imagePullSecrets", "secrets"),
    ("secretKeyRef", "secrets"),
    ("secretRef", "secrets"),
    ("secretName", "secrets"),
    ("secret", "secrets"),
    ("configMapKeyRef", "configmaps"),
    ("configMapRef", "configmaps"),
    ("configMap", "configmaps"),
    ("resourceClaims", "resourceclaims"),
    ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"),
    ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
    ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"),
];

/// Whether the field stands anywhere in the spec; in a map it would be text.
fn refers(spec: &Value, field: &str) -> bool {
    match spec {
        Value::Array(items) => items.iter().any(|item| refers(item, field)),
        Value::Object(map) => map.iter().any(|(key, member)| {
            let named = !member.is_string() || matches!(field, "serviceAccountName" | "secretName") && member != "";
            key == field && named || refers(member, field)
        }),
        _ => false,
    }
}

/// What a node may not write of a claim.
fn rest_of_claim(claim: &Value) -> Value {
    let mut rest = claim.clone();
    for path in [["metadata", "resourceVersion"], ["metadata", "managedFields"], ["status", "capacity"], ["status", "conditions"],
        ["status", "allocatedResources"], ["status", "allocatedResourceStatuses"]]
    {
        value::remove(&mut rest, &path);
    }
    rest
}

/// For whom the pod's volumes need tokens.
fn audiences(server: &Server, pod: &Value) -> Vec<String> {
    let one = |prefix: &str, path: &str| server.cache.resource(prefix)?.get(&format!("{prefix}{path}"))?.value().ok();
    let mut drivers: Vec<String> = Vec::new();
    for claim in claims(pod) {
        let volume = one("/registry/persistentvolumeclaims/", &format!("{}/{claim}", text(pod, &["metadata", "namespace"])))
            .and_then(|claim| one("/registry/persistentvolumes/", text(&claim, &["spec", "volumeName"])));
        drivers.extend(volume.map(|volume| text(&volume, &["spec", "csi", "driver"]).to_owned()));
    }
    let volumes = items(pod, &["spec", "volumes"]);
    drivers.extend(volumes.iter().map(|volume| text(volume, &["csi", "driver"]).to_owned()));
    let requests = drivers.iter().filter_map(|driver| one("/registry/csidrivers/", driver));
    let audience = |of: &Value| text(of, &["audience"]).to_owned();
    let mut all: Vec<String> = requests.flat_map(|driver| items(&driver, &["spec", "tokenRequests"]).iter().map(audience).collect::<Vec<_>>()).collect();
    let sources = volumes.iter().flat_map(|volume| items(volume, &["projected", "sources"]));
    all.extend(sources.filter_map(|source| source.get("serviceAccountToken")).map(audience));
    all
}

/// The labels of Kubernetes' own that a node may say of itself; upstream's kubelet labels.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/exclude-from-external-load-balancers",
];

/// Whether a node may give itself the label: not those by which others tell it what it is for.
fn is_own(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let below = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    let kubernetes = below("kubernetes.io") || below("k8s.io");
    !kubernetes || OWN_LABELS.contains(&label) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

/// The labels that differ from the node before, and that a node may not change.
fn restricted_labels(node: &Value, old: &Value) -> Vec<String> {
    let [new, old] = [node, old].map(|object| at(object, &["metadata", "labels"]));
    let keys: std::collections::BTreeSet<&String> = [new, old].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys()).collect();
    keys.into_iter().filter(|key| new.get(*key) != old.get(*key) && !is_own(key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(new: Value, old: Option<Value>, expected: &[&str]) {
        let node = |labels: &Value| json!({"metadata": {"labels": labels}});
        let old = old.map_or(Value::Null, |labels| node(&labels));
        assert_eq!(restricted_labels(&node(&new), &old), expected);
    }

    #[test]
    fn a_node_says_of_itself_only_what_is_its_own() {
        check(json!({"kubernetes.io/hostname": "a", "x.io/y": "z", "plain": "1", "foo.node.kubernetes.io/a": "b"}), None, &[]);
        let roles = json!({"node-role.kubernetes.io/control-plane": "", "team.node-restriction.kubernetes.io/pci": "1"});
        check(roles.clone(), None, &["node-role.kubernetes.io/control-plane", "team.node-restriction.kubernetes.io/pci"]);
        check(roles.clone(), Some(roles.clone()), &[]);
        check(json!({}), Some(roles), &["node-role.kubernetes.io/control-plane", "team.node-restriction.kubernetes.io/pci"]);
    }

    #[test]
    fn a_node_writes_about_itself_and_its_pods() {
        let check = |what: (&str, &str, &str), operation, object: Value, old: Value, pod: Value, expected: Result<(), &str>| {
            assert_eq!(fault("n", what, operation, &object, &old, &pod), expected.map_err(str::to_owned), "{what:?} {object}");
        };
        let nothing = || Value::Null;
        let here = || json!({"metadata": {"uid": "u"}, "spec": {"nodeName": "n"}});
        let status = ("", "pods", "status");
        check(status, Operation::Update, here(), here(), nothing(), Ok(()));
        check(status, Operation::Update, here(), json!({}), nothing(), Err("node \"n\" can only update pod status for pods with spec.nodeName set to itself"));
        let labelled = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n"}});
        check(status, Operation::Update, labelled, here(), nothing(), Err("node \"n\" cannot update labels through pod status"));
        check(("", "pods", "eviction"), Operation::Create, json!({}), nothing(), json!({}), Err("node n can only evict pods with spec.nodeName set to itself"));
        check(("", "pods", "eviction"), Operation::Create, json!({}), nothing(), here(), Ok(()));
        check(("example.com", "pods", ""), Operation::Create, json!({}), nothing(), nothing(), Ok(()));
        let token = |bound: Value| json!({"spec": {"boundObjectRef": bound}});
        let tokens = ("", "serviceaccounts", "token");
        check(tokens, Operation::Create, json!({}), nothing(), nothing(), Err("node requested token not bound to a pod"));
        let bound = |uid: &str| token(json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}));
        check(tokens, Operation::Create, bound(""), nothing(), here(), Err("node requested token with a pod binding without a uid"));
        check(tokens, Operation::Create, bound("u"), nothing(), json!({"metadata": {"uid": "u"}}), Err("node requested token bound to a pod scheduled on a different node"));
        check(tokens, Operation::Create, bound("u"), nothing(), here(), Ok(()));
        let mut pod = json!({
            "metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}, "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "controller": true}]},
            "spec": {"nodeName": "n", "nodeSelector": {"csi": "x"}, "volumes": [{"name": "v", "emptyDir": {}}]},
        });
        check(("", "pods", ""), Operation::Create, pod.clone(), nothing(), nothing(), Ok(()));
        pod["spec"]["volumes"][0] = json!({"projected": {"sources": [{"secret": {"name": "s"}}]}});
        check(("", "pods", ""), Operation::Create, pod, nothing(), nothing(), Err("node \"n\" can not create pods that reference secrets"));
        let claim = |amount: &str, mode: &str| json!({"spec": {"volumeMode": mode}, "status": {"capacity": {"storage": amount}}});
        let claims = ("", "persistentvolumeclaims", "status");
        check(claims, Operation::Update, claim("2", "Block"), claim("1", "Block"), nothing(), Ok(()));
        let refused = "node \"n\" is not allowed to update fields other than status.quantity and status.conditions";
        check(claims, Operation::Update, claim("2", "File"), claim("1", "Block"), nothing(), Err(refused));
    }
}
