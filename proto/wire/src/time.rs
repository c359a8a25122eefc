use std::fmt;

use expediter_types::UnixMillis;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// The latest time that is written: 9999-12-30T22:00:00.000Z; later ones are written as this.
pub const MAX_MILLIS: UnixMillis = 253_402_207_200_000;

/// A time as records carry it: `2026-01-31T08:00:00.000Z`, always UTC with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rfc3339(pub UnixMillis);

/// Why a text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an RFC 3339 time such as 2026-01-31T08:00:00Z")]
pub struct InvalidTime(String);

/// Reads an RFC 3339 time in any offset; below 1 ms is cut, before 1970 is 1970.
pub fn parse_rfc3339(text: &str) -> Result<UnixMillis, InvalidTime> {
    let invalid = || InvalidTime(text.chars().take(64).collect());
    if text.len() > 64 {
        return Err(invalid());
    }
    let stamp: jiff::Timestamp = text.parse().map_err(|_| invalid())?;
    Ok(u64::try_from(stamp.as_millisecond())
        .unwrap_or(0)
        .min(MAX_MILLIS))
}

impl Rfc3339 {
    /// Writes the 24 characters without a heap or a formatter: three of them are in each outcome.
    fn write(self, out: &mut [u8; 24]) -> &str {
        let millis = self.0.min(MAX_MILLIS);
        let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
        let (year, month, day) = civil(days);
        out.copy_from_slice(b"0000-00-00T00:00:00.000Z");
        let mut put = |at: usize, digits: usize, value: u64| {
            let mut value = value;
            for place in (at..at + digits).rev() {
                out[place] = b'0' + u8::try_from(value % 10).unwrap_or(0);
                value /= 10;
            }
        };
        put(0, 4, year);
        put(5, 2, month);
        put(8, 2, day);
        put(11, 2, of_day / 3_600_000);
        put(14, 2, of_day / 60_000 % 60);
        put(17, 2, of_day / 1000 % 60);
        put(20, 3, of_day % 1000);
        std::str::from_utf8(out).unwrap_or_default()
    }
}

/// Year, month and day of a number of days since 1970-01-01 (proleptic Gregorian).
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.write(&mut [0; 24]))
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.write(&mut [0; 24]))
    }
}

impl<'de> Deserialize<'de> for Rfc3339 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Rfc3339;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rfc3339, E> {
                parse_rfc3339(text).map(Rfc3339).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_written_as_the_library_writes_them() {
        for millis in [
            0,
            1,
            951_782_400_000,
            1_709_210_096_789,
            4_107_542_399_999,
            MAX_MILLIS,
        ] {
            let theirs = jiff::Timestamp::from_millisecond(i64::try_from(millis).unwrap()).unwrap();
            assert_eq!(Rfc3339(millis).to_string(), format!("{theirs:.3}"));
        }
        assert_eq!(Rfc3339(u64::MAX).to_string(), "9999-12-30T22:00:00.000Z");
    }

    #[test]
    fn other_offsets_and_precisions_are_read() {
        assert_eq!(parse_rfc3339("1970-01-01T02:00:01.5+02:00"), Ok(1500));
        assert_eq!(parse_rfc3339("1969-01-01T00:00:00Z"), Ok(0));
        for bad in [
            "",
            "10m",
            "2026",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "tomorrow",
        ] {
            assert!(parse_rfc3339(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(millis in 0..=MAX_MILLIS) {
            prop_assert_eq!(parse_rfc3339(&Rfc3339(millis).to_string()), Ok(millis));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = parse_rfc3339(&text);
        }
    }
}
