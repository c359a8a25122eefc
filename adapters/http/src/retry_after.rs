use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// How long the merchant asks to wait: seconds, or a date in any of the three HTTP forms (one
/// that is past means now). Anything else is no answer.
pub(crate) fn requested(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    headers.get_all(RETRY_AFTER).iter().find_map(|value| {
        let text = value.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            // More digits than fit are a very long wait, which is clamped.
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        Some(date.duration_since(now).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &'static str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        requested(&headers, now).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_and_dates_are_read() {
        assert_eq!(of("0"), Some(0));
        assert_eq!(of(" 120 "), Some(120));
        assert_eq!(of("99999999999999999999999"), Some(u64::MAX));
        // 784111777 is Sun, 06 Nov 1994 08:49:37 GMT.
        for date in [
            "Sun, 06 Nov 1994 08:50:37 GMT",
            "Sunday, 06-Nov-94 08:50:37 GMT",
            "Sun Nov  6 08:50:37 1994",
        ] {
            assert_eq!(of(date), Some(60), "{date}");
        }
        assert_eq!(of("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        for garbage in ["", "-1", "+5", "1.5", "soon", "5s", "1994-11-06T08:50:37Z"] {
            assert_eq!(of(garbage), None, "{garbage}");
        }
    }
}
