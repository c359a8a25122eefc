//! A behaviour made ready for the hot path, and the decision what to answer. No clock, no I/O.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{HeaderMap, StatusCode};

use super::{Behaviour, Ending, RateLimit};
use crate::Error;

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) behaviour: Behaviour,
    normal: Reply,
    fail: Reply,
    limited: Reply,
    script: Vec<Reply>,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) ending: Ending,
    latency: Duration,
}

/// Which of a plan's replies an arrival gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Normal,
    Fail,
    Limited,
    Script(usize),
}

/// What a merchant's rate limit remembers.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Tokens left at the instant; `None` is a full bucket.
    bucket: Option<(f64, Instant)>,
    /// Until when the last Retry-After told the client to stay away.
    pub(super) closed_until: Option<Instant>,
}

impl Plan {
    pub(super) fn new(behaviour: Behaviour) -> Result<Self, Error> {
        let b = &behaviour;
        if !(0.0..=1.0).contains(&b.fail_ratio) {
            return Err(refused(format!(
                "fail_ratio {} is not within 0 and 1",
                b.fail_ratio
            )));
        }
        let normal = Reply::new(b.status, &b.headers, &b.body, b.ending, b.latency)?;
        let json = [(CONTENT_TYPE.to_string(), "application/json".to_owned())];
        let unavailable = r#"{"error":{"code":"unavailable","message":"try again"}}"#;
        let fail = Reply::new(
            b.fail_status,
            &json,
            unavailable,
            Ending::Respond,
            b.latency,
        )?;
        let too_many = r#"{"error":{"code":"too_many_requests","message":"try again later"}}"#;
        let mut limited = Reply::new(429, &json, too_many, Ending::Respond, Duration::ZERO)?;
        if let Some(limit) = &b.rate_limit {
            if !(limit.per_second > 0.0 && limit.per_second.is_finite()) {
                return Err(refused(format!(
                    "per_second {} is not above 0",
                    limit.per_second
                )));
            }
            limited.headers.insert(
                RETRY_AFTER,
                HeaderValue::from(whole_seconds(limit.retry_after)),
            );
        }
        let script = b.script.iter().map(|step| {
            let latency = step.latency.unwrap_or(b.latency);
            Reply::new(step.status, &step.headers, &step.body, step.ending, latency)
        });
        let script = script.collect::<Result<_, _>>()?;
        Ok(Self {
            normal,
            fail,
            limited,
            script,
            behaviour,
        })
    }

    /// For the `nth` arrival (from 0) since the plan was set.
    pub(super) fn choose(&self, nth: u64, pace: &mut Pace, now: Instant) -> Choice {
        if let Ok(step) = usize::try_from(nth)
            && step < self.script.len()
        {
            return Choice::Script(step);
        }
        if let Some(limit) = &self.behaviour.rate_limit
            && !pace.take(limit, now)
        {
            return Choice::Limited;
        }
        let ratio = self.behaviour.fail_ratio;
        let failures = |arrivals: u64| (arrivals as f64 * ratio).floor();
        if ratio > 0.0 && failures(nth + 1) > failures(nth) {
            Choice::Fail
        } else {
            Choice::Normal
        }
    }

    pub(super) fn reply(&self, choice: Choice) -> &Reply {
        match choice {
            Choice::Normal => &self.normal,
            Choice::Fail => &self.fail,
            Choice::Limited => &self.limited,
            Choice::Script(step) => &self.script[step],
        }
    }

    pub(super) fn delay(&self, nth: u64, choice: Choice) -> Duration {
        let latency = self.reply(choice).latency;
        if self.behaviour.jitter.is_zero() || choice == Choice::Limited {
            return latency;
        }
        let share = scatter(nth) as f64 / u64::MAX as f64;
        latency + self.behaviour.jitter.mul_f64(share)
    }
}

impl Reply {
    fn new(
        status: u16,
        headers: &[(String, String)],
        body: &str,
        ending: Ending,
        latency: Duration,
    ) -> Result<Self, Error> {
        let valid = StatusCode::from_u16(status)
            .ok()
            .filter(|status| status.as_u16() >= 200);
        let status = valid.ok_or_else(|| refused(format!("status {status} is not 200-999")))?;
        let mut map = HeaderMap::with_capacity(headers.len());
        for (name, value) in headers {
            let bad = || refused(format!("{name}: {value} is not a header"));
            let name = name.parse::<HeaderName>().map_err(|_| bad())?;
            map.append(name, value.parse::<HeaderValue>().map_err(|_| bad())?);
        }
        let body = Bytes::copy_from_slice(body.as_bytes());
        Ok(Self {
            status,
            headers: map,
            body,
            ending,
            latency,
        })
    }
}

impl Pace {
    fn take(&mut self, limit: &RateLimit, now: Instant) -> bool {
        let size = limit.per_second.max(1.0);
        let tokens = match self.bucket {
            None => size,
            Some((left, then)) => {
                let gained = now.saturating_duration_since(then).as_secs_f64() * limit.per_second;
                (left + gained).min(size)
            }
        };
        let taken = tokens >= 1.0;
        self.bucket = Some((if taken { tokens - 1.0 } else { tokens }, now));
        if !taken {
            self.closed_until = now.checked_add(limit.retry_after);
        }
        taken
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Spreads consecutive numbers evenly (the finaliser of splitmix64).
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn refused(why: String) -> Error {
    Error::Behaviour(why)
}

#[cfg(test)]
mod tests {
    use super::super::Step;
    use super::*;

    fn plan(behaviour: Behaviour) -> Plan {
        Plan::new(behaviour).expect("a valid behaviour")
    }

    fn choices(plan: &Plan, count: u64) -> Vec<Choice> {
        let (mut pace, now) = (Pace::default(), Instant::now());
        (0..count)
            .map(|nth| plan.choose(nth, &mut pace, now))
            .collect()
    }

    #[test]
    fn failures_have_exactly_their_share() {
        for (ratio, expected) in [(0.0, 0), (0.01, 10), (0.2, 200), (0.5, 500), (1.0, 1000)] {
            let plan = plan(Behaviour {
                fail_ratio: ratio,
                ..Behaviour::default()
            });
            let failed = choices(&plan, 1000)
                .into_iter()
                .filter(|c| *c == Choice::Fail)
                .count();
            assert_eq!(failed, expected, "{ratio}");
        }
    }

    #[test]
    fn the_script_comes_first() {
        let behaviour = Behaviour {
            fail_ratio: 1.0,
            ..Behaviour::default()
        };
        let plan = plan(behaviour.scripted(vec![Step::status(503), Step::status(204)]));
        let expected = [Choice::Script(0), Choice::Script(1), Choice::Fail];
        assert_eq!(choices(&plan, 3), expected);
        assert_eq!(plan.reply(Choice::Script(1)).status, 204);
    }

    #[test]
    fn the_rate_holds_after_the_first_bucket() {
        let plan = plan(Behaviour::rate_limiting());
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut taken = 0;
        for nth in 0..10_000 {
            let now = start + Duration::from_millis(nth);
            taken += u32::from(plan.choose(nth, &mut pace, now) == Choice::Normal);
        }
        assert!(
            (219..=220).contains(&taken),
            "20 at once and 20 a second for 10 s, not {taken}"
        );
        assert_eq!(plan.reply(Choice::Limited).headers[RETRY_AFTER], "1");
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let (latency, jitter) = (Duration::from_millis(10), Duration::from_millis(100));
        let plan = plan(Behaviour {
            latency,
            jitter,
            ..Behaviour::default()
        });
        let delays: Vec<_> = (0..1000)
            .map(|nth| plan.delay(nth, Choice::Normal))
            .collect();
        let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
        assert!(
            *least >= latency && *least < latency + jitter / 20,
            "{least:?}"
        );
        assert!(
            *most <= latency + jitter && *most > latency + jitter * 19 / 20,
            "{most:?}"
        );
    }

    #[test]
    fn impossible_behaviour_is_refused() {
        let limit = RateLimit {
            per_second: 0.0,
            retry_after: Duration::ZERO,
        };
        for bad in [
            Behaviour {
                status: 100,
                ..Behaviour::default()
            },
            Behaviour {
                fail_status: 1000,
                ..Behaviour::default()
            },
            Behaviour {
                fail_ratio: 1.5,
                ..Behaviour::default()
            },
            Behaviour {
                fail_ratio: f64::NAN,
                ..Behaviour::default()
            },
            Behaviour {
                headers: vec![("a b".into(), "c".into())],
                ..Behaviour::default()
            },
            Behaviour {
                rate_limit: Some(limit),
                ..Behaviour::default()
            },
        ] {
            assert!(Plan::new(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
