use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use expediter_nats::Connection;

use super::Error;
use crate::config::{Config, Environment};

/// What all verbs understand.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Global {
    /// NATS addresses, separated by commas [env: EXPEDITER_NATS_SERVERS]
    ///
    /// Rules over the file and the environment. Credentials are taken from there.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub(crate) nats: Option<String>,

    /// File with settings, as printed by `expediter config default`
    #[arg(
        long,
        global = true,
        env = "EXPEDITER_CONFIG",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,

    /// Print data as JSON: one object, or one a line where there are many
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
}

impl Global {
    /// The settings: defaults, file, environment, flags.
    pub(crate) fn settings(&self) -> Result<Config, Error> {
        let config = Config::load(self.config.as_deref(), &Environment::of_process());
        let mut config = config.map_err(|error| Error::Usage(with_causes(&error)))?;
        if let Some(servers) = &self.nats {
            config
                .set_servers(servers)
                .map_err(|wrong| Error::Usage(format!("--nats {wrong}")))?;
        }
        Ok(config)
    }

    /// Connects at once or says why not.
    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        let options = self.settings()?.connect_options("expediter-cli");
        let options = options.map_err(|error| Error::Usage(with_causes(&error)))?;
        Ok(Connection::open_once(&options).await?)
    }
}

/// Runs a verb that talks to others.
pub(super) fn block_on(verb: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    // Another part of the process may have installed the same one before.
    let _installed = rustls::crypto::ring::default_provider()
        .install_default()
        .is_ok();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(verb);
    // A thread that still waits for stdin must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// An error and its causes in one line.
pub(super) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
