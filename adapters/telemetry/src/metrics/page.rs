use std::fmt::Write;

use super::CATALOGUE;

/// The reference page of all metrics, in Markdown; kept in the repository, equal to this.
#[must_use]
pub fn page() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         `/metrics` serves these in Prometheus' text format. There is no merchant label: the number \
         of series\nis the same for one merchant and for a hundred thousand. Histograms have buckets \
         from 0.1 ms to 56 min,\neach twice as wide as the one before.\n\n\
         This page is printed by `cargo run -p expediter-telemetry --example metrics_page`.\n\n\
         | name | kind | unit | label | meaning |\n|---|---|---|---|---|\n",
    );
    for metric in CATALOGUE {
        let label = match metric.label {
            None => String::new(),
            Some(label) => match label.values {
                None => format!("`{}`", label.name),
                Some(values) => {
                    let values: Vec<_> =
                        values().iter().map(|value| format!("`{value}`")).collect();
                    format!("`{}`: {}", label.name, values.join(", "))
                }
            },
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {label} | {} |",
            metric.name,
            metric.kind.as_str(),
            metric.unit,
            metric.help
        );
    }
    out
}
