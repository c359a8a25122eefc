use std::time::Duration;

use expediter_types::{Limits, Merchant, MerchantId, Ordering, Rate, Retry};

use super::adapter;
use super::document::Node;
use super::reader::{Fields, LIMITS, MERCHANT, RETRY, Reader, shown};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) const ORDERINGS: [(&str, Ordering); 3] = [
    ("none", Ordering::None),
    ("order", Ordering::Order),
    ("merchant", Ordering::Merchant),
];

/// Reads a merchant; `None` when something is wrong with it.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node<'_>, path: &str) -> Option<Merchant> {
    let before = reader.problems.len();
    let fields = reader.fields(node, path, MERCHANT)?;
    let id = match fields.node("id") {
        Some(_) => reader.parsed(&fields, "id", MerchantId::new),
        None => {
            reader.problem(
                fields.line,
                &fields.key("id"),
                "is missing: every merchant has an id",
            );
            None
        }
    };
    let adapter = adapter::read(reader, &fields);
    let name = reader.parsed(&fields, "name", name);
    let group = reader.parsed(&fields, "group", group);
    let limits = match reader.section(&fields, "limits", LIMITS) {
        Some(section) => limits(reader, &section),
        None => Limits::default(),
    };
    let retry = match reader.section(&fields, "retry", RETRY) {
        Some(section) => retry(reader, &section),
        None => Retry::default(),
    };
    if reader.problems.len() > before {
        return None;
    }
    let default = Merchant::to(id?, "");
    Some(Merchant {
        name: name.unwrap_or(default.name),
        group: group.unwrap_or(default.group),
        adapter: adapter?,
        limits,
        retry,
        breaker: default.breaker,
        hours: None,
        jobs: Vec::new(),
        id: default.id,
    })
}

fn name(text: &str) -> Result<String, String> {
    let fits = (1..=200).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 200 characters in one line".into())
    }
}

fn group(text: &str) -> Result<String, String> {
    // The alphabet of ids: a group is a label of metrics.
    match MerchantId::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{:?} must be 1-64 of A-Z a-z 0-9 _ -", shown(text))),
    }
}

fn limits(reader: &mut Reader<'_>, section: &Fields<'_, '_>) -> Limits {
    let default = Limits::default();
    let range = (1, 10_000);
    Limits {
        rates: Vec::from_iter(reader.parsed(section, "rate", |text| text.parse::<Rate>())),
        burst: reader
            .whole(section, "burst", range)
            .unwrap_or(default.burst),
        concurrency: reader
            .whole(section, "concurrency", range)
            .unwrap_or(default.concurrency),
        ordering: reader
            .choice(section, "ordering", &ORDERINGS)
            .unwrap_or(default.ordering),
        mailbox: reader
            .whole(section, "mailbox", range)
            .unwrap_or(default.mailbox),
        ..default
    }
}

fn retry(reader: &mut Reader<'_>, section: &Fields<'_, '_>) -> Retry {
    let default = Retry::default();
    let initial = (Duration::from_millis(10), Duration::from_secs(3600));
    let initial = reader
        .duration(section, "initial", initial)
        .unwrap_or(default.initial);
    let max = match section.node("max") {
        Some(_) => reader.duration(section, "max", (initial, DAY)),
        // Only `initial` was given: it must not be above what was not.
        None => Some(default.max.max(initial)),
    };
    Retry {
        initial,
        max: max.unwrap_or(default.max),
        multiplier: reader
            .number(section, "multiplier", (1.0, 10.0))
            .unwrap_or(default.multiplier),
        max_attempts: reader
            .whole(section, "max_attempts", (1, 1000))
            .unwrap_or(default.max_attempts),
        deadline: reader
            .duration(section, "deadline", (SECOND, 30 * DAY))
            .unwrap_or(default.deadline),
        ..default
    }
}
