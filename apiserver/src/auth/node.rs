//! The node authorizer: a kubelet sees what it needs for the pods that are bound to its node, and no more.

use serde_json::Value;
use skiff_api::{fields, value};
use skiff_api::value::{at, items, text};

use super::{Attributes, Decision, User};
use crate::cache::Filter;
use crate::server::Server;

/// What every node may do, of what isn't divided below: group, resource (with subresource), verbs. Upstream's node rules.
const RULES: &[(&str, &str, &[&str])] = &[
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
    ("", "services", &["get", "list", "watch"]),
    ("", "endpoints", &["get"]),
    ("", "events", &["create", "patch", "update"]),
    ("events.k8s.io", "events", &["create", "patch", "update"]),
    ("certificates.k8s.io", "certificatesigningrequests", &["create", "get", "list", "watch"]),
    ("node.k8s.io", "runtimeclasses", &["get", "list", "watch"]),
    ("storage.k8s.io", "csidrivers", &["get", "list", "watch"]),
];

/// Whether the user is a node that may do that. The reasons are upstream's.
pub(super) fn decide(server: &Server, user: &User, a: &Attributes<'_>) -> Decision {
    let Some(node) = user.node() else { return Decision::no_opinion("") };
    if !a.path.is_empty() {
        return Decision::no_opinion("");
    }
    let asks = |field: &str| fields::Selector::parse(a.field_selector).is_ok_and(|s| s.required(field) == Some(node));
    let own = |what: &str, among: &[&str], list: &str| match a.verb {
        verb if !among.contains(&verb) => Err(format!("can only {list} a {what}")),
        verb if verb != "create" && a.name != node => Err(format!("can only access {what} with the same name as the requesting node")),
        _ => Ok(()),
    };
    let reads = matches!(a.verb, "get" | "list" | "watch");
    let writes: &[&str] = &["get", "create", "update", "patch", "delete"];
    let list = "get, create, update, patch, or delete";
    let related = || match (a.name, refers(&View(server), node, a)) {
        ("", _) => Err("No Object name found".to_owned()),
        (_, true) => Ok(()),
        (_, false) => Err(format!("no relationship found between node '{node}' and this object")),
    };
    let no = |why: &str| Err(why.to_owned());
    let get = || match (a.verb, a.subresource) {
        ("get", "") => related(),
        ("get", _) => no("cannot get subresource"),
        _ => no("can only get individual resources of this type"),
    };
    let result: Result<(), String> = match (a.group, a.resource, a.subresource) {
        ("", "secrets" | "configmaps", sub) => match (reads, sub, a.namespace) {
            (false, ..) => no("can only read resources of this type"),
            (_, "", "") => no("can only read namespaced object of this type"),
            (_, "", _) => related(),
            _ => no("cannot read subresource"),
        },
        ("", "persistentvolumeclaims", "status") => if matches!(a.verb, "update" | "patch") { related() } else { no("can only get/update/patch this type") },
        ("", "persistentvolumeclaims" | "persistentvolumes", _) | ("resource.k8s.io", "resourceclaims", _) | ("storage.k8s.io", "volumeattachments", _) => get(),
        ("", "serviceaccounts", sub) => match (a.verb, sub) {
            ("get", "") => related(),
            ("create", "token") if !a.name.is_empty() => related(),
            ("create", _) if !a.name.is_empty() => no("can only create token subresource of serviceaccount"),
            _ => no("can only create tokens for individual service accounts"),
        },
        ("coordination.k8s.io", "leases", _) if writes.contains(&a.verb) && a.namespace != "kube-node-lease" => {
            no("can only access leases in the \"kube-node-lease\" system namespace")
        }
        ("coordination.k8s.io", "leases", _) => own("node lease", writes, list),
        ("storage.k8s.io", "csinodes", "") => own("CSINode", writes, list),
        ("storage.k8s.io", "csinodes", _) => no("cannot authorize CSINode subresources"),
        ("resource.k8s.io", "resourceslices", "") => match a.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => related(),
            _ if asks("nodeName") || asks("spec.nodeName") => Ok(()),
            _ => no("can only list/watch/deletecollection resourceslices with nodeName field selector"),
        },
        // Which objects of these it may write is for the NodeRestriction plugin to say.
        ("", "nodes", "") => match (a.verb, a.name) {
            ("create" | "update" | "patch", _) => Ok(()),
            (_, name) if reads && name == node => Ok(()),
            (_, "") if reads => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
            (_, name) if reads => Err(format!("node '{node}' cannot read '{name}', only its own Node object")),
            _ => no(""),
        },
        ("", "pods", "") => match a.verb {
            "get" => related(),
            "list" | "watch" if asks("spec.nodeName") => Ok(()),
            "list" | "watch" if !a.name.is_empty() => related(),
            "list" | "watch" => no("can only list/watch pods with spec.nodeName field selector"),
            "create" | "delete" => Ok(()),
            _ => no(""),
        },
        ("", "nodes" | "pods", "status") if matches!(a.verb, "update" | "patch") => Ok(()),
        ("", "pods", "eviction") if a.verb == "create" => Ok(()),
        (group, resource, sub) => {
            let given = RULES.iter().any(|(g, r, verbs)| *g == group && *r == resource && sub.is_empty() && verbs.contains(&a.verb));
            if given { Ok(()) } else { no("") }
        }
    };
    result.map_or_else(Decision::no_opinion, |()| Decision::allow(""))
}

/// The objects that relations are read off.
trait Objects {
    /// One object, by its key.
    fn one(&self, prefix: &str, path: &str) -> Option<Value>;
    /// The pods of a node, in one namespace or (empty) all.
    fn pods(&self, node: &str, namespace: &str) -> Vec<Value>;
}

/// What the cache shows.
struct View<'a>(&'a Server);

impl Objects for View<'_> {
    fn one(&self, prefix: &str, path: &str) -> Option<Value> {
        self.0.cache.resource(prefix)?.get(&format!("{prefix}{path}"))?.value().ok()
    }

    fn pods(&self, node: &str, namespace: &str) -> Vec<Value> {
        let Some(pods) = self.0.cache.resource("/registry/pods/") else { return Vec::new() };
        let requirement = fields::Requirement { field: "spec.nodeName".into(), value: node.into(), equal: true };
        let fields = fields::Selector { requirements: vec![requirement] };
        let filter = Filter { namespace: namespace.into(), fields, ..Filter::default() };
        pods.list(&filter, 0).objects.iter().filter_map(|pod| pod.value().ok()).collect()
    }
}

/// Whether the node has to do with the object: node <- pod <- secret, config map, account, resource claim, claim <- volume <-
/// secret.
fn refers(objects: &impl Objects, node: &str, a: &Attributes<'_>) -> bool {
    let on_node = |path: &str, field: &[&str], prefix: &str| objects.one(prefix, path).is_some_and(|object| text(&object, field) == node);
    // What a mirror of a static pod names is nothing that the API gave it.
    let is_static = |pod: &Value| !at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_null();
    let pods = |namespace: &str| objects.pods(node, namespace).into_iter().filter(|pod| !is_static(pod));
    let volume_of = |pod: &Value, claim: &str| {
        let claim = objects.one("/registry/persistentvolumeclaims/", &format!("{}/{claim}", text(pod, &["metadata", "namespace"])))?;
        objects.one("/registry/persistentvolumes/", text(&claim, &["spec", "volumeName"]))
    };
    let volumes = || pods("").flat_map(|pod| claims(&pod).iter().filter_map(|claim| volume_of(&pod, claim)).collect::<Vec<_>>());
    match a.resource {
        "pods" => on_node(&format!("{}/{}", a.namespace, a.name), &["spec", "nodeName"], "/registry/pods/"),
        "volumeattachments" => on_node(a.name, &["spec", "nodeName"], "/registry/volumeattachments/"),
        "resourceslices" => on_node(a.name, &["spec", "nodeName"], "/registry/resourceslices/"),
        "serviceaccounts" => pods(a.namespace).any(|pod| text(&pod, &["spec", "serviceAccountName"]) == a.name),
        "persistentvolumeclaims" => pods(a.namespace).any(|pod| claims(&pod).iter().any(|claim| claim == a.name)),
        "persistentvolumes" => volumes().any(|volume| text(&volume, &["metadata", "name"]) == a.name),
        "resourceclaims" => pods(a.namespace).any(|pod| {
            let by = |list: &[&str]| items(&pod, list).iter().any(|claim| claim["resourceClaimName"] == a.name);
            by(&["spec", "resourceClaims"]) || by(&["status", "resourceClaimStatuses"]) || text(&pod, &["status", "extendedResourceClaimStatus", "resourceClaimName"]) == a.name
        }),
        "secrets" => pods(a.namespace).any(|pod| names(&pod["spec"], "secrets", a.name)) || volumes().any(|volume| volume_secret(&volume, a.namespace, a.name)),
        resource => pods(a.namespace).any(|pod| names(&pod["spec"], resource, a.name)),
    }
}

/// The claims that a pod uses, those made for it among them.
pub(crate) fn claims(pod: &Value) -> Vec<String> {
    let own = text(pod, &["metadata", "name"]);
    let claim = |volume: &Value| match text(volume, &["persistentVolumeClaim", "claimName"]) {
        "" if volume["ephemeral"].is_object() => Some(format!("{own}-{}", text(volume, &["name"]))),
        "" => None,
        name => Some(name.to_owned()),
    };
    items(pod, &["spec", "volumes"]).iter().filter_map(claim).collect()
}

/// Whether a volume's source names the secret.
fn volume_secret(volume: &Value, namespace: &str, name: &str) -> bool {
    let of_claim = text(volume, &["spec", "claimRef", "namespace"]);
    let sources = volume["spec"].as_object().into_iter().flatten();
    sources.filter_map(|(_, source)| source.as_object()).flatten().any(|(key, reference)| match key.as_str() {
        // Azure's has the name alone, and the namespace beside it.
        "secretName" => reference == name && at(volume, &["spec", "azureFile", "secretNamespace"]).as_str().unwrap_or(of_claim) == namespace,
        key if key == "secretRef" || key.ends_with("SecretRef") => reference["name"] == name && reference["namespace"].as_str().unwrap_or(of_claim) == namespace,
        _ => false,
    })
}

/// Whether a pod's spec names the object anywhere that objects of the resource are named.
fn names(spec: &Value, resource: &str, name: &str) -> bool {
    match spec {
        Value::Array(items) => items.iter().any(|item| names(item, resource, name)),
        Value::Object(map) => map.iter().any(|(key, member)| {
            let found = match (resource, key.as_str()) {
                ("secrets", "secret") => member["secretName"] == name || member["name"] == name,
                ("secrets", "secretKeyRef" | "secretRef" | "nodePublishSecretRef") => member["name"] == name,
                ("secrets", "secretName") => member == name,
                ("secrets", "imagePullSecrets") => value::items(spec, &["imagePullSecrets"]).iter().any(|s| s["name"] == name),
                ("configmaps", "configMap" | "configMapKeyRef" | "configMapRef") => member["name"] == name,
                _ => false,
            };
            found || names(member, resource, name)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn references() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"secret": {"secretName": "s"}}, {"projected": {"sources": [{"secret": {"name": "p"}}, {"configMap": {"name": "c"}}]}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "e", "key": "k"}}}], "envFrom": [{"configMapRef": {"name": "f"}}]}],
        });
        for name in ["pull", "s", "p", "e"] {
            assert!(names(&spec, "secrets", name), "{name}");
            assert!(!names(&spec, "configmaps", name), "{name}");
        }
        assert!(names(&spec, "configmaps", "c") && names(&spec, "configmaps", "f"));
    }

    struct Known(HashMap<String, Value>);

    impl Objects for Known {
        fn one(&self, prefix: &str, path: &str) -> Option<Value> {
            self.0.get(&format!("{prefix}{path}")).cloned()
        }

        fn pods(&self, node: &str, namespace: &str) -> Vec<Value> {
            let fits = |pod: &&Value| text(pod, &["spec", "nodeName"]) == node && (namespace.is_empty() || text(pod, &["metadata", "namespace"]) == namespace);
            self.0.values().filter(fits).cloned().collect()
        }
    }

    #[test]
    fn relations() {
        let pod = json!({
            "metadata": {"namespace": "n", "name": "p"},
            "spec": {
                "nodeName": "a", "serviceAccountName": "sa", "resourceClaims": [{"name": "x", "resourceClaimName": "gpu"}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "tmp", "ephemeral": {}}],
            },
        });
        let mirror = json!({
            "metadata": {"namespace": "n", "name": "m", "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "a", "serviceAccountName": "other"},
        });
        let known = Known(HashMap::from([
            ("/registry/pods/n/p".to_owned(), pod),
            ("/registry/pods/n/m".to_owned(), mirror),
            ("/registry/persistentvolumeclaims/n/data".to_owned(), json!({"spec": {"volumeName": "pv"}})),
            (
                "/registry/persistentvolumes/pv".to_owned(),
                json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "n"}, "csi": {"nodeStageSecretRef": {"name": "csi", "namespace": "s"}}}}),
            ),
            ("/registry/volumeattachments/va".to_owned(), json!({"spec": {"nodeName": "a"}})),
        ]));
        let check = |resource: &str, namespace: &str, name: &str, expected: bool| {
            let a = Attributes { resource, namespace, name, ..Attributes::default() };
            assert_eq!(refers(&known, "a", &a), expected, "{resource} {namespace}/{name}");
            assert!(!refers(&known, "b", &a), "{resource} {namespace}/{name} of another node");
        };
        check("pods", "n", "p", true);
        check("serviceaccounts", "n", "sa", true);
        check("serviceaccounts", "n", "other", false);
        check("serviceaccounts", "m", "sa", false);
        check("persistentvolumeclaims", "n", "data", true);
        check("persistentvolumeclaims", "n", "p-tmp", true);
        check("persistentvolumeclaims", "n", "p-v", false);
        check("persistentvolumes", "", "pv", true);
        check("persistentvolumes", "", "other", false);
        check("secrets", "s", "csi", true);
        check("secrets", "n", "csi", false);
        check("volumeattachments", "", "va", true);
        check("resourceclaims", "n", "gpu", true);
    }
}
