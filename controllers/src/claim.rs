//! Which objects an owner controls: those that point to it, and those without an owner that its selector selects.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::Patch;
use serde_json::json;
use skiff_api::labels::Selector;
use skiff_api::typed::pods::controller_of;

use crate::error::Error;
use crate::kind::{By, Kind, Object, is_gone};

/// What becomes of an owner's candidates.
#[derive(Debug)]
pub struct Claims<C> {
    /// They are the owner's already.
    pub own: Vec<Arc<C>>,
    /// They are to become the owner's.
    pub adopt: Vec<Arc<C>>,
    /// They are the owner's but its selector doesn't select them any more.
    pub release: Vec<Arc<C>>,
}

/// The reference by which `owner` controls an object.
pub fn controller_ref<P: Resource<DynamicType = ()>>(owner: &P) -> OwnerReference {
    OwnerReference {
        api_version: P::api_version(&()).into_owned(),
        kind: P::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Sorts candidates: `mine` are controlled by the owner, `orphans` by nobody. An owner that is being deleted changes
/// nothing.
pub fn sort<C: Resource>(
    owner: &ObjectMeta,
    mine: Vec<Arc<C>>,
    orphans: Vec<Arc<C>>,
    selected: impl Fn(&C) -> bool,
) -> Claims<C> {
    let (own, stray): (Vec<_>, Vec<_>) = mine.into_iter().partition(|c| selected(c));
    if owner.deletion_timestamp.is_some() {
        return Claims { own, adopt: Vec::new(), release: Vec::new() };
    }
    let adopt =
        orphans.into_iter().filter(|c| c.meta().deletion_timestamp.is_none() && selected(c)).collect();
    Claims { own, adopt, release: stray }
}

/// Whether the selector selects the object.
pub fn selects<C: Resource>(selector: &Selector, object: &C) -> bool {
    selector.matches(&object.meta().labels)
}

/// Sorts the candidates in the cache, carries the adoptions and releases out, and returns what the owner controls now.
/// Only objects that `counts` are looked at.
pub async fn claim<P: Object, C: Object>(
    owner: &P,
    kind: &Kind<C>,
    selected: impl Fn(&C) -> bool,
    counts: impl Fn(&C) -> bool,
) -> Result<Vec<Arc<C>>, Error> {
    let meta = owner.meta();
    let mut mine = kind.controlled_by(meta);
    let mut orphans = kind.find(&By::Orphan(meta.namespace.clone().unwrap_or_default()));
    mine.retain(|c| counts(c));
    orphans.retain(|c| counts(c));
    let Claims { mut own, adopt, release } = sort(meta, mine, orphans, selected);
    for object in adopt {
        let patch = json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": [controller_ref(owner)] } });
        match kind.patch(object.meta(), &Patch::Strategic(patch)).await {
            Ok(adopted) => own.push(adopted),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(Error::on("adopting an object")(error)),
        }
    }
    for object in release {
        release_one(meta, kind, &*object).await?;
    }
    Ok(own)
}

/// Takes the owner's reference off an object.
pub async fn release_one<C: Object>(owner: &ObjectMeta, kind: &Kind<C>, object: &C) -> Result<(), Error> {
    let off = json!({ "$patch": "delete", "uid": owner.uid });
    let patch = json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": [off] } });
    match kind.patch(object.meta(), &Patch::Strategic(patch)).await {
        Err(error) if !is_gone(&error) => Err(Error::on("releasing an object")(error)),
        _ => Ok(()),
    }
}

/// The name of the controlling owner's kind, with its API version.
pub fn is_controlled_by<P: Resource<DynamicType = ()>>(meta: &ObjectMeta, owner: &P) -> bool {
    controller_of(meta).is_some_and(|o| Some(&o.uid) == owner.meta().uid.as_ref())
}
