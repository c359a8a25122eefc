use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::note;
use super::out::Out;
use super::{Error, Global};
use crate::config::{Config, DEFAULT, Environment, Problem};

const DEFAULT_EXAMPLES: &str = "\
Examples:
  expediter config default
  expediter config default > expediter.toml";

const CHECK_EXAMPLES: &str = "\
Examples:
  expediter config check expediter.toml
  EXPEDITER_NODE_SHARDS=2 expediter config check expediter.toml --json";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Print every setting with its default, range and meaning
    #[command(after_help = DEFAULT_EXAMPLES)]
    Default,
    /// Check a file, and the EXPEDITER_ variables of the environment with it
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// The file; without one, that of --config
        file: Option<PathBuf>,
    },
}

/// `expediter config …`
pub(crate) fn run(global: &Global, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Default => Out::stdout().text(DEFAULT),
        Verb::Check { file } => {
            let file = file.as_ref().or(global.config.as_ref());
            let none = || Error::Usage("which file? expediter config check FILE".to_owned());
            check(global, file.ok_or_else(none)?)
        }
    }
}

fn check(global: &Global, file: &Path) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Report<'a> {
        file: String,
        ok: bool,
        problems: &'a [Problem],
    }
    let problems = match Config::load(Some(file), &Environment::of_process()) {
        Ok(_) => Vec::new(),
        Err(error) => error.into_problems(),
    };
    let shown = file.display();
    let mut out = Out::stdout();
    if global.json {
        out.json(&Report {
            file: shown.to_string(),
            ok: problems.is_empty(),
            problems: &problems,
        })?;
    } else if problems.is_empty() {
        out.line(format_args!("{shown}: ok"))?;
    } else {
        problems
            .iter()
            .for_each(|problem| note(&problem.to_string()));
    }
    match problems.len() {
        0 => Ok(()),
        1 => Err(Error::Usage(format!(
            "1 problem with {shown} and the environment"
        ))),
        n => Err(Error::Usage(format!(
            "{n} problems with {shown} and the environment"
        ))),
    }
}
