//! PersistentVolumeClaimResize: only bound claims of classes that allow it get larger.

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::{Quantity, Status, value};

use super::{Plugin, Request};

pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    async fn validate(&self, request: &Request<'_>, claim: &Value) -> Result<(), Status> {
        let call = request.call;
        let claims = call.resource.group.is_empty() && call.resource.plural == "persistentvolumeclaims" && call.info.subresource.is_empty();
        let (true, Some(old)) = (claims, request.old) else { return Ok(()) };
        let size = |claim: &Value| Quantity::parse(value::text(claim, &["spec", "resources", "requests", "storage"])).ok();
        if size(claim) <= size(old) {
            return Ok(());
        }
        let refuse = |why: &str| Err(Status::forbidden(call.resource.group_resource(), &call.info.name, why));
        if value::text(old, &["status", "phase"]) != "Bound" {
            return refuse("Only bound persistent volume claims can be expanded");
        }
        let class = value::text(claim, &["spec", "storageClassName"]);
        let same = !class.is_empty() && class == value::text(old, &["spec", "storageClassName"]);
        let cache = call.server.cache.resource("/registry/storageclasses/").ok_or_else(Status::no_such_resource)?;
        let found = cache.get(&format!("/registry/storageclasses/{class}")).and_then(|c| c.value().ok());
        if same && found.is_some_and(|c| c["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        refuse("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
    }
}
