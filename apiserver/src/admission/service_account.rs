//! Pods run as a service account, whose token is put where clients look for it.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use skiff_api::{Status, random, value};

use super::{Plugin, Request};

pub(super) struct ServiceAccount;

/// Where clients in pods look for their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a pod waits for the account of a namespace that was made a moment ago.
const WAIT: Duration = Duration::from_secs(1);
/// The token's life in seconds; upstream's figure, whose odd 7 marks tokens that were put in by default.
const TOKEN_SECONDS: u32 = 3_607;

#[async_trait]
impl Plugin for ServiceAccount {
    async fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        // A mirror of a node's static pod has no account.
        let mirror = !value::at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_null();
        if !request.creates("", "pods") || mirror {
            return Ok(());
        }
        let name = match value::text(pod, &["spec", "serviceAccountName"]) {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        let spec = value::object_mut(pod, &["spec"]);
        spec.insert("serviceAccountName".into(), name.as_str().into());
        spec.insert("serviceAccount".into(), name.as_str().into());
        let account = find(request, &name).await?.ok_or_else(|| {
            let why = format!("error looking up service account {}/{name}: serviceaccount {name:?} not found", request.call.info.namespace);
            Status::forbidden(request.call.resource.group_resource(), value::text(pod, &["metadata", "name"]), why)
        })?;
        if value::items(pod, &["spec", "imagePullSecrets"]).is_empty()
            && let secrets @ Value::Array(_) = &account["imagePullSecrets"]
        {
            pod["spec"]["imagePullSecrets"] = secrets.clone();
        }
        let automount = [value::at(pod, &["spec", "automountServiceAccountToken"]), &account["automountServiceAccountToken"]];
        if automount.into_iter().find_map(Value::as_bool).unwrap_or(true) {
            mount(pod);
        }
        Ok(())
    }
}

async fn find(request: &Request<'_>, name: &str) -> Result<Option<Value>, Status> {
    let call = request.call;
    let key = format!("/registry/serviceaccounts/{}/{name}", call.info.namespace);
    let cache = call.server.cache.resource("/registry/serviceaccounts/").ok_or_else(Status::no_such_resource)?;
    let mut bell = cache.subscribe();
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        bell.borrow_and_update();
        if let Some(account) = cache.get(&key) {
            return Ok(Some(account.value().map_err(Status::internal)?));
        }
        // Only the account that a controller makes for each namespace is worth waiting for.
        if name != "default" || tokio::time::timeout_at(deadline, bell.changed()).await.is_err() {
            return Ok(None);
        }
    }
}

/// Mounts a token, the cluster's CA and the namespace's name into every container that mounts nothing there itself.
fn mount(pod: &mut Value) {
    let volume = format!("kube-api-access-{}", random::suffix(5));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let mounted = value::items(container, &["volumeMounts"]).iter().any(|m| m["mountPath"] == MOUNT_PATH);
            if mounted || !container.is_object() {
                continue;
            }
            used = true;
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            push(container, "volumeMounts", mount);
        }
    }
    if used {
        let sources = json!([
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]);
        push(&mut pod["spec"], "volumes", json!({"name": volume, "projected": {"defaultMode": 420, "sources": sources}}));
    }
}

fn push(object: &mut Value, key: &str, item: Value) {
    if let Some(map) = object.as_object_mut()
        && let Value::Array(items) = map.entry(key).or_insert_with(|| json!([]))
    {
        items.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_with_a_mount_of_their_own_are_left_alone() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        mount(&mut pod);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], MOUNT_PATH);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(pod["spec"]["volumes"][0]["projected"]["sources"].as_array().map(Vec::len), Some(3));
    }
}
