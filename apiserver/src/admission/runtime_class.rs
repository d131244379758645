//! RuntimeClass: pods get what their class costs and where it can run.

use async_trait::async_trait;
use serde_json::{Value, json};
use skiff_api::{Quantity, Status, value};

use super::{Plugin, Request};

pub(super) struct RuntimeClass;

fn refuse(request: &Request<'_>, pod: &Value, why: &str) -> Status {
    Status::forbidden(request.call.resource.group_resource(), value::text(pod, &["metadata", "name"]), why)
}

/// The class that the pod names; null when it names none.
fn class(request: &Request<'_>, pod: &Value) -> Result<Value, Status> {
    let name = value::text(pod, &["spec", "runtimeClassName"]);
    if name.is_empty() {
        return Ok(Value::Null);
    }
    let cache = request.call.server.cache.resource("/registry/runtimeclasses/").ok_or_else(Status::no_such_resource)?;
    let found = cache.get(&format!("/registry/runtimeclasses/{name}"));
    found.ok_or_else(|| refuse(request, pod, &format!("pod rejected: RuntimeClass {name:?} not found")))?.value().map_err(Status::internal)
}

fn same_amounts(a: &Value, b: &Value) -> bool {
    let amounts = |v: &Value| v.as_object().into_iter().flatten().map(|(k, q)| (k.clone(), q.as_str().and_then(|q| Quantity::parse(q).ok()))).collect::<Vec<_>>();
    let (mut a, mut b) = (amounts(a), amounts(b));
    a.sort_by(|x, y| x.0.cmp(&y.0));
    b.sort_by(|x, y| x.0.cmp(&y.0));
    a == b
}

/// Makes of a pod what its class wants; an error is why it can't be.
fn adapt(class: &Value, pod: &mut Value) -> Result<(), String> {
    let overhead = value::at(class, &["overhead", "podFixed"]);
    if overhead.is_object() {
        let own = value::at(pod, &["spec", "overhead"]);
        if own.is_object() && !same_amounts(own, overhead) {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into());
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    for (key, wanted) in value::at(class, &["scheduling", "nodeSelector"]).as_object().into_iter().flatten() {
        let selector = value::object_mut(pod, &["spec", "nodeSelector"]);
        match selector.get(key) {
            Some(own) if own != wanted => {
                let (own, wanted) = (own.as_str().unwrap_or(""), wanted.as_str().unwrap_or(""));
                return Err(format!("conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {own}"));
            }
            _ => drop(selector.insert(key.clone(), wanted.clone())),
        }
    }
    let tolerations = value::items(class, &["scheduling", "tolerations"]);
    if let (false, Value::Array(own)) =
        (tolerations.is_empty(), value::object_mut(pod, &["spec"]).entry("tolerations").or_insert_with(|| json!([])))
    {
        for toleration in tolerations {
            if !own.contains(toleration) {
                own.push(toleration.clone());
            }
        }
    }
    Ok(())
}

#[async_trait]
impl Plugin for RuntimeClass {
    async fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !request.creates("", "pods") {
            return Ok(());
        }
        let class = class(request, pod)?;
        if class.is_null() { Ok(()) } else { adapt(&class, pod).map_err(|why| refuse(request, pod, &why)) }
    }

    async fn validate(&self, request: &Request<'_>, pod: &Value) -> Result<(), Status> {
        if !request.creates("", "pods") || !value::at(pod, &["spec", "overhead"]).is_object() {
            return Ok(());
        }
        let class = class(request, pod)?;
        let overhead = value::at(&class, &["overhead", "podFixed"]);
        if !overhead.is_object() {
            return Err(refuse(request, pod, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"));
        }
        if same_amounts(value::at(pod, &["spec", "overhead"]), overhead) {
            Ok(())
        } else {
            Err(refuse(request, pod, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(class: Value, spec: Value, expected: Result<Value, &str>) {
        let mut pod = json!({"spec": spec});
        assert_eq!(adapt(&class, &mut pod).map(|()| pod["spec"].clone()), expected.map_err(str::to_owned));
    }

    #[test]
    fn pods_get_what_their_class_wants() {
        let class = json!({"overhead": {"podFixed": {"cpu": "1"}}, "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "k"}]}});
        let full = json!({"overhead": {"cpu": "1"}, "nodeSelector": {"a": "b"}, "tolerations": [{"key": "k"}]});
        check(class.clone(), json!({}), Ok(full.clone()));
        check(class.clone(), full.clone(), Ok(full));
        check(class.clone(), json!({"overhead": {"cpu": "2"}}), Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        check(class, json!({"nodeSelector": {"a": "c"}}), Err("conflict: runtimeClass.scheduling.nodeSelector[a] = b; pod.spec.nodeSelector[a] = c"));
    }
}
