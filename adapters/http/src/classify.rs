//! What an answer means: the merchant's own rules first, then the table for all.

use std::cell::OnceCell;

use expediter_types::{Adapter, AttemptClass, ClassifyRule, LookupRule, Predicate};
use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::json_path;

/// The class of an answer. `body` is what was read of it; cut short or not JSON, it matches no
/// JSON predicate.
#[must_use]
pub fn classify(status: u16, headers: &HeaderMap, body: &[u8], adapter: &Adapter) -> AttemptClass {
    match matching_rule(status, headers, body, &adapter.classify) {
        Some((_, rule)) => rule.class,
        None => table(status, &adapter.rejected),
    }
}

/// The built-in table; `rejected` are the statuses that mean `rejected` instead of `invalid`.
#[must_use]
pub fn table(status: u16, rejected: &[u16]) -> AttemptClass {
    match status {
        200..=299 => AttemptClass::Delivered,
        425 | 503 => AttemptClass::Retry,
        429 => AttemptClass::RateLimited,
        401 | 403 | 407 => AttemptClass::Suspended,
        300..=399 | 404 | 405 | 410 | 501 => AttemptClass::Misconfigured,
        408 => AttemptClass::Ambiguous,
        400..=499 if rejected.contains(&status) => AttemptClass::Rejected,
        400..=499 => AttemptClass::Invalid,
        // 500, 502, 504 and whatever else a server in trouble says.
        _ => AttemptClass::Ambiguous,
    }
}

/// Says something about a response when all its predicates hold.
pub(crate) trait Rule {
    fn when(&self) -> &[Predicate];
}

impl Rule for ClassifyRule {
    fn when(&self) -> &[Predicate] {
        &self.when
    }
}

impl Rule for LookupRule {
    fn when(&self) -> &[Predicate] {
        &self.when
    }
}

/// The first rule all of whose predicates hold, and its number from 1.
pub(crate) fn matching_rule<'r, R: Rule>(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    rules: &'r [R],
) -> Option<(usize, &'r R)> {
    let parsed = OnceCell::new();
    let json = || {
        parsed
            .get_or_init(|| serde_json::from_slice::<Value>(body).ok())
            .as_ref()
    };
    let holds = |predicate: &Predicate| match predicate {
        Predicate::Json(path, expected) => json()
            .and_then(|value| json_path::lookup(value, path))
            .is_some_and(|found| {
                expected
                    .as_deref()
                    .is_none_or(|t| json_path::equals(found, t))
            }),
        other => holds_without_body(other, status, headers),
    };
    let matching = rules
        .iter()
        .position(|rule| rule.when().iter().all(holds))?;
    Some((matching + 1, &rules[matching]))
}

/// Whether a rule's verdict on this answer hangs on its body.
pub(crate) fn needs_body<R: Rule>(status: u16, headers: &HeaderMap, rules: &[R]) -> bool {
    let is_json = |predicate: &Predicate| matches!(predicate, Predicate::Json(..));
    let candidate = rules.iter().find(|rule| {
        rule.when()
            .iter()
            .all(|p| is_json(p) || holds_without_body(p, status, headers))
    });
    candidate.is_some_and(|rule| rule.when().iter().any(is_json))
}

fn holds_without_body(predicate: &Predicate, status: u16, headers: &HeaderMap) -> bool {
    match predicate {
        Predicate::Status(from, to) => (*from..=*to).contains(&status),
        Predicate::Header(name, expected) => headers.get_all(name.as_str()).iter().any(|value| {
            expected
                .as_deref()
                .is_none_or(|text| value.as_bytes() == text.as_bytes())
        }),
        Predicate::Json(..) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_knows_every_status() {
        for status in 100..=599 {
            let expected = match status {
                100..=199 => AttemptClass::Ambiguous,
                200..=299 => AttemptClass::Delivered,
                300..=399 => AttemptClass::Misconfigured,
                401 | 403 | 407 => AttemptClass::Suspended,
                404 | 405 | 410 | 501 => AttemptClass::Misconfigured,
                408 => AttemptClass::Ambiguous,
                425 | 503 => AttemptClass::Retry,
                429 => AttemptClass::RateLimited,
                409 | 422 => AttemptClass::Rejected,
                400..=499 => AttemptClass::Invalid,
                _ => AttemptClass::Ambiguous,
            };
            assert_eq!(table(status, &[409, 422, 401, 500]), expected, "{status}");
        }
        assert_eq!(table(422, &[]), AttemptClass::Invalid);
        assert_eq!(table(999, &[]), AttemptClass::Ambiguous);
    }

    fn rule(class: AttemptClass, when: Vec<Predicate>) -> ClassifyRule {
        ClassifyRule { when, class }
    }

    #[test]
    fn the_first_matching_rule_wins() {
        let json = |path: &str, text: Option<&str>| {
            Predicate::Json(path.to_owned(), text.map(str::to_owned))
        };
        let header = |name: &str, text: Option<&str>| {
            Predicate::Header(name.to_owned(), text.map(str::to_owned))
        };
        let mut adapter = Adapter::to("https://x.example");
        adapter.classify = vec![
            rule(
                AttemptClass::RateLimited,
                vec![
                    Predicate::Status(200, 299),
                    json("$.state", Some("THROTTLED")),
                ],
            ),
            rule(AttemptClass::AlreadyDone, vec![Predicate::Status(409, 409)]),
            rule(
                AttemptClass::Rejected,
                vec![header("x-closed", Some("yes"))],
            ),
            rule(AttemptClass::Retry, vec![header("x-again", None)]),
            rule(
                AttemptClass::Rejected,
                vec![json("$.errors[0].code", Some("7"))],
            ),
            rule(AttemptClass::Invalid, vec![json("$.fatal", None)]),
        ];
        let class = |status, headers: &[(&'static str, &'static str)], body: &str| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<HeaderMap>();
            classify(status, &headers, body.as_bytes(), &adapter)
        };
        assert_eq!(
            class(200, &[], r#"{"state":"THROTTLED"}"#),
            AttemptClass::RateLimited
        );
        assert_eq!(
            class(200, &[], r#"{"state":"ok"}"#),
            AttemptClass::Delivered
        );
        assert_eq!(
            class(200, &[], r#"{"state":"THROTT"#),
            AttemptClass::Delivered
        );
        assert_eq!(
            class(500, &[], r#"{"state":"THROTTLED"}"#),
            AttemptClass::Ambiguous
        );
        assert_eq!(
            class(409, &[("x-closed", "yes")], ""),
            AttemptClass::AlreadyDone
        );
        assert_eq!(
            class(500, &[("X-Closed", "yes")], ""),
            AttemptClass::Rejected
        );
        assert_eq!(
            class(500, &[("x-closed", "no")], ""),
            AttemptClass::Ambiguous
        );
        assert_eq!(class(500, &[("x-again", "")], ""), AttemptClass::Retry);
        assert_eq!(
            class(500, &[], r#"{"errors":[{"code":7}]}"#),
            AttemptClass::Rejected
        );
        assert_eq!(class(500, &[], r#"{"fatal":null}"#), AttemptClass::Invalid);

        let none = HeaderMap::new();
        assert!(needs_body(200, &none, &adapter.classify));
        assert!(!needs_body(409, &none, &adapter.classify));
        assert!(needs_body(500, &none, &adapter.classify));
        assert!(!needs_body(500, &none, &adapter.classify[..4]));
    }
}
