/// Why no courier could be made. Attempts have no errors: whatever happens is an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process installs one before it makes a courier.
    #[error("no TLS crypto provider is installed")]
    NoCryptoProvider,
    #[error("entry {entry:?} is no address, no network such as 10.0.0.0/8, and no host name")]
    Egress {
        /// The entry, at most 160 characters of it.
        entry: String,
    },
    #[error("{option} is out of range: allowed is {allowed}")]
    Option {
        option: &'static str,
        allowed: &'static str,
    },
    #[error("extra root certificate {number} cannot be read")]
    RootCertificate {
        /// 1 for the first.
        number: usize,
        #[source]
        source: reqwest::Error,
    },
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
}
