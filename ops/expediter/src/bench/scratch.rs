use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A directory of its own for one run; removed at the end of its life unless it is kept.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes it below `parent`, which is made if it is missing.
    pub(super) fn new(parent: &Path, run: u32, keep: bool) -> anyhow::Result<Self> {
        let name = format!("expediter-bench-{}-{run}", std::process::id());
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        // The node is told this path from another directory's point of view.
        let path = std::path::absolute(parent)
            .with_context(|| format!("finding {}", parent.display()))?
            .join(name);
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path, keep })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it for somebody to look at.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            super::note(&format!(
                "{} could not be removed: {error}",
                self.path.display()
            ));
        }
    }
}

/// Whether files there, or where it will be made, are in memory.
pub(super) fn in_memory(dir: &Path) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let existing = dir.ancestors().find_map(|dir| rustix::fs::statfs(dir).ok());
    existing.is_some_and(|found| [TMPFS, RAMFS].contains(&(found.f_type as u64)))
}
