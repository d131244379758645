//! The Pod Security Standards: what the levels `baseline` and `restricted` forbid, as of a version of Kubernetes.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::field::Error;
use crate::value::{at, items, text};

const PREFIX: &str = "pod-security.kubernetes.io/";
/// The version that `latest` stands for.
const LATEST: u32 = 36;

/// How much a pod may do, least restricted first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Anything.
    #[default]
    Privileged,
    /// Nothing that is known to lead out of the container.
    Baseline,
    /// Hardened.
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            "restricted" => Self::Restricted,
            _ => return None,
        })
    }
}

/// A level as of a version; `None` is the latest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standard {
    /// The level.
    pub level: Level,
    /// The minor version of Kubernetes.
    pub version: Option<u32>,
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            None => write!(f, "{level}:latest"),
            Some(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

/// What a namespace's labels ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is refused.
    pub enforce: Standard,
    /// What is said in the audit log.
    pub audit: Standard,
    /// What the client is warned of.
    pub warn: Standard,
}

/// Reads a namespace's labels. A wrong level is the strictest for what is refused, none for the rest.
pub fn policy(namespace: &Value) -> (Policy, Vec<Error>) {
    let (mut policy, mut errors) = (Policy::default(), Vec::new());
    let labels = at(namespace, &["metadata", "labels"]);
    let mut read = |mode: &str, wrong: Level| {
        let mut standard = Standard::default();
        let label = |suffix: &str| labels.get(format!("{PREFIX}{mode}{suffix}")).and_then(Value::as_str);
        let mut invalid = |suffix: &str, given: &str, why: &str| {
            errors.push(Error::invalid(format!("metadata.labels[{PREFIX}{mode}{suffix}]"), given, why));
        };
        if let Some(given) = label("") {
            standard.level = Level::parse(given).unwrap_or_else(|| {
                invalid("", given, "must be one of privileged, baseline, restricted");
                wrong
            });
        }
        if let Some(given) = label("-version").filter(|given| *given != "latest") {
            let digits = given.strip_prefix("v1.").filter(|d| d.bytes().all(|b| b.is_ascii_digit()) && (d.len() == 1 || !d.starts_with('0')));
            standard.version = digits.and_then(|d| d.parse().ok());
            if standard.version.is_none() {
                invalid("-version", given, "must be \"latest\" or \"v1.x\"");
            }
        }
        (standard, label("").is_some(), label("-version").is_some())
    };
    let (enforce, given, _) = read("enforce", Level::Restricted);
    policy.enforce = enforce;
    (policy.audit, ..) = read("audit", Level::Privileged);
    let (warn, own_level, own_version) = read("warn", Level::Privileged);
    policy.warn = warn;
    let sound = given && labels.get(format!("{PREFIX}enforce")).and_then(Value::as_str).is_some_and(|l| Level::parse(l).is_some());
    if sound && !own_level && policy.enforce.level > policy.warn.level {
        policy.warn.level = policy.enforce.level;
        if !own_version {
            policy.warn.version = policy.enforce.version;
        }
    }
    (policy, errors)
}

/// What a pod does that a standard forbids: reason and details, in upstream's words and order.
pub fn violations(standard: Standard, metadata: &Value, spec: &Value) -> Vec<(String, String)> {
    let pod = Pod { metadata, spec, version: standard.version.unwrap_or(LATEST) };
    let restricted = standard.level == Level::Restricted;
    let mut found: Vec<Option<(String, String)>> = Vec::new();
    if standard.level >= Level::Baseline {
        found.push(pod.app_armor());
        if !restricted || pod.version < 22 {
            found.push(pod.capabilities());
        }
        found.push(pod.host_namespaces());
        if !restricted {
            found.push(pod.host_paths());
        }
        found.extend([pod.host_ports(), pod.probe_hosts(), pod.privileged()]);
        let strict_proc = restricted && pod.version >= 35;
        if !(strict_proc || pod.version >= 35 && pod.has_own_users()) {
            found.push(pod.proc_mount());
        }
        found.push(pod.selinux());
        if !restricted || pod.version < 19 {
            found.push(pod.seccomp(false));
        }
        found.extend([pod.sysctls(), pod.host_process()]);
        if restricted {
            found.extend([pod.escalation(), pod.dropped_capabilities()]);
            if strict_proc {
                found.push(pod.proc_mount());
            }
            found.extend([pod.volumes(), pod.non_root(), pod.root_user()]);
            if pod.version >= 19 && !(pod.version >= 25 && pod.is_windows()) {
                found.push(pod.seccomp(true));
            }
        }
    }
    found.into_iter().flatten().collect()
}

/// The violations as one sentence, with the details or without.
pub fn describe(violations: &[(String, String)], details: bool) -> String {
    let shown = violations.iter().map(|(reason, detail)| if details && !detail.is_empty() { format!("{reason} ({detail})") } else { reason.clone() });
    shown.collect::<Vec<_>>().join(", ")
}

struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    version: u32,
}

type Found = Option<(String, String)>;

fn quoted<T: AsRef<str>>(list: impl IntoIterator<Item = T>) -> String {
    let list: Vec<String> = list.into_iter().map(|t| format!("\"{}\"", t.as_ref())).collect();
    list.join(", ")
}

fn plural(one: &'static str, many: &'static str, count: usize) -> &'static str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`
fn setters(pod: bool, names: &[&str]) -> String {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_owned());
    }
    if !names.is_empty() {
        all.push(containers(names));
    }
    all.join(" and ")
}

fn found(reason: &str, detail: String) -> Found {
    Some((reason.to_owned(), detail))
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |list| items(spec, &[list]))
    }

    /// The names of the containers of which something is true.
    fn where_<'b>(&'b self, bad: impl Fn(&'a Value) -> bool + 'b) -> Vec<&'a str> {
        self.containers().filter(|c| bad(c)).map(|c| text(c, &["name"])).collect()
    }

    fn context(&self) -> &'a Value {
        at(self.spec, &["securityContext"])
    }

    fn is_windows(&self) -> bool {
        text(self.spec, &["os", "name"]) == "windows"
    }

    /// Whether the pod has a user namespace of its own.
    fn has_own_users(&self) -> bool {
        self.spec["hostUsers"] == false
    }

    fn app_armor(&self) -> Found {
        let mut bad_values = BTreeSet::new();
        let mut bad = |context: &Value| {
            let profile = at(context, &["appArmorProfile"]);
            let kind = text(profile, &["type"]);
            let bad = profile.is_object() && !matches!(kind, "RuntimeDefault" | "Localhost");
            if bad {
                bad_values.insert(kind.to_owned());
            }
            bad
        };
        let pod = bad(self.context());
        let names: Vec<&str> = self.containers().filter(|c| bad(at(c, &["securityContext"]))).map(|c| text(c, &["name"])).collect();
        let annotations = at(self.metadata, &["annotations"]).as_object().into_iter().flatten().filter_map(|(key, value)| {
            let value = value.as_str()?;
            let fine = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
            (key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !fine).then(|| format!("{key}={value:?}"))
        });
        let annotations: Vec<String> = annotations.collect();
        let mut who = setters(pod, &names);
        if !annotations.is_empty() {
            who.push_str(if who.is_empty() { "" } else { " and " });
            who.push_str(plural("annotation", "annotations", annotations.len()));
        }
        let values: Vec<String> = bad_values.into_iter().chain(annotations).collect();
        let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
        if who.is_empty() { None } else { found(reason, format!("{who} must not set AppArmor profile type to {}", quoted(values))) }
    }

    fn added(container: &Value, allowed: &[&str]) -> Vec<String> {
        let added = items(container, &["securityContext", "capabilities", "add"]).iter().filter_map(Value::as_str);
        added.filter(|c| !allowed.contains(c)).map(str::to_owned).collect()
    }

    fn capabilities(&self) -> Found {
        const ALLOWED: [&str; 13] = [
            "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP",
            "SETUID", "SYS_CHROOT",
        ];
        let names = self.where_(|c| !Self::added(c, &ALLOWED).is_empty());
        let bad: BTreeSet<String> = self.containers().flat_map(|c| Self::added(c, &ALLOWED)).collect();
        let detail = || format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(&bad));
        if names.is_empty() { None } else { found("non-default capabilities", detail()) }
    }

    fn dropped_capabilities(&self) -> Found {
        if self.version < 22 || (self.version >= 25 && self.is_windows()) {
            return None;
        }
        let missing = self.where_(|c| !items(c, &["securityContext", "capabilities", "drop"]).iter().any(|d| d == "ALL"));
        let allowed = ["NET_BIND_SERVICE"];
        let adding = self.where_(|c| !Self::added(c, &allowed).is_empty());
        let bad: BTreeSet<String> = self.containers().flat_map(|c| Self::added(c, &allowed)).collect();
        let mut details = Vec::new();
        if !missing.is_empty() {
            details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&missing)));
        }
        if !adding.is_empty() {
            details.push(format!("{} must not include {} in securityContext.capabilities.add", containers(&adding), quoted(&bad)));
        }
        if details.is_empty() { None } else { found("unrestricted capabilities", details.join("; ")) }
    }

    fn host_namespaces(&self) -> Found {
        let shared: Vec<String> =
            ["hostNetwork", "hostPID", "hostIPC"].iter().filter(|key| self.spec[**key] == true).map(|key| format!("{key}=true")).collect();
        if shared.is_empty() { None } else { found("host namespaces", shared.join(", ")) }
    }

    fn host_paths(&self) -> Found {
        let names: Vec<&str> = items(self.spec, &["volumes"]).iter().filter(|v| v["hostPath"].is_object()).map(|v| text(v, &["name"])).collect();
        if names.is_empty() { None } else { found("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(names))) }
    }

    fn host_ports(&self) -> Found {
        let ports = |c: &Value| items(c, &["ports"]).iter().filter_map(|p| p["hostPort"].as_i64()).filter(|p| *p != 0).collect::<Vec<_>>();
        let names = self.where_(|c| !ports(c).is_empty());
        let bad: BTreeSet<String> = self.containers().flat_map(ports).map(|p| p.to_string()).collect();
        if names.is_empty() {
            return None;
        }
        let list = bad.iter().cloned().collect::<Vec<_>>().join(", ");
        found("hostPort", format!("{} {} {} {list}", containers(&names), plural("uses", "use", names.len()), plural("hostPort", "hostPorts", bad.len())))
    }

    fn probe_hosts(&self) -> Found {
        if self.version < 34 {
            return None;
        }
        const HANDLERS: [&[&str]; 5] = [&["livenessProbe"], &["readinessProbe"], &["startupProbe"], &["lifecycle", "postStart"], &["lifecycle", "preStop"]];
        let hosts = |c: &Value| {
            let handlers = HANDLERS.iter().map(|path| at(c, path));
            let hosts = handlers.flat_map(|h| [text(h, &["httpGet", "host"]), text(h, &["tcpSocket", "host"])]);
            hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut names = self.where_(|c| !hosts(c).is_empty());
        names.sort_unstable();
        let bad: BTreeSet<String> = self.containers().flat_map(hosts).collect();
        if names.is_empty() {
            return None;
        }
        let what = plural("probe or lifecycle host", "probe or lifecycle hosts", bad.len());
        found("probe or lifecycle host", format!("{} {} {what} {}", containers(&names), plural("uses", "use", names.len()), quoted(&bad)))
    }

    fn privileged(&self) -> Found {
        let names = self.where_(|c| *at(c, &["securityContext", "privileged"]) == true);
        if names.is_empty() { None } else { found("privileged", format!("{} must not set securityContext.privileged=true", containers(&names))) }
    }

    fn proc_mount(&self) -> Found {
        let mount = |c: &'a Value| Some(text(c, &["securityContext", "procMount"])).filter(|m| !matches!(*m, "" | "Default"));
        let names = self.where_(|c| mount(c).is_some());
        let bad: BTreeSet<&str> = self.containers().filter_map(mount).collect();
        if names.is_empty() { None } else { found("procMount", format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(bad))) }
    }

    fn selinux(&self) -> Found {
        let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
        let engine = self.version >= 31;
        let mut bad = |context: &Value| {
            let options = at(context, &["seLinuxOptions"]);
            let kind = text(options, &["type"]);
            let allowed = matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t") || (engine && kind == "container_engine_t");
            let (has_user, has_role) = (!text(options, &["user"]).is_empty(), !text(options, &["role"]).is_empty());
            if !allowed {
                types.insert(kind.to_owned());
            }
            user |= has_user;
            role |= has_role;
            !allowed || has_user || has_role
        };
        let pod = bad(self.context());
        let names: Vec<&str> = self.containers().filter(|c| bad(at(c, &["securityContext"]))).map(|c| text(c, &["name"])).collect();
        let who = setters(pod, &names);
        let mut data = Vec::new();
        if !types.is_empty() {
            data.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
        }
        for (set, words) in [(user, "user may not be set"), (role, "role may not be set")] {
            if set {
                data.push(words.to_owned());
            }
        }
        if who.is_empty() { None } else { found("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; "))) }
    }

    /// Profiles that are none; where one is `needed`, also containers without.
    fn seccomp(&self, needed: bool) -> Found {
        if self.version < 19 {
            return self.seccomp_annotations();
        }
        let profile = |context: &'a Value| Some(at(context, &["seccompProfile"])).filter(|p| p.is_object()).map(|p| text(p, &["type"]));
        let valid = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
        let of_pod = profile(self.context());
        let of = |c: &'a Value| profile(at(c, &["securityContext"]));
        let names = self.where_(|c| of(c).is_some_and(|p| !valid(p)));
        let bad: BTreeSet<&str> = self.containers().filter_map(of).chain(of_pod).filter(|p| !valid(p)).collect();
        let who = setters(of_pod.is_some_and(|p| !valid(p)), &names);
        if !who.is_empty() {
            return found("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(bad)));
        }
        let missing = self.where_(|c| of(c).is_none());
        if !needed || of_pod.is_some() || missing.is_empty() {
            return None;
        }
        found("seccompProfile", format!("pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"", containers(&missing)))
    }

    fn seccomp_annotations(&self) -> Found {
        let keys = self.containers().map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", text(c, &["name"])));
        let keys = keys.chain(["seccomp.security.alpha.kubernetes.io/pod".to_owned()]);
        let bad: BTreeSet<String> = keys
            .filter_map(|key| {
                let value = at(self.metadata, &["annotations", &key]).as_str()?;
                let fine = matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
                (!fine).then(|| format!("{key}={value:?}"))
            })
            .collect();
        let list = bad.iter().cloned().collect::<Vec<_>>().join(", ");
        if bad.is_empty() { None } else { found("seccompProfile", format!("forbidden {} {list}", plural("annotation", "annotations", bad.len()))) }
    }

    fn sysctls(&self) -> Found {
        /// With the version that allowed each.
        const ALLOWED: [(&str, u32); 12] = [
            ("kernel.shm_rmid_forced", 0),
            ("net.ipv4.ip_local_port_range", 0),
            ("net.ipv4.tcp_syncookies", 0),
            ("net.ipv4.ping_group_range", 0),
            ("net.ipv4.ip_unprivileged_port_start", 0),
            ("net.ipv4.ip_local_reserved_ports", 27),
            ("net.ipv4.tcp_keepalive_time", 29),
            ("net.ipv4.tcp_fin_timeout", 29),
            ("net.ipv4.tcp_keepalive_intvl", 29),
            ("net.ipv4.tcp_keepalive_probes", 29),
            ("net.ipv4.tcp_rmem", 32),
            ("net.ipv4.tcp_wmem", 32),
        ];
        let names = items(self.context(), &["sysctls"]).iter().map(|s| text(s, &["name"]));
        let bad: Vec<&str> = names.filter(|name| !ALLOWED.iter().any(|(allowed, since)| allowed == name && self.version >= *since)).collect();
        if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
    }

    fn host_process(&self) -> Found {
        let bad = |context: &Value| *at(context, &["windowsOptions", "hostProcess"]) == true;
        let who = setters(bad(self.context()), &self.where_(|c| bad(at(c, &["securityContext"]))));
        if who.is_empty() { None } else { found("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true")) }
    }

    fn escalation(&self) -> Found {
        if self.version < 8 || (self.version >= 25 && self.is_windows()) {
            return None;
        }
        let names = self.where_(|c| *at(c, &["securityContext", "allowPrivilegeEscalation"]) != false);
        let detail = || format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
        if names.is_empty() { None } else { found("allowPrivilegeEscalation != false", detail()) }
    }

    fn volumes(&self) -> Found {
        const ALLOWED: [&str; 9] =
            ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"];
        let kind = |volume: &'a Value| volume.as_object().into_iter().flatten().find(|(key, _)| *key != "name").map_or("unknown", |(key, _)| key.as_str());
        let bad: Vec<&Value> = items(self.spec, &["volumes"]).iter().filter(|v| !ALLOWED.contains(&kind(v))).collect();
        if bad.is_empty() {
            return None;
        }
        let kinds: BTreeSet<&str> = bad.iter().map(|v| kind(v)).collect();
        let names: Vec<&str> = bad.iter().map(|v| text(v, &["name"])).collect();
        let volumes = format!("{} {} {}", plural("volume", "volumes", names.len()), quoted(&names), plural("uses", "use", names.len()));
        let types = plural("restricted volume type", "restricted volume types", kinds.len());
        found("restricted volume types", format!("{volumes} {types} {}", quoted(kinds)))
    }

    fn non_root(&self) -> Found {
        if self.version >= 35 && self.has_own_users() {
            return None;
        }
        let said = |context: &Value| at(context, &["runAsNonRoot"]).as_bool();
        let of_pod = said(self.context());
        let of = |c: &Value| said(at(c, &["securityContext"]));
        let who = setters(of_pod == Some(false), &self.where_(|c| of(c) == Some(false)));
        if !who.is_empty() {
            return found("runAsNonRoot != true", format!("{who} must not set securityContext.runAsNonRoot=false"));
        }
        let missing = self.where_(|c| of(c).is_none());
        if of_pod == Some(true) || missing.is_empty() {
            return None;
        }
        found("runAsNonRoot != true", format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&missing)))
    }

    fn root_user(&self) -> Found {
        if self.version < 23 || (self.version >= 35 && self.has_own_users()) {
            return None;
        }
        let bad = |context: &Value| *at(context, &["runAsUser"]) == 0;
        let who = setters(bad(self.context()), &self.where_(|c| bad(at(c, &["securityContext"]))));
        if who.is_empty() { None } else { found("runAsUser=0", format!("{who} must not set runAsUser=0")) }
    }
}

/// Whether an update of a pod is one that must be judged: containers come, or their images change.
pub fn is_significant(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value, list: &str| items(pod, &["spec", list]).iter().map(|c| text(c, &["image"]).to_owned()).collect::<Vec<_>>();
    let changed = |list: &str| images(new, list) != images(old, list);
    let ephemeral = |pod: &Value| {
        items(pod, &["spec", "ephemeralContainers"]).iter().map(|c| (text(c, &["name"]).to_owned(), text(c, &["image"]).to_owned())).collect::<Vec<_>>()
    };
    let before = ephemeral(old);
    changed("containers") || changed("initContainers") || ephemeral(new).iter().any(|c| !before.contains(c))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(level: Level, version: Option<u32>, spec: Value, expected: &str) {
        let found = violations(Standard { level, version }, &json!({}), &spec);
        assert_eq!(describe(&found, true), expected, "{spec}");
    }

    #[test]
    fn baseline() {
        let baseline = |spec: Value, expected: &str| check(Level::Baseline, None, spec, expected);
        let with = |context: Value| json!({"containers": [{"name": "a", "securityContext": context}, {"name": "b"}]});
        baseline(with(json!({})), "");
        baseline(json!({"hostNetwork": true, "hostPID": true}), "host namespaces (hostNetwork=true, hostPID=true)");
        baseline(with(json!({"privileged": true})), "privileged (container \"a\" must not set securityContext.privileged=true)");
        let capabilities = "non-default capabilities (container \"a\" must not include \"NET_ADMIN\", \"SYS_TIME\" in securityContext.capabilities.add)";
        baseline(with(json!({"capabilities": {"add": ["SYS_TIME", "NET_ADMIN", "CHOWN"]}})), capabilities);
        baseline(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")");
        baseline(json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}]}), "hostPort (container \"a\" uses hostPort 80)");
        baseline(json!({"securityContext": {"sysctls": [{"name": "x"}, {"name": "net.ipv4.tcp_rmem"}]}}), "forbidden sysctls (x)");
        check(Level::Baseline, Some(31), json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}}), "forbidden sysctls (net.ipv4.tcp_rmem)");
        let seccomp = "seccompProfile (pod and container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")";
        let unconfined = json!({"seccompProfile": {"type": "Unconfined"}});
        baseline(json!({"securityContext": unconfined, "containers": [{"name": "a", "securityContext": unconfined}]}), seccomp);
        baseline(with(json!({"seLinuxOptions": {"type": "x", "user": "u"}})), "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)");
    }

    #[test]
    fn restricted() {
        let bare = "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), \
            unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), \
            runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true), \
            seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
        check(Level::Restricted, None, json!({"containers": [{"name": "a"}]}), bare);
        let hardened = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        });
        check(Level::Restricted, None, hardened.clone(), "");
        let mut other = hardened;
        other["volumes"] = json!([{"name": "v", "hostPath": {}}, {"name": "w", "nfs": {}}]);
        other["securityContext"]["runAsUser"] = json!(0);
        let expected = "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\"), runAsUser=0 (pod must not set runAsUser=0)";
        check(Level::Restricted, None, other, expected);
    }

    #[test]
    fn labels() {
        let read = |labels: Value| policy(&json!({"metadata": {"labels": labels}}));
        let (found, errors) = read(json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30"}));
        assert_eq!((found.enforce.to_string(), found.warn.to_string(), found.audit.to_string()), ("baseline:v1.30".into(), "baseline:v1.30".into(), "privileged:latest".into()));
        assert_eq!(errors, []);
        let (found, errors) = read(json!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/warn-version": "1"}));
        assert_eq!((found.enforce.level, found.warn.level), (Level::Restricted, Level::Privileged));
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(shown, [
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, baseline, restricted",
            "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"1\": must be \"latest\" or \"v1.x\"",
        ]);
    }
}
