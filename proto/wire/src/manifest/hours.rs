//! Opening hours: `mon-fri 10:00-14:00`.

use std::sync::Arc;

use expediter_types::{Hours, OpenRange};

use super::reader::{Fields, Reader, shown};
use crate::zone::time_zone;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const ALL_DAYS: u8 = 0b111_1111;
/// Ranges, at most.
const MAX_RANGES: (usize, &str) = (64, "ranges");

pub(super) fn read(reader: &mut Reader<'_>, section: &Fields<'_, '_>) -> Option<Arc<Hours>> {
    reader.missing(
        section,
        "timezone",
        "opening hours are in one such as Europe/Rome",
    );
    reader.missing(
        section,
        "open",
        "write a list such as [\"mon-fri 10:00-14:00\"]",
    );
    let zone = reader.parsed(section, "timezone", time_zone);
    let mut open = Vec::new();
    for (line, key, text) in reader.texts(section, "open", MAX_RANGES) {
        match range(text) {
            Ok(range) => open.push(range),
            Err(message) => reader.problem(line, &key, message),
        }
    }
    let (zone_name, zone) = zone?;
    Some(Arc::new(Hours {
        zone_name,
        zone,
        open,
    }))
}

fn range(text: &str) -> Result<OpenRange, String> {
    const FORM: &str = "\"mon-fri 10:00-14:00\", \"sat,sun 11:00-23:00\" or \"daily 00:00-24:00\"";
    let wrong = || format!("{:?} is not of the form {FORM}", shown(text));
    let (days, times) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let days = days_of(days).ok_or_else(wrong)?;
    let (from, to) = times.trim().split_once('-').ok_or_else(wrong)?;
    let (from, to) = (
        minute(from).ok_or_else(wrong)?,
        minute(to).ok_or_else(wrong)?,
    );
    if from == 1_440 {
        return Err("a range begins from 00:00 to 23:59".into());
    }
    if from == to {
        return Err("begins where it ends: write daily 00:00-24:00 for always".into());
    }
    // Midnight at the end of the day has two names.
    let to = if to == 0 { 1_440 } else { to };
    Ok(OpenRange { days, from, to })
}

fn days_of(text: &str) -> Option<u8> {
    let text = text.to_ascii_lowercase();
    if text == "daily" {
        return Some(ALL_DAYS);
    }
    let day = |name: &str| DAYS.iter().position(|day| *day == name);
    let mut days = 0;
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (mut at, to) = (day(from)?, day(to)?);
        days |= 1 << at;
        // Around the weekend too: `fri-mon`.
        while at != to {
            at = (at + 1) % DAYS.len();
            days |= 1 << at;
        }
    }
    Some(days)
}

/// `9:30`, `09:30`, `24:00`: minutes since midnight.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        let all = text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>()
            .ok()
            .filter(|_| all && digits.contains(&text.len()))
    };
    let (hour, minute) = (number(hour, 1..=2)?, number(minute, 2..=2)?);
    let at = hour * 60 + minute;
    (minute < 60 && at <= 1_440).then_some(at)
}

/// As [`read`] reads it.
pub(super) fn range_text(range: &OpenRange) -> String {
    let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    format!(
        "{} {}-{}",
        days_text(range.days),
        time(range.from),
        time(range.to)
    )
}

fn days_text(days: u8) -> String {
    if days & ALL_DAYS == ALL_DAYS {
        return "daily".to_owned();
    }
    let has = |day: usize| days & (1 << day) != 0;
    let mut parts = Vec::new();
    let mut at = 0;
    while at < DAYS.len() {
        let run = (at..DAYS.len()).take_while(|day| has(*day)).count();
        match run {
            0 => at += 1,
            1 | 2 => parts.extend(DAYS.iter().skip(at).take(run).map(|day| (*day).to_owned())),
            _ => parts.push(format!("{}-{}", DAYS[at], DAYS[at + run - 1])),
        }
        at += run;
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_one_form() {
        for (given, written) in [
            ("mon-fri 10:00-14:00", "mon-fri 10:00-14:00"),
            ("Sat,Sun  9:00-23:00", "sat,sun 09:00-23:00"),
            ("fri 18:00-02:00", "fri 18:00-02:00"),
            ("daily 00:00-24:00", "daily 00:00-24:00"),
            ("mon-sun 18:00-0:00", "daily 18:00-24:00"),
            ("fri-mon 10:00-11:00", "mon,fri-sun 10:00-11:00"),
            ("mon,tue,wed,sun 10:00-11:00", "mon-wed,sun 10:00-11:00"),
        ] {
            assert_eq!(range_text(&range(given).unwrap()), written, "{given}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in [
            "",
            "mon",
            "10:00-14:00",
            "monday 10:00-14:00",
            "mon 10-14",
            "mon 10:00",
            "mon 10:00-25:00",
            "mon 10:60-14:00",
            "mon 24:00-10:00",
            "mon 10:00-10:00",
            "mon- 10:00-11:00",
            "mon 010:00-11:00",
            "mon +1:00-11:00",
        ] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}
