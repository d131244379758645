//! What makes Services work in a cluster of this process: the proxy, DNS, and the `kube-dns` Service that leads to it.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Where DNS listens on the pods' gateway; its Service has port 53.
pub const DNS_PORT: u16 = 10_053;
/// The domain of the cluster's names.
pub const DOMAIN: &str = "cluster.local";
const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";

/// The Service that pods' resolvers are told.
fn service(ip: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"}},
        "spec": {"clusterIP": ip.to_string(), "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": DNS_PORT},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": DNS_PORT},
        ]},
    })
}

/// Where the Service leads.
fn slice(listen: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": NAME, "endpointslice.kubernetes.io/managed-by": "skiff",
        }},
        "endpoints": [{"addresses": [listen.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "dns", "port": listen.port(), "protocol": "UDP"}, {"name": "dns-tcp", "port": listen.port(), "protocol": "TCP"}],
    })
}

/// Makes the DNS Service lead to `listen`.
pub async fn publish_dns(client: Client, ip: IpAddr, listen: SocketAddr) -> Result<(), kube::Error> {
    let params = PatchParams::apply("skiff").force();
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    services.patch(NAME, &params, &Patch::Apply(service(ip))).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    slices.patch(NAME, &params, &Patch::Apply(slice(listen))).await?;
    Ok(())
}

/// Serves DNS on `listen` until `stop`.
pub async fn dns(client: Client, listen: SocketAddr, stop: CancellationToken) -> Result<(), skiff_dns::Error> {
    skiff_dns::run(skiff_dns::Config { listen, domain: DOMAIN.into(), upstream: Vec::new() }, client, stop).await
}
