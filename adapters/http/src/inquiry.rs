//! Asks a merchant whether it has an order, before anything is repeated.
//!
//! Constraint: whatever a look-up ends with, nothing was sent: it is never called ambiguous, and
//! where it decides nothing the order stays in doubt.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use expediter_ports::AttemptRequest;
use expediter_types::{AttemptClass, Lookup, LookupVerdict};
use reqwest::{Request, Response};
use tokio::time::timeout_at;

use crate::body::{PROGRESS, Progress};
use crate::classify::{matching_rule, needs_body, table};
use crate::courier::{Shared, Verdict, described};
use crate::fault;
use crate::prepared::Target;
use crate::response::{Need, read};
use crate::{request, retry_after};

/// What came of a look-up.
pub(crate) enum Looked {
    /// The merchant has the order, or nobody knows: nothing is to be sent now.
    Decided(Box<Verdict>),
    /// It has not.
    Absent,
}

impl Shared {
    /// Within the attempt's own timeout.
    pub(crate) async fn look(&self, attempt: &AttemptRequest, started: Instant) -> Looked {
        let verdict = match self.ask(attempt, started).await {
            Ok(LookupVerdict::Absent) => return Looked::Absent,
            Ok(LookupVerdict::Found) => {
                let detail = "a look-up found it".to_owned();
                Verdict::of(AttemptClass::AlreadyDone, detail)
            }
            Err(mut undecided) => {
                undecided.class = unsent(undecided.class);
                undecided.detail = format!("look-up: {} (nothing was sent)", undecided.detail);
                *undecided
            }
        };
        Looked::Decided(Box::new(verdict))
    }

    async fn ask(
        &self,
        attempt: &AttemptRequest,
        started: Instant,
    ) -> Result<LookupVerdict, Box<Verdict>> {
        let (merchant, order) = (&*attempt.merchant, &*attempt.order);
        let timeout = merchant.adapter.timeout;
        let deadline = tokio::time::Instant::from_std(started + timeout);
        let misconfigured =
            |detail: String| Box::new(Verdict::of(AttemptClass::Misconfigured, detail));
        let Some(lookup) = &merchant.adapter.lookup else {
            return Err(misconfigured("the manifest says nowhere how".to_owned()));
        };
        let target =
            Target::asking(lookup, &order.envelope.id, &self.egress).map_err(misconfigured)?;
        let prepared = self.cache.get(&attempt.merchant, &self.egress);
        let credentials = prepared.credentials(&self.options.secrets);
        let credentials = match timeout_at(deadline, credentials).await {
            Ok(credentials) => credentials.map_err(misconfigured)?,
            Err(_) => {
                let detail = "the merchant's secrets could not be read in time".to_owned();
                return Err(Box::new(Verdict::of(AttemptClass::Local, detail)));
            }
        };
        let mut outgoing = Request::new(target.method.clone(), target.url.clone());
        let headers = outgoing.headers_mut();
        headers.clone_from(&credentials.headers);
        request::add_identity(headers, merchant, order);
        let progress = Progress::new(started);
        let sending = PROGRESS.scope(Arc::clone(&progress), self.unrepeatable.execute(outgoing));
        let fault = match timeout_at(deadline, sending).await {
            Ok(Ok(response)) => {
                let judged = self.judge(lookup, &target, response, deadline).await;
                return judged.map_err(|undecided| {
                    Box::new(Verdict {
                        scrubber: Some(Arc::clone(&credentials.scrubber)),
                        ..undecided
                    })
                });
            }
            Ok(Err(error)) => fault::judge(&error, &target, &progress),
            Err(_) => fault::timed_out(&target, &progress, timeout),
        };
        Err(Box::new(Verdict {
            scrubber: Some(credentials.scrubber),
            ..Verdict::of(fault.class, fault.detail)
        }))
    }

    async fn judge(
        &self,
        lookup: &Lookup,
        target: &Target,
        mut response: Response,
        deadline: tokio::time::Instant,
    ) -> Result<LookupVerdict, Verdict> {
        let (status, rules) = (response.status(), &lookup.rules);
        let code = status.as_u16();
        let need = match needs_body(code, response.headers(), rules) {
            true => Need::Whole,
            false => Need::Nothing,
        };
        let max = self.options.max_response_bytes;
        let body = read(&mut response, need, max, deadline).await;
        let headers = response.headers();
        if need == Need::Whole && body.cut {
            let detail = "the answer broke off, or is too long to look into".to_owned();
            return Err(Verdict::of(AttemptClass::Retry, detail));
        }
        if let Some((_, rule)) = matching_rule(code, headers, &body.bytes, rules) {
            return Ok(rule.verdict);
        }
        let class = match code {
            200..=299 => return Ok(LookupVerdict::Found),
            404 | 410 => return Ok(LookupVerdict::Absent),
            _ => table(code, &[]),
        };
        let now = SystemTime::now();
        let asked = retry_after::requested(headers, now);
        let class = match class {
            AttemptClass::Retry if asked.is_some() => AttemptClass::RateLimited,
            class => class,
        };
        Err(Verdict {
            status: Some(code),
            retry_after: self.wait(class, asked.or(retry_after::used_up(headers, now))),
            ..Verdict::of(class, described(status, headers, target, None))
        })
    }
}

/// What the class of a look-up's end says about the order, which was not sent.
fn unsent(class: AttemptClass) -> AttemptClass {
    match class {
        AttemptClass::RateLimited
        | AttemptClass::Suspended
        | AttemptClass::Misconfigured
        | AttemptClass::Local => class,
        // A look-up that is refused says nothing against the order.
        _ => AttemptClass::Retry,
    }
}
