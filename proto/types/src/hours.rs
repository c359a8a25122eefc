use std::fmt;

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

use crate::UnixMillis;

/// When a merchant takes orders, in its own time zone.
///
/// A wall-clock time that a change of the clocks skips counts as the moment after the gap; one that
/// comes twice counts as its first.
#[derive(Clone, PartialEq)]
pub struct Hours {
    /// Name in the time zone database, such as `Europe/Rome`.
    pub zone_name: String,
    /// Its rules.
    pub zone: TimeZone,
    /// 1 to 64 ranges; they may overlap.
    pub open: Vec<OpenRange>,
}

/// Minutes of a day of some weekdays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRange {
    /// Bit 0 is Monday, bit 6 Sunday; the day on which the range begins.
    pub days: u8,
    /// Minute of the day, 0 to 1,439.
    pub from: u16,
    /// Minute at which it ends, exclusive, 1 to 1,440; at or below `from`: on the next day.
    pub to: u16,
}

/// Whether a merchant is open, and until when; `None`: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenState {
    Open { until: Option<UnixMillis> },
    Closed { until: Option<UnixMillis> },
}

impl fmt::Debug for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hours")
            .field("zone_name", &self.zone_name)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Hours {
    /// How it stands at `now`, and when that changes. Looks a week and a day ahead: longer than any
    /// range repeats.
    #[must_use]
    pub fn at(&self, now: UnixMillis) -> OpenState {
        let mut spans = self.spans(now);
        spans.sort_unstable();
        let mut until = None;
        for (from, to) in spans {
            match until {
                None if from <= now && now < to => until = Some(to),
                None if now < from => return OpenState::Closed { until: Some(from) },
                Some(end) if from <= end => until = Some(end.max(to)),
                _ => {}
            }
        }
        match until {
            // The last span ends where this look ends: it never closes.
            Some(end) if end >= now.saturating_add(7 * 86_400_000) => {
                OpenState::Open { until: None }
            }
            Some(end) => OpenState::Open { until: Some(end) },
            None => OpenState::Closed { until: None },
        }
    }

    /// The ranges of the days around `now`, as moments.
    fn spans(&self, now: UnixMillis) -> Vec<(UnixMillis, UnixMillis)> {
        let Ok(moment) = Timestamp::from_millisecond(i64::try_from(now).unwrap_or(i64::MAX)) else {
            return Vec::new();
        };
        let Ok(mut day) = self.zone.to_datetime(moment).date().yesterday() else {
            return Vec::new();
        };
        let mut spans = Vec::new();
        for _ in 0..10 {
            let bit = 1_u8 << Weekday::to_monday_zero_offset(day.weekday());
            for range in self.open.iter().filter(|range| range.days & bit != 0) {
                let ends = if range.to <= range.from {
                    range.to + 1_440
                } else {
                    range.to
                };
                let span = self.moment(day, range.from).zip(self.moment(day, ends));
                spans.extend(span.filter(|(from, to)| from < to));
            }
            match day.tomorrow() {
                Ok(next) => day = next,
                Err(_) => break,
            }
        }
        spans
    }

    /// The moment of a minute counted from a day's midnight, by the clocks on the wall.
    fn moment(&self, day: jiff::civil::Date, minute: u16) -> Option<UnixMillis> {
        let (mut day, mut minute) = (day, minute);
        while minute >= 1_440 {
            day = day.tomorrow().ok()?;
            minute -= 1_440;
        }
        let hour = i8::try_from(minute / 60).ok()?;
        let time = day.at(hour, i8::try_from(minute % 60).ok()?, 0, 0);
        let moment = self.zone.to_ambiguous_timestamp(time).compatible().ok()?;
        u64::try_from(moment.as_millisecond()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> UnixMillis {
        let moment: Timestamp = text.parse().unwrap();
        u64::try_from(moment.as_millisecond()).unwrap()
    }

    fn rome(open: Vec<OpenRange>) -> Hours {
        // Central European time without a database: rules as POSIX writes them.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        Hours {
            zone_name: "Europe/Rome".into(),
            zone,
            open,
        }
    }

    fn range(days: u8, from: u16, to: u16) -> OpenRange {
        OpenRange { days, from, to }
    }

    #[test]
    fn opens_and_closes_in_its_own_time_zone() {
        // Monday to Friday 10:00-14:00 and 18:00-02:00; 2026-11-26 is a Thursday.
        let hours = rome(vec![range(0b1_1111, 600, 840), range(0b1_1111, 1_080, 120)]);
        let open = |until| OpenState::Open {
            until: Some(ms(until)),
        };
        let closed = |until| OpenState::Closed {
            until: Some(ms(until)),
        };
        let at = |now| hours.at(ms(now));
        assert_eq!(at("2026-11-26T08:59:59Z"), closed("2026-11-26T09:00:00Z"));
        assert_eq!(at("2026-11-26T09:00:00Z"), open("2026-11-26T13:00:00Z"));
        assert_eq!(at("2026-11-26T13:00:00Z"), closed("2026-11-26T17:00:00Z"));
        assert_eq!(
            at("2026-11-27T00:30:00Z"),
            open("2026-11-27T01:00:00Z"),
            "past midnight"
        );
        assert_eq!(
            at("2026-11-28T01:00:00Z"),
            closed("2026-11-30T09:00:00Z"),
            "the weekend"
        );
    }

    #[test]
    fn follows_changes_of_the_clocks() {
        // 2026-03-29, 02:00 becomes 03:00.
        let hours = rome(vec![range(0b111_1111, 600, 1_200)]);
        let next = |now| match hours.at(ms(now)) {
            OpenState::Closed { until } => until,
            OpenState::Open { .. } => None,
        };
        assert_eq!(
            next("2026-03-28T20:00:00Z"),
            Some(ms("2026-03-29T08:00:00Z"))
        );
        assert_eq!(
            next("2026-03-27T20:00:00Z"),
            Some(ms("2026-03-28T09:00:00Z"))
        );
        let gap = rome(vec![range(0b100_0000, 150, 240)]);
        let OpenState::Closed { until } = gap.at(ms("2026-03-29T00:00:00Z")) else {
            panic!("not open yet")
        };
        assert_eq!(
            until,
            Some(ms("2026-03-29T01:30:00Z")),
            "02:30 is 03:30 that day"
        );
    }

    #[test]
    fn round_the_clock_never_closes() {
        let hours = rome(vec![range(0b111_1111, 0, 1_440)]);
        assert_eq!(
            hours.at(ms("2026-11-26T08:00:00Z")),
            OpenState::Open { until: None }
        );
        let never = rome(vec![range(0, 0, 1_440)]);
        assert_eq!(
            never.at(ms("2026-11-26T08:00:00Z")),
            OpenState::Closed { until: None }
        );
    }
}
