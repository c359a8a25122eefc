//! Spans on their way to the collector, over OTLP/HTTP.
//!
//! The batch processor takes spans into a bounded queue and drops what does not fit, so that making
//! a span never waits. Its thread blocks here, and only here, on a runtime of its own: neither a
//! stuck collector nor the end of the node's runtime matters to the other.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_otlp::{Protocol, SpanExporter as Otlp, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor,
};
use tokio::runtime::Runtime;

use crate::Error;
use crate::trace::Server;

/// One batch, retries included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Spans; about 1 KiB each.
const QUEUE: usize = 8192;
/// Spans in one request.
const BATCH: usize = 512;
/// A batch that is not full leaves after this.
const DELAY: Duration = Duration::from_secs(2);
/// At most one warning about a failing collector in this time.
const QUIET: Duration = Duration::from_secs(60);

/// The processor that sends to `endpoint`, the collector's base URL.
pub(crate) fn processor(endpoint: &str) -> Result<impl SpanProcessor + use<>, Error> {
    let server = Server::of(endpoint).ok_or(Error::Endpoint)?;
    let told = match server.port {
        Some(port) => format!("{}://{}:{port}", server.scheme, server.host),
        None => return Err(Error::Endpoint),
    };
    // The HTTP client wants the process's default, which another crate may have set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(EXPORT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(Error::Client)?;
    let inner = Otlp::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(traces_url(endpoint))
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(Error::Exporter)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("trace-export")
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let exporter = Collector {
        inner,
        runtime: Some(runtime),
        told,
        complaints: Mutex::new(Complaints::default()),
    };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY)
        .build();
    Ok(BatchSpanProcessor::builder(exporter)
        .with_batch_config(config)
        .build())
}

/// By the convention of OTLP/HTTP the path is appended to the base; a full one is left alone.
fn traces_url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with("/v1/traces") {
        base.to_owned()
    } else {
        format!("{base}/v1/traces")
    }
}

#[derive(Debug)]
struct Collector {
    inner: Otlp,
    /// Taken on drop only.
    runtime: Option<Runtime>,
    /// The endpoint without what may be secret.
    told: String,
    complaints: Mutex<Complaints>,
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let Some(runtime) = &self.runtime else {
            return Err(OTelSdkError::AlreadyShutdown);
        };
        // Called on the processor's own thread, which has nothing else to do.
        let result = runtime.block_on(async {
            // The exporter bounds its retries, but not a request that is under way.
            tokio::time::timeout(EXPORT_TIMEOUT, self.inner.export(batch))
                .await
                .unwrap_or(Err(OTelSdkError::Timeout(EXPORT_TIMEOUT)))
        });
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match complaints.note(result.is_ok(), spans, Instant::now()) {
            Some(Note::Failing { lost }) => tracing::warn!(
                collector = self.told,
                error = result.as_ref().err().map(tracing::field::display),
                lost_spans = lost,
                "traces cannot be exported"
            ),
            Some(Note::Recovered) => {
                tracing::info!(collector = self.told, "traces are exported again");
            }
            None => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.inner.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // A plain drop waits for the threads, and panics inside another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Decides which of many failures are worth a line.
#[derive(Debug, Default)]
struct Complaints {
    /// When the last warning of the present failure was given.
    warned: Option<Instant>,
    /// Spans lost since then.
    lost: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Note {
    Failing { lost: usize },
    Recovered,
}

impl Complaints {
    fn note(&mut self, sent: bool, spans: usize, now: Instant) -> Option<Note> {
        if sent {
            // A collector that fails and recovers by turns must not fill the log either: the
            // warning's time stays until the silence is over.
            let over = self
                .warned
                .is_some_and(|at| now.duration_since(at) >= QUIET);
            return over.then(|| {
                *self = Self::default();
                Note::Recovered
            });
        }
        self.lost += spans;
        if self.warned.is_some_and(|at| now.duration_since(at) < QUIET) {
            return None;
        }
        self.warned = Some(now);
        Some(Note::Failing {
            lost: std::mem::take(&mut self.lost),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_collector_is_told_once_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut complaints = Complaints::default();
        assert_eq!(complaints.note(true, 1, at(0)), None);
        assert_eq!(
            complaints.note(false, 2, at(1)),
            Some(Note::Failing { lost: 2 })
        );
        for second in 2..61 {
            assert_eq!(complaints.note(second % 2 == 0, 1, at(second)), None);
        }
        assert_eq!(
            complaints.note(false, 1, at(61)),
            Some(Note::Failing { lost: 30 })
        );
        assert_eq!(complaints.note(true, 1, at(62)), None);
        assert_eq!(complaints.note(true, 1, at(121)), Some(Note::Recovered));
        assert_eq!(complaints.note(true, 1, at(122)), None);
    }

    #[test]
    fn the_path_is_added_once() {
        assert_eq!(traces_url("http://c:4318"), "http://c:4318/v1/traces");
        assert_eq!(
            traces_url("http://c:4318/otlp/"),
            "http://c:4318/otlp/v1/traces"
        );
        assert_eq!(traces_url("http://c/v1/traces"), "http://c/v1/traces");
    }
}
