//! Rates, limits, and the scopes that merchants share.

use expediter_types::{LimitScope, Limits, Ordering, Rate, Scope};

use super::adapter::label;
use super::document::Node;
use super::reader::{Fields, Reader, SCOPE};

pub(super) const ORDERINGS: [(&str, Ordering); 3] = [
    ("none", Ordering::None),
    ("order", Ordering::Order),
    ("merchant", Ordering::Merchant),
];

/// Of orders that may go at once, and of a merchant's attempts in flight.
const UP_TO_10_000: (u32, u32) = (1, 10_000);

pub(super) fn limits(reader: &mut Reader<'_>, section: &Fields<'_, '_>) -> Limits {
    let default = Limits::default();
    let concurrency = reader
        .whole(section, "concurrency", UP_TO_10_000)
        .unwrap_or(default.concurrency);
    Limits {
        rates: rates(reader, section),
        burst: reader
            .whole(section, "burst", UP_TO_10_000)
            .unwrap_or(default.burst),
        concurrency,
        min_concurrency: reader.whole(section, "min_concurrency", (1, concurrency)),
        ordering: reader
            .choice(section, "ordering", &ORDERINGS)
            .unwrap_or(default.ordering),
        mailbox: reader
            .whole(section, "mailbox", UP_TO_10_000)
            .unwrap_or(default.mailbox),
        backlog: reader
            .whole(section, "backlog", (1, 100_000_000))
            .map(u64::from),
    }
}

/// Reads a `[[group]]` or `[[credential]]`; `None` when something is wrong with it.
pub(super) fn scope(
    reader: &mut Reader<'_>,
    node: &Node<'_>,
    path: &str,
    kind: LimitScope,
) -> Option<Scope> {
    let before = reader.problems.len();
    let fields = reader.fields(node, path, SCOPE)?;
    reader.missing(&fields, "id", &format!("every {} has an id", kind.as_str()));
    let id = reader.parsed(&fields, "id", label);
    let rates = rates(reader, &fields);
    let burst = reader.whole(&fields, "burst", UP_TO_10_000);
    let concurrency = reader.whole(&fields, "concurrency", (1, 100_000));
    if reader.problems.len() > before {
        return None;
    }
    if rates.is_empty() && concurrency.is_none() {
        reader.warning(
            fields.line,
            path,
            "limits nothing: it has no rate and no concurrency",
        );
    }
    Some(Scope {
        kind,
        id: id?,
        rates,
        burst: burst.unwrap_or(1),
        concurrency,
    })
}

/// One rate or several, by period.
fn rates(reader: &mut Reader<'_>, section: &Fields<'_, '_>) -> Vec<Rate> {
    let mut found: Vec<(u32, String, Rate)> = Vec::new();
    for (line, key, text) in reader.texts(section, "rate", (4, "rates")) {
        match text.parse::<Rate>() {
            Ok(rate) => match found.iter().find(|(.., f)| f.period() == rate.period()) {
                Some((.., other)) => {
                    let message = format!("{rate} has the same period as {other}");
                    reader.problem(line, &key, message);
                }
                None => found.push((line, key, rate)),
            },
            Err(error) => reader.problem(line, &key, error.to_string()),
        }
    }
    found.sort_by_key(|(.., rate)| rate.period());
    for (n, (line, key, quota)) in found.iter().enumerate() {
        let shorter = found.iter().take(n).map(|(.., rate)| rate);
        // As much or more in the same time: the shorter one never lets the quota be reached.
        let mut useless = shorter.filter(|rate| {
            u128::from(quota.count()) * rate.period().as_nanos()
                >= u128::from(rate.count()) * quota.period().as_nanos()
        });
        if let Some(rate) = useless.next() {
            let message = format!("{quota} limits nothing: {rate} allows no more than that");
            reader.warning(*line, key, message);
        }
    }
    found.into_iter().map(|(.., rate)| rate).collect()
}
