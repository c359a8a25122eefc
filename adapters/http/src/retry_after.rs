//! When a merchant can be asked again, as its headers say: `Retry-After`, and limits that are used
//! up. What cannot be read is ignored.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Families of headers that say what is left of a limit and when it is whole again.
const LIMITS: [(&str, &str); 4] = [
    ("ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("x-rate-limit-remaining", "x-rate-limit-reset"),
    ("x-toast-ratelimit-remaining", "x-toast-ratelimit-reset"),
];

/// How long the merchant asks to wait: seconds, a time since 1970 in seconds or milliseconds, or a
/// date in any of the three HTTP forms (one that is past means now). Anything else is no answer.
pub(crate) fn requested(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    headers
        .get_all(RETRY_AFTER)
        .iter()
        .find_map(|value| wait(value.to_str().ok()?, now))
}

/// How long until a limit is whole again of which nothing is left; the longest of several.
pub(crate) fn used_up(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let pairs = LIMITS.iter().filter_map(|(remaining, reset)| {
        let left: f64 = text(remaining)?.trim().parse().ok()?;
        (left <= 0.0).then(|| wait(text(reset)?, now))?
    });
    let fields = headers.get_all("ratelimit").iter();
    let fields = fields.filter_map(|value| field(value.to_str().ok()?));
    pairs.chain(fields).max()
}

fn wait(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        let date = httpdate::parse_http_date(text).ok()?;
        return Some(date.duration_since(now).unwrap_or_default());
    }
    // More digits than fit are a very long wait, which is clamped.
    let number = text.parse().unwrap_or(u64::MAX);
    let since = match number {
        // The years 2001 to 5138; as a wait, more than thirty years.
        1_000_000_000..100_000_000_000 => Duration::from_secs(number),
        1_000_000_000_000..100_000_000_000_000 => Duration::from_millis(number),
        _ => return Some(Duration::from_secs(number)),
    };
    let at = SystemTime::UNIX_EPOCH + since;
    Some(at.duration_since(now).unwrap_or_default())
}

/// `RateLimit: "default";r=0;t=30, …`, or as earlier drafts had it:
/// `RateLimit: limit=100, remaining=0, reset=30`.
fn field(text: &str) -> Option<Duration> {
    let mut longest = None;
    let (mut left, mut reset) = (None, None);
    for member in outside_quotes(text, ',') {
        let (mut r, mut t) = (None, None);
        for part in outside_quotes(member, ';') {
            let Some((name, value)) = part.split_once('=') else {
                continue;
            };
            let number = value.trim().parse::<u64>().ok();
            match name.trim() {
                "r" => r = number,
                "t" => t = number,
                "remaining" => left = number,
                "reset" => reset = number,
                _ => {}
            }
        }
        if r == Some(0) {
            longest = longest.max(t);
        }
    }
    if left == Some(0) {
        longest = longest.max(reset);
    }
    longest.map(Duration::from_secs)
}

fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderName;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT is 784111777; this is some thirty years later.
    const NOW: u64 = 1_770_000_000;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        lines.collect()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn of(text: &'static str, now: u64) -> Option<u64> {
        requested(&headers(&[("retry-after", text)]), at(now)).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_dates_and_times_are_read() {
        let then = 784_111_777;
        assert_eq!(of("0", then), Some(0));
        assert_eq!(of(" 120 ", then), Some(120));
        assert_eq!(of("99999999999999999999999", then), Some(u64::MAX));
        for date in [
            "Sun, 06 Nov 1994 08:50:37 GMT",
            "Sunday, 06-Nov-94 08:50:37 GMT",
            "Sun Nov  6 08:50:37 1994",
        ] {
            assert_eq!(of(date, then), Some(60), "{date}");
        }
        assert_eq!(of("Sun, 06 Nov 1994 08:00:00 GMT", then), Some(0));
        assert_eq!(of("1770000030", NOW), Some(30));
        assert_eq!(of("1770000030000", NOW), Some(30));
        assert_eq!(of("1769999999", NOW), Some(0));
        assert_eq!(of("86400", NOW), Some(86_400));
        for garbage in ["", "-1", "+5", "1.5", "soon", "5s", "1994-11-06T08:50:37Z"] {
            assert_eq!(of(garbage, NOW), None, "{garbage}");
        }
    }

    #[test]
    fn a_limit_of_which_nothing_is_left_says_when_it_is_whole() {
        let left = |lines: &[_]| used_up(&headers(lines), at(NOW)).map(|wait| wait.as_secs());
        for (value, expected) in [
            (r#""default";r=0;t=30"#, Some(30)),
            (r#""default";r=50;t=30"#, None),
            (
                r#""burst";r=3;t=1, "daily";r=0;t=3600, "hourly";r=0;t=60"#,
                Some(3_600),
            ),
            (r#""a,b;r=0;t=9";r=1;t=30"#, None),
            (r#""default";r=0"#, None),
            (r#""default";r=x;t=30"#, None),
            (r#""default" ; r=0 ; t=7"#, Some(7)),
            ("limit=100, remaining=0, reset=50", Some(50)),
            ("limit=100, remaining=1, reset=50", None),
            (";;==,,\"", None),
            ("", None),
        ] {
            assert_eq!(left(&[("ratelimit", value)]), expected, "{value}");
        }
        for (remaining, reset) in LIMITS {
            let with = |text| left(&[(remaining, "0"), (reset, text)]);
            assert_eq!(with("20"), Some(20), "{reset}");
            assert_eq!(with("1770000020"), Some(20), "{reset}");
            assert_eq!(with("1770000020000"), Some(20), "{reset}");
            assert_eq!(with("Mon, 02 Feb 2026 02:40:20 GMT"), Some(20), "{reset}");
            assert_eq!(with("later"), None, "{reset}");
            assert_eq!(
                left(&[(remaining, "1"), (reset, "20")]),
                None,
                "{remaining}"
            );
            assert_eq!(
                left(&[(remaining, "none"), (reset, "20")]),
                None,
                "{remaining}"
            );
            assert_eq!(left(&[(remaining, "0")]), None, "{remaining}");
        }
    }
}
