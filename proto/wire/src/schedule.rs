//! Schedules of recurring jobs: five fields of cron, in a time zone.
//!
//! Constraints: pure. The same schedule and moment give the same run on every node, whatever the
//! node's clock, locale or time zones, so that a run has one identity for ever.

use cronexpr::{Crontab, FallbackTimezoneOption, ParseOptions};
use expediter_types::UnixMillis;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// When a job runs.
///
/// Fields are minute, hour, day of the month, month and day of the week, with lists, ranges, steps,
/// names, and `L`, `W` and `#` as in `L`, `15W` and `fri#2`. Where the day of the month and of the
/// week are both restricted, either is enough, as cron has it.
///
/// When the clocks change: a schedule of certain hours (`30 2 * * *`) runs once a day. What the
/// clocks skip runs so much later (02:30 at 03:30), what they show twice runs the first time. A
/// schedule of every hour (an hour field that begins with `*`) goes by time that passes: nothing for
/// the hour that is skipped, and both of the doubled one.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Asked for times on the wall, as if they were UTC.
    wall: Crontab,
    zone: TimeZone,
    every_hour: bool,
}

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    #[error(
        "has {0} fields: write minute, hour, day of the month, month and day of the week, such as \
         \"30 9 * * mon-fri\""
    )]
    Fields(usize),
    #[error("{0:?} is no schedule such as \"30 9 * * mon-fri\": {1}")]
    Syntax(String, String),
    #[error("{0:?} never comes")]
    Never(String),
    #[error("{0}")]
    Zone(String),
}

/// The leap years repeat, with the days of the week, after 28 years, except around 2100.
const SEARCHES: usize = 7;
const FOUR_YEARS: i64 = (4 * 365 + 1) * 86_400;

impl Schedule {
    /// Reads five fields, in the zone of that name.
    ///
    /// # Errors
    /// No schedule, no zone, or a time that never comes, such as the 30th of February.
    pub fn parse(text: &str, zone: &str) -> Result<Self, InvalidSchedule> {
        let (_, zone) = crate::zone::time_zone(zone).map_err(InvalidSchedule::Zone)?;
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        if fields.len() != 5 {
            return Err(InvalidSchedule::Fields(fields.len()));
        }
        let shown = || text.chars().take(60).collect::<String>();
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::UTC;
        let wall = cronexpr::parse_crontab_with(&fields.join(" "), options)
            .map_err(|error| InvalidSchedule::Syntax(shown(), reason(&error)))?;
        let schedule = Self {
            wall,
            zone,
            every_hour: fields[1].starts_with('*'),
        };
        // Any moment does: what comes once comes again.
        match schedule.next_after(1_767_225_600_000) {
            Some(_) => Ok(schedule),
            None => Err(InvalidSchedule::Never(shown())),
        }
    }

    /// The first run after that moment; `None`: there is none in the next 28 years.
    #[must_use]
    pub fn next_after(&self, moment: UnixMillis) -> Option<UnixMillis> {
        let moment = Timestamp::from_millisecond(i64::try_from(moment).ok()?).ok()?;
        let next = if self.every_hour {
            self.next_by_time(moment)
        } else {
            self.next_by_clock(moment)
        };
        u64::try_from(next?.as_millisecond()).ok()
    }

    /// Each time on the wall once.
    fn next_by_clock(&self, moment: Timestamp) -> Option<Timestamp> {
        let mut wall = self.zone.to_datetime(moment);
        // What the clocks skipped runs after the gap: it was to be looked for before it.
        if let Some(change) = self.zone.preceding(moment).next() {
            let change = change.timestamp();
            let shift = self.zone.to_offset(moment).seconds()
                - self.zone.to_offset(before(change)?).seconds();
            let since = moment.as_second().saturating_sub(change.as_second());
            if shift > 0 && since < i64::from(shift) {
                wall = self.zone.to_datetime(before(change)?);
            }
        }
        // What comes from a gap may come after what stands behind it.
        let mut first: Option<Timestamp> = None;
        while let Some(next) = self.next_wall(wall) {
            wall = next;
            let found = self.zone.to_ambiguous_timestamp(wall);
            let in_gap = matches!(found.offset(), AmbiguousOffset::Gap { .. });
            let at = found.compatible().ok()?;
            // Not after: the second time that the clocks show it, or before the question.
            if at > moment {
                first = Some(first.map_or(at, |first| first.min(at)));
                if !in_gap {
                    break;
                }
            }
        }
        first
    }

    /// Each moment whose time on the wall fits.
    fn next_by_time(&self, moment: Timestamp) -> Option<Timestamp> {
        let mut from = moment;
        // More changes than 28 years have.
        for _ in 0..128 {
            let offset = self.zone.to_offset(from);
            let wall = self.next_wall(offset.to_datetime(from));
            let at = wall.and_then(|wall| offset.to_timestamp(wall).ok());
            let change = self
                .zone
                .following(from)
                .next()
                .map(|next| next.timestamp());
            match (at, change) {
                (at, None) => return at,
                (Some(at), Some(change)) if at < change => return Some(at),
                // It is looked for again by the clocks from the change on, that moment included.
                (_, Some(change)) => {
                    let offset = self.zone.to_offset(change);
                    let wall = offset.to_datetime(before(change)?);
                    let at = offset.to_timestamp(self.next_wall(wall)?).ok()?;
                    if at == change {
                        return Some(at);
                    }
                    from = change;
                }
            }
        }
        None
    }

    fn next_wall(&self, wall: DateTime) -> Option<DateTime> {
        let mut from = TimeZone::UTC.to_timestamp(wall).ok()?;
        for _ in 0..SEARCHES {
            if let Ok(next) = self.wall.find_next(from) {
                return Some(next.datetime());
            }
            from = Timestamp::from_second(from.as_second().checked_add(FOUR_YEARS)?).ok()?;
        }
        None
    }
}

fn before(moment: Timestamp) -> Option<Timestamp> {
    Timestamp::from_millisecond(moment.as_millisecond() - 1).ok()
}

/// The last line of the parser's message; those before draw the text with a mark below it.
fn reason(error: &cronexpr::Error) -> String {
    let text = error.to_string();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.unwrap_or_default().trim_matches([' ', '^', '|', '\t']);
    last.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> UnixMillis {
        let moment: Timestamp = text.parse().unwrap();
        u64::try_from(moment.as_millisecond()).unwrap()
    }

    /// The runs after a moment, in UTC.
    fn runs(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(schedule, zone).unwrap();
        let mut at = ms(after);
        let next = || {
            at = schedule.next_after(at).unwrap();
            Timestamp::from_millisecond(i64::try_from(at).unwrap())
                .unwrap()
                .to_string()
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    #[test]
    fn runs_follow_the_clocks_of_the_zone() {
        assert_eq!(
            runs("30 9 * * mon-fri", "Europe/Rome", "2026-11-26T08:30:00Z", 3),
            [
                "2026-11-27T08:30:00Z",
                "2026-11-30T08:30:00Z",
                "2026-12-01T08:30:00Z"
            ]
        );
        assert_eq!(
            runs("0 9 28-31 mar *", "Europe/Rome", "2026-03-27T12:00:00Z", 3),
            [
                "2026-03-28T08:00:00Z",
                "2026-03-29T07:00:00Z",
                "2026-03-30T07:00:00Z"
            ]
        );
        assert_eq!(
            runs("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 2),
            ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]
        );
        // Within a minute, and exactly at a run.
        assert_eq!(
            runs("*/15 * * * *", "UTC", "2026-01-01T00:00:00.001Z", 2),
            ["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]
        );
    }

    #[test]
    fn a_time_that_the_clocks_skip_comes_later() {
        // 2026-03-29 in Rome: 02:00 becomes 03:00 at 01:00 UTC.
        assert_eq!(
            runs("30 2 * * *", "Europe/Rome", "2026-03-28T01:30:00Z", 2),
            ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"]
        );
        // Asked in the gap's shadow, before and after the run.
        assert_eq!(
            runs("30 2 * * *", "Europe/Rome", "2026-03-29T01:10:00Z", 1),
            ["2026-03-29T01:30:00Z"]
        );
        // 02:30 and 03:15 are 03:30 and 03:15 that day: in the order of the moments.
        assert_eq!(
            runs("15,30 2,3 * * *", "Europe/Rome", "2026-03-29T00:59:00Z", 3),
            [
                "2026-03-29T01:15:00Z",
                "2026-03-29T01:30:00Z",
                "2026-03-30T00:15:00Z"
            ]
        );
    }

    #[test]
    fn a_time_that_the_clocks_show_twice_comes_once() {
        // 2026-10-25 in Rome: 03:00 becomes 02:00 at 01:00 UTC.
        assert_eq!(
            runs("30 2 * * *", "Europe/Rome", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        assert_eq!(
            runs("30 2 * * *", "Europe/Rome", "2026-10-25T01:10:00Z", 1),
            ["2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn every_hour_goes_by_time_that_passes() {
        assert_eq!(
            runs("0 * * * *", "Europe/Rome", "2026-03-28T23:30:00Z", 4),
            [
                "2026-03-29T00:00:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-29T02:00:00Z",
                "2026-03-29T03:00:00Z"
            ]
        );
        assert_eq!(
            runs("30 * * * *", "Europe/Rome", "2026-10-24T23:45:00Z", 4),
            [
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:30:00Z",
                "2026-10-25T03:30:00Z"
            ]
        );
        // Half an hour, at Lord Howe: 02:00 becomes 01:30 at 15:00 UTC.
        assert_eq!(
            runs(
                "*/20 * * * *",
                "Australia/Lord_Howe",
                "2026-04-04T14:40:00Z",
                3
            ),
            [
                "2026-04-04T15:10:00Z",
                "2026-04-04T15:30:00Z",
                "2026-04-04T15:50:00Z"
            ]
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for (text, part) in [
            ("", "has 0 fields"),
            ("0 9 * *", "has 4 fields"),
            ("0 9 * * * Europe/Rome", "has 6 fields"),
            ("@daily", "has 1 fields"),
            ("61 9 * * *", "is no schedule"),
            ("0 9 * * noday", "is no schedule"),
            ("0 9 * * H", "is no schedule"),
            ("0 9 30 feb *", "never comes"),
            ("0 9 31 4,6,9,11 *", "never comes"),
        ] {
            let error = Schedule::parse(text, "Europe/Rome")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(part) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
        let error = Schedule::parse("0 9 * * *", "Europe/Rom").unwrap_err();
        assert!(error.to_string().contains("did you mean Europe/Rome?"));
    }
}
