//! What a container's processes may do and use, from the pod's spec. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use skiff_api::quantity::Quantity;

use crate::pod;
use crate::runtime::{Resources, Security};

/// The least and the usual weight of CPU time; upstream's `MinShares` and `SharesPerCPU`.
const MIN_SHARES: i64 = 2;
const SHARES_PER_CPU: i64 = 1024;
/// The period of CPU time and the least quota in it, in microseconds; upstream's.
const PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1_000;

/// What keeps a container from being made; the texts are upstream's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The spec says root and no root.
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    BreaksPolicy {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is root.
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageIsRoot {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is a name.
    #[error("container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})")]
    NotNumeric {
        /// The user.
        user: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// Profiles in files of the node aren't read.
    #[error("seccomp profile of type {0} is not supported")]
    Seccomp(String),
}

/// The permissions of a container whose image says that it runs as `image_user`.
pub fn security(pod: &Pod, container: &Container, image_user: &str) -> Result<Security, Error> {
    let of_pod = pod::spec(pod).and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user = own.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user));
    let group = own.and_then(|c| c.run_as_group).or(of_pod.and_then(|c| c.run_as_group));
    let non_root = own.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root)).unwrap_or(false);
    let image_uid = image_user.split(':').next().unwrap_or_default();
    if non_root {
        let (pod, container) = (pod::shown(pod), container.name.clone());
        match (user, image_uid.parse::<i64>()) {
            (Some(0), _) => return Err(Error::BreaksPolicy { pod, container }),
            (Some(_), _) => {}
            (None, Ok(0)) => return Err(Error::ImageIsRoot { pod, container }),
            (None, Ok(_)) => {}
            (None, Err(_)) if image_uid.is_empty() => return Err(Error::ImageIsRoot { pod, container }),
            (None, Err(_)) => return Err(Error::NotNumeric { user: image_uid.into(), pod, container }),
        }
    }
    let user = match (user, group) {
        (None, None) => String::new(),
        (Some(user), None) => user.to_string(),
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (None, Some(group)) => format!("{}:{group}", if image_uid.is_empty() { "0" } else { image_uid }),
    };
    let mut groups = of_pod.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(of_pod.and_then(|c| c.fs_group));
    groups.dedup();
    let privileged = own.and_then(|c| c.privileged).unwrap_or(false);
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    let profile = own.and_then(|c| c.seccomp_profile.as_ref()).or(of_pod.and_then(|c| c.seccomp_profile.as_ref()));
    Ok(Security {
        user,
        groups,
        privileged,
        read_only_root: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
        drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        no_new_privileges: own.and_then(|c| c.allow_privilege_escalation) == Some(false) && !privileged,
        seccomp: if privileged { None } else { seccomp(profile)? },
        unmasked_proc: own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked"),
    })
}

/// Without a profile a container is unconfined, as upstream has it; `RuntimeDefault` is Docker's own.
fn seccomp(profile: Option<&SeccompProfile>) -> Result<Option<String>, Error> {
    match profile.map(|p| p.type_.as_str()) {
        None | Some("Unconfined") => Ok(Some("unconfined".into())),
        Some("RuntimeDefault") => Ok(None),
        Some(other) => Err(Error::Seccomp(other.into())),
    }
}

fn amount(list: Option<&BTreeMap<String, Text>>, name: &str) -> Option<Quantity> {
    list?.get(name).and_then(|text| Quantity::parse(&text.0).ok())
}

/// The limits of a container, on a node of so much memory.
pub fn resources(pod: &Pod, container: &Container, node_memory: u64) -> Resources {
    let own = container.resources.as_ref();
    let of_pod = pod::spec(pod).and_then(|s| s.resources.as_ref());
    let limit = |name| amount(own.and_then(|r| r.limits.as_ref()), name).or_else(|| amount(of_pod.and_then(|r| r.limits.as_ref()), name));
    let request = |name| amount(own.and_then(|r| r.requests.as_ref()), name);
    let cpu_request = request("cpu").or_else(|| limit("cpu")).map_or(0, Quantity::milli_value);
    let memory_request = request("memory").map_or(0, Quantity::value);
    let quota = limit("cpu").map(|cpu| (cpu.milli_value() * PERIOD / 1000).max(MIN_QUOTA));
    Resources {
        cpu_shares: (cpu_request * SHARES_PER_CPU / 1000).clamp(MIN_SHARES, 262_144),
        cpu_quota: quota.unwrap_or(0),
        cpu_period: quota.map_or(0, |_| PERIOD),
        memory: limit("memory").map_or(0, Quantity::value),
        oom_score_adj: oom_score(pod, memory_request, node_memory),
    }
}

/// What a running container's limits are to be, if they aren't, and whether it has to be started anew for that, as its
/// `resizePolicy` says.
pub fn resize(pod: &Pod, spec: &Container, container: &crate::runtime::Container) -> Option<(Resources, bool)> {
    let is = container.resources.as_ref()?;
    let wanted = resources(pod, spec, 0);
    let cpu = (wanted.cpu_shares, wanted.cpu_quota) != (is.cpu_shares, is.cpu_quota);
    let memory = wanted.memory != is.memory;
    let mut changed = spec.resize_policy.iter().flatten().filter(|p| (p.resource_name == "cpu" && cpu) || (p.resource_name == "memory" && memory));
    let restarts = changed.any(|p| p.restart_policy == "RestartContainer");
    (cpu || memory).then_some((wanted, restarts))
}

/// Upstream's rule: guaranteed pods go last, those without requests first, and between them the more a pod asked for the later.
fn oom_score(pod: &Pod, memory_request: i64, node_memory: u64) -> i64 {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => -997,
        Some("Burstable") => {
            let node = i64::try_from(node_memory).unwrap_or(i64::MAX).max(1);
            (1000 - 1000_i64.saturating_mul(memory_request) / node).clamp(3, 999)
        }
        _ => 1000,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod_of(context: Value, container: Value) -> Pod {
        let mut container = container;
        container["name"] = json!("a");
        crate::testing::pod(json!({"securityContext": context, "containers": [container]}))
    }

    #[test]
    fn users() {
        let check = |context: Value, own: Value, image: &str, expected: Result<&str, &str>| {
            let pod = pod_of(context, json!({"securityContext": own}));
            let security = security(&pod, &pod::containers(&pod)[0], image);
            assert_eq!(security.map(|s| s.user).map_err(|e| e.to_string()), expected.map(str::to_owned).map_err(str::to_owned));
        };
        check(json!({}), json!({}), "1000", Ok(""));
        check(json!({"runAsUser": 5}), json!({}), "", Ok("5"));
        check(json!({"runAsUser": 5, "runAsGroup": 6}), json!({"runAsUser": 7}), "", Ok("7:6"));
        check(json!({"runAsGroup": 6}), json!({}), "", Ok("0:6"));
        check(json!({"runAsNonRoot": true}), json!({}), "1000:1", Ok(""));
        check(
            json!({"runAsNonRoot": true}),
            json!({}),
            "",
            Err("container has runAsNonRoot and image will run as root (pod: \"p_ns(u)\", container: a)"),
        );
        check(
            json!({"runAsNonRoot": true}),
            json!({"runAsUser": 0}),
            "",
            Err("container's runAsUser breaks non-root policy (pod: \"p_ns(u)\", container: a)"),
        );
        check(
            json!({"runAsNonRoot": true}),
            json!({}),
            "web",
            Err("container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root (pod: \"p_ns(u)\", container: a)"),
        );
    }

    #[test]
    fn limits() {
        let check = |own: Value, expected: (i64, i64, i64)| {
            let pod = pod_of(json!({}), json!({"resources": own}));
            let r = resources(&pod, &pod::containers(&pod)[0], 1 << 30);
            assert_eq!((r.cpu_shares, r.cpu_quota, r.memory), expected);
        };
        check(json!({}), (2, 0, 0));
        check(json!({"requests": {"cpu": "250m"}}), (256, 0, 0));
        check(json!({"limits": {"cpu": "1500m", "memory": "64Mi"}}), (1536, 150_000, 64 << 20));
        check(json!({"limits": {"cpu": "1m"}}), (2, 1_000, 0));
    }

    #[test]
    fn resizes() {
        let check = |was: Value, policy: Value, now: Value, expected: Option<bool>| {
            let before = pod_of(json!({}), json!({"resources": was}));
            let after = pod_of(json!({}), json!({"resources": now, "resizePolicy": policy}));
            let container = crate::testing::container(&before, "a running");
            let found = resize(&after, &pod::containers(&after)[0], &container);
            assert_eq!(found.map(|(_, restarts)| restarts), expected, "{was} -> {now}");
        };
        let (small, large) = (|| json!({"limits": {"cpu": "20m", "memory": "40Mi"}}), || json!({"limits": {"cpu": "25m", "memory": "40Mi"}}));
        check(small(), json!([]), small(), None);
        check(small(), json!([]), large(), Some(false));
        check(json!({"requests": {"cpu": "1"}}), json!([]), json!({"requests": {"cpu": "2"}}), Some(false));
        check(small(), json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]), large(), Some(true));
        check(small(), json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]), large(), Some(false));
    }

    #[test]
    fn oom_scores() {
        let check = |qos: &str, request: i64, expected: i64| {
            let mut pod = pod_of(json!({}), json!({}));
            pod.status = serde_json::from_value(json!({"qosClass": qos})).ok();
            assert_eq!(oom_score(&pod, request, 1 << 30), expected);
        };
        check("Guaranteed", 0, -997);
        check("BestEffort", 0, 1000);
        check("Burstable", 1 << 29, 500);
        check("Burstable", 1, 999);
        check("Burstable", 1 << 30, 3);
    }
}
