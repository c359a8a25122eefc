/// Why bytes are not what they should be, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The format's version is above the one this reader knows.
    #[error("{what} was written by a newer version (v {v}, this one reads up to v 1)")]
    Newer { what: &'static str, v: u64 },
    /// Not the JSON that it should be.
    #[error("{what} is not readable")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// Readable, but not valid.
    #[error("{what} is not valid: {detail}")]
    Invalid { what: &'static str, detail: String },
    /// More than a message can carry, or than a reader accepts.
    #[error("{what} has {len} bytes, at most {max} are accepted")]
    TooLarge {
        what: &'static str,
        len: usize,
        max: usize,
    },
    /// Not one of the subjects of OUTCOMES.
    #[error("{subject:?} is no subject of outcomes")]
    Subject { subject: String },
}

impl WireError {
    pub(crate) fn invalid(what: &'static str, detail: impl ToString) -> Self {
        Self::Invalid {
            what,
            detail: detail.to_string(),
        }
    }
}
