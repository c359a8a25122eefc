use std::fmt::Debug;

use expediter_types::SecretRef;

/// Where secrets are kept. Neither environment nor files are read here: the binary does that.
/// `Debug` must not show values.
pub trait SecretSource: Debug + Send + Sync + 'static {
    /// The value; a trailing newline is cut by the caller. For a file it is called on a thread
    /// that may block, for the environment it must not.
    fn resolve(&self, reference: &SecretRef) -> Result<String, Unresolved>;
}

/// Why a reference leads nowhere. Must not quote the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("it does not exist")]
    Missing,
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// What stands in the place of a secret.
const MASK: &[u8] = b"***";

/// Removes secrets from what is shown.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    /// Longest first, so that a secret that contains another one goes whole.
    needles: Vec<Needle>,
}

struct Needle(Vec<u8>);

impl Debug for Needle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Scrubber {
    /// Looks for the values, for the parts of values such as `Bearer <token>`, and for both as
    /// JSON writes them.
    pub(crate) fn new<'s>(secrets: impl Iterator<Item = &'s str>) -> Self {
        let mut needles: Vec<Vec<u8>> = Vec::new();
        let mut add = |text: &str| {
            needles.push(text.as_bytes().to_vec());
            let json = serde_json::Value::from(text).to_string();
            needles.push(json.trim_matches('"').as_bytes().to_vec());
        };
        for secret in secrets {
            add(secret);
            // Short words ("Basic") are no secrets by themselves.
            secret
                .split_whitespace()
                .filter(|part| part.len() >= 8)
                .for_each(&mut add);
        }
        needles.retain(|needle| !needle.is_empty());
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self {
            needles: needles.into_iter().map(Needle).collect(),
        }
    }

    /// With `cut`, the bytes are the beginning of something longer: a secret may be cut, too.
    pub(crate) fn bytes(&self, bytes: &[u8], cut: bool) -> Vec<u8> {
        let mut clean = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if let Some(needle) = self.needles.iter().find(|n| rest.starts_with(&n.0)) {
                clean.extend_from_slice(MASK);
                rest = &rest[needle.0.len()..];
            } else if cut && self.needles.iter().any(|n| n.0.starts_with(rest)) {
                clean.extend_from_slice(MASK);
                rest = &[];
            } else {
                clean.push(*first);
                rest = &rest[1..];
            }
        }
        clean
    }

    pub(crate) fn text(&self, text: &str) -> String {
        if self.needles.is_empty() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&self.bytes(text.as_bytes(), false)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_removed_in_every_form() {
        let scrubber = Scrubber::new(["Bearer tok\"en-12345", "key"].into_iter());
        for (dirty, clean) in [
            ("a key b keykey", "a *** b ******"),
            ("Bearer tok\"en-12345", "***"),
            ("only tok\"en-12345.", "only ***."),
            (r#"{"k":"tok\"en-12345"}"#, r#"{"k":"***"}"#),
            ("Bearer of news", "Bearer of news"),
        ] {
            assert_eq!(scrubber.text(dirty), clean);
        }
        assert_eq!(scrubber.bytes(b"x tok\"en-1", true), b"x ***");
        assert_eq!(scrubber.bytes(b"x tok\"en-1", false), b"x tok\"en-1");
        assert_eq!(
            format!("{scrubber:?}"),
            "Scrubber { needles: [***, ***, ***, ***, ***] }"
        );
        assert_eq!(Scrubber::default().text("key"), "key");
    }
}
