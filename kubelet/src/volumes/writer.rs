//! Writes a directory of files so that readers see all of it change at once.
//!
//! Upstream's layout, which programs rely on: the files are in a directory named for the time, `..data` is a symbolic link to
//! it, and each file is reached through a link `name -> ..data/name`. A change writes a new directory and renames a new link
//! over `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
    /// Its owner, root if none.
    pub owner: Option<u32>,
}

/// The files of a volume, by their path in it.
pub type Files = BTreeMap<PathBuf, File>;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether a path stays in its volume and can't be mistaken for the writer's own files.
pub fn is_safe(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    let first_ok = matches!(parts.peek(), Some(Component::Normal(first)) if !first.to_string_lossy().starts_with(".."));
    first_ok && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Makes the directory hold these files and no others; whether anything changed. `group` may read them all.
pub fn write(dir: &Path, files: &Files, group: Option<u32>, now: Timestamp) -> io::Result<bool> {
    let data = dir.join(DATA);
    let current = fs::read_link(&data).ok().map(|target| dir.join(target));
    if let Some(current) = &current
        && holds(current, files)
    {
        return Ok(false);
    }
    let name = format!("..{}.{:09}", jiff::fmt::strtime::format("%Y_%m_%d_%H_%M_%S", now).map_err(io::Error::other)?, now.subsec_nanosecond());
    let fresh = dir.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let to = fresh.join(path);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&to, &file.data)?;
        // Whoever may read by group must be able to.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        fs::set_permissions(&to, fs::Permissions::from_mode(mode & 0o777))?;
        if file.owner.is_some() || group.is_some() {
            chown(&to, file.owner, group)?;
        }
    }
    let new_data = dir.join(NEW_DATA);
    remove_link(&new_data)?;
    symlink(&name, &new_data)?;
    fs::rename(&new_data, &data)?;
    let visible: BTreeSet<_> = files.keys().filter_map(|path| path.components().next()).map(|c| c.as_os_str().to_owned()).collect();
    for first in &visible {
        let link = dir.join(first);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(first), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("..") && !visible.contains(&name) {
            remove_link(&entry.path())?;
        }
    }
    if let Some(old) = current.filter(|old| *old != fresh && old.exists()) {
        fs::remove_dir_all(old)?;
    }
    Ok(true)
}

fn remove_link(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether the directory holds exactly these files.
fn holds(dir: &Path, files: &Files) -> bool {
    let mut found = 0;
    count_files(dir, &mut found).is_ok()
        && found == files.len()
        && files.iter().all(|(path, file)| fs::read(dir.join(path)).is_ok_and(|data| data == file.data))
}

fn count_files(dir: &Path, count: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count_files(&entry.path(), count)?;
        } else {
            *count += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs.iter().map(|(path, text)| ((*path).into(), File { data: (*text).into(), mode: 0o644, owner: None })).collect()
    }

    #[test]
    fn files_change_at_once_and_vanish() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |second| Timestamp::from_second(second).expect("a time");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert!(write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None, at(1)).expect("written"));
        assert_eq!((read("a").as_deref(), read("sub/b").as_deref()), (Some("1"), Some("2")));
        assert!(!write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None, at(2)).expect("written"), "nothing changed");
        assert!(write(dir.path(), &files(&[("a", "3")]), None, at(3)).expect("written"));
        assert_eq!((read("a").as_deref(), read("sub/b")), (Some("3"), None));
        let mut names: Vec<_> = fs::read_dir(dir.path()).expect("a list").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["..1970_01_01_00_00_03.000000000", "..data", "a"]);
    }

    #[test]
    fn paths_stay_inside() {
        for (path, expected) in [("a", true), ("a/b", true), ("a/..b", true), ("../a", false), ("..a", false), ("/a", false), ("a/../b", false), ("", false)] {
            assert_eq!(is_safe(Path::new(path)), expected, "{path}");
        }
    }
}
