/// Why logs or traces could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See the directives of `tracing_subscriber::EnvFilter`.
    #[error("log filter {filter:?} cannot be read")]
    Filter {
        filter: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("the log file {} cannot be opened", path.display())]
    File {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The process already has a log.
    #[error("logs are already set up in this process")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
    /// The endpoint is not repeated: it may carry credentials.
    #[error("the trace endpoint must be http://HOST[:PORT] or https://HOST[:PORT]")]
    Endpoint,
    #[error("the share of traced orders must be 0.0 to 1.0, not {0}")]
    Ratio(f64),
    #[error("the client for trace export cannot be set up")]
    Client(#[source] reqwest::Error),
    #[error("trace export cannot be set up")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    #[error("the trace exporter's thread cannot be started")]
    Runtime(#[source] std::io::Error),
}
