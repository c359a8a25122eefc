//! Signed notifications to the operators' own system, as Standard Webhooks says.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::{Client, Url};
use ring::hmac;
use rustls::crypto::CryptoProvider;

use crate::courier::client;
use crate::lookup::{Names, SystemNames};
use crate::resolver::{GuardedResolver, ResolveError};
use crate::{Blocked, Egress, Error, Options, text};

/// How long an idle connection to the receiver is kept.
const IDLE: Duration = Duration::from_secs(50);
/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// Bytes of a key.
const KEY: std::ops::RangeInclusive<usize> = 24..=64;

/// Why there can be no webhook. No message repeats the URL or the secret.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("must be an http:// or https:// URL without user and password")]
    Url,
    #[error(
        "address {} is {}: notify.allow does not list it", .0.address, .0.kind
    )]
    Blocked(Blocked),
    #[error("the secret must be whsec_ and the base64 of 24 to 64 bytes")]
    Secret,
    #[error(transparent)]
    Client(#[from] Error),
}

/// The receiver did not take a message. Says why, without URL and secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotTaken(String);

/// Where notifications go. Cheap to clone.
#[derive(Clone)]
pub struct Webhook {
    client: Client,
    url: Url,
    /// `host:port` for people; the path may be secret.
    place: Arc<str>,
    key: hmac::Key,
    timeout: Duration,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    /// `secret`: `whsec_` and base64; `timeout`: of a whole try. Of the options count the connect
    /// timeout, the certificate authorities, the user agent, and the egress rules, which are the
    /// receiver's own and not the merchants'.
    ///
    /// # Errors
    /// A URL or a secret that is none, an address in the URL that the rules refuse, no TLS.
    pub fn new(
        options: &Options,
        url: &str,
        secret: &str,
        timeout: Duration,
    ) -> Result<Self, WebhookError> {
        if CryptoProvider::get_default().is_none() {
            return Err(Error::NoCryptoProvider.into());
        }
        let url = target(url, &options.egress)?;
        let key = key(secret)?;
        let egress = Arc::new(options.egress.clone());
        let names: Arc<dyn Names> = Arc::new(SystemNames);
        let resolver = GuardedResolver::new(egress, names, options.connect_timeout);
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or_default();
        Ok(Self {
            client: client(options, &resolver, IDLE)?,
            place: format!("{host}:{port}").into(),
            url,
            key,
            timeout,
        })
    }

    /// Whether [`Webhook::new`] would take the URL.
    ///
    /// # Errors
    /// It is none, or has an address that the rules refuse.
    pub fn check_url(url: &str, egress: &Egress) -> Result<(), WebhookError> {
        target(url, egress).map(drop)
    }

    /// `host:port` of the receiver.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// One try. `id` is the same in each try of a message, `at` (Unix seconds) is that of the try.
    ///
    /// # Errors
    /// The receiver did not answer 2xx in time.
    pub async fn post(&self, id: &str, at: u64, body: Bytes) -> Result<(), NotTaken> {
        let signature = self.signature(id, at, &body);
        let sent = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature)
            .body(body)
            .timeout(self.timeout)
            .send();
        match sent.await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(NotTaken(format!("HTTP {}", answer.status()))),
            Err(error) => Err(NotTaken(why(error))),
        }
    }

    /// `v1,` and the base64 of HMAC-SHA256 over `id.at.body`.
    fn signature(&self, id: &str, at: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(format!("{id}.{at}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

fn target(url: &str, egress: &Egress) -> Result<Url, WebhookError> {
    let url = Url::parse(url).map_err(|_| WebhookError::Url)?;
    let bare = url.username().is_empty() && url.password().is_none();
    let host = url.host_str().filter(|_| bare).ok_or(WebhookError::Url)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(WebhookError::Url);
    }
    // The client dials addresses in URLs without asking the resolver.
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        egress.check(host, address).map_err(WebhookError::Blocked)?;
    }
    Ok(url)
}

fn key(secret: &str) -> Result<hmac::Key, WebhookError> {
    let bytes = secret
        .trim()
        .strip_prefix(PREFIX)
        .and_then(|text| STANDARD.decode(text).ok())
        .filter(|bytes| KEY.contains(&bytes.len()));
    let bytes = bytes.ok_or(WebhookError::Secret)?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The error's chain without the URL.
fn why(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        if let Some(ResolveError::Blocked(blocked)) = error.downcast_ref() {
            let Blocked {
                host,
                address,
                kind,
            } = blocked;
            return format!(
                "address {address} of host {host} is {kind}: notify.allow does not list it"
            );
        }
        told = format!("{told}: {error}");
        cause = error.source();
    }
    text::line(&told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str, secret: &str) -> Result<Webhook, WebhookError> {
        // A second call finds the same provider in place.
        let _installed = rustls::crypto::ring::default_provider()
            .install_default()
            .is_ok();
        let options = Options {
            egress: Egress::new(&["127.0.0.1"]).unwrap(),
            ..Options::new(Arc::new(NoSecrets))
        };
        Webhook::new(&options, url, secret, Duration::from_secs(1))
    }

    #[derive(Debug)]
    struct NoSecrets;

    impl crate::SecretSource for NoSecrets {
        fn resolve(
            &self,
            _reference: &expediter_types::SecretRef,
        ) -> Result<String, crate::Unresolved> {
            Err(crate::Unresolved::Missing)
        }
    }

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The example of the Standard Webhooks libraries.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let webhook = webhook("http://127.0.0.1:1/x", SECRET).unwrap();
        let signature = webhook.signature(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_wrong_is_told_without_the_secrets() {
        for secret in ["", "whsec_", "hunter2", "whsec_!!!", "whsec_c2hvcnQ="] {
            let error = webhook("http://127.0.0.1:1/x", secret).unwrap_err();
            assert!(matches!(error, WebhookError::Secret), "{error}");
        }
        for url in ["", "ftp://h/", "http://u:p@h/", "h", "http://"] {
            let error = webhook(url, SECRET).unwrap_err();
            assert!(matches!(error, WebhookError::Url), "{url}: {error}");
        }
        let blocked = webhook("http://10.0.0.1/hidden-token", SECRET).unwrap_err();
        assert_eq!(
            blocked.to_string(),
            "address 10.0.0.1 is private: notify.allow does not list it"
        );
    }

    #[tokio::test]
    async fn a_receiver_that_is_not_there_is_told_without_its_path() {
        let webhook = webhook("http://127.0.0.1:1/hidden-token", SECRET).unwrap();
        let error = webhook.post("msg_1", 1, Bytes::new()).await.unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("refused") && !told.contains("hidden"),
            "{told}"
        );
        assert_eq!(webhook.place(), "127.0.0.1:1");
    }
}
