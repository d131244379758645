//! The kubelet's HTTPS server: who may ask it, and that what it answers is the API that is served in process.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::FakeApi;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use skiff_kubelet::runtime::simulated::Simulated;
use skiff_kubelet::{Config, Kubelet, Listen};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        Arc::new(roots)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider.clone()).allow_unauthenticated().build().unwrap();
        let (certificate, key) = self.sign("system:node:n");
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_client_cert_verifier(verifier).with_single_cert(vec![certificate], key).unwrap())
    }

    /// The status and body of the answer to a GET by whoever has the certificate.
    async fn get(&self, port: u16, path: &str, user: Option<&str>) -> (u16, String) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(self.roots());
        let config = match user.map(|user| self.sign(user)) {
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "n").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

#[tokio::test]
async fn only_whom_the_api_allows_is_answered() {
    let api = FakeApi::new();
    let authority = Authority::new();
    let mut config = Config::new("n", "test", std::env::temp_dir().join("skiff-kubelet-test"), [127, 0, 0, 1].into());
    config.pod_cidr = Some("10.244.0.0/24".into());
    config.listen = Some(Listen { address: ([127, 0, 0, 1], 0).into(), tls: authority.server() });
    let stop = CancellationToken::new();
    let kubelet = tokio::spawn(Kubelet::new(config, api.client(), Arc::new(Simulated::default()), stop.clone()).run());
    let port = |node: &serde_json::Value| node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = api.until("the port in the node's status", |o| port(o.all.get("nodes//n")?)).await;
    let port = u16::try_from(port).unwrap();

    assert_eq!(authority.get(port, "/healthz", Some("kube-apiserver-kubelet-client")).await, (200, "ok".into()));
    assert_eq!(authority.get(port, "/pods", Some("kube-apiserver-kubelet-client")).await.0, 200);
    assert_eq!(authority.get(port, "/healthz", Some("somebody")).await.0, 403);
    assert_eq!(authority.get(port, "/healthz", None).await.0, 401);
    let asked = api.with(|o| o.requests["POST subjectaccessreviews"]);
    authority.get(port, "/healthz", Some("kube-apiserver-kubelet-client")).await;
    assert_eq!(api.with(|o| o.requests["POST subjectaccessreviews"]), asked, "answers are remembered");
    stop.cancel();
    kubelet.await.unwrap().unwrap();
}
