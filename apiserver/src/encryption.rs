//! Encryption at rest: a store that keeps the values of some resources encrypted, in upstream's form, and shows everybody
//! above it plain ones.
//!
//! A stored value begins with `k8s:enc:PROVIDER:v1:KEY:`, which says what can read it; the first provider of a resource
//! writes. AES-GCM takes the key's path as authenticated data, so that a value can't be moved to another key.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, consts::U12};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::AesGcm;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crypto_secretbox::XSalsa20Poly1305;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::Value;
use skiff_api::resource;
use skiff_api::value::{at, items, text};
use skiff_store::{Entry, Error as StoreError, Event, Guard, Page, Revision, Store};

use crate::aggregate::FRONT_KEY;
use crate::cache::sealed;

/// What every encrypted value begins with.
const MARK: &[u8] = b"k8s:enc:";

/// The configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("read the encryption configuration: {0}")]
pub struct Error(String);

/// A way to keep values.
enum Cipher {
    Identity,
    /// AES in CBC mode with PKCS#7 padding, after its 16 bytes of initialization.
    Cbc(Vec<u8>),
    /// AES-GCM after its nonce of 12 bytes.
    Gcm(Vec<u8>),
    /// NaCl's secretbox after its nonce of 24 bytes.
    SecretBox(Vec<u8>),
}

struct Provider {
    prefix: Vec<u8>,
    cipher: Cipher,
}

/// Which resources are kept how.
struct Rule {
    /// `secrets`, `deployments.apps`, `*.apps`, `*.` for the core group, `*.*`.
    resources: Vec<String>,
    providers: Vec<Provider>,
}

/// An `EncryptionConfiguration`: the first rule that names a resource holds for it.
pub(crate) struct Encryption {
    rules: Vec<Rule>,
}

impl Encryption {
    /// Reads the file of `--encryption-provider-config`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| Error(format!("{}: {e}", path.display())))?;
        Self::parse(&serde_saphyr::from_str(&text).map_err(|e| Error(format!("{}: {e}", path.display())))?)
    }

    fn parse(config: &Value) -> Result<Self, Error> {
        if text(config, &["kind"]) != "EncryptionConfiguration" {
            return Err(Error(format!("kind {:?} is not EncryptionConfiguration", text(config, &["kind"]))));
        }
        let rules = items(config, &["resources"]).iter().map(|rule| {
            let resources: Vec<String> = items(rule, &["resources"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
            let providers: Vec<Vec<Provider>> = items(rule, &["providers"]).iter().map(providers).collect::<Result<_, _>>()?;
            let providers: Vec<Provider> = providers.into_iter().flatten().collect();
            if resources.is_empty() || providers.is_empty() {
                return Err(Error("each of resources needs resources and providers".into()));
            }
            Ok(Rule { resources, providers })
        });
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() { Err(Error("it has no resources".into())) } else { Ok(Self { rules }) }
    }

    /// The providers of the resource whose objects have this key; none for what is kept plain.
    fn of(&self, key: &str) -> &[Provider] {
        let Some((group, plural)) = resource_of(key) else { return &[] };
        let covers = |pattern: &str| match pattern.split_once('.') {
            _ if pattern == "*.*" => true,
            Some(("*", of)) => of == group,
            Some((resource, of)) => of == group && resource == plural,
            None => group.is_empty() && pattern == plural,
        };
        self.rules.iter().find(|rule| rule.resources.iter().any(|r| covers(r))).map_or(&[], |rule| &rule.providers)
    }

    /// The value as it is stored.
    fn seal(&self, key: &str, plain: &Bytes) -> Result<Bytes, StoreError> {
        let Some(first) = self.of(key).first() else { return Ok(plain.clone()) };
        let failed = |why: &str| StoreError::Unavailable(format!("encrypt {key}: {why}"));
        let sealed = first.cipher.seal(key, plain).map_err(failed)?;
        Ok(sealed.map_or_else(|| plain.clone(), |sealed| [first.prefix.as_slice(), &sealed].concat().into()))
    }

    /// The value as it was before it was stored, and whether it would be stored otherwise today.
    fn open(&self, key: &str, stored: &Bytes) -> Result<(Bytes, bool), StoreError> {
        let failed = |why: &str| StoreError::Unreadable { key: key.to_owned(), why: why.to_owned() };
        let providers = self.of(key);
        let encrypted = stored.starts_with(MARK);
        let fits = |p: &&Provider| if encrypted { !p.prefix.is_empty() && stored.starts_with(&p.prefix) } else { p.prefix.is_empty() };
        match providers.iter().find(fits) {
            None if providers.is_empty() && !encrypted => Ok((stored.clone(), false)),
            None => Err(failed("no matching prefix found")),
            Some(provider) => {
                let stale = !std::ptr::eq(provider, &providers[0]);
                if matches!(provider.cipher, Cipher::Identity) {
                    return Ok((stored.clone(), stale));
                }
                // Several keys may share a name.
                let mut same = providers.iter().filter(|p| p.prefix == provider.prefix);
                let plain = same.find_map(|p| p.cipher.open(key, &stored[p.prefix.len()..]));
                plain.map(|plain| (plain.into(), stale)).ok_or_else(|| failed("the key doesn't fit, or the value was changed"))
            }
        }
    }
}

/// The group and plural of the resource that a key belongs to.
fn resource_of(key: &str) -> Option<(&str, &str)> {
    // A key that the server keeps for itself is as secret as a Secret.
    if key == FRONT_KEY {
        return Some(("", "secrets"));
    }
    let built_in = resource::catalogue().iter().find(|r| !r.storage_prefix.is_empty() && key.starts_with(r.storage_prefix.as_ref()));
    if let Some(resource) = built_in {
        return Some((&resource.group, &resource.plural));
    }
    // Custom resources: /registry/GROUP/PLURAL/...
    let mut parts = key.strip_prefix("/registry/")?.split('/');
    let (group, plural) = (parts.next()?, parts.next()?);
    group.contains('.').then_some((group, plural))
}

fn providers(config: &Value) -> Result<Vec<Provider>, Error> {
    let mut members = config.as_object().into_iter().flatten();
    let (Some((kind, given)), None) = (members.next(), members.next()) else {
        return Err(Error("each provider is one of aesgcm, aescbc, secretbox and identity".into()));
    };
    type Make = fn(Vec<u8>) -> Cipher;
    let (sizes, cipher): (&[usize], Make) = match kind.as_str() {
        "identity" => return Ok(vec![Provider { prefix: Vec::new(), cipher: Cipher::Identity }]),
        "aesgcm" => (&[16, 24, 32], Cipher::Gcm),
        "aescbc" => (&[16, 24, 32], Cipher::Cbc),
        "secretbox" => (&[32], Cipher::SecretBox),
        other => return Err(Error(format!("provider {other:?} is not supported"))),
    };
    let keys = items(given, &["keys"]).iter().map(|key| {
        let name = text(key, &["name"]);
        if name.is_empty() || name.contains(':') {
            return Err(Error(format!("{kind}: key name {name:?} must not be empty or hold a colon")));
        }
        // The secret itself must never stand in a message.
        let secret = STANDARD.decode(text(key, &["secret"])).map_err(|_| Error(format!("{kind}: the secret of key {name:?} is no base64")))?;
        if !sizes.contains(&secret.len()) {
            return Err(Error(format!("{kind}: secret of key {name:?} is not of the expected length, got {}, expected one of {sizes:?}", secret.len())));
        }
        Ok(Provider { prefix: format!("k8s:enc:{kind}:v1:{name}:").into_bytes(), cipher: cipher(secret) })
    });
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(Error(format!("{kind} has no keys: {}", at(given, &["keys"])))) } else { Ok(keys) }
}

/// Evaluates the expression with `A` as the AES of the key's length.
macro_rules! with_aes {
    ($key:expr, $A:ident => $body:expr) => {
        match $key.len() {
            16 => { type $A = Aes128; $body }
            24 => { type $A = Aes192; $body }
            _ => { type $A = Aes256; $body }
        }
    };
}

/// Random bytes that nobody can guess.
fn fresh<const N: usize>() -> Result<[u8; N], &'static str> {
    let mut bytes = [0; N];
    rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| "the system gives no randomness")?;
    Ok(bytes)
}

impl Cipher {
    /// The value encrypted; `None` when it is kept plain.
    fn seal(&self, path: &str, plain: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
        let short = "the key has the wrong length";
        Ok(Some(match self {
            Self::Identity => return Ok(None),
            Self::Cbc(key) => {
                let iv = fresh::<16>()?;
                let sealed = with_aes!(key, A => {
                    cbc::Encryptor::<A>::new_from_slices(key, &iv).map_err(|_| short)?.encrypt_padded_vec_mut::<Pkcs7>(plain)
                });
                [iv.as_slice(), &sealed].concat()
            }
            Self::Gcm(key) => {
                let nonce = fresh::<12>()?;
                let payload = Payload { msg: plain, aad: path.as_bytes() };
                let sealed = with_aes!(key, A => AesGcm::<A, U12>::new_from_slice(key).map_err(|_| short)?.encrypt(&nonce.into(), payload));
                [nonce.as_slice(), &sealed.map_err(|_| "the value is too long")?].concat()
            }
            Self::SecretBox(key) => {
                let nonce = fresh::<24>()?;
                let sealed = XSalsa20Poly1305::new_from_slice(key).map_err(|_| short)?.encrypt(&nonce.into(), plain);
                [nonce.as_slice(), &sealed.map_err(|_| "the value is too long")?].concat()
            }
        }))
    }

    /// The plain value; `None` when it isn't this key's, or was tampered with.
    fn open(&self, path: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Identity => None,
            Self::Cbc(key) => {
                let (iv, sealed) = sealed.split_at_checked(16)?;
                with_aes!(key, A => cbc::Decryptor::<A>::new_from_slices(key, iv).ok()?.decrypt_padded_vec_mut::<Pkcs7>(sealed).ok())
            }
            Self::Gcm(key) => {
                let (nonce, sealed) = sealed.split_at_checked(12)?;
                let payload = Payload { msg: sealed, aad: path.as_bytes() };
                with_aes!(key, A => AesGcm::<A, U12>::new_from_slice(key).ok()?.decrypt(nonce.into(), payload).ok())
            }
            Self::SecretBox(key) => {
                let (nonce, sealed) = sealed.split_at_checked(24)?;
                XSalsa20Poly1305::new_from_slice(key).ok()?.decrypt(nonce.into(), sealed).ok()
            }
        }
    }
}

/// A store over another that keeps some values encrypted.
pub(crate) struct Encrypted {
    inner: Arc<dyn Store>,
    encryption: Arc<Encryption>,
    /// Keys whose values were read in a form in which they would not be written today.
    stale: Arc<Mutex<HashSet<Arc<str>>>>,
}

impl Encrypted {
    pub fn new(inner: Arc<dyn Store>, encryption: Encryption) -> Self {
        Self { inner, encryption: Arc::new(encryption), stale: Arc::default() }
    }

    /// The entry, one among others: what can't be decrypted is told in its place.
    fn shown(&self, entry: Entry) -> Entry {
        Entry { value: shown(&self.encryption, &self.stale, &entry.key, &entry.value), ..entry }
    }
}

/// The plain value, or in its place why there is none.
fn shown(encryption: &Encryption, stale: &Mutex<HashSet<Arc<str>>>, key: &Arc<str>, value: &Bytes) -> Bytes {
    opened(encryption, stale, key, value).unwrap_or_else(|error| sealed(&match error {
        StoreError::Unreadable { why, .. } => why,
        other => other.to_string(),
    }))
}

/// Decrypts, and remembers what is stale.
fn opened(encryption: &Encryption, stale: &Mutex<HashSet<Arc<str>>>, key: &Arc<str>, value: &Bytes) -> Result<Bytes, StoreError> {
    let (plain, is_stale) = encryption.open(key, value)?;
    let mut known = stale.lock().unwrap_or_else(PoisonError::into_inner);
    if is_stale {
        known.insert(Arc::clone(key));
    } else if !known.is_empty() {
        known.remove(key);
    }
    Ok(plain)
}

#[async_trait]
impl Store for Encrypted {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let Some(entry) = self.inner.get(key).await? else { return Ok(None) };
        let value = opened(&self.encryption, &self.stale, &entry.key, &entry.value)?;
        Ok(Some(Entry { value, ..entry }))
    }

    async fn list(&self, start: &str, end: &str, limit: usize, at: Option<Revision>) -> Result<Page, StoreError> {
        let page = self.inner.list(start, end, limit, at).await?;
        let entries = page.entries.into_iter().map(|entry| self.shown(entry)).collect();
        Ok(Page { entries, ..page })
    }

    async fn commit(&self, key: &str, guard: Guard, value: Option<Bytes>) -> Result<Revision, StoreError> {
        let value = value.map(|plain| self.encryption.seal(key, &plain)).transpose()?;
        match self.inner.commit(key, guard, value).await {
            Err(StoreError::Conflict(Some(entry))) => Err(StoreError::Conflict(Some(self.shown(entry)))),
            result => result,
        }
    }

    async fn watch(&self, from: Revision) -> Result<BoxStream<'static, Result<Vec<Event>, StoreError>>, StoreError> {
        let (encryption, stale) = (Arc::clone(&self.encryption), Arc::clone(&self.stale));
        let batches = self.inner.watch(from).await?.map(move |batch| {
            let open = |event: Event| {
                let value = event.value.map(|value| shown(&encryption, &stale, &event.key, &value));
                if value.is_none() {
                    stale.lock().unwrap_or_else(PoisonError::into_inner).remove(&event.key);
                }
                Event { value, ..event }
            };
            batch.map(|events| events.into_iter().map(open).collect())
        });
        Ok(batches.boxed())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn size(&self) -> Result<Option<u64>, StoreError> {
        self.inner.size().await
    }

    fn is_stale(&self, key: &str) -> bool {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_store::Memory;

    use super::*;

    const KEY: &str = "/registry/secrets/default/a";

    fn key(name: &str, byte: u8, length: usize) -> Value {
        json!({"name": name, "secret": STANDARD.encode(vec![byte; length])})
    }

    fn config(resources: &[&str], providers: Value) -> Encryption {
        let config = json!({"kind": "EncryptionConfiguration", "resources": [{"resources": resources, "providers": providers}]});
        Encryption::parse(&config).expect("a configuration")
    }

    #[test]
    fn providers_read_what_they_wrote_and_nothing_else() {
        for (kind, length) in [("aescbc", 16), ("aescbc", 32), ("aesgcm", 16), ("aesgcm", 24), ("aesgcm", 32), ("secretbox", 32)] {
            let one = config(&["secrets"], json!([{kind: {"keys": [key("k1", 1, length)]}}, {"identity": {}}]));
            let sealed = one.seal(KEY, &Bytes::from_static(b"hidden")).expect("sealed");
            assert!(sealed.starts_with(format!("k8s:enc:{kind}:v1:k1:").as_bytes()), "{kind}");
            assert!(!sealed.windows(6).any(|w| w == b"hidden"), "{kind}");
            assert_eq!(one.open(KEY, &sealed).expect("opened"), (Bytes::from_static(b"hidden"), false), "{kind}");
            let other = config(&["secrets"], json!([{kind: {"keys": [key("k1", 2, length)]}}]));
            assert!(other.open(KEY, &sealed).is_err() || kind == "aescbc", "{kind}: a key of the same name");
            let rotated = config(&["secrets"], json!([{kind: {"keys": [key("k2", 2, length), key("k1", 1, length)]}}]));
            assert_eq!(rotated.open(KEY, &sealed).expect("opened"), (Bytes::from_static(b"hidden"), true), "{kind}: an older key");
            assert_eq!(one.open(KEY, &Bytes::from_static(b"plain")).expect("plain"), (Bytes::from_static(b"plain"), true), "{kind}: identity reads");
            assert!(rotated.open(KEY, &Bytes::from_static(b"plain")).is_err(), "{kind}: nobody reads what is plain");
        }
        let one = config(&["secrets"], json!([{"aesgcm": {"keys": [key("k1", 1, 32)]}}]));
        let sealed = one.seal(KEY, &Bytes::from_static(b"hidden")).expect("sealed");
        assert!(one.open("/registry/secrets/default/b", &sealed).is_err(), "moved to another key");
    }

    #[test]
    fn which_resources() {
        let check = |resources: &[&str], key: &str, expected: bool| {
            assert_eq!(!config(resources, json!([{"identity": {}}])).of(key).is_empty(), expected, "{resources:?} {key}");
        };
        check(&["secrets"], KEY, true);
        check(&["configmaps"], KEY, false);
        check(&["*."], KEY, true);
        check(&["secrets"], FRONT_KEY, true);
        check(&["*.apps"], "/registry/deployments/default/a", true);
        check(&["*.apps"], KEY, false);
        check(&["*.*"], "/registry/stable.example.com/crontabs/default/a", true);
        check(&["crontabs.stable.example.com"], "/registry/stable.example.com/crontabs/default/a", true);
        check(&["*."], "/registry/stable.example.com/crontabs/default/a", false);
        check(&["*.*"], "/registry/ranges/serviceips", false);
    }

    #[test]
    fn faults_say_nothing_of_secrets() {
        let bad = json!({"kind": "EncryptionConfiguration", "resources": [{"resources": ["secrets"], "providers": [{"aesgcm": {"keys": [key("k", 7, 5)]}}]}]});
        let why = Encryption::parse(&bad).err().map(|e| e.to_string()).unwrap_or_default();
        assert_eq!(why, "read the encryption configuration: aesgcm: secret of key \"k\" is not of the expected length, got 5, expected one of [16, 24, 32]");
    }

    #[tokio::test]
    async fn a_store_shows_plain_values_and_keeps_hidden_ones() {
        let memory = Arc::new(Memory::new());
        memory.commit(KEY, Guard::Absent, Some(Bytes::from_static(b"old"))).await.expect("written");
        let store = Encrypted::new(memory.clone(), config(&["secrets"], json!([{"secretbox": {"keys": [key("k", 3, 32)]}}, {"identity": {}}])));
        let entry = store.get(KEY).await.expect("read").expect("there");
        assert!(store.is_stale(KEY), "written before");
        let revision = store.commit(KEY, Guard::Modified(entry.modified), Some(entry.value)).await.expect("written");
        assert!(memory.get(KEY).await.expect("read").expect("there").value.starts_with(b"k8s:enc:secretbox:v1:k:"));
        let seen = store.watch(revision).await.expect("a watch").next().await.expect("a batch").expect("read");
        assert_eq!(seen[0].value.as_deref(), Some(&b"old"[..]));
        assert!(!store.is_stale(KEY));
        let conflict = store.commit(KEY, Guard::Absent, Some(Bytes::new())).await;
        assert!(matches!(conflict, Err(StoreError::Conflict(Some(entry))) if entry.value == b"old"[..]), "conflicts show plain values");
    }
}
