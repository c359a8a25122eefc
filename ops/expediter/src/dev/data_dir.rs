//! The demonstration's data directory, which it may empty because it made it.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;

/// Marks a directory as the demonstration's, and is locked while it runs.
const LOCK: &str = "dev.lock";

/// Makes the directory, or takes one that an earlier run made, and removes what that left unless it
/// is to be kept. Others use the directory until what is returned is dropped.
///
/// # Errors
/// Another run uses it; it holds what no demonstration made; it cannot be written.
pub(super) fn take(dir: &Path, keep: bool) -> anyhow::Result<File> {
    let shown = dir.display();
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the data directory {shown}"))?;
    let path = dir.join(LOCK);
    let ours = path.exists();
    anyhow::ensure!(
        ours || left_by_a_node(dir)?.is_empty(),
        "{shown} holds data that is not of `expediter dev`: choose another --data-dir"
    );
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if rustix::fs::flock(&file, exclusive).is_err() {
        anyhow::bail!("another `expediter dev` uses {shown}: end it, or choose another --data-dir");
    }
    if !keep {
        for entry in left_by_a_node(dir)? {
            let removed = match entry.is_dir() {
                true => std::fs::remove_dir_all(&entry),
                false => std::fs::remove_file(&entry),
            };
            removed.with_context(|| format!("cannot remove {}", entry.display()))?;
        }
    }
    Ok(file)
}

/// The broker's and the store's files.
fn left_by_a_node(dir: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.split('.').next();
        if matches!(stem, Some("nats" | "store")) || name == "dev.log" {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_data_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (first, store) = (dir.path().join("first"), dir.path().join("first/store"));
        let taken = take(&first, false).unwrap();
        std::fs::create_dir(&store).unwrap();
        std::fs::write(first.join("notes"), "mine").unwrap();
        let error = take(&first, false).unwrap_err().to_string();
        assert!(error.contains("another `expediter dev` uses"), "{error}");
        assert!(store.exists());
        drop(taken);
        drop(take(&first, true).unwrap());
        assert!(store.exists());
        drop(take(&first, false).unwrap());
        assert!(!store.exists() && first.join("notes").exists());
    }

    #[test]
    fn a_nodes_data_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        for keep in [false, true] {
            let error = take(dir.path(), keep).unwrap_err().to_string();
            assert!(error.contains("not of `expediter dev`"), "{error}");
        }
        assert!(dir.path().join("store").exists());
    }
}
