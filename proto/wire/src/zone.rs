//! Time zones by name, from the database that is part of the binary: all nodes know the same ones,
//! whatever their systems have.

use jiff::tz::{TimeZone, TimeZoneDatabase};

/// The zone of that name, and the name as the database writes it; upper and lower case are the same.
///
/// # Errors
/// There is none of that name; the message has the nearest one.
pub fn time_zone(name: &str) -> Result<(String, TimeZone), String> {
    let database = TimeZoneDatabase::bundled();
    if let Ok(zone) = database.get(name)
        && let Some(known) = zone.iana_name()
    {
        return Ok((known.to_owned(), zone));
    }
    let shown: String = name.chars().take(60).flat_map(char::escape_debug).collect();
    let near = match nearest(name, &database) {
        Some(near) => format!("did you mean {near}?"),
        None => "write one such as Europe/Rome or UTC".to_owned(),
    };
    Err(format!("{shown:?} is no time zone; {near}"))
}

/// By its whole name or, as people write, by the city alone.
fn nearest(name: &str, database: &TimeZoneDatabase) -> Option<String> {
    if name.is_empty() || name.len() > 64 {
        return None;
    }
    let wanted = name.to_lowercase().replace(' ', "_");
    let distance = |known: &str| {
        let known = known.to_lowercase();
        let city = known.rsplit('/').next().unwrap_or(&known);
        let far = strsim::damerau_levenshtein;
        far(&wanted, &known).min(far(&wanted, city))
    };
    let known = database.available();
    let near = known.map(|known| (distance(known.as_str()), known.as_str().to_owned()));
    // Of two that are as near, the shorter one is no alias of long ago.
    let near = near.min_by_key(|(distance, known)| (*distance, known.len(), known.clone()))?;
    (near.0 <= 1 + wanted.len() / 4).then_some(near.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_one_name() {
        for (given, known) in [
            ("Europe/Rome", "Europe/Rome"),
            ("europe/rome", "Europe/Rome"),
            ("UTC", "UTC"),
            (
                "America/Argentina/Buenos_Aires",
                "America/Argentina/Buenos_Aires",
            ),
        ] {
            assert_eq!(time_zone(given).unwrap().0, known);
        }
    }

    #[test]
    fn unknown_zones_have_near_ones() {
        for (given, near) in [
            ("Europe/Rom", "did you mean Europe/Rome?"),
            ("rome", "did you mean Europe/Rome?"),
            ("New York", "did you mean America/New_York?"),
            ("Middle-earth/Shire", "such as Europe/Rome"),
            ("", "such as Europe/Rome"),
            ("../../etc/passwd", "such as Europe/Rome"),
        ] {
            let error = time_zone(given).unwrap_err();
            assert!(error.contains(near), "{given}: {error}");
        }
    }
}
