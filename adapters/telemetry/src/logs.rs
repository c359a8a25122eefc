//! Logs to stderr, and traces to a collector where one is configured.

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

use crate::{Error, Tracing, export, trace};

/// Libraries that tell more than an operator wants; the configured filter can ask them to speak.
/// OpenTelemetry's own complaints repeat with every batch and are replaced by ours.
const QUIET: &str = "async_nats=warn,hyper=warn,hyper_util=warn,h2=warn,rustls=warn,reqwest=warn,\
    sled=warn,actix=warn,mio=warn,opentelemetry=off";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people: one line each, coloured on a terminal unless `NO_COLOR` is set.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged and traced, and as whom.
#[derive(Debug, Clone)]
pub struct Options {
    pub format: Format,
    /// Appended to instead of standard error; for what holds the terminal. `None` by default.
    pub file: Option<PathBuf>,
    /// A level, or directives such as `info,expediter_nats=debug`; `info` by default.
    pub filter: String,
    /// Base URL of an OTLP/HTTP collector, such as `http://127.0.0.1:4318`; `None`: no traces.
    /// Headers for it come from `OTEL_EXPORTER_OTLP_HEADERS`.
    pub otlp_endpoint: Option<String>,
    /// Share of the orders that are traced, of those that bring no decision with their
    /// `traceparent`: 0.0 to 1.0; 1.0 by default.
    pub trace_ratio: f64,
    /// `service.name`; `expediter` by default.
    pub service_name: String,
    /// `service.instance.id`: the node's name.
    pub service_instance: String,
    /// `service.version`.
    pub version: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            file: None,
            filter: "info".to_owned(),
            otlp_endpoint: None,
            trace_ratio: 1.0,
            service_name: "expediter".to_owned(),
            service_instance: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Sets up the process's log and, with an endpoint, the export of traces. Once per process.
///
/// A collector that cannot be reached is no error: it is told at most once a minute.
pub fn init(options: &Options) -> Result<Guard, Error> {
    let filter = filter(&options.filter)?;
    let provider = provider(options)?;
    let layer = match &options.file {
        Some(path) => layer(options.format, false, Arc::new(open(path)?)),
        None => layer(
            options.format,
            std::io::stderr().is_terminal(),
            std::io::stderr,
        ),
    };
    Registry::default()
        .with(layer.with_filter(filter))
        .try_init()
        .map_err(Error::AlreadySet)?;
    Ok(Guard { provider })
}

fn open(path: &Path) -> Result<File, Error> {
    let file = File::options().create(true).append(true).open(path);
    file.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Keeps the exporter; shut it down last.
#[derive(Debug)]
#[must_use = "traces of the last seconds are lost without a shutdown"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// What makes the spans of attempts; off without an endpoint.
    #[must_use]
    pub fn tracing(&self) -> Tracing {
        self.provider
            .as_ref()
            .map_or_else(Tracing::off, Tracing::of)
    }

    /// Sends what is left, for at most `timeout`. Blocks: call it outside of async code.
    pub fn shutdown(self, timeout: Duration) {
        let Some(provider) = self.provider else {
            return;
        };
        if let Err(error) = provider.shutdown_with_timeout(timeout) {
            tracing::warn!(%error, "the last traces were not exported");
        }
    }
}

/// The configured directives come last: of two for one target the later holds.
fn filter(configured: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder()
        .parse(format!("{QUIET},{configured}"))
        .map_err(|source| Error::Filter {
            filter: configured.to_owned(),
            source,
        })
}

fn layer<W>(format: Format, terminal: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let text = match format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    };
    let layer = fmt::layer().with_writer(writer);
    if !text {
        layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_ansi(false)
            .boxed()
    } else if terminal {
        // Left alone, the layer honours NO_COLOR.
        layer.boxed()
    } else {
        layer.with_ansi(false).boxed()
    }
}

fn provider(options: &Options) -> Result<Option<SdkTracerProvider>, Error> {
    if !(0.0..=1.0).contains(&options.trace_ratio) {
        return Err(Error::Ratio(options.trace_ratio));
    }
    let Some(endpoint) = &options.otlp_endpoint else {
        return Ok(None);
    };
    let resource = Resource::builder_empty()
        .with_service_name(options.service_name.clone())
        .with_attribute(KeyValue::new(
            "service.instance.id",
            options.service_instance.clone(),
        ))
        .with_attribute(KeyValue::new("service.version", options.version.clone()))
        .build();
    let provider = trace::provider(options.trace_ratio)
        .with_span_processor(export::processor(endpoint)?)
        .with_resource(resource)
        .build();
    Ok(Some(provider))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, configured: &str, events: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = layer(format, false, move || writer.clone());
        let subscriber = Registry::default().with(layer.with_filter(filter(configured).unwrap()));
        tracing::subscriber::with_default(subscriber, events);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_has_one_flat_object_a_line() {
        let text = logged(Format::Auto, "info", || {
            tracing::info!(partition = 3, "claimed");
            tracing::warn!("fenced");
        });
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["message"], "claimed");
        assert_eq!(lines[0]["partition"], 3);
        assert_eq!(lines[1]["level"], "WARN");
    }

    #[test]
    fn text_that_goes_to_no_terminal_has_no_colour() {
        let text = logged(Format::Text, "info", || tracing::info!("hello"));
        assert!(
            text.contains("hello") && !text.contains('\u{1b}'),
            "{text:?}"
        );
    }

    #[test]
    fn a_file_is_appended_to_and_one_that_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dev.log");
        for _ in 0..2 {
            let layer = layer(Format::Auto, false, Arc::new(open(&path).unwrap()));
            let subscriber = Registry::default().with(layer);
            tracing::subscriber::with_default(subscriber, || tracing::info!("hello"));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        let error = open(&dir.path().join("absent/dev.log")).unwrap_err();
        assert!(error.to_string().contains("absent/dev.log"), "{error}");
    }

    #[test]
    fn libraries_are_quiet_until_they_are_asked() {
        let events = || {
            tracing::info!(target: "async_nats::connector", "nats info");
            tracing::warn!(target: "sled::pagecache", "sled warn");
            tracing::error!(target: "opentelemetry_sdk", "sdk error");
            tracing::debug!("own debug");
            tracing::info!("own info");
        };
        let text = logged(Format::Text, "info", events);
        assert!(
            text.contains("own info") && text.contains("sled warn"),
            "{text}"
        );
        for absent in ["nats info", "sdk error", "own debug"] {
            assert!(!text.contains(absent), "{absent}");
        }
        let text = logged(Format::Text, "debug,async_nats=info", events);
        assert!(
            text.contains("nats info") && text.contains("own debug"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert!(matches!(
            filter("expediter=loud"),
            Err(Error::Filter { .. })
        ));
        for endpoint in ["", "collector:4318", "ftp://c", "http://"] {
            let options = Options {
                otlp_endpoint: Some(endpoint.to_owned()),
                ..Options::default()
            };
            assert!(
                matches!(provider(&options), Err(Error::Endpoint)),
                "{endpoint}"
            );
        }
        for trace_ratio in [-0.1, 1.1, f64::NAN] {
            let options = Options {
                trace_ratio,
                ..Options::default()
            };
            assert!(matches!(provider(&options), Err(Error::Ratio(_))));
        }
    }
}
