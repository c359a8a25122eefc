use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use crate::Error;

/// The oldest server that has everything the product uses (consumer resets, ADR-60).
pub const MIN_VERSION: Version = Version {
    major: 2,
    minor: 14,
    patch: 0,
};

/// A server's version; pre-release and build suffixes are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Reads what `nats-server --version` prints: `nats-server: v2.15.1`.
    fn parse(said: &str) -> Option<Self> {
        let number = said.split_whitespace().last()?.trim_start_matches('v');
        let mut parts = number.split(['.', '-', '+']).map(str::parse::<u32>);
        let mut next = || parts.next()?.ok();
        Some(Self {
            major: next()?,
            minor: next()?,
            patch: next()?,
        })
    }
}

/// The first new enough server: `explicit` alone if given, else PATH, then `dirs` in their order.
pub(super) async fn find(
    explicit: Option<&Path>,
    dirs: &[PathBuf],
) -> Result<(PathBuf, Version), Error> {
    let candidates: Vec<PathBuf> = match explicit {
        Some(path) => vec![path.to_owned()],
        // A bare name is looked up in PATH by exec itself: no need to read the environment here.
        None => std::iter::once(PathBuf::from("nats-server"))
            .chain(dirs.iter().map(|dir| dir.join("nats-server")))
            .collect(),
    };
    let mut refused = None;
    for path in candidates {
        match version_of(&path).await {
            Ok(None) => {}
            Ok(Some(found)) if found >= MIN_VERSION => return Ok((path, found)),
            // Distributions package servers that are far too old: a newer one may follow.
            Ok(Some(found)) => {
                refused.get_or_insert(Error::NatsServerTooOld { path, found });
            }
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    Err(refused.unwrap_or_else(|| Error::NatsServerMissing {
        looked_in: looked_in(explicit, dirs),
    }))
}

fn looked_in(explicit: Option<&Path>, dirs: &[PathBuf]) -> String {
    match explicit {
        Some(path) => path.display().to_string(),
        None => std::iter::once("PATH".to_owned())
            .chain(dirs.iter().map(|dir| dir.display().to_string()))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// `None` when there is no such program. Asked once per path: each question costs some 30 ms of CPU.
async fn version_of(path: &Path) -> Result<Option<Version>, Error> {
    static KNOWN: Mutex<Option<HashMap<PathBuf, Version>>> = Mutex::new(None);
    let known = |path| KNOWN.lock().ok()?.as_ref()?.get(path).copied();
    if let Some(version) = known(path)
        && (path.components().count() == 1 || path.exists())
    {
        return Ok(Some(version));
    }
    let mut ask = tokio::process::Command::new(path);
    ask.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let answer = match tokio::time::timeout(Duration::from_secs(5), ask.output()).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in 5 s".to_owned(),
    };
    let Some(version) = Version::parse(&answer) else {
        return Err(Error::NatsServerVersion {
            path: path.to_owned(),
            said: answer,
        });
    };
    if let Ok(mut known) = KNOWN.lock() {
        known
            .get_or_insert_default()
            .insert(path.to_owned(), version);
    }
    Ok(Some(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let version = |major, minor, patch| {
            Some(Version {
                major,
                minor,
                patch,
            })
        };
        assert_eq!(Version::parse("nats-server: v2.15.1"), version(2, 15, 1));
        assert_eq!(
            Version::parse("nats-server: v2.14.0-RC.1\n"),
            version(2, 14, 0)
        );
        assert_eq!(Version::parse("nats-server: v2.9"), None);
        assert_eq!(Version::parse(""), None);
        assert!(Version::parse("nats-server: v2.9.10") < Some(MIN_VERSION));
    }
}
