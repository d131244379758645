//! A cluster's files: one directory, of one process at a time, with a version.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use skiff_apiserver::auth::pki::{Authority, Pair, SigningKey};

/// The layout of the directory. A directory of another layout is refused.
const LAYOUT: &str = "1";

/// What is wrong with a data directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory can't be used.
    #[error("use {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another process{holder}; stop it with `skiff down`, or choose another --data-dir")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// ` (pid 123)`, where it is known.
        holder: String,
    },
    /// Made by another version.
    #[error("{path} was made by a skiff of another layout ({found}, this one has {LAYOUT}); use that version, or remove the directory")]
    Layout {
        /// The directory.
        path: PathBuf,
        /// Its layout.
        found: String,
    },
    /// Its keys can't be used or made.
    #[error(transparent)]
    Pki(#[from] skiff_apiserver::auth::pki::Error),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |source| Error::Io { path: path.into(), source }
}

/// Where a cluster's files are when nobody says otherwise.
pub fn default_path(name: &str) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home {
        Some(home) if !nix::unistd::geteuid().is_root() => home.join(".local/share/skiff").join(name),
        _ => Path::new("/var/lib/skiff").join(name),
    }
}

/// A data directory that this process holds.
pub struct DataDir {
    path: PathBuf,
    /// Held as long as the directory is; has the process's id in it.
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes the directory where it isn't there, and takes it for this process.
    pub fn take(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(io_error(path))?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(io_error(path))?;
        let lock_path = path.join("lock");
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(io_error(&lock_path))?;
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::InUse {
            path: path.into(),
            holder: holder(path).map_or(String::new(), |pid| format!(" (pid {pid})")),
        })?;
        let write = |lock: &mut Flock<File>| {
            lock.set_len(0)?;
            writeln!(lock, "{}", std::process::id())
        };
        write(&mut lock).map_err(io_error(&lock_path))?;
        let taken = Self { path: path.into(), _lock: lock };
        taken.check_layout()?;
        Ok(taken)
    }

    fn check_layout(&self) -> Result<(), Error> {
        let path = self.path.join("version");
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() == LAYOUT => Ok(()),
            Ok(found) => Err(Error::Layout { path: self.path.clone(), found: found.trim().into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(&path, format!("{LAYOUT}\n")).map_err(io_error(&path)),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// A path within.
    pub fn join(&self, part: &str) -> PathBuf {
        self.path.join(part)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster's authority and token key, made when they aren't there.
    pub fn keys(&self) -> Result<(Authority, SigningKey), Error> {
        let pki = self.path.join("pki");
        fs::create_dir_all(&pki).map_err(io_error(&pki))?;
        let (certificate, key, signing) = (pki.join("ca.crt"), pki.join("ca.key"), pki.join("sa.key"));
        // The key is written last: a directory with a key is whole.
        if !key.exists() {
            let made = Authority::generate()?;
            write_private(&certificate, &made.pair.certificate)?;
            write_private(&key, &made.pair.key)?;
        }
        if !signing.exists() {
            write_private(&signing, &SigningKey::generate()?.private_pem)?;
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(io_error(path));
        let pair = Pair { certificate: read(&certificate)?, key: read(&key)? };
        Ok((Authority { pair }, SigningKey::from_pem(&read(&signing)?)?))
    }
}

/// The authority of a data directory that another process may hold.
pub fn authority(path: &Path) -> Result<Authority, Error> {
    let pki = path.join("pki");
    let read = |name: &str| {
        let path = pki.join(name);
        fs::read_to_string(&path).map_err(io_error(&path))
    };
    Ok(Authority { pair: Pair { certificate: read("ca.crt")?, key: read("ca.key")? } })
}

/// The process that holds the directory, if one does.
pub fn holder(path: &Path) -> Option<i32> {
    let lock_path = path.join("lock");
    let file = File::options().read(true).write(true).open(&lock_path).ok()?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Nobody does.
        Ok(_) => None,
        Err(_) => fs::read_to_string(&lock_path).ok()?.trim().parse().ok(),
    }
}

/// Writes a file that only its owner reads, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_of_one_process_and_keeps_its_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        assert_eq!(holder(&path), None);
        let taken = DataDir::take(&path).expect("taken");
        let keys = taken.keys().expect("keys");
        assert_eq!(holder(&path), Some(std::process::id() as i32));
        let refused = DataDir::take(&path).err().expect("refused").to_string();
        assert!(refused.contains("in use by another process (pid"), "{refused}");
        drop(taken);
        assert_eq!(holder(&path), None);
        let again = DataDir::take(&path).expect("taken again");
        assert!(again.keys().expect("keys") == keys);
        drop(again);
        fs::write(path.join("version"), "99").expect("write");
        assert!(matches!(DataDir::take(&path), Err(Error::Layout { found, .. }) if found == "99"));
    }
}
