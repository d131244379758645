//! A pod's volumes: directories of the node that its containers see.

pub mod payload;
pub mod writer;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, Pod, ServiceAccount, Volume, VolumeMount};
use kube::api::{Api, PostParams};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skiff_api::quantity::Quantity;
use skiff_api::{clock, random};
use tokio::sync::{Notify, watch};

use crate::context::Context;
use crate::env::expand;
use crate::events::Kind as EventKind;
use crate::pod;
use crate::runtime::{Mount, Propagation};
use crate::start;
use crate::worker::Update;
use payload::{TokenKey, TokenOwner, Tokens};

/// What keeps a volume from being made; the texts are upstream's where it has any.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A volume of API data.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {why}")]
    SetUp {
        /// The volume's name.
        volume: String,
        /// Why.
        why: String,
    },
    /// A mount names no volume of the pod.
    #[error("mount references non-existent volume {0:?}")]
    NoVolume(String),
    /// A path within a volume.
    #[error("failed to prepare subPath for volumeMount {mount:?} of container {container:?}: {why}")]
    SubPath {
        /// The mount.
        mount: String,
        /// The container.
        container: String,
        /// Why.
        why: String,
    },
}

/// The directory of a pod's files.
pub fn pod_dir(data_dir: &Path, uid: &str) -> PathBuf {
    data_dir.join("pods").join(uid)
}

/// The directory or file of the node that a volume is; upstream's layout.
fn path(data_dir: &Path, uid: &str, volume: &Volume) -> Option<PathBuf> {
    if let Some(host) = &volume.host_path {
        return Some(PathBuf::from(&host.path));
    }
    let plugin = if volume.empty_dir.is_some() {
        "empty-dir"
    } else if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else if volume.projected.is_some() {
        "projected"
    } else {
        return None;
    };
    Some(pod_dir(data_dir, uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name))
}

fn volumes(pod: &Pod) -> &[Volume] {
    pod::spec(pod).and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

/// The group that files of the pod's volumes belong to.
fn group(pod: &Pod) -> Option<u32> {
    pod::spec(pod)?.security_context.as_ref()?.fs_group.and_then(|g| u32::try_from(g).ok())
}

/// The user of all the pod's containers, if it is the same.
fn user(pod: &Pod) -> Option<u32> {
    let of_pod = pod::spec(pod)?.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = pod::init_containers(pod).iter().chain(pod::containers(pod)).map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first).and_then(|user| u32::try_from(user).ok())
}

/// Makes all volumes of a pod, or brings those of API data up to date. Tells whether tokens are to be renewed, and when.
pub(crate) async fn set_up(ctx: &Context, pod: &Pod, pod_ip: &str) -> Result<Option<Timestamp>, Error> {
    let uid = pod::uid(pod);
    let (tokens, renew_at) = ctx.tokens.get(ctx, pod).await?;
    let contents = start::contents(ctx, pod).await;
    let about = start::about(ctx, pod, pod_ip, &contents);
    let group = group(pod);
    let owner = TokenOwner { user: user(pod), group };
    for volume in volumes(pod) {
        let failed = |why: String| Error::SetUp { volume: volume.name.clone(), why };
        let Some(path) = path(&ctx.config.data_dir, uid, volume) else {
            return Err(failed("this kind of volume is not supported".into()));
        };
        if let Some(host) = &volume.host_path {
            check_host_path(&path, host.type_.as_deref().unwrap_or_default()).map_err(failed)?;
        } else if let Some(empty) = &volume.empty_dir {
            let memory = empty.medium.as_deref() == Some("Memory");
            let limit = empty.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok()).map(Quantity::value).filter(|n| *n > 0);
            make_empty(&path, memory, limit, group).map_err(|e| failed(e.to_string()))?;
        } else if let Some(files) = payload::files(&about, volume, &tokens, owner).map_err(|e| failed(e.to_string()))? {
            let write = || {
                fs::create_dir_all(&path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
                writer::write(&path, &files, group, clock::now())
            };
            write().map_err(|e| failed(e.to_string()))?;
        }
    }
    Ok(renew_at)
}

/// Upstream's rules of `hostPath.type`.
fn check_host_path(path: &Path, wanted: &str) -> Result<(), String> {
    let create = |make: &dyn Fn() -> io::Result<()>| if path.exists() { Ok(()) } else { make().map_err(|e| e.to_string()) };
    match wanted {
        "DirectoryOrCreate" => create(&|| fs::create_dir_all(path))?,
        "FileOrCreate" => create(&|| fs::OpenOptions::new().create_new(true).write(true).open(path).map(|_| ()))?,
        _ => {}
    }
    let found = fs::metadata(path).ok();
    let is = |check: fn(&fs::Metadata) -> bool| found.as_ref().is_some_and(check);
    let (ok, what) = match wanted {
        "" => return Ok(()),
        "Directory" | "DirectoryOrCreate" => (is(fs::Metadata::is_dir), "a directory"),
        "File" | "FileOrCreate" => (is(fs::Metadata::is_file), "a file"),
        "Socket" => (is(|m| m.file_type().is_socket()), "a socket file"),
        "CharDevice" => (is(|m| m.file_type().is_char_device()), "a character device"),
        "BlockDevice" => (is(|m| m.file_type().is_block_device()), "a block device"),
        other => return Err(format!("{other:?} is an invalid volume type")),
    };
    if ok { Ok(()) } else { Err(format!("hostPath type check failed: {} is not {what}", path.display())) }
}

fn make_empty(path: &Path, memory: bool, limit: Option<i64>, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if memory && !is_mount(path)? {
        let size = limit.map(|bytes| format!("size={bytes}"));
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), size.as_deref()).map_err(io::Error::from)?;
    }
    // Group and its stickiness only where a group is wanted, as upstream has it.
    fs::set_permissions(path, fs::Permissions::from_mode(if group.is_some() { 0o2777 } else { 0o777 }))?;
    if group.is_some() {
        chown(path, None, group)?;
    }
    Ok(())
}

/// Whether something is mounted at the path: its device is another than its parent's.
fn is_mount(path: &Path) -> io::Result<bool> {
    let parent = path.parent().map(fs::metadata).transpose()?;
    Ok(parent.is_some_and(|parent| fs::metadata(path).is_ok_and(|own| own.dev() != parent.dev())))
}

/// Removes all files of a pod; memory volumes are unmounted first. What else is mounted there stays, and is an error.
pub fn tear_down(data_dir: &Path, uid: &str) -> io::Result<()> {
    let dir = pod_dir(data_dir, uid);
    let empty = dir.join("volumes").join("kubernetes.io~empty-dir");
    if let Ok(entries) = fs::read_dir(&empty) {
        for entry in entries {
            let path = entry?.path();
            if is_mount(&path)? {
                umount2(&path, MntFlags::MNT_DETACH).map_err(io::Error::from)?;
            }
        }
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What a container sees of its pod's volumes.
pub fn mounts(data_dir: &Path, pod: &Pod, container: &Container, env: &BTreeMap<String, String>) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for wanted in container.volume_mounts.iter().flatten() {
        let volume = volumes(pod).iter().find(|v| v.name == wanted.name).ok_or_else(|| Error::NoVolume(wanted.name.clone()))?;
        let base = path(data_dir, pod::uid(pod), volume).ok_or_else(|| Error::NoVolume(wanted.name.clone()))?;
        let source = sub_path(&base, wanted, env, group(pod)).map_err(|why| Error::SubPath {
            mount: wanted.name.clone(),
            container: container.name.clone(),
            why,
        })?;
        let api_data = volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some() || volume.projected.is_some();
        mounts.push(Mount {
            source,
            target: wanted.mount_path.clone(),
            // Upstream: what comes from the API can't be written, whatever the spec says.
            read_only: api_data || wanted.read_only.unwrap_or(false),
            propagation: match wanted.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::FromHost,
                Some("Bidirectional") => Propagation::Both,
                _ => Propagation::Private,
            },
        });
    }
    Ok(mounts)
}

/// The path within a volume that a mount shows; made if it is missing. Links may not lead out of the volume.
fn sub_path(base: &Path, wanted: &VolumeMount, env: &BTreeMap<String, String>, group: Option<u32>) -> Result<PathBuf, String> {
    let sub = match (wanted.sub_path.as_deref().filter(|p| !p.is_empty()), &wanted.sub_path_expr) {
        (Some(sub), _) => sub.to_owned(),
        (None, Some(text)) if !text.is_empty() => {
            let missing = Mutex::new(None);
            let lookup = |name: &str| {
                let value = env.get(name).map(String::as_str);
                if value.is_none() {
                    *missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
                }
                value
            };
            let expanded = expand(text, lookup);
            if let Some(name) = missing.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(format!("missing value for {name:?}"));
            }
            expanded
        }
        _ => return Ok(base.to_owned()),
    };
    let relative = Path::new(&sub);
    if relative.is_absolute() || relative.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(format!("{sub:?} must be a relative path without \"..\""));
    }
    let full = base.join(relative);
    if fs::symlink_metadata(&full).is_err() {
        // Only within what is there already can a link lead elsewhere.
        let there = full.ancestors().find(|a| a.exists()).unwrap_or(base);
        inside(base, there)?;
        fs::create_dir_all(&full).map_err(|e| e.to_string())?;
        fs::set_permissions(&full, fs::Permissions::from_mode(if group.is_some() { 0o2770 } else { 0o777 })).map_err(|e| e.to_string())?;
        if group.is_some() {
            chown(&full, None, group).map_err(|e| e.to_string())?;
        }
    }
    inside(base, &full)
}

/// The path without links, if it is within the base.
fn inside(base: &Path, path: &Path) -> Result<PathBuf, String> {
    let real = fs::canonicalize(path).map_err(|e| e.to_string())?;
    let base = fs::canonicalize(base).map_err(|e| e.to_string())?;
    if real.starts_with(&base) { Ok(real) } else { Err(format!("{} is outside of the volume", path.display())) }
}

/// The tokens of the node's pods.
#[derive(Debug, Default)]
pub(crate) struct TokenCache {
    tokens: Mutex<BTreeMap<(String, TokenKey), Token>>,
}

#[derive(Clone, Debug)]
struct Token {
    token: String,
    renew_at: Timestamp,
}

/// Tokens are renewed after that part of their time; upstream's 80 %.
const RENEW_AFTER: f64 = 0.8;
/// And after a day at the latest.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl TokenCache {
    /// The tokens that a pod's volumes ask for, and when the first of them is to be renewed.
    async fn get(&self, ctx: &Context, pod: &Pod) -> Result<(Tokens, Option<Timestamp>), Error> {
        let (mut tokens, mut renew_at) = (Tokens::new(), None);
        for key in payload::wanted_tokens(pod) {
            let id = (pod::uid(pod).to_owned(), key.clone());
            let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&id).filter(|t| t.renew_at > clock::now()).cloned();
            let token = match known {
                Some(token) => token,
                None => {
                    let volume = volumes(pod).iter().find(|v| v.projected.is_some()).map(|v| v.name.clone()).unwrap_or_default();
                    let token = request(ctx, pod, &key).await.map_err(|error| Error::SetUp {
                        volume,
                        why: format!("failed to fetch token: {error}"),
                    })?;
                    self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(id, token.clone());
                    token
                }
            };
            renew_at = Some(renew_at.map_or(token.renew_at, |at: Timestamp| at.min(token.renew_at)));
            tokens.insert(key, token.token);
        }
        Ok((tokens, renew_at))
    }

    /// Forgets the tokens of a pod.
    pub(crate) fn forget(&self, uid: &str) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, _), _| owner != uid);
    }
}

async fn request(ctx: &Context, pod: &Pod, key: &TokenKey) -> Result<Token, kube::Error> {
    let accounts: Api<ServiceAccount> = Api::namespaced(ctx.client.clone(), pod::namespace(pod));
    let account = pod::spec(pod).and_then(|s| s.service_account_name.as_deref()).filter(|name| !name.is_empty()).unwrap_or("default");
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    };
    let spec = TokenRequestSpec {
        audiences: (!key.audience.is_empty()).then(|| vec![key.audience.clone()]),
        expiration_seconds: Some(key.expiration_seconds),
        bound_object_ref: Some(bound),
    };
    let asked_at = clock::now();
    let answer = accounts.create_token_request(account, &PostParams::default(), &TokenRequest { spec: Some(spec), ..TokenRequest::default() }).await?;
    let status = answer.status.unwrap_or_default();
    let until = status.expiration_timestamp.map_or(asked_at, |t| t.0);
    let time: Duration = until.duration_since(asked_at).try_into().unwrap_or_default();
    // Not all at the same moment.
    let after = time.mul_f64(RENEW_AFTER).min(LONGEST).saturating_sub(Duration::from_secs_f64(10.0 * random::fraction()));
    Ok(Token { token: status.token.unwrap_or_default(), renew_at: asked_at + after })
}

/// How long changes are gathered before volumes are written again.
const GATHER: Duration = Duration::from_millis(100);
/// The pause after a failure to write them.
const RETRY: Duration = Duration::from_secs(10);

/// Keeps the volumes of a running pod up to date, until it is dropped: rung when an object changed, and when tokens grow old.
pub(crate) async fn keep(ctx: std::sync::Arc<Context>, mut inbox: watch::Receiver<Update>, bell: std::sync::Arc<Notify>, pod_ip: String) {
    let live = |pod: &Pod| volumes(pod).iter().any(|v| v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some());
    let mut pod = inbox.borrow_and_update().pod.clone();
    if !live(&pod) {
        return;
    }
    let shown = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
    let mut renew_at = None;
    let mut told = String::new();
    loop {
        match set_up(&ctx, &pod, &pod_ip).await {
            Ok(at) => {
                renew_at = at;
                told.clear();
            }
            Err(error) => {
                let message = error.to_string();
                if message != told {
                    ctx.events.pod(&pod, EventKind::Warning, "FailedMount", message.clone());
                    told = message;
                }
                renew_at = Some(renew_at.unwrap_or(Timestamp::MAX).min(clock::now() + RETRY));
            }
        }
        loop {
            let due = async {
                match renew_at {
                    Some(at) => tokio::time::sleep(clock::until(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => break,
                () = bell.notified() => break,
                changed = inbox.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let next = inbox.borrow_and_update().pod.clone();
                    let news = shown(&next) != shown(&pod);
                    pod = next;
                    if news {
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(GATHER).await;
    }
}


#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sub_paths_stay_inside() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = dir.path().join("v");
        fs::create_dir(&base).expect("a directory");
        std::os::unix::fs::symlink("/etc", base.join("out")).expect("a link");
        let env = BTreeMap::from([("NAME".to_owned(), "n".to_owned())]);
        let check = |mount: serde_json::Value, expected: Result<&str, &str>| {
            let mut mount = mount;
            mount["name"] = json!("v");
            mount["mountPath"] = json!("/m");
            let mount: VolumeMount = serde_json::from_value(mount).expect("a mount");
            let real = fs::canonicalize(&base).expect("a path");
            let found = sub_path(&base, &mount, &env, None).map(|p| p.strip_prefix(&real).map(|p| p.display().to_string()).unwrap_or_default());
            match expected {
                Ok(path) => assert_eq!(found.as_deref(), Ok(path)),
                Err(why) => assert!(found.as_ref().is_err_and(|e| e.contains(why)), "{found:?}"),
            }
        };
        check(json!({"subPath": "a/b"}), Ok("a/b"));
        check(json!({"subPathExpr": "$(NAME)/x"}), Ok("n/x"));
        check(json!({"subPathExpr": "$(NONE)"}), Err("missing value for \"NONE\""));
        check(json!({"subPath": "../x"}), Err("relative"));
        check(json!({"subPath": "out"}), Err("outside"));
        check(json!({"subPath": "out/new"}), Err("outside"));
    }

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("f");
        fs::write(&file, "").expect("a file");
        let check = |path: &Path, wanted: &str, ok: bool| assert_eq!(check_host_path(path, wanted).is_ok(), ok, "{wanted} {}", path.display());
        check(&dir.path().join("none"), "", true);
        check(&dir.path().join("none"), "Directory", false);
        check(&dir.path().join("new"), "DirectoryOrCreate", true);
        check(&dir.path().join("new"), "Directory", true);
        check(&file, "Directory", false);
        check(&file, "File", true);
        check(&dir.path().join("g"), "FileOrCreate", true);
        check(Path::new("/dev/null"), "CharDevice", true);
        check(Path::new("/dev/null"), "Socket", false);
    }
}
