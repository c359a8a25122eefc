//! What people type.
//!
//! Constraints: data goes to stdout, everything else to stderr; `--json` prints data for machines;
//! colours only on a terminal; a reader that goes away ends a verb without a complaint. What comes
//! from merchants and publishers is printed without control characters.

pub(crate) mod audit;
pub(crate) mod cluster;
pub(crate) mod completion;
pub(crate) mod config;
mod dead;
pub(crate) mod deadletter;
pub(crate) mod doctor;
mod error;
mod explain;
mod follow;
mod global;
pub(crate) mod job;
pub(crate) mod merchant;
mod operator;
pub(crate) mod order;
mod out;
pub(crate) mod outcome;
mod owners;
mod table;
mod text;
pub(crate) mod top;

pub(crate) use error::{EXIT_CODES, Error, exit_code};
pub(crate) use global::Global;

use out::Out;

pub(crate) const VERSION_EXAMPLES: &str = "\
Examples:
  expediter version
  expediter version --json | jq -r .version";

/// `expediter version`
pub(crate) fn version(global: &Global) -> Result<(), Error> {
    #[derive(serde::Serialize)]
    struct Version {
        version: &'static str,
    }
    let version = env!("CARGO_PKG_VERSION");
    let mut out = Out::stdout();
    match global.json {
        true => out.json(&Version { version }),
        false => out.line(format_args!("expediter {version}")),
    }
}
