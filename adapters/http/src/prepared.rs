//! What is the same for all attempts of one merchant revision, made once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use expediter_types::{Idempotency, Lookup, Merchant, MerchantId, OrderId, Secret, SecretRef};
use reqwest::header::{
    AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
};
use reqwest::{Method, Url};

use crate::Egress;
use crate::secrets::{Scrubber, SecretSource};

/// A resolved secret is used so long before it is looked up again.
const SECRET_TTL: Duration = Duration::from_secs(5);
/// At most so many merchants are kept prepared.
const MAX_PREPARED: usize = 10_000;
/// When there are too many, those that were not used for so long go first.
const UNUSED: Duration = Duration::from_secs(60);

/// These belong to the client: set by a manifest they would break the framing of requests.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// One merchant revision.
#[derive(Debug)]
pub(crate) struct Prepared {
    merchant: Arc<Merchant>,
    /// Or what is wrong with the manifest or the machine it names.
    pub(crate) target: Result<Target, String>,
    resolved: tokio::sync::Mutex<Option<(Instant, Credentials)>>,
    /// Milliseconds since the cache was made.
    used: AtomicU64,
}

/// Where requests go and what they carry.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) method: Method,
    /// `host:port` for people.
    pub(crate) place: String,
    pub(crate) host: String,
    pub(crate) repeatable: bool,
    /// The URL has an IPv6 address.
    pub(crate) is_v6: bool,
    plain: HeaderMap,
    secrets: Vec<(HeaderName, SecretRef)>,
    /// Values in the query of the URL and of the look-up's: they may be keys.
    queries: Vec<String>,
}

/// The manifest's headers with their secrets, and what must not be shown of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) headers: Arc<HeaderMap>,
    pub(crate) scrubber: Arc<Scrubber>,
}

/// A URL that may be dialled.
struct Place {
    url: Url,
    name: String,
    host: String,
    is_v6: bool,
}

impl Place {
    fn of(text: &str, egress: &Egress) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|error| format!("url: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("url: scheme {} is not http or https", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("url: credentials belong in a header with a secret reference".to_owned());
        }
        url.set_fragment(None);
        let host = url.host_str().ok_or("url: has no host")?.to_owned();
        let port = url.port_or_known_default().unwrap_or_default();
        // The client dials addresses in URLs without asking the resolver.
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
        if let Some(address) = address {
            egress
                .check(&host, address)
                .map_err(|blocked| blocked.to_string())?;
        }
        Ok(Self {
            name: format!("{host}:{port}"),
            is_v6: address.is_some_and(|address| address.is_ipv6()),
            host,
            url,
        })
    }
}

impl Target {
    /// Where the merchant is asked for the order of this id.
    pub(crate) fn asking(lookup: &Lookup, id: &OrderId, egress: &Egress) -> Result<Self, String> {
        let with = |id: &str| Place::of(&lookup.url.replace("{id}", id), egress);
        let (place, other) = (with(&percent_encoded(id.as_str()))?, with("x")?);
        // An id can name an order of the merchant, not another server or another resource.
        let shape = |url: &Url| {
            let segments = url.path_segments().map_or(0, Iterator::count);
            (url.origin(), segments)
        };
        if shape(&place.url) != shape(&other.url) {
            return Err("url: the order's id does not fit into it".to_owned());
        }
        Ok(Self {
            repeatable: false,
            method: Method::GET,
            place: place.name,
            host: place.host,
            is_v6: place.is_v6,
            url: place.url,
            plain: HeaderMap::new(),
            secrets: Vec::new(),
            queries: Vec::new(),
        })
    }

    pub(crate) fn of(merchant: &Merchant, egress: &Egress) -> Result<Self, String> {
        let adapter = &merchant.adapter;
        let method = Method::from_bytes(adapter.method.as_bytes())
            .map_err(|_| format!("method {:?} is not one", adapter.method))?;
        let place = Place::of(&adapter.url, egress)?;
        let (mut plain, mut secrets) = (HeaderMap::new(), Vec::new());
        for (name, value) in &adapter.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("header {name:?}: not a legal name"))?;
            if FRAMING.contains(&header.as_str()) {
                return Err(format!("header {name}: belongs to the connection"));
            }
            match value {
                Secret::Plain(text) => {
                    let mut value = HeaderValue::from_str(text)
                        .map_err(|_| format!("header {name}: not a legal value"))?;
                    let masked = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&header);
                    value.set_sensitive(masked);
                    plain.append(header, value);
                }
                Secret::Reference(reference) => secrets.push((header, reference.clone())),
            }
        }
        let mut queries = query_values(&place.url);
        if let Some(lookup) = &adapter.lookup
            && let Ok(url) = Url::parse(&lookup.url)
        {
            queries.extend(query_values(&url));
        }
        Ok(Self {
            queries,
            repeatable: adapter.idempotency == Idempotency::Native,
            method,
            place: place.name,
            host: place.host,
            is_v6: place.is_v6,
            url: place.url,
            plain,
            secrets,
        })
    }

    /// Blocks where a secret is a file.
    fn resolve(&self, source: &dyn SecretSource) -> Result<Credentials, String> {
        let mut headers = self.plain.clone();
        let mut values = Vec::with_capacity(self.secrets.len());
        for (name, reference) in &self.secrets {
            let text = source
                .resolve(reference)
                .map_err(|cause| format!("secret {reference} of header {name}: {cause}"))?;
            let text = text.trim_end_matches(['\r', '\n']).to_owned();
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| format!("secret {reference}: no legal value of header {name}"))?;
            value.set_sensitive(true);
            headers.append(name, value);
            values.push(text);
        }
        let sensitive = self.plain.values().filter(|value| value.is_sensitive());
        let sensitive = sensitive.filter_map(|value| value.to_str().ok());
        let values = values.iter().map(String::as_str);
        let queries = self.queries.iter().map(String::as_str);
        let scrubber = Scrubber::new(values.chain(sensitive).chain(queries));
        Ok(Credentials {
            headers: Arc::new(headers),
            scrubber: Arc::new(scrubber),
        })
    }
}

/// A key is as long as this; shorter ones would hide ordinary words.
const KEY: usize = 8;

/// What may be a key in a URL's query, as it stands there and as it is meant.
fn query_values(url: &Url) -> Vec<String> {
    let raw = url.query().unwrap_or_default().split('&');
    let raw = raw.filter_map(|pair| Some(pair.split_once('=')?.1.to_owned()));
    let meant = url.query_pairs().map(|(_, value)| value.into_owned());
    let mut values: Vec<String> = raw.chain(meant).collect();
    values.retain(|value| value.len() >= KEY && !value.contains("{id}"));
    values.sort_unstable();
    values.dedup();
    values
}

/// Everything but letters, digits and `-_.~`.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte.into());
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

impl Prepared {
    fn new(merchant: Arc<Merchant>, egress: &Egress) -> Self {
        Self {
            target: Target::of(&merchant, egress),
            resolved: tokio::sync::Mutex::new(None),
            used: AtomicU64::new(0),
            merchant,
        }
    }

    /// The manifest's headers; secrets not older than [`SECRET_TTL`]. The error names the
    /// reference that leads nowhere.
    pub(crate) async fn credentials(
        self: &Arc<Self>,
        source: &Arc<dyn SecretSource>,
    ) -> Result<Credentials, String> {
        let target = self.target.as_ref().map_err(Clone::clone)?;
        // Held while they are resolved: one look at the source serves all that wait.
        let mut resolved = self.resolved.lock().await;
        if let Some((at, credentials)) = &*resolved
            && (target.secrets.is_empty() || at.elapsed() < SECRET_TTL)
        {
            return Ok(credentials.clone());
        }
        let reads_file = target
            .secrets
            .iter()
            .any(|(_, r)| matches!(r, SecretRef::File(_)));
        let credentials = if reads_file {
            let (this, source) = (Arc::clone(self), Arc::clone(source));
            let resolve = move || match &this.target {
                Ok(target) => target.resolve(&*source),
                Err(wrong) => Err(wrong.clone()),
            };
            tokio::task::spawn_blocking(resolve)
                .await
                .map_err(|_| "secrets: their source failed".to_owned())??
        } else {
            target.resolve(&**source)?
        };
        *resolved = Some((Instant::now(), credentials.clone()));
        Ok(credentials)
    }
}

/// Prepared merchants by id; the newest revision seen of each.
#[derive(Debug)]
pub(crate) struct Cache {
    since: Instant,
    prepared: Mutex<HashMap<MerchantId, Arc<Prepared>>>,
}

impl Cache {
    pub(crate) fn new() -> Self {
        Self {
            since: Instant::now(),
            prepared: Mutex::default(),
        }
    }

    /// A revision is known by its pointer, which the entry keeps alive.
    pub(crate) fn get(&self, merchant: &Arc<Merchant>, egress: &Egress) -> Arc<Prepared> {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&merchant.id)
            && Arc::ptr_eq(&known.merchant, merchant)
        {
            known.used.store(now, Ordering::Relaxed);
            return Arc::clone(known);
        }
        if all.len() >= MAX_PREPARED && !all.contains_key(&merchant.id) {
            let unused = u64::try_from(UNUSED.as_millis()).unwrap_or(u64::MAX);
            let oldest = now.saturating_sub(unused);
            all.retain(|_, prepared| prepared.used.load(Ordering::Relaxed) >= oldest);
            if all.len() >= MAX_PREPARED {
                all.clear();
            }
        }
        let prepared = Prepared::new(Arc::clone(merchant), egress);
        prepared.used.store(now, Ordering::Relaxed);
        let prepared = Arc::new(prepared);
        all.insert(merchant.id.clone(), Arc::clone(&prepared));
        prepared
    }
}
