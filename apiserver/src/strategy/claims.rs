//! Claims: keys in the store that stand for what only one object can have (an address, a port). Whoever makes the key
//! has it, so that two API servers on one store can't give the same thing twice.

use std::sync::Arc;

use bytes::Bytes;
use skiff_api::Status;
use skiff_store::{Error, Guard, Revision};

use crate::server::Server;

/// What a write took and what it will give back.
#[derive(Debug, Default)]
#[must_use = "claims are settled after the write"]
pub(crate) struct Claims {
    /// Keys made for this write: given back when it fails.
    taken: Vec<String>,
    /// Keys that the object had and loses: given back when it succeeds.
    released: Vec<String>,
}

impl Claims {
    /// Makes the key; false when somebody has it.
    pub async fn take(&mut self, server: &Server, key: String, value: Bytes, dry_run: bool) -> Result<bool, Status> {
        if dry_run {
            return Ok(server.store.get(&key).await?.is_none());
        }
        match server.store.commit(&key, Guard::Absent, Some(value)).await {
            Ok(_) => {
                self.taken.push(key);
                Ok(true)
            }
            Err(Error::Conflict(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the key back when the write succeeds.
    pub fn release(&mut self, key: String) {
        self.released.push(key);
    }

    /// Ends the write: keeps what was taken, or gives it back. After a write that may have happened everything stays taken, so
    /// that nobody gets what somebody has; the repair at the next start finds what nobody has.
    pub async fn settle(self, server: &Arc<Server>, written: &Result<Revision, Error>) {
        match written {
            Ok(_) => give_all_back(server, self.released).await,
            Err(error) if error.is_uncertain() => {}
            Err(_) => self.cancel(server).await,
        }
    }

    /// Gives back what was taken for a write that doesn't come.
    pub async fn cancel(self, server: &Arc<Server>) {
        give_all_back(server, self.taken).await;
    }
}

async fn give_all_back(server: &Server, keys: Vec<String>) {
    for key in keys {
        give_back(server, &key).await;
    }
}

/// Removes a claim. One that can't be removed now is found by the repair at the next start.
pub(crate) async fn give_back(server: &Server, key: &str) {
    let result = match server.store.get(key).await {
        Ok(Some(entry)) => server.store.commit(key, Guard::Modified(entry.modified), None).await.map(drop),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::warn!(key, %error, "claim could not be given back");
    }
}
