use std::fmt;
use std::time::Duration;

use crate::{format_duration, parse_duration};

/// So many orders in so long a period: `20/s`, `32/min`, `10000/15min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    period: Duration,
}

/// Why a text is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rate: write orders per period, such as 20/s, 32/min or 10000/15min (1-1000000 orders in 100ms-24h)"
)]
pub struct InvalidRate(pub String);

impl Rate {
    /// 1 to 1,000,000 orders in 100 ms to 24 h; `None` outside.
    #[must_use]
    pub fn new(count: u32, period: Duration) -> Option<Self> {
        let period_ok =
            (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&period);
        ((1..=1_000_000).contains(&count) && period_ok).then_some(Self { count, period })
    }

    /// Orders per period.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The period.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Nanoseconds between two orders at this rate, rounded up so that the rate is never exceeded.
    #[must_use]
    pub fn interval_ns(&self) -> u64 {
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX);
        period.div_ceil(u64::from(self.count))
    }
}

impl std::str::FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let invalid = || InvalidRate(text.chars().take(40).collect());
        let (count, period) = text.split_once('/').ok_or_else(invalid)?;
        let count = count.trim().parse().map_err(|_| invalid())?;
        // People write "min"; the duration grammar has "m".
        let period = period.trim();
        let period = match period.strip_suffix("min") {
            Some(minutes) => format!("{minutes}m"),
            None => period.to_owned(),
        };
        let period = match period.bytes().next() {
            Some(first) if first.is_ascii_digit() => period,
            _ => format!("1{period}"),
        };
        let period = parse_duration(&period).map_err(|_| invalid())?;
        Self::new(count, period).ok_or_else(invalid)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = format_duration(self.period);
        let period = match period.strip_suffix('m') {
            Some(minutes) => format!("{minutes}min"),
            None => period,
        };
        let period = match period.strip_prefix('1') {
            Some(unit) if unit.bytes().all(|b| b.is_ascii_alphabetic()) => unit,
            _ => &period,
        };
        write!(f, "{}/{period}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_written() {
        for text in ["20/s", "32/min", "10000/15min", "1/h", "5/100ms"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "20",
            "0/s",
            "20/",
            "x/s",
            "20/0s",
            "20/2d",
            "1000001/s",
            "-1/s",
            "1/1ms",
        ] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        assert_eq!("3/s".parse::<Rate>().unwrap().interval_ns(), 333_333_334);
    }
}
