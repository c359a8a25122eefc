use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use expediter_core::Order;
use expediter_ports::{AttemptRequest, BoxFuture, Courier};
use expediter_types::{Answer, AttemptClass, MAX_EXCERPT, Merchant};
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Certificate, Client, Request, Response, StatusCode};
use rustls::crypto::CryptoProvider;
use tokio::time::timeout_at;

use crate::body::{PROGRESS, Progress, TrackedBody};
use crate::classify::{matching_rule, needs_body, table};
use crate::exchange::{Exchange, Seen, shown};
use crate::fault::{self, Fault};
use crate::inquiry::Looked;
use crate::lookup::{Names, SystemNames};
use crate::prepared::{Cache, Credentials, Target};
use crate::resolver::GuardedResolver;
use crate::response::{Need, read};
use crate::secrets::Scrubber;
use crate::{Egress, Error, Options, request, retry_after, text};

/// Secrets are looked for in so much of a body, of which at most [`MAX_EXCERPT`] is kept.
const SCRUBBED: usize = 64 << 10;

/// Hands orders to merchants over HTTP/1.1 and HTTP/2.
///
/// Cheap to clone: clones share connections. Connections live on the runtime that polled the
/// attempt which opened them, so attempts belong on a runtime that lives as long as the courier.
#[derive(Clone)]
pub struct HttpCourier {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) egress: Arc<Egress>,
    /// For merchants that honour idempotency keys.
    repeatable: Client,
    /// For the others: gives idle connections up sooner.
    pub(crate) unrepeatable: Client,
    pub(crate) cache: Cache,
}

impl fmt::Debug for HttpCourier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpCourier")
            .field("egress", &self.shared.egress)
            .finish_non_exhaustive()
    }
}

impl HttpCourier {
    /// Loads the system's certificate authorities and makes the connection pools. Opens nothing.
    pub fn new(options: Options) -> Result<Self, Error> {
        options.check()?;
        if CryptoProvider::get_default().is_none() {
            return Err(Error::NoCryptoProvider);
        }
        let egress = Arc::new(options.egress.clone());
        let names: Arc<dyn Names> = Arc::new(SystemNames);
        let resolver = GuardedResolver::new(Arc::clone(&egress), names, options.connect_timeout);
        let shared = Shared {
            repeatable: client(&options, &resolver, options.pool_idle)?,
            unrepeatable: client(&options, &resolver, options.pool_idle_unrepeatable)?,
            cache: Cache::new(),
            egress,
            options,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// One attempt, number 1, on the same road as all others, with a record of it for people.
    pub fn test_exchange(
        &self,
        merchant: Arc<Merchant>,
        order: Arc<Order>,
    ) -> BoxFuture<'static, Exchange> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let mut seen = Seen::default();
            let request = AttemptRequest {
                merchant,
                order,
                number: 1,
                look_first: false,
                may_leave: expediter_ports::MayLeave::always(),
            };
            let answer = shared.attempt(request, Some(&mut seen)).await;
            seen.with(answer)
        })
    }
}

impl Courier for HttpCourier {
    fn attempt(&self, request: AttemptRequest) -> BoxFuture<'static, Answer> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.attempt(request, None).await })
    }
}

pub(crate) fn client(
    options: &Options,
    resolver: &GuardedResolver,
    pool_idle: Duration,
) -> Result<Client, Error> {
    let mut roots = Vec::new();
    for (index, pem) in options.extra_roots.iter().enumerate() {
        let unreadable = |source| Error::RootCertificate {
            number: index + 1,
            source,
        };
        roots.extend(Certificate::from_pem_bundle(pem).map_err(unreadable)?);
    }
    let builder = || {
        Client::builder()
            .user_agent(&options.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .no_proxy()
            .tcp_nodelay(true)
            .connect_timeout(options.connect_timeout)
            .pool_idle_timeout(pool_idle)
            .pool_max_idle_per_host(options.pool_idle_per_host)
            .dns_resolver(resolver.clone())
    };
    match builder().tls_certs_merge(roots.clone()).build() {
        Ok(client) => Ok(client),
        // A machine without certificate authorities can still reach merchants over plain HTTP;
        // those with TLS get an answer that says what is wrong.
        Err(error) => {
            let client = builder()
                .tls_certs_only(roots)
                .build()
                .map_err(Error::Client)?;
            tracing::warn!(%error, "this machine has no certificate authorities: TLS will fail");
            Ok(client)
        }
    }
}

/// An answer before secrets are taken out of it.
pub(crate) struct Verdict {
    pub(crate) class: AttemptClass,
    pub(crate) status: Option<u16>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) absent: bool,
    pub(crate) detail: String,
    pub(crate) excerpt: Vec<u8>,
    pub(crate) scrubber: Option<Arc<Scrubber>>,
}

impl Verdict {
    pub(crate) fn of(class: AttemptClass, detail: String) -> Self {
        let (excerpt, scrubber) = (Vec::new(), None);
        Self {
            class,
            status: None,
            retry_after: None,
            absent: false,
            detail,
            excerpt,
            scrubber,
        }
    }
}

impl Shared {
    async fn attempt(&self, request: AttemptRequest, seen: Option<&mut Seen>) -> Answer {
        let started = Instant::now();
        let verdict = self.exchange(&request, started, seen).await;
        let detail = match &verdict.scrubber {
            Some(scrubber) => text::line(&scrubber.text(&verdict.detail)),
            None => text::line(&verdict.detail),
        };
        let answer = Answer {
            class: verdict.class,
            status: verdict.status,
            retry_after: verdict.retry_after,
            absent: verdict.absent,
            detail,
            excerpt: verdict.excerpt.into(),
            took: started.elapsed(),
        };
        tracing::debug!(
            merchant = %request.merchant.id,
            order = %request.order.envelope.id,
            attempt = request.number,
            class = %answer.class,
            took = ?answer.took,
            detail = answer.detail,
            "attempt ended",
        );
        answer
    }

    /// Where a former attempt may have been received, the merchant is asked first.
    async fn exchange(
        &self,
        request: &AttemptRequest,
        started: Instant,
        seen: Option<&mut Seen>,
    ) -> Verdict {
        if !request.look_first {
            return self.send(request, started, seen).await;
        }
        match self.look(request, started).await {
            Looked::Decided(verdict) => *verdict,
            Looked::Absent => {
                let mut verdict = self.send(request, started, seen).await;
                verdict.absent = true;
                verdict.detail += " (the look-up before it had not found the order)";
                verdict
            }
        }
    }

    async fn send(
        &self,
        request: &AttemptRequest,
        started: Instant,
        mut seen: Option<&mut Seen>,
    ) -> Verdict {
        let (merchant, order) = (&*request.merchant, &*request.order);
        let timeout = merchant.adapter.timeout;
        let deadline = tokio::time::Instant::from_std(started + timeout);
        let misconfigured = |detail| Verdict::of(AttemptClass::Misconfigured, detail);

        let prepared = self.cache.get(&request.merchant, &self.egress);
        let target = match &prepared.target {
            Ok(target) => target,
            Err(wrong) => return misconfigured(wrong.clone()),
        };
        let credentials = prepared.credentials(&self.options.secrets);
        let credentials = match timeout_at(deadline, credentials).await {
            Ok(Ok(credentials)) => credentials,
            Ok(Err(wrong)) => return misconfigured(wrong),
            Err(_) => {
                let detail = "the merchant's secrets could not be read in time".to_owned();
                return Verdict::of(AttemptClass::Local, detail);
            }
        };

        let mut outgoing = Request::new(target.method.clone(), target.url.clone());
        let headers = outgoing.headers_mut();
        headers.clone_from(&credentials.headers);
        request::add_order(headers, merchant, order, request.number, target.repeatable);
        if let Some(seen) = seen.as_deref_mut() {
            seen.method = target.method.to_string();
            seen.url = without_query(target);
            seen.request_headers = shown(headers, &credentials.scrubber);
        }
        let progress = Progress::new(started);
        let body = TrackedBody::new(
            order.payload.clone(),
            Arc::clone(&progress),
            request.may_leave.clone(),
        );
        *outgoing.body_mut() = Some(reqwest::Body::wrap(body));

        let client = if target.repeatable {
            &self.repeatable
        } else {
            &self.unrepeatable
        };
        let sending = PROGRESS.scope(Arc::clone(&progress), client.execute(outgoing));
        let answered = timeout_at(deadline, sending).await;
        if let Some(seen) = seen.as_deref_mut() {
            seen.sent_after = progress.sent_after();
        }
        let fault = match answered {
            Ok(Ok(response)) => {
                if let Some(seen) = seen.as_deref_mut() {
                    seen.answered_after = Some(started.elapsed());
                }
                return self
                    .answered(merchant, target, &credentials, response, deadline, seen)
                    .await;
            }
            Ok(Err(error)) => fault::judge(&error, target, &progress),
            Err(_) => fault::timed_out(target, &progress, timeout),
        };
        let Fault { class, detail } = fault;
        Verdict {
            scrubber: Some(credentials.scrubber),
            ..Verdict::of(class, detail)
        }
    }

    async fn answered(
        &self,
        merchant: &Merchant,
        target: &Target,
        credentials: &Credentials,
        mut response: Response,
        deadline: tokio::time::Instant,
        seen: Option<&mut Seen>,
    ) -> Verdict {
        let adapter = &merchant.adapter;
        let (status, code) = (response.status(), response.status().as_u16());
        let rules = &adapter.classify;
        let expected = table(code, &adapter.rejected);
        let (rule, need) = if needs_body(code, response.headers(), rules) {
            (None, Need::Whole)
        } else {
            let rule = matching_rule(code, response.headers(), &[], rules);
            let delivered = is_delivered(rule.map_or(expected, |(_, rule)| rule.class));
            let quiet = delivered && seen.is_none();
            (rule, if quiet { Need::Nothing } else { Need::Excerpt })
        };
        let body = read(
            &mut response,
            need,
            self.options.max_response_bytes,
            deadline,
        )
        .await;
        let headers = response.headers();
        let rule = match need {
            Need::Whole if body.cut => matching_rule(code, headers, &[], rules),
            Need::Whole => matching_rule(code, headers, &body.bytes, rules),
            Need::Nothing | Need::Excerpt => rule,
        };
        let now = SystemTime::now();
        let asked = retry_after::requested(headers, now);
        let class = match (rule, expected) {
            (Some((_, rule)), _) => rule.class,
            // To wait as asked uses up no attempt.
            (None, AttemptClass::Retry) if asked.is_some() => AttemptClass::RateLimited,
            (None, class) => class,
        };
        let delivered = is_delivered(class);
        let mut excerpt = Vec::new();
        if !delivered || seen.is_some() {
            let looked_at = body.bytes.len().min(SCRUBBED);
            let cut = body.cut || looked_at < body.bytes.len();
            excerpt = credentials.scrubber.bytes(&body.bytes[..looked_at], cut);
            excerpt.truncate(MAX_EXCERPT);
        }
        if let Some(seen) = seen {
            seen.version = format!("{:?}", response.version());
            seen.response_headers = shown(headers, &credentials.scrubber);
            seen.body = Bytes::from(excerpt.clone());
        }
        if delivered {
            excerpt = Vec::new();
        }
        Verdict {
            class,
            status: Some(code),
            retry_after: self.wait(class, asked.or(retry_after::used_up(headers, now))),
            absent: false,
            detail: described(status, headers, target, rule.map(|(number, _)| number)),
            excerpt,
            scrubber: Some(Arc::clone(&credentials.scrubber)),
        }
    }

    pub(crate) fn wait(&self, class: AttemptClass, asked: Option<Duration>) -> Option<Duration> {
        let options = &self.options;
        let limited = class == AttemptClass::RateLimited;
        let wait = asked.or(limited.then_some(options.rate_limited_default))?;
        Some(wait.clamp(options.retry_after_min, options.retry_after_max))
    }
}

fn is_delivered(class: AttemptClass) -> bool {
    matches!(class, AttemptClass::Delivered | AttemptClass::AlreadyDone)
}

pub(crate) fn described(
    status: StatusCode,
    headers: &HeaderMap,
    target: &Target,
    rule: Option<usize>,
) -> String {
    let mut line = format!("HTTP {}", status.as_u16());
    if let Some(reason) = status.canonical_reason() {
        line = format!("{line} {reason}");
    }
    if status.is_redirection()
        && let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok())
    {
        let host = target.url.join(location).ok();
        let host = host
            .as_ref()
            .and_then(|url| url.host_str())
            .unwrap_or("an unusable address");
        line = format!("{line}: redirects to {host}, which is not followed");
    }
    match rule {
        Some(number) => format!("{line} (classify rule {number})"),
        None => line,
    }
}

/// A query may hold keys.
fn without_query(target: &Target) -> String {
    let mut url = target.url.clone();
    if url.query().is_some() {
        url.set_query(Some("***"));
    }
    url.into()
}
