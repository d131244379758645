//! Empties namespaces that are being deleted, then lets them go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::runtime::reflector::ObjectRef;
use skiff_api::clock;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{is_conflict, is_gone, message};
use crate::resources::Resource;

/// The finalizer, in the namespace's spec, that is ours.
const FINALIZER: &str = "kubernetes";
/// When to look again at what remains although nothing left; things usually leave before.
const AGAIN: Duration = Duration::from_secs(15);
/// How many resources are emptied at once.
const PARALLEL: usize = 8;

/// Runs the controller. `left` names the namespaces that objects leave.
pub fn run(context: Arc<Context>, left: mpsc::UnboundedReceiver<String>) -> impl Future<Output = ()> {
    let namespaces = context.kinds.namespaces.clone();
    let leaving = UnboundedReceiverStream::new(left).filter_map(move |name| {
        let going = namespaces.get("", &name).is_some_and(|n| n.metadata.deletion_timestamp.is_some());
        std::future::ready(going.then(|| ObjectRef::new(&name)))
    });
    Controller::new("namespace-controller", &context.kinds.namespaces).on_stream(leaving).run(context, reconcile)
}

/// What remains of a namespace's content.
#[derive(Debug, Default)]
struct Remains {
    /// How many objects remain, by resource.
    objects: BTreeMap<String, usize>,
    /// How many of them wait for each finalizer.
    finalizers: BTreeMap<String, usize>,
    /// What could not be deleted.
    failures: Vec<String>,
    /// Why it isn't known what resources there are.
    undiscovered: Option<String>,
}

impl Remains {
    fn add(&mut self, resource: &Resource, left: &[ObjectMeta]) {
        if left.is_empty() {
            return;
        }
        self.objects.insert(resource.qualified(), left.len());
        for finalizer in left.iter().flat_map(|m| m.finalizers.iter().flatten()) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        if left.iter().all(|m| m.deletion_timestamp.is_none()) {
            let why = format!("unexpected items still remain in namespace for gvr: {:?}", resource.qualified());
            self.failures.push(why);
        }
    }
}

async fn reconcile(context: Arc<Context>, namespace: Arc<Namespace>) -> Result<Again, Error> {
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_deref()).unwrap_or_default();
    if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(None);
    }
    // All resources must be known, or some of them would be forgotten: ask anew, this happens seldom.
    let undiscovered = context.catalogue.refresh().await.err().map(|error| message(&error));
    let mut remains = Remains { undiscovered, ..Remains::default() };
    let all = context.catalogue.all();
    let (pods, others): (Vec<Resource>, Vec<Resource>) =
        all.iter().filter(|r| r.namespaced).cloned().partition(|r| r.api.group.is_empty() && r.api.plural == "pods");
    let name = namespace.metadata.name.as_deref().unwrap_or("");
    // Pods first: what they use stays until they are gone.
    empty(&context, name, pods, &mut remains).await;
    if remains.objects.is_empty() {
        empty(&context, name, others, &mut remains).await;
    }
    let status = status(namespace.status.clone().unwrap_or_default(), &remains, clock::now());
    let done = remains.objects.is_empty() && remains.failures.is_empty() && remains.undiscovered.is_none();
    if done {
        return finalize(&context, &namespace).await.map(|()| None);
    }
    if Some(&status) != namespace.status.as_ref() {
        let updated = Namespace { status: Some(status), ..(*namespace).clone() };
        match context.kinds.namespaces.replace_status(&updated).await {
            Err(error) if !is_gone(&error) && !is_conflict(&error) => {
                return Err(Error::on("updating the status of a namespace")(error));
            }
            _ => {}
        }
    }
    match remains.failures.first().or(remains.undiscovered.as_ref()) {
        Some(why) if remains.objects.is_empty() => Err(Error::Impossible(format!("emptying a namespace: {why}"))),
        _ => Ok(Some(AGAIN)),
    }
}

/// Deletes all objects of the resources.
async fn empty(context: &Arc<Context>, namespace: &str, resources: Vec<Resource>, remains: &mut Remains) {
    let mut done = futures::stream::iter(resources.into_iter().map(|resource| {
        let (context, namespace) = (context.clone(), namespace.to_owned());
        async move {
            let left = empty_one(&context, &namespace, &resource).await;
            (resource, left)
        }
    }))
    .buffer_unordered(PARALLEL);
    while let Some((resource, left)) = done.next().await {
        match left {
            Ok(left) => remains.add(&resource, &left),
            Err(error) => remains.failures.push(message(&error)),
        }
    }
}

/// Deletes all objects of a resource; returns those that are still there.
async fn empty_one(context: &Context, namespace: &str, resource: &Resource) -> Result<Vec<ObjectMeta>, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(context.client(), namespace, &resource.api);
    let list = || async {
        match api.list_metadata(&ListParams::default()).await {
            Ok(list) => Ok(list.items.into_iter().map(|o| o.metadata).collect::<Vec<_>>()),
            // The resource is gone, and its objects with it.
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    };
    let found = list().await?;
    if found.iter().all(|m| m.deletion_timestamp.is_some()) {
        return Ok(found);
    }
    let params = DeleteParams::background();
    if resource.delete_collection {
        api.delete_collection(&params, &ListParams::default()).await?;
    } else {
        for meta in found.iter().filter(|m| m.deletion_timestamp.is_none()) {
            match api.delete(meta.name.as_deref().unwrap_or(""), &params).await {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
    }
    list().await
}

/// Takes our finalizer off; with the last one the namespace goes.
async fn finalize(context: &Context, namespace: &Namespace) -> Result<(), Error> {
    let mut done = namespace.clone();
    if let Some(spec) = &mut done.spec {
        spec.finalizers = Some(spec.finalizers.iter().flatten().filter(|f| *f != FINALIZER).cloned().collect());
    }
    let api: Api<Namespace> = Api::all(context.client());
    let name = namespace.metadata.name.as_deref().unwrap_or("");
    match api.replace_subresource("finalize", name, &PostParams::default(), &done).await {
        Err(error) if !is_gone(&error) => Err(Error::on("finalizing a namespace")(error)),
        _ => Ok(()),
    }
}

/// The status with upstream's five conditions.
fn status(mut status: NamespaceStatus, remains: &Remains, now: Timestamp) -> NamespaceStatus {
    let list = |counts: &BTreeMap<String, usize>, text: fn(&String, usize) -> String| {
        counts.iter().map(|(name, count)| text(name, *count)).collect::<Vec<_>>().join(", ")
    };
    let mut failures = remains.failures.clone();
    failures.sort();
    // Its type, the reason and message when it holds, those when it doesn't.
    type Told<'a> = (&'a str, Option<(&'a str, String)>, &'a str, &'a str);
    let conditions: [Told; 5] = [
        (
            "NamespaceDeletionDiscoveryFailure",
            remains.undiscovered.clone().map(|why| ("DiscoveryFailed", why)),
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            (!failures.is_empty()).then(|| {
                let text = format!("Failed to delete all resource types, {} remaining: {}", failures.len(), failures.join(", "));
                ("ContentDeletionFailed", text)
            }),
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            (!remains.objects.is_empty()).then(|| {
                let what = list(&remains.objects, |name, count| format!("{name} has {count} resource instances"));
                ("SomeResourcesRemain", format!("Some resources are remaining: {what}"))
            }),
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            (!remains.finalizers.is_empty()).then(|| {
                let what = list(&remains.finalizers, |name, count| format!("{name} in {count} resource instances"));
                ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {what}"))
            }),
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let all = status.conditions.get_or_insert_default();
    for (type_, trouble, fine, fine_message) in conditions {
        let (is, reason, text) = match trouble {
            Some((reason, text)) => ("True", reason, text),
            None => ("False", fine, fine_message.to_owned()),
        };
        let old = all.iter().find(|c| c.type_ == type_);
        let since = old.filter(|c| c.status == is).and_then(|c| c.last_transition_time.clone());
        let new = NamespaceCondition {
            type_: type_.into(),
            status: is.into(),
            reason: Some(reason.into()),
            message: Some(text),
            last_transition_time: since.or(Some(Time(now))),
        };
        match all.iter_mut().find(|c| c.type_ == type_) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
    status.phase = Some("Terminating".into());
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_remains() {
        let now = Timestamp::UNIX_EPOCH;
        let mut remains = Remains::default();
        remains.objects.insert("pods.".into(), 2);
        remains.finalizers.insert("example.com/hold".into(), 1);
        let first = status(NamespaceStatus::default(), &remains, now);
        let told = |s: &NamespaceStatus| {
            let of = |c: &NamespaceCondition| format!("{}={} {}", c.type_, c.status, c.message.clone().unwrap_or_default());
            s.conditions.iter().flatten().map(of).collect::<Vec<_>>()
        };
        assert_eq!(told(&first)[3], "NamespaceContentRemaining=True Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(
            told(&first)[4],
            "NamespaceFinalizersRemaining=True Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        assert_eq!(status(first.clone(), &remains, now + jiff::SignedDuration::from_secs(9)), first, "nothing new");
    }
}
