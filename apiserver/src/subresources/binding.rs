//! `pods/binding`: the scheduler's word on where a pod runs.

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::status::GroupResource;
use skiff_api::{Status, value};

use crate::admission::{self, Operation};
use crate::http::body::Reply;
use crate::http::encode::answer;
use crate::strategy::Claims;
use crate::verbs::{Call, Transaction, Write, decode_as, namespace_matches, now_text, transact};

const BINDING: GroupResource<'static> = GroupResource { group: "", resource: "pods/binding" };

/// Binds the pod `name` (empty: the one that the body names).
pub(super) async fn bind(call: &Call, body: &Bytes, name: &str) -> Result<Reply, Status> {
    let mut binding = decode_as(call, body, "Binding", "v1", "io.k8s.api.core.v1.Binding")?;
    namespace_matches(call, &binding)?;
    let given = value::text(&binding, &["metadata", "name"]).to_owned();
    let name = if name.is_empty() { given.clone() } else { name.to_owned() };
    if !given.is_empty() && given != name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    check_target(&binding)?;
    // A binding posted to its own collection is one of a pod all the same.
    let pods = skiff_api::resource::find("", "v1", "pods").ok_or_else(Status::no_such_resource)?;
    let pod = call.about(pods, &call.info.namespace, &name, "binding");
    let mut write = Write::new(&pod, "CreateOptions")?;
    admission::validate_other(&pod, Operation::Create, &mut binding, write.options.dry_run).await?;
    let node = value::text(&binding, &["target", "name"]).to_owned();
    transact!(write, |current, entry| {
        let mut new = current.clone();
        assign(&mut new, &binding, &node, &name)?;
        write.book(Some(&current), &mut new, &[]);
        Transaction::Put(new, Claims::default())
    });
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer(201, &status, call.shape.whole(), call.encoder().pretty))
}

fn check_target(binding: &Value) -> Result<(), Status> {
    let mut errors = Vec::new();
    let kind = value::text(binding, &["target", "kind"]);
    if !matches!(kind, "" | "Node") {
        errors.push(format!("target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\""));
    }
    if value::text(binding, &["target", "name"]).is_empty() {
        errors.push("target.name: Required value".to_owned());
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(Status::new(500, "", one.clone())),
        several => Err(Status::new(500, "", format!("[{}]", several.join(", ")))),
    }
}

fn assign(pod: &mut Value, binding: &Value, node: &str, name: &str) -> Result<(), Status> {
    for (what, field) in [("UID", "uid"), ("ResourceVersion", "resourceVersion")] {
        let (wanted, actual) = (value::text(binding, &["metadata", field]), value::text(pod, &["metadata", field]));
        if !wanted.is_empty() && wanted != actual {
            let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}");
            return Err(Status::conflict(BINDING, name, why));
        }
    }
    if !value::at(pod, &["metadata", "deletionTimestamp"]).is_null() {
        return Err(Status::conflict(BINDING, name, format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let assigned = value::text(pod, &["spec", "nodeName"]);
    if !assigned.is_empty() {
        return Err(Status::conflict(BINDING, name, format!("pod {name} is already assigned to node {assigned:?}")));
    }
    if !value::items(pod, &["spec", "schedulingGates"]).is_empty() {
        return Err(Status::conflict(BINDING, name, format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    pod["spec"]["nodeName"] = node.into();
    for part in ["annotations", "labels"] {
        for (key, text) in value::at(binding, &["metadata", part]).as_object().into_iter().flatten() {
            value::object_mut(pod, &["metadata", part]).insert(key.clone(), text.clone());
        }
    }
    // What was a hope is known now.
    value::remove(pod, &["status", "nominatedNodeName"]);
    let generation = value::at(pod, &["metadata", "generation"]).as_i64();
    let condition = json!({
        "type": "PodScheduled", "status": "True", "observedGeneration": generation, "lastProbeTime": null, "lastTransitionTime": now_text(),
    });
    if let Value::Array(conditions) = value::object_mut(pod, &["status"]).entry("conditions").or_insert_with(|| json!([])) {
        conditions.retain(|c| c["type"] != "PodScheduled");
        conditions.push(condition);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pod: Value, binding: Value, expected: Result<&str, &str>) {
        let mut pod = pod;
        let result = check_target(&binding).and_then(|()| assign(&mut pod, &binding, value::text(&binding, &["target", "name"]), "p"));
        let got = result.map(|()| value::text(&pod, &["spec", "nodeName"])).map_err(|s| s.message);
        assert_eq!(got, expected.map_err(str::to_owned));
    }

    #[test]
    fn bindings() {
        let to_n1 = json!({"target": {"kind": "Node", "name": "n1"}});
        check(json!({"spec": {}}), to_n1.clone(), Ok("n1"));
        let taken = "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n0\"";
        check(json!({"spec": {"nodeName": "n0"}}), to_n1, Err(taken));
        let at_2 = json!({"metadata": {"resourceVersion": "2"}, "target": {"kind": "Node", "name": "n1"}});
        let other = "Operation cannot be fulfilled on pods/binding \"p\": Precondition failed: ResourceVersion in precondition: 2, ResourceVersion in object meta: 3";
        check(json!({"metadata": {"resourceVersion": "3"}, "spec": {}}), at_2.clone(), Err(other));
        check(json!({"metadata": {"resourceVersion": "2"}, "spec": {}}), at_2, Ok("n1"));
        let mut pod = json!({"metadata": {"labels": {"zone": "old"}}, "spec": {}, "status": {"nominatedNodeName": "n1"}});
        assign(&mut pod, &json!({"metadata": {"labels": {"zone": "a"}, "annotations": {"x": "y"}}}), "n1", "p").expect("bound");
        assert_eq!((&pod["metadata"], &pod["status"]["nominatedNodeName"]), (&json!({"labels": {"zone": "a"}, "annotations": {"x": "y"}}), &Value::Null));
        let bad = "[target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\", target.name: Required value]";
        check(json!({"spec": {}}), json!({"target": {"kind": "Pod"}}), Err(bad));
    }
}
