//! What every namespace has: the ServiceAccount `default`, and the ConfigMap with the cluster's CA certificate.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::reflector::ObjectRef;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{Change, Object, is_namespace_terminating, is_taken};

const DEFAULT: &str = "default";
/// The name of the ConfigMap with the CA certificate.
pub const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const WHAT_FOR: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
    such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
    Kubernetes clusters.";

/// Runs the controller of default ServiceAccounts.
pub fn run_accounts(context: Arc<Context>) -> impl Future<Output = ()> {
    Controller::new("serviceaccount-controller", &context.kinds.namespaces)
        .on(&*context.kinds.service_accounts, namespace_of)
        .run(context, account)
}

/// Runs the controller that publishes the CA certificate.
pub fn run_root_ca(context: Arc<Context>) -> impl Future<Output = ()> {
    Controller::new("root-ca-certificate-publisher-controller", &context.kinds.namespaces)
        .on(&*context.kinds.root_cas, namespace_of)
        .run(context, root_ca)
}

fn namespace_of<K: Object>(change: &Change<K>) -> Vec<ObjectRef<Namespace>> {
    let object = change.states().last();
    object.and_then(|o| o.meta().namespace.as_deref()).map(ObjectRef::new).into_iter().collect()
}

fn is_active(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
        && namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
}

fn named(name: &str, namespace: &Namespace) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: namespace.metadata.name.clone(), ..ObjectMeta::default() }
}

/// Creates an object, unless somebody was faster or the namespace is going.
async fn create<K: Object>(kind: &crate::kind::Kind<K>, object: &K, what: &'static str) -> Result<(), Error> {
    match kind.create(object).await {
        Err(error) if !is_taken(&error) && !is_namespace_terminating(&error) => Err(Error::on(what)(error)),
        _ => Ok(()),
    }
}

async fn account(context: Arc<Context>, namespace: Arc<Namespace>) -> Result<Again, Error> {
    let name = namespace.metadata.name.as_deref().unwrap_or("");
    if is_active(&namespace) && context.kinds.service_accounts.get(name, DEFAULT).is_none() {
        let account = ServiceAccount { metadata: named(DEFAULT, &namespace), ..ServiceAccount::default() };
        create(&context.kinds.service_accounts, &account, "creating the default service account").await?;
    }
    Ok(None)
}

async fn root_ca(context: Arc<Context>, namespace: Arc<Namespace>) -> Result<Again, Error> {
    let Some(certificate) = context.config.root_ca.as_ref().filter(|_| is_active(&namespace)) else { return Ok(None) };
    let kind = &context.kinds.root_cas;
    let data = Some(BTreeMap::from([("ca.crt".to_owned(), certificate.clone())]));
    let current = kind.get(namespace.metadata.name.as_deref().unwrap_or(""), ROOT_CA);
    let mut metadata = current.as_ref().map_or_else(|| named(ROOT_CA, &namespace), |c| c.metadata.clone());
    metadata.annotations.get_or_insert_default().insert(DESCRIPTION.into(), WHAT_FOR.into());
    let wanted = ConfigMap { metadata, data, ..ConfigMap::default() };
    match current {
        None => create(kind, &wanted, "creating the config map of the root CA").await?,
        Some(current) if current.data != wanted.data || current.metadata.annotations != wanted.metadata.annotations => {
            kind.replace(&wanted).await.map_err(Error::on("updating the config map of the root CA"))?;
        }
        Some(_) => {}
    }
    Ok(None)
}
