//! Numbers, times and foreign texts as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use expediter_types::{UnixMillis, parse_duration};
use expediter_wire::{Rfc3339, parse_rfc3339};

/// The wall clock.
pub(super) fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `1,204`
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 order`, `1,204 orders`
pub(super) fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number))
}

/// `340 ms`, `1.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`: two units, rounded down.
pub(super) fn span(duration: Duration) -> String {
    let (millis, seconds) = (duration.as_millis(), duration.as_secs());
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big} {big_unit}"),
        small => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{}.{} s", seconds, duration.subsec_millis() / 100),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds / 60 % 60, "min"),
        _ => two(seconds / 86_400, "d", seconds / 3_600 % 24, "h"),
    }
}

/// One unit, for what is only estimated: `about 1 min`.
pub(super) fn about(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let round = |unit: u64| (seconds + unit / 2) / unit;
    match seconds {
        0 => "less than a second".to_owned(),
        1..60 => format!("about {seconds} s"),
        60..5_400 => format!("about {} min", round(60)),
        5_400..172_800 => format!("about {} h", round(3_600)),
        _ => format!("about {} d", round(86_400)),
    }
}

/// A moment as people type it: RFC 3339, or so long ago, such as `2h`.
pub(super) fn past(text: &str) -> Result<UnixMillis, String> {
    if let Ok(at) = parse_rfc3339(text) {
        return Ok(at);
    }
    let ago = parse_duration(text)
        .map_err(|_| "is neither a duration such as 2h nor RFC 3339".to_owned())?;
    Ok(now().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)))
}

/// `2026-01-31 08:00:00Z`
pub(super) fn when(at: UnixMillis) -> String {
    let text = Rfc3339(at).to_string();
    let seconds = text.get(..19).unwrap_or(&text);
    format!("{}Z", seconds.replace('T', " "))
}

/// `3 min 20 s ago`, `in 4.0 s`, `now`
pub(super) fn ago(at: UnixMillis, now: UnixMillis) -> String {
    let between = |from: u64, to: u64| span(Duration::from_millis(to - from));
    match at.cmp(&now) {
        std::cmp::Ordering::Less => format!("{} ago", between(at, now)),
        std::cmp::Ordering::Equal => "now".to_owned(),
        std::cmp::Ordering::Greater => format!("in {}", between(now, at)),
    }
}

/// A time with its distance: `2026-01-31 08:00:00Z (3 min ago)`.
pub(super) fn when_and_ago(at: UnixMillis, now: UnixMillis) -> String {
    format!("{} ({})", when(at), ago(at, now))
}

/// Without what could steer a terminal.
pub(super) fn clean(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() || is_format(c) {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

/// As [`clean`], with its line breaks and tabs.
pub(super) fn clean_lines(text: &str) -> String {
    let keep = |c: char| c == '\n' || c == '\t';
    let shown = |c: char| {
        if !keep(c) && (c.is_control() || is_format(c)) {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

/// Marks that change the direction of text.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_separators() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_204, "1,204"),
            (1_000_000, "1,000,000"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "order"), "1 order");
        assert_eq!(counted(1_204, "order"), "1,204 orders");
    }

    #[test]
    fn spans_have_two_units() {
        for (millis, text) in [
            (0, "0 ms"),
            (340, "340 ms"),
            (1_290, "1.2 s"),
            (60_000, "1 min"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
        for (seconds, text) in [(5, "about 5 s"), (61, "about 1 min"), (7_200, "about 2 h")] {
            assert_eq!(about(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn times_are_utc_and_relative() {
        let at = 1_770_000_000_000;
        assert_eq!(when(at), "2026-02-02 02:40:00Z");
        assert_eq!(ago(at, at + 5_000), "5.0 s ago");
        assert_eq!(ago(at + 90_000, at), "in 1 min 30 s");
    }

    #[test]
    fn foreign_text_cannot_steer_a_terminal() {
        assert_eq!(
            clean("a\u{1b}[2Jb\nc\u{202e}"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}"
        );
        assert_eq!(clean_lines("a\nb\u{7}"), "a\nb\u{fffd}");
    }
}
