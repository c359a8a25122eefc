//! Secrets by reference. Only the binary reads the environment and files.

use expediter_http::{SecretSource, Unresolved};
use expediter_types::SecretRef;

/// A secret file is at most so long, in bytes.
const LONGEST: u64 = 64 * 1024;

/// The process's environment and file system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProcessSecrets;

impl SecretSource for ProcessSecrets {
    fn resolve(&self, reference: &SecretRef) -> Result<String, Unresolved> {
        match reference {
            SecretRef::Env(name) => match std::env::var(name) {
                Ok(value) => Ok(value),
                Err(std::env::VarError::NotPresent) => Err(Unresolved::Missing),
                Err(std::env::VarError::NotUnicode(_)) => {
                    Err(Unresolved::Unreadable("it is not UTF-8".to_owned()))
                }
            },
            SecretRef::File(path) => {
                let unreadable = |error: std::io::Error| match error.kind() {
                    std::io::ErrorKind::NotFound => Unresolved::Missing,
                    kind => Unresolved::Unreadable(kind.to_string()),
                };
                let length = std::fs::metadata(path).map_err(unreadable)?.len();
                if length > LONGEST {
                    return Err(Unresolved::Unreadable("it is longer than 64 KiB".to_owned()));
                }
                std::fs::read_to_string(path).map_err(unreadable)
            }
        }
    }
}
