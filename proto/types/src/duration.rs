use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: write a whole number and ms, s, m, h or d, such as 500ms or 1h30m"
)]
pub struct InvalidDuration(pub String);

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Reads `500ms`, `35s`, `10m`, `24h`, `7d` or a sum such as `1h30m`. Up to about 100 years.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.chars().take(40).collect());
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let (_, millis) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(invalid)?;
        let part = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(*millis));
        total = part
            .and_then(|p| total.checked_add(p))
            .ok_or_else(invalid)?;
        rest = tail;
    }
    if total > 100 * 366 * 86_400_000 {
        return Err(invalid());
    }
    Ok(Duration::from_millis(total))
}

/// Writes what [`parse_duration`] reads, in the largest unit that divides it; below 1 ms is lost.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".into();
    }
    let fits = UNITS
        .iter()
        .rev()
        .find(|(_, unit)| millis.is_multiple_of(*unit));
    let (name, unit) = fits.copied().unwrap_or(("ms", 1));
    format!("{}{name}", millis / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (text, millis) in [
            ("500ms", 500),
            ("35s", 35_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for bad in [
            "",
            "5",
            "5 s",
            "s",
            "-1s",
            "1.5s",
            "5S",
            "99999999999999999999s",
            "200000d",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for text in [
            "500ms",
            "35s",
            "5m",
            "24h".replace("24h", "1d").as_str(),
            "90m",
        ] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), *text);
        }
    }
}
