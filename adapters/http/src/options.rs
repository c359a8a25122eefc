use std::sync::Arc;
use std::time::Duration;

use crate::{Egress, Error, SecretSource};

/// How a courier talks to all merchants; what differs between them is in their manifests.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which addresses may be dialled; none but public ones by default.
    pub egress: Egress,
    /// Look-up, TCP and TLS together; 100 ms to 30 s, 3 s by default.
    pub connect_timeout: Duration,
    /// So much of a response is read at most, in bytes; 4 KiB to 16 MiB, 1 MiB by default.
    pub max_response_bytes: usize,
    /// A merchant that asks for a shorter wait is left alone so long; up to `retry_after_max`,
    /// 1 s by default.
    pub retry_after_min: Duration,
    /// A merchant that asks for a longer wait is tried again after this; up to 24 h, 1 h by
    /// default.
    pub retry_after_max: Duration,
    /// For 429 without a usable Retry-After; 1 s by default, clamped like one.
    pub rate_limited_default: Duration,
    /// `expediter/<version>` by default.
    pub user_agent: String,
    /// Idle connections kept for one host; 0 to 10,000, 32 by default.
    pub pool_idle_per_host: usize,
    /// How long an idle connection to a merchant with native idempotency is kept; 50 s by
    /// default, below the keep-alive of common load balancers (60 s).
    pub pool_idle: Duration,
    /// The same for merchants whose attempts cannot be repeated. A request that meets a
    /// connection which the merchant is just closing becomes ambiguous, and with these a person
    /// must look at it; 1 s by default, below the keep-alive of common servers (2 s and more).
    pub pool_idle_unrepeatable: Duration,
    /// PEM bundles of certificate authorities to trust besides the system's.
    pub extra_roots: Vec<Vec<u8>>,
    /// Where the secrets are that manifests refer to.
    pub secrets: Arc<dyn SecretSource>,
}

impl Options {
    /// All defaults.
    #[must_use]
    pub fn new(secrets: Arc<dyn SecretSource>) -> Self {
        Self {
            egress: Egress::public_only(),
            connect_timeout: Duration::from_secs(3),
            max_response_bytes: 1 << 20,
            retry_after_min: Duration::from_secs(1),
            retry_after_max: Duration::from_secs(3_600),
            rate_limited_default: Duration::from_secs(1),
            user_agent: concat!("expediter/", env!("CARGO_PKG_VERSION")).to_owned(),
            pool_idle_per_host: 32,
            pool_idle: Duration::from_secs(50),
            pool_idle_unrepeatable: Duration::from_secs(1),
            extra_roots: Vec::new(),
            secrets,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let within = |holds: bool, option, allowed| match holds {
            true => Ok(()),
            false => Err(Error::Option { option, allowed }),
        };
        let connect = Duration::from_millis(100)..=Duration::from_secs(30);
        within(
            connect.contains(&self.connect_timeout),
            "connect_timeout",
            "100ms to 30s",
        )?;
        let bytes = 4 << 10..=16 << 20;
        within(
            bytes.contains(&self.max_response_bytes),
            "max_response_bytes",
            "4 KiB to 16 MiB",
        )?;
        let longest = Duration::from_secs(86_400);
        within(
            self.retry_after_max <= longest,
            "retry_after_max",
            "up to 24h",
        )?;
        let ordered = self.retry_after_min <= self.retry_after_max;
        within(ordered, "retry_after_min", "up to retry_after_max")?;
        within(
            self.pool_idle_per_host <= 10_000,
            "pool_idle_per_host",
            "0 to 10000",
        )
    }
}
