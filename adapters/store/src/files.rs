//! The store's directory and its neighbours: making one that is never seen half made, and replacing
//! it whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// While this file is in a directory, the store in it is not complete.
const UNFINISHED: &str = "unfinished";
/// The engine's file with all data.
const DATA: &str = "db";
/// So many broken stores stay.
const KEPT_ASIDE: usize = 3;

/// A neighbour of `dir`: its name with `suffix` added.
pub(crate) fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().map_or_else(OsString::new, OsString::from);
    name.push(suffix);
    dir.with_file_name(name)
}

pub(crate) fn data(dir: &Path) -> PathBuf {
    dir.join(DATA)
}

/// There is a store in it that was completely made.
pub(crate) fn is_complete(dir: &Path) -> io::Result<bool> {
    // Not knowing is an error: what is not complete is made anew.
    Ok(fs::exists(data(dir))? && !fs::exists(dir.join(UNFINISHED))?)
}

/// Makes the directory ready for a new store, without what an earlier try left there.
pub(crate) fn begin(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    File::create(dir.join(UNFINISHED))?.sync_all()?;
    sync_dir(dir)?;
    for entry in fs::read_dir(dir)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let name = name.to_string_lossy();
        if name == DATA || name == "conf" || name.starts_with("snap.") {
            fs::remove_file(path)?;
        } else if name == "blobs" {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// From now on the store in it counts.
pub(crate) fn complete(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)?;
    fs::remove_file(dir.join(UNFINISHED))?;
    sync_dir(dir)?;
    sync_parent(dir)
}

/// Renames a broken store to `<dir>.bad-<unix seconds>`, for a person to look at. The oldest of them
/// go, so that stores that break again and again do not fill the disk.
pub(crate) fn move_aside(dir: &Path) -> io::Result<PathBuf> {
    let mut aside = aside_of(dir)?;
    aside.sort();
    for oldest in aside.iter().rev().skip(KEPT_ASIDE - 1) {
        fs::remove_dir_all(oldest)?;
    }
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut to = beside(dir, &format!(".bad-{seconds}"));
    let mut again = 1;
    while fs::exists(&to)? {
        to = beside(dir, &format!(".bad-{seconds}-{again}"));
        again += 1;
    }
    fs::rename(dir, &to)?;
    sync_parent(dir)?;
    Ok(to)
}

fn aside_of(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let prefix = beside(dir, ".bad-");
    let prefix = prefix.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in dir
        .parent()
        .map(fs::read_dir)
        .transpose()?
        .into_iter()
        .flatten()
    {
        let path = entry?.path();
        if path.as_os_str().as_encoded_bytes().starts_with(prefix) && path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Where a smaller copy of the store is made.
pub(crate) fn copy_of(dir: &Path) -> PathBuf {
    beside(dir, ".compact")
}

fn old_of(dir: &Path) -> PathBuf {
    beside(dir, ".old")
}

/// Puts the complete copy in the store's place. A crash leaves one of these, and
/// [`finish_replacing`] knows them apart:
///
/// 1. store and copy: the copy is dropped, complete or not;
/// 2. `.old` and a complete copy (after the first rename): the copy becomes the store;
/// 3. store and `.old` (after the second one): `.old` is dropped.
pub(crate) fn replace(dir: &Path) -> io::Result<()> {
    fs::rename(dir, old_of(dir))?;
    fs::rename(copy_of(dir), dir)?;
    // The old one must not go before the new one is surely there.
    sync_parent(dir)?;
    fs::remove_dir_all(old_of(dir))
}

/// Ends what a crash interrupted in [`replace`].
pub(crate) fn finish_replacing(dir: &Path) -> io::Result<()> {
    let (copy, old) = (copy_of(dir), old_of(dir));
    if !fs::exists(dir)? && fs::exists(&old)? {
        fs::rename(if is_complete(&copy)? { &copy } else { &old }, dir)?;
        sync_parent(dir)?;
    }
    for leftover in [copy, old] {
        if fs::exists(&leftover)? {
            fs::remove_dir_all(leftover)?;
        }
    }
    Ok(())
}

/// The checksum in the engine's own settings file fits: they are what some version of it wrote.
pub(crate) fn settings_are_whole(dir: &Path) -> bool {
    let Ok(bytes) = fs::read(dir.join("conf")) else {
        return false;
    };
    let Some((settings, crc)) = bytes.split_last_chunk::<4>() else {
        return false;
    };
    u32::from_le_bytes(*crc) == crc32fast::hash(settings)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    dir.parent().map_or(Ok(()), sync_dir)
}
