//! The files of `--authentication-config` and `--authorization-config` may change while the server runs. They are looked at once
//! a minute, as upstream does beside its watch of them; one that can't be used leaves things as they are, and is tried again.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::files;
use crate::options::Error;
use crate::server::Server;

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(60);

/// What was last made of a file.
pub(super) struct Current<T> {
    value: RwLock<Arc<T>>,
    /// What stood in the file then.
    read: Mutex<Vec<u8>>,
}

impl<T> Current<T> {
    /// With what was made of the file at this path, if there is one.
    pub fn new(value: T, path: Option<&Path>) -> Self {
        let read = path.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        Self { value: RwLock::new(Arc::new(value)), read: Mutex::new(read) }
    }

    pub fn now(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes it anew when something else stands in the file. Says whether it did.
    pub fn renew(&self, flag: &'static str, path: &Path, make: impl FnOnce() -> Result<T, Error>) -> Result<bool, Error> {
        let found = files::bytes(flag, path)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if *read == found {
            return Ok(false);
        }
        let made = Arc::new(make()?);
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = made;
        *read = found;
        Ok(true)
    }
}

/// Looks at the files until the server ends.
pub(crate) async fn run(server: Arc<Server>) {
    while server.access.can_change() {
        tokio::time::sleep(PERIOD).await;
        for (flag, renewed) in server.access.renew() {
            match renewed {
                Ok(true) => tracing::info!(flag, "configuration reloaded"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "configuration not reloaded"),
            }
        }
    }
}
