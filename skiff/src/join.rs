//! How a machine becomes a node: from the kubeconfig that it was given to certificates of its own, kept in its directory and
//! renewed in time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use skiff_apiserver::auth::pki;
use skiff_kubelet::certificates::{self, Facts, Pair, Purpose};

use crate::data_dir::write_private;
use crate::{dialer, down, kubeconfig};

/// The pause after a serving certificate could not be had; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a node is to the cluster.
pub struct Identity {
    /// Acts as the node.
    pub client: Client,
    /// The cluster's authority, PEM.
    pub authority: String,
    /// The API server's address.
    pub server: String,
    /// When the certificate is to be renewed; `None` for one that isn't ours to renew.
    pub renew_in: Option<Duration>,
}

/// The certificate of the kubeconfig's user.
fn certificate(path: &Path, config: &Value) -> anyhow::Result<Option<Facts>> {
    let (_, user) = kubeconfig::current(config);
    Ok(kubeconfig::pem(path, &user, "client-certificate")?.and_then(|pem| Facts::of(&pem)))
}

/// Makes sure that there is a certificate by which this machine is known as the node. The kubeconfig given is the node's
/// own, or somebody's who may ask for such a certificate; what was got before is in `dir`.
pub async fn identity(given: &Path, node: &str, dir: &Path) -> anyhow::Result<Identity> {
    let config = kubeconfig::read(given)?;
    if config.is_null() {
        bail!("there is no kubeconfig {}: print one by `skiff kubeconfig --user kubelet` on the API server's machine", given.display());
    }
    let (cluster, _) = kubeconfig::current(&config);
    let server = cluster["server"].as_str().with_context(|| format!("the kubeconfig {} has no current cluster", given.display()))?.to_owned();
    let authority = kubeconfig::pem(given, &cluster, "certificate-authority")?;
    let authority = authority.with_context(|| format!("the kubeconfig {} has no certificate-authority, which tells who signs this cluster's certificates", given.display()))?;
    let user = certificates::user(node);
    if let Some(facts) = certificate(given, &config)? {
        if !facts.holds() {
            bail!("the certificate in {} held from {} to {}: print a new one by `skiff kubeconfig --user kubelet`", given.display(), facts.from, facts.until);
        }
        if facts.user == user {
            return Ok(Identity { client: reach(given).await?, authority, server, renew_in: None });
        }
        if facts.user.starts_with("system:node:") {
            bail!("the kubeconfig {} is that of {}, not of node {node:?}: say --node-name, or use another", given.display(), facts.user);
        }
    }
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let own = dir.join("kubelet.kubeconfig");
    let kept = kept(&own, &authority, &user)?;
    let facts = match kept {
        Some((pair, facts)) if !facts.fresh_for().is_zero() => {
            keep(&own, &server, &authority, &pair)?;
            facts
        }
        old => {
            let asker = if old.is_some() { &own } else { given };
            let client = reach(asker).await?;
            let waiting = |name: &str| println!("waiting for somebody to approve this node: kubectl certificate approve {name}");
            let pair = certificates::obtain(&client, node, &Purpose::Client, waiting).await.context("ask for the node's certificate")?;
            let facts = Facts::of(&pair.certificate).context("read the node's certificate")?;
            keep(&own, &server, &authority, &pair)?;
            facts
        }
    };
    Ok(Identity { client: reach(&own).await?, authority, server, renew_in: Some(facts.fresh_for()) })
}

/// The certificate that was got before, if it is this cluster's and still holds.
fn kept(own: &Path, authority: &str, user: &str) -> anyhow::Result<Option<(Pair, Facts)>> {
    let config = kubeconfig::read(own)?;
    let (cluster, entry) = kubeconfig::current(&config);
    let part = |entry: &Value, key: &str| kubeconfig::pem(own, entry, key);
    let (Some(signer), Some(certificate), Some(key)) =
        (part(&cluster, "certificate-authority")?, part(&entry, "client-certificate")?, part(&entry, "client-key")?)
    else {
        return Ok(None);
    };
    let facts = Facts::of(&certificate).filter(|facts| signer == authority && facts.user == user && facts.holds());
    Ok(facts.map(|facts| (Pair { certificate, key }, facts)))
}

fn keep(own: &Path, server: &str, authority: &str, pair: &Pair) -> anyhow::Result<()> {
    let pair = pki::Pair { certificate: pair.certificate.clone(), key: pair.key.clone() };
    Ok(kubeconfig::write(own, &kubeconfig::make("node", server, authority, &pair))?)
}

/// A client by a kubeconfig, whose server answers.
pub async fn reach(path: &Path) -> anyhow::Result<Client> {
    let client = down::client(path).await?;
    client.apiserver_version().await.with_context(|| format!("reach the API server of {}", path.display()))?;
    Ok(client)
}

/// The certificate that a kubelet serves with, once it has one, and each later one.
#[derive(Debug, Default)]
pub struct Served(Mutex<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Served {
    fn set(&self, pair: &Pair) -> anyhow::Result<()> {
        let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        let key = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
        Ok(())
    }

    /// The kubelet's side of TLS: this certificate, and clients whom the authority signed.
    pub fn tls(self: &Arc<Self>, authority: &str) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(dialer::roots(authority)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).allow_unauthenticated().build()?;
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(Arc::new(config.with_client_cert_verifier(verifier).with_cert_resolver(self.clone())))
    }

    /// Sees to it that there is a certificate for the node's names and addresses, for ever.
    pub async fn follow(&self, client: &Client, node: &str, dir: &Path) {
        let mut pause = PAUSE;
        loop {
            let rest = match self.renew(client, node, dir).await {
                Ok(rest) => {
                    pause = PAUSE;
                    rest
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the kubelet has no serving certificate yet, trying again");
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    pause
                }
            };
            tokio::time::sleep(rest).await;
        }
    }

    /// Has a certificate at hand that holds; for how long it is good.
    async fn renew(&self, client: &Client, node: &str, dir: &Path) -> anyhow::Result<Duration> {
        let named = |node: Option<&Node>| node.is_some_and(|n| n.status.as_ref().is_some_and(|s| s.addresses.is_some() && s.daemon_endpoints.is_some()));
        let found = await_condition(Api::<Node>::all(client.clone()), node, named).await.context("wait for the node's addresses")?;
        let addresses = found.and_then(|n| n.status).and_then(|s| s.addresses).unwrap_or_default();
        let mut wanted: Vec<String> = addresses.into_iter().map(|a| a.address).collect();
        wanted.dedup();
        let (addresses, names): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|name| name.parse::<std::net::IpAddr>().is_ok());
        let path: PathBuf = dir.join("kubelet-server.pem");
        let fits = |facts: &Facts| facts.holds() && !facts.fresh_for().is_zero() && wanted.iter().all(|name| facts.names.contains(name));
        // Certificate and key are in one file, which is whole or not there.
        let kept = std::fs::read_to_string(&path).ok().map(|both| Pair { certificate: both.clone(), key: both });
        let kept = kept.and_then(|pair| Some((Facts::of(&pair.certificate).filter(fits)?, pair)));
        let (facts, pair) = match kept {
            Some(kept) => kept,
            None => {
                let addresses = addresses.iter().filter_map(|a| a.parse().ok()).collect();
                let waiting = |name: &str| println!("waiting for somebody to approve this kubelet's serving certificate: kubectl certificate approve {name}");
                let pair = certificates::obtain(client, node, &Purpose::Serving { names, addresses }, waiting).await?;
                write_private(&path, &format!("{}{}", pair.certificate, pair.key))?;
                (Facts::of(&pair.certificate).context("read the serving certificate")?, pair)
            }
        };
        self.set(&pair)?;
        Ok(facts.fresh_for())
    }
}
