//! The status of ResourceQuotas: what there is in the namespace of all that a quota limits. Admission charges what is made;
//! here it is counted anew when something goes or ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;
use kube::Api;
use kube::api::{DynamicObject, ListParams, PartialObjectMeta};
use kube::runtime::reflector::ObjectRef;
use serde::Serialize;
use serde_json::Value;
use skiff_api::pod::{self, Resources};
use skiff_api::{Quantity, quota};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{By, Change, Kind, Object, is_gone};

/// Runs the controller. `left` names the namespaces that objects leave.
pub fn run(context: Arc<Context>, left: mpsc::UnboundedReceiver<String>) -> impl Future<Output = ()> {
    let quotas = context.kinds.quotas.clone();
    let of_namespace = move |namespace: &str| -> Vec<ObjectRef<ResourceQuota>> {
        quotas.find(&By::Namespace(namespace.to_owned())).iter().map(|quota| ObjectRef::from_obj(&**quota)).collect()
    };
    let of = of_namespace.clone();
    let left = UnboundedReceiverStream::new(left).flat_map(move |namespace| futures::stream::iter(of(&namespace)));
    Controller::new("resourcequota-controller", &context.kinds.quotas)
        .on_stream(left)
        .on_stream(used(&context.kinds.pods, "pods", of_namespace.clone()))
        .on_stream(used(&context.kinds.services, "services", of_namespace.clone()))
        .on_stream(used(&context.kinds.volume_claims, "persistentvolumeclaims", of_namespace))
        .run(context, {
            let settled = Arc::new(Mutex::new(Settled::default()));
            move |context, quota| reconcile(context, quota, Arc::clone(&settled))
        })
}

/// How long a quota is left alone that somebody else wrote before less is counted: admission charges what is not yet made, and
/// cannot be counted yet. Longer than that takes.
const SETTLING: Duration = Duration::from_secs(1);

/// The newest resource version of each quota, by its uid, and since when it stands unless it was written here.
#[derive(Default)]
struct Settled(HashMap<String, (String, Option<Instant>)>);

impl Settled {
    /// The quota was written here.
    fn written(&mut self, uid: &str, version: &str) {
        self.0.insert(uid.to_owned(), (version.to_owned(), None));
    }

    /// How long it is until the quota has stood for long enough.
    fn remains(&mut self, uid: &str, version: &str, now: Instant) -> Duration {
        let known = self.0.entry(uid.to_owned()).or_insert_with(|| (version.to_owned(), Some(now)));
        if known.0 != version {
            *known = (version.to_owned(), Some(now));
        }
        known.1.map_or(Duration::ZERO, |since| SETTLING.saturating_sub(now.saturating_duration_since(since)))
    }

    /// Forgets the quotas that are gone.
    fn keep(&mut self, quotas: &[Arc<ResourceQuota>]) {
        if self.0.len() > quotas.len() {
            let there: HashSet<&str> = quotas.iter().filter_map(|quota| quota.metadata.uid.as_deref()).collect();
            self.0.retain(|uid, _| there.contains(uid.as_str()));
        }
    }
}

/// What is to be done about a quota.
#[derive(Debug, PartialEq)]
enum Plan {
    Leave,
    /// Count again after so long: what is missing may be on its way.
    Wait(Duration),
    Write(ResourceQuotaStatus),
}

/// Decides; `used` is what was counted, `remains` how long the quota has yet to stand.
fn plan(quota: &ResourceQuota, used: &Resources, remains: Duration) -> Plan {
    let used: BTreeMap<_, _> = used.iter().map(|(name, amount)| (name.clone(), Amount(amount.to_string()))).collect();
    if !remains.is_zero() && is_less(&used, quota.status.as_ref()) {
        return Plan::Wait(remains);
    }
    let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
    let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
    if quota.status.as_ref() == Some(&status) { Plan::Leave } else { Plan::Write(status) }
}

/// Whether less is counted than the status says.
fn is_less(used: &BTreeMap<String, Amount>, before: Option<&ResourceQuotaStatus>) -> bool {
    let amount = |amount: &Amount| Quantity::parse(&amount.0).unwrap_or(Quantity::ZERO);
    let before = before.and_then(|status| status.used.as_ref());
    before.into_iter().flatten().any(|(name, before)| used.get(name).is_some_and(|now| amount(now) < amount(before)))
}

/// The quotas of the namespaces where an object begins to use something else than before.
fn used<K: Object + Serialize>(
    kind: &Kind<K>,
    plural: &'static str,
    quotas: impl Fn(&str) -> Vec<ObjectRef<ResourceQuota>> + Send + Sync + 'static,
) -> impl futures::Stream<Item = ObjectRef<ResourceQuota>> + Send + 'static {
    kind.changes(move |change: &Change<K>| {
        let Some(new) = &change.new else { return Vec::new() };
        // Most namespaces have none, and there is nothing to be computed for them.
        let quotas = quotas(new.meta().namespace.as_deref().unwrap_or(""));
        let usage = |object: &Arc<K>| quota::usage("", plural, &json(&**object));
        let same = quotas.is_empty() || change.old.as_ref().is_some_and(|old| usage(old) == usage(new));
        if same { Vec::new() } else { quotas }
    })
}

fn json<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

async fn reconcile(context: Arc<Context>, quota: Arc<ResourceQuota>, settled: Arc<Mutex<Settled>>) -> Result<Again, Error> {
    let settled = || settled.lock().unwrap_or_else(PoisonError::into_inner);
    let uid = quota.metadata.uid.clone().unwrap_or_default();
    let remains = {
        let mut settled = settled();
        settled.keep(&context.kinds.quotas.all());
        settled.remains(&uid, quota.metadata.resource_version.as_deref().unwrap_or(""), Instant::now())
    };
    let used = count(&context, &quota).await?;
    let status = match plan(&quota, &used, remains) {
        Plan::Leave => return Ok(None),
        Plan::Wait(remains) => return Ok(Some(remains)),
        Plan::Write(status) => status,
    };
    // Carries its resource version: what admission charged meanwhile is not overwritten.
    let updated = ResourceQuota { status: Some(status), ..(*quota).clone() };
    match context.kinds.quotas.replace_status(&updated).await {
        Ok(written) => {
            settled().written(&uid, written.metadata.resource_version.as_deref().unwrap_or(""));
            Ok(None)
        }
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(Error::on("updating the status of a resource quota")(error)),
    }
}

/// What there is of all that the quota limits.
async fn count(context: &Context, quota: &ResourceQuota) -> Result<Resources, Error> {
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let value = json(quota);
    let mut used: Resources = hard.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    let namespace = By::Namespace(quota.metadata.namespace.clone().unwrap_or_default());
    let mut add = |plural: &str, objects: Vec<Value>| {
        for object in objects.iter().filter(|object| quota::matches(&value, "", plural, object)) {
            pod::add(&mut used, &quota::masked(&quota::usage("", plural, object), &value));
        }
    };
    let kinds = &context.kinds;
    add("pods", kinds.pods.find(&namespace).iter().map(|o| json(&**o)).collect());
    add("services", kinds.services.find(&namespace).iter().map(|o| json(&**o)).collect());
    add("persistentvolumeclaims", kinds.volume_claims.find(&namespace).iter().map(|o| json(&**o)).collect());
    used.extend(counted(context, quota, hard.keys()).await?);
    Ok(used)
}

/// What is limited by number alone and not in any cache here: asked for.
async fn counted(context: &Context, quota: &ResourceQuota, names: impl Iterator<Item = &String>) -> Result<Vec<(String, Quantity)>, Error> {
    let names: BTreeSet<&String> = names.collect();
    let cached = |group: &str, plural: &str| group.is_empty() && matches!(plural, "pods" | "services" | "persistentvolumeclaims");
    let mut found = Vec::new();
    if context.catalogue.all().is_empty() {
        context.catalogue.refresh().await.map_err(Error::on("asking which resources there are"))?;
    }
    for resource in context.catalogue.all().iter().filter(|r| r.namespaced) {
        let (group, plural) = (resource.api.group.as_str(), resource.api.plural.as_str());
        let concerned: Vec<_> = names.iter().filter(|name| quota::concerns(name, group, plural)).collect();
        if concerned.is_empty() || cached(group, plural) {
            continue;
        }
        let namespace = quota.metadata.namespace.as_deref().unwrap_or("");
        let api: Api<DynamicObject> = Api::namespaced_with(context.client(), namespace, &resource.api);
        let list: kube::core::ObjectList<PartialObjectMeta<DynamicObject>> =
            api.list_metadata(&ListParams::default()).await.map_err(Error::on("counting the objects of a namespace"))?;
        let number = Quantity::from_value(i64::try_from(list.items.len()).unwrap_or(i64::MAX));
        found.extend(concerned.into_iter().map(|name| ((*name).clone(), number)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(text: &str) -> BTreeMap<String, Amount> {
        text.split(',').filter_map(|pair| pair.split_once('=')).map(|(name, amount)| (name.to_owned(), Amount(amount.to_owned()))).collect()
    }

    #[test]
    fn what_is_written_elsewhere_settles_first() {
        let (mut settled, start) = (Settled::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        let mut check = |at, version: &str, expected| assert_eq!(settled.remains("u", version, after(at)), Duration::from_millis(expected), "{version} at {at}");
        check(0, "1", 1_000);
        check(400, "1", 600);
        check(900, "2", 1_000);
        check(1_900, "2", 0);
        check(9_000, "2", 0);
        settled.written("u", "3");
        assert_eq!(settled.remains("u", "3", after(9_000)), Duration::ZERO, "it was written here");
        assert_eq!(settled.remains("u", "4", after(9_000)), SETTLING, "and then elsewhere");
        settled.keep(&[]);
        assert!(settled.0.is_empty());
    }

    #[test]
    fn plans() {
        let check = |before: Option<&str>, counted: &str, remains: Duration, expected: Plan| {
            let spec = k8s_openapi::api::core::v1::ResourceQuotaSpec { hard: Some(amounts("pods=5")), ..Default::default() };
            let status = before.map(|used| ResourceQuotaStatus { hard: Some(amounts("pods=5")), used: Some(amounts(used)) });
            let quota = ResourceQuota { spec: Some(spec), status, ..ResourceQuota::default() };
            let used = amounts(counted).into_iter().map(|(name, amount)| (name, Quantity::parse(&amount.0).expect("an amount"))).collect();
            assert_eq!(plan(&quota, &used, remains), expected, "{before:?} {counted}");
        };
        let write = |used: &str| Plan::Write(ResourceQuotaStatus { hard: Some(amounts("pods=5")), used: Some(amounts(used)) });
        check(None, "pods=0", SETTLING, write("pods=0"));
        check(Some("pods=1"), "pods=1", SETTLING, Plan::Leave);
        check(Some("pods=1"), "pods=2", SETTLING, write("pods=2"));
        check(Some("pods=2"), "pods=1", SETTLING, Plan::Wait(SETTLING));
        check(Some("pods=2"), "pods=1", Duration::ZERO, write("pods=1"));
    }
}
