//! How containers are named and labelled, so that they are found again and told from those of others.

use std::collections::HashMap;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::super::{ContainerConfig, PodRef, SandboxConfig, TerminationMessage};

/// The cluster that a container belongs to: what lacks it isn't ours.
pub const CLUSTER: &str = "dev.skiff.cluster";
/// The node that a container belongs to.
pub const NODE: &str = "dev.skiff.node";
/// The uid of the pod.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// The name of the pod.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// The namespace of the pod.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// The name of the container, [`SANDBOX`] for a sandbox.
pub const CONTAINER: &str = "io.kubernetes.container.name";
/// The role of the container.
pub const KIND: &str = "dev.skiff.container.kind";
/// How often the container was started before.
pub const ATTEMPT: &str = "io.kubernetes.container.restartCount";
/// What the container was made from.
pub const SPEC_HASH: &str = "io.kubernetes.container.hash";
/// The sandbox that the container was made in.
pub const SANDBOX_ID: &str = "io.kubernetes.sandbox.id";
/// The image by the name that the spec has for it.
pub const IMAGE: &str = "dev.skiff.container.image";
/// The host's file of the container's last words.
pub const TERMINATION_LOG: &str = "dev.skiff.container.termination-log";
/// The policy for them.
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// What sandboxes are called where containers have a name; upstream's word.
pub const SANDBOX: &str = "POD";

/// The longest name of a network interface.
const INTERFACE_NAME: usize = 15;

/// Whose containers these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: String,
}

impl Owner {
    /// The filter that finds our containers, and only them; of one pod, or of all.
    pub fn filter(&self, uid: Option<&str>) -> HashMap<String, Vec<String>> {
        let mut labels = vec![format!("{CLUSTER}={}", self.cluster), format!("{NODE}={}", self.node)];
        labels.extend(uid.map(|uid| format!("{POD_UID}={uid}")));
        HashMap::from([("label".to_owned(), labels)])
    }

    /// Whether what carries these labels is ours.
    pub fn owns(&self, labels: &HashMap<String, String>) -> bool {
        labels.get(CLUSTER) == Some(&self.cluster) && labels.get(NODE) == Some(&self.node)
    }

    fn labels(&self, pod: &PodRef, container: &str, attempt: u32) -> HashMap<String, String> {
        let pairs = [
            (CLUSTER, self.cluster.clone()),
            (NODE, self.node.clone()),
            (POD_UID, pod.uid.clone()),
            (POD_NAME, pod.name.clone()),
            (POD_NAMESPACE, pod.namespace.clone()),
            (CONTAINER, container.to_owned()),
            (ATTEMPT, attempt.to_string()),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The labels of a sandbox.
    pub fn sandbox_labels(&self, config: &SandboxConfig) -> HashMap<String, String> {
        self.labels(&config.pod, SANDBOX, config.attempt)
    }

    /// The labels of a container.
    pub fn container_labels(&self, sandbox_id: &str, config: &ContainerConfig) -> HashMap<String, String> {
        let mut labels = self.labels(&config.pod, &config.name, config.attempt);
        let mut add = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
        add(KIND, config.kind.as_str());
        add(SPEC_HASH, &config.spec_hash);
        add(SANDBOX_ID, sandbox_id);
        add(IMAGE, &config.image);
        if let Some(TerminationMessage { file, fallback_to_logs }) = &config.termination_message {
            add(TERMINATION_LOG, &file.to_string_lossy());
            add(TERMINATION_POLICY, if *fallback_to_logs { "FallbackToLogsOnError" } else { "File" });
        }
        labels
    }
}

/// The name of a container, as Docker's kubelet always named them.
pub fn container_name(pod: &PodRef, container: &str, attempt: u32) -> String {
    format!("k8s_{container}_{}_{}_{}_{attempt}", pod.name, pod.namespace, pod.uid)
}

/// The name of a cluster's network, and of its bridge on the host.
pub fn network_name(cluster: &str) -> String {
    let name = format!("skiff-{cluster}");
    if name.len() <= INTERFACE_NAME {
        return name;
    }
    let hash: String = Sha256::digest(cluster).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("skiff-{hash}")
}

/// The pod that labels name.
pub fn pod_ref(labels: &HashMap<String, String>) -> PodRef {
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    PodRef { uid: label(POD_UID), namespace: label(POD_NAMESPACE), name: label(POD_NAME) }
}

/// Where the last words of a container are, by its labels.
pub fn termination_message(labels: &HashMap<String, String>) -> Option<TerminationMessage> {
    let file = PathBuf::from(labels.get(TERMINATION_LOG)?);
    let fallback_to_logs = labels.get(TERMINATION_POLICY).is_some_and(|policy| policy == "FallbackToLogsOnError");
    Some(TerminationMessage { file, fallback_to_logs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let pod = PodRef { uid: "u".into(), namespace: "ns".into(), name: "p".into() };
        assert_eq!(container_name(&pod, "c", 2), "k8s_c_p_ns_u_2");
        assert_eq!(network_name("default"), "skiff-default");
        let long = network_name("a-long-cluster-name");
        assert!(long.len() <= INTERFACE_NAME && long.starts_with("skiff-"), "{long}");
    }
}
