//! What the tests of the server share.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use skiff_apiserver::Config;
use skiff_apiserver::auth::pki::{Authority, SigningKey};
use skiff_apiserver::dial::Unreachable;
use skiff_store::Store;

/// A server over this store, with keys of its own, that reaches no node.
pub fn config(store: Arc<dyn Store>) -> Config {
    Config {
        store,
        authority: Authority::generate().expect("an authority"),
        signing_key: SigningKey::generate().expect("a key"),
        service_cidr: "10.96.0.0/16".into(),
        advertise: (IpAddr::V4(Ipv4Addr::LOCALHOST), 6443),
        dialer: Arc::new(Unreachable),
        options: Default::default(),
        build: "test".into(),
    }
}
