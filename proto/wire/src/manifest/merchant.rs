use std::time::Duration;

use expediter_types::{Breaker, Limits, Merchant, MerchantId, OnPark, Ordering, Retry};

use super::document::Node;
use super::limits::limits;
use super::reader::{BREAKER, Fields, HOURS, LIMITS, MERCHANT, RETRY, Reader};
use super::{adapter, hours, job};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

const PARKED: [(&str, OnPark); 2] = [("continue", OnPark::Continue), ("hold", OnPark::Hold)];

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
    let group = reader.parsed(&fields, "group", adapter::label);
    let limits = match reader.section(&fields, "limits", LIMITS) {
        Some(section) => limits(reader, &section),
        None => Limits::default(),
    };
    let retry = match reader.section(&fields, "retry", RETRY) {
        Some(section) => retry(reader, &section, limits.ordering),
        None => Retry::default(),
    };
    let breaker = match reader.section(&fields, "breaker", BREAKER) {
        Some(section) => breaker(reader, &section),
        None => Breaker::default(),
    };
    let hours = reader
        .section(&fields, "hours", HOURS)
        .and_then(|section| hours::read(reader, &section));
    let jobs = job::read(reader, &fields);
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
        breaker,
        hours,
        jobs,
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

fn retry(reader: &mut Reader<'_>, section: &Fields<'_, '_>, ordering: Ordering) -> Retry {
    let default = Retry::default();
    let initial = (Duration::from_millis(10), HOUR);
    let initial = reader
        .duration(section, "initial", initial)
        .unwrap_or(default.initial);
    let max = match section.node("max") {
        Some(_) => reader.duration(section, "max", (initial, DAY)),
        // Only `initial` was given: it must not be above what was not.
        None => Some(default.max.max(initial)),
    };
    let on_park = reader.choice(section, "on_park", &PARKED);
    if on_park == Some(OnPark::Hold) && ordering == Ordering::None {
        let line = section
            .node("on_park")
            .map_or(section.line, |node| node.line);
        let message = "hold asks for limits.ordering order or merchant: \
                       without one no order is behind another";
        reader.problem(line, &section.key("on_park"), message);
    }
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
        margin: reader
            .duration(section, "margin", (Duration::ZERO, HOUR))
            .unwrap_or(default.margin),
        budget: reader
            .number(section, "budget", (0.0, 10.0))
            .unwrap_or(default.budget),
        on_park: on_park.unwrap_or(default.on_park),
    }
}

fn breaker(reader: &mut Reader<'_>, section: &Fields<'_, '_>) -> Breaker {
    let default = Breaker::default();
    let open = reader
        .duration(section, "open", (Duration::from_millis(100), HOUR))
        .unwrap_or(default.open);
    let max_open = match section.node("max_open") {
        Some(_) => reader.duration(section, "max_open", (open, DAY)),
        // Only `open` was given: it must not be above what was not.
        None => Some(default.max_open.max(open)),
    };
    Breaker {
        consecutive: reader
            .whole(section, "consecutive", (0, 10_000))
            .unwrap_or(default.consecutive),
        ratio: reader
            .number(section, "ratio", (0.01, 1.0))
            .unwrap_or(default.ratio),
        min_samples: reader
            .whole(section, "min_samples", (0, 100_000))
            .unwrap_or(default.min_samples),
        window: reader
            .duration(section, "window", (SECOND, HOUR))
            .unwrap_or(default.window),
        open,
        max_open: max_open.unwrap_or(default.max_open),
        probes: reader
            .whole(section, "probes", (1, 100))
            .unwrap_or(default.probes),
    }
}
