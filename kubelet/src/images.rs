//! Images by pull policy, with waits after failures.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use skiff_api::clock;

use crate::context::Context;
use crate::events::Kind;
use crate::objects::{self, Key};
use crate::runtime::{Image, Reality, RegistryAuth};
use crate::status::Waiting;
use crate::{keyring, pod};

/// The wait after the first failed pull; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// The longest wait between two pulls.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How long the failure itself is shown before the wait for the next pull is.
const SHOWN: Duration = Duration::from_secs(1);

/// Remembers failed pulls.
#[derive(Debug, Default)]
pub(crate) struct Puller {
    failures: Mutex<HashMap<(String, String), Failure>>,
}

#[derive(Clone, Debug)]
struct Failure {
    wait: Duration,
    until: Timestamp,
    message: String,
}

/// Why an image can't be had, and when to ask again.
#[derive(Debug)]
pub(crate) struct NoImage {
    pub(crate) waiting: Waiting,
    pub(crate) retry_at: Timestamp,
}

/// The image's name with the tag that is meant when it has none.
pub(crate) fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if image.contains('@') || last.contains(':') { image.to_owned() } else { format!("{image}:latest") }
}

/// The policy, by upstream's default where it is missing.
fn policy(container: &Container) -> &str {
    let by_tag = || if with_tag(container.image.as_deref().unwrap_or_default()).ends_with(":latest") { "Always" } else { "IfNotPresent" };
    container.image_pull_policy.as_deref().unwrap_or_else(by_tag)
}

impl Puller {
    fn failure(&self, key: &(String, String)) -> Option<Failure> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn set(&self, key: (String, String), failure: Option<Failure>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            Some(failure) => failures.insert(key, failure),
            None => failures.remove(&key),
        };
    }

    /// Forgets a pod's failures.
    pub(crate) fn forget(&self, uid: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, _), _| owner != uid);
    }
}

/// Makes sure that a container's image is there, as its pull policy says.
pub(crate) async fn ensure(ctx: &Context, pod: &Pod, container: &Container) -> Result<Image, NoImage> {
    let name = container.image.as_deref().unwrap_or_default();
    let now = clock::now();
    let tell = |kind, reason, message: String| ctx.events.container(pod, &container.name, kind, reason, message);
    let no_image = |reason: &str, message: String, retry_at| NoImage { waiting: Waiting::new(reason, message), retry_at };
    let image = with_tag(name);
    let present = match ctx.runtime.image(&image).await {
        Ok(present) => present,
        Err(error) => {
            tell(Kind::Warning, "InspectFailed", format!("Failed to inspect image {name:?}: {error}"));
            return Err(no_image("ImageInspectError", format!("Failed to inspect image {name:?}: {error}"), now + FIRST_WAIT));
        }
    };
    match (policy(container), present) {
        ("IfNotPresent" | "Never", Some(present)) => {
            if ctx.runtime.reality() == Reality::Real {
                tell(Kind::Normal, "Pulled", format!("Container image {name:?} already present on machine and can be accessed by the pod"));
            }
            return Ok(present);
        }
        // No image is pulled where nothing runs.
        (_, Some(present)) if ctx.runtime.reality() == Reality::Simulated => return Ok(present),
        ("Never", None) => {
            let message = format!("Container image {name:?} is not present with pull policy of Never");
            tell(Kind::Warning, "ErrImageNeverPull", message.clone());
            return Err(no_image("ErrImageNeverPull", message, now + FIRST_WAIT));
        }
        _ => {}
    }

    let key = (pod::uid(pod).to_owned(), image.clone());
    let former = ctx.images.failure(&key);
    if let Some(former) = former.as_ref().filter(|f| f.until > now) {
        let message = format!("Back-off pulling image {name:?}");
        tell(Kind::Normal, "BackOff", message.clone());
        return Err(no_image("ImagePullBackOff", format!("{message}: {}", former.message), former.until));
    }
    tell(Kind::Normal, "Pulling", format!("Pulling image {name:?}"));
    let auth = credentials(ctx, pod, &image).await;
    match ctx.runtime.pull_image(&image, auth.as_ref()).await {
        Ok(pulled) => {
            ctx.images.set(key, None);
            ctx.node_changed.notify_one();
            let took = clock::since(now).unsigned_abs();
            let took = format!("{}ms", took.as_millis());
            let size = pulled.size;
            tell(
                Kind::Normal,
                "Pulled",
                format!("Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {size} bytes."),
            );
            Ok(pulled)
        }
        Err(error) => {
            tell(Kind::Warning, "Failed", format!("Failed to pull image {name:?}: {error}"));
            let wait = former.map_or(FIRST_WAIT, |f| (f.wait * 2).min(LONGEST_WAIT));
            let now = clock::now();
            ctx.images.set(key, Some(Failure { wait, until: now + wait, message: format!("ErrImagePull: {error}") }));
            Err(no_image("ErrImagePull", error.to_string(), now + SHOWN))
        }
    }
}

/// What the Secrets that a pod names for its images have for this one. One that isn't there is passed over, as upstream does.
async fn credentials(ctx: &Context, pod: &Pod, image: &str) -> Option<RegistryAuth> {
    let named = pod::spec(pod).and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
    let mut secrets = Vec::new();
    for reference in named {
        let key = Key { kind: objects::Kind::Secret, namespace: pod::namespace(pod).into(), name: reference.name.clone() };
        if let Ok(Some(secret)) = ctx.objects.get(&key).await {
            secrets.push(secret);
        }
    }
    keyring::find(secrets.iter().map(AsRef::as_ref), image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_policies() {
        let check = |image: &str, tagged: &str, expected: &str| {
            let container = Container { image: Some(image.into()), ..Container::default() };
            assert_eq!((with_tag(image).as_str(), policy(&container)), (tagged, expected), "{image}");
        };
        check("nginx", "nginx:latest", "Always");
        check("nginx:1.27", "nginx:1.27", "IfNotPresent");
        check("registry:5000/a/b", "registry:5000/a/b:latest", "Always");
        check("a@sha256:00", "a@sha256:00", "IfNotPresent");
        let never = Container { image: Some("a".into()), image_pull_policy: Some("Never".into()), ..Container::default() };
        assert_eq!(policy(&never), "Never");
    }
}
