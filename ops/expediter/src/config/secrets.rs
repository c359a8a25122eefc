use std::io::Read;

use expediter_http::{SecretSource, Unresolved};
use expediter_types::SecretRef;

/// The largest secret, in bytes.
const MAX_SECRET: u64 = 64 << 10;

/// Secrets of this process's environment and of files it can read.
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
            SecretRef::File(path) => read(path),
        }
    }
}

fn read(path: &str) -> Result<String, Unresolved> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Unresolved::Missing,
        _ => Unresolved::Unreadable(error.to_string()),
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(MAX_SECRET + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MAX_SECRET {
        return Err(Unresolved::Unreadable(format!(
            "it is larger than {MAX_SECRET} bytes"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_missing() {
        let file = SecretRef::File("/nonexistent/secret".to_owned());
        assert_eq!(ProcessSecrets.resolve(&file), Err(Unresolved::Missing));
        let variable = SecretRef::Env("EXPEDITER_SIM_NOT_SET".to_owned());
        assert_eq!(ProcessSecrets.resolve(&variable), Err(Unresolved::Missing));
    }
}
