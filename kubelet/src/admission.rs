//! Whether a pod may run here at all.

use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::status::Verdict;

/// Why the pod can't run on this node, if so.
pub(crate) fn admit(_ctx: &Context, _pod: &Pod) -> Option<Verdict> {
    None
}
