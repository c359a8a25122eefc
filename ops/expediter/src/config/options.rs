//! What the parts of a node are started with.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use expediter_core::partition::PartitionConfig;
use expediter_http::{Egress, SecretSource, Unresolved, Webhook};
use expediter_nats::{ConnectOptions, Credentials, Tls, Topology};
use expediter_types::{NodeName, SecretRef};

use super::{Config, ProcessSecrets};
use crate::notify;

/// Why a part cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("{key} refers to {reference}: {source}")]
    Secret {
        key: &'static str,
        reference: SecretRef,
        source: Unresolved,
    },
    #[error("reading {file}, which http.ca_files names")]
    Authority {
        file: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Egress(#[from] expediter_http::Error),
    #[error("the notifications ([notify])")]
    Notify(#[from] expediter_http::WebhookError),
}

impl Config {
    /// The configured name, else the machine's with `-1`.
    pub(crate) fn node_name(&self) -> NodeName {
        match &self.node.name {
            Some(name) => name.clone(),
            None => name_of_host(&rustix::system::uname().nodename().to_string_lossy()),
        }
    }

    /// How to reach NATS; `client` is the name that its server shows. Reads the secrets.
    ///
    /// # Errors
    /// A secret cannot be read.
    pub(crate) fn connect_options(&self, client: &str) -> Result<ConnectOptions, SetupError> {
        let nats = &self.nats;
        let secret = |key, reference: &SecretRef| match ProcessSecrets.resolve(reference) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(source) => Err(SetupError::Secret {
                key,
                reference: reference.clone(),
                source,
            }),
        };
        let credentials = if let Some(path) = &nats.creds_file {
            Credentials::CredsFile(path.clone())
        } else if let Some(path) = &nats.nkey_file {
            Credentials::NkeyFile(path.clone())
        } else if let Some(token) = &nats.token {
            Credentials::Token(secret("nats.token", token)?)
        } else if let (Some(user), Some(password)) = (&nats.user, &nats.password) {
            let password = secret("nats.password", password)?;
            Credentials::UserPassword {
                user: user.clone(),
                password,
            }
        } else {
            Credentials::None
        };
        Ok(ConnectOptions {
            servers: nats.servers.clone(),
            credentials,
            tls: Tls {
                required: nats.tls.required,
                first: nats.tls.first,
                ca_file: nats.tls.ca_file.clone(),
                client: nats.tls.cert_file.clone().zip(nats.tls.key_file.clone()),
            },
            name: client.to_owned(),
        })
    }

    /// What the streams are made with.
    pub(crate) fn topology(&self) -> Topology {
        let nats = &self.nats;
        Topology {
            partitions: (nats.partitions > 0).then_some(nats.partitions),
            replicas: nats.replicas,
            orders_max_bytes: nats.orders_max_bytes,
            outcomes_max_bytes: nats.outcomes_max_bytes,
            audit_retention: nats.audit_retention,
        }
    }

    /// How the platform runs.
    pub(crate) fn runtime_options(&self) -> expediter_runtime::Options {
        let (node, orders) = (&self.node, &self.orders);
        let cores = available_parallelism().map_or(1, usize::from);
        let partition = PartitionConfig {
            linger: micros(orders.outcome_linger),
            spill_after: micros(orders.spill_after),
            mark_every: micros(orders.mark_every),
            unknown_grace: micros(orders.unknown_merchant_grace) / 1_000,
            idle_after: micros(orders.idle_after),
            panics: orders.panics,
            panic_window: micros(orders.panic_window),
            ..PartitionConfig::default()
        };
        expediter_runtime::Options {
            shards: if node.shards == 0 {
                (cores / 2).clamp(1, 64)
            } else {
                node.shards
            },
            in_flight: node.in_flight,
            rate: node.rate,
            intake_credits: node.intake_credits,
            repeats: orders.repeats_window,
            partition,
            drain_deadline: node.drain_deadline,
            ..expediter_runtime::Options::default()
        }
    }

    /// How merchants are reached. Reads the certificate authorities.
    ///
    /// # Errors
    /// A file cannot be read, an entry of `egress.allow` is none.
    pub(crate) fn http_options(&self) -> Result<expediter_http::Options, SetupError> {
        let http = &self.http;
        let read = |path: &std::path::PathBuf| {
            let file = || path.display().to_string();
            std::fs::read(path).map_err(|source| SetupError::Authority {
                file: file(),
                source,
            })
        };
        let defaults = expediter_http::Options::new(Arc::new(ProcessSecrets));
        Ok(expediter_http::Options {
            egress: Egress::new(&self.egress.allow)?,
            connect_timeout: http.connect_timeout,
            max_response_bytes: usize::try_from(http.max_response).unwrap_or(usize::MAX),
            retry_after_min: http.retry_after_min,
            retry_after_max: http.retry_after_max,
            rate_limited_default: http.rate_limited_pause,
            user_agent: http.user_agent.clone().unwrap_or(defaults.user_agent),
            pool_idle_per_host: http.pool_idle_per_host,
            pool_idle: http.pool_idle,
            pool_idle_unrepeatable: http.pool_idle_unrepeatable,
            extra_roots: http.ca_files.iter().map(read).collect::<Result<_, _>>()?,
            secrets: defaults.secrets,
        })
    }

    /// Who is notified of what; `None`: nobody. Reads the secret.
    ///
    /// # Errors
    /// The secret cannot be read or is none, the URL is none.
    pub(crate) fn notify_options(&self) -> Result<Option<notify::Options>, SetupError> {
        let settings = &self.notify;
        let (Some(url), Some(reference)) = (&settings.url, &settings.secret) else {
            return Ok(None);
        };
        let secret = ProcessSecrets
            .resolve(reference)
            .map_err(|source| SetupError::Secret {
                key: "notify.secret",
                reference: reference.clone(),
                source,
            })?;
        let http = expediter_http::Options {
            egress: Egress::new(&settings.allow)?,
            ..self.http_options()?
        };
        Ok(Some(notify::Options {
            webhook: Webhook::new(&http, url, &secret, settings.timeout)?,
            node: self.node_name(),
            events: settings.events.clone(),
            every: settings.every,
            give_up_after: settings.give_up_after,
        }))
    }

    /// Where the working copy is.
    pub(crate) fn store_options(&self) -> expediter_store::Options {
        expediter_store::Options {
            cache_bytes: self.store.cache,
            ..expediter_store::Options::new(self.node.data_dir.join("store"))
        }
    }

    /// What is logged and traced.
    pub(crate) fn log_options(&self) -> expediter_telemetry::logs::Options {
        expediter_telemetry::logs::Options {
            format: self.log.format,
            filter: self.log.filter.clone(),
            otlp_endpoint: self.telemetry.otlp_endpoint.clone(),
            trace_ratio: self.telemetry.trace_ratio,
            service_instance: self.node_name().to_string(),
            ..expediter_telemetry::logs::Options::default()
        }
    }

    /// Where probes and scrapers ask.
    pub(crate) fn gateway_options(&self) -> expediter_gateway::Options {
        expediter_gateway::Options::at(self.node.listen)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Hosts may have dots in their names; node names may not.
fn name_of_host(host: &str) -> NodeName {
    let legal = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            c
        } else {
            '-'
        }
    };
    let short: String = host.chars().take(60).map(legal).collect();
    let short = if short.is_empty() {
        "node".to_owned()
    } else {
        short
    };
    NodeName::new(&format!("{short}-1")).expect("at most 62 legal characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_has_a_legal_name() {
        assert_eq!(
            name_of_host("pos.shop.example").as_str(),
            "pos-shop-example-1"
        );
        for host in ["", "ä", &"x".repeat(300), "a\0b"] {
            assert!(name_of_host(host).as_str().ends_with("-1"));
        }
    }

    #[test]
    fn the_parts_defaults_are_ours() {
        let config = Config::default();
        let http = config.http_options().unwrap();
        let theirs = expediter_http::Options::new(Arc::new(ProcessSecrets));
        assert_eq!(format!("{http:?}"), format!("{theirs:?}"));
        let runtime = config.runtime_options();
        let theirs = expediter_runtime::Options::default();
        assert_eq!(runtime.repeats, theirs.repeats);
        let partition = runtime.partition;
        assert_eq!(
            format!("{partition:?}"),
            format!("{:?}", PartitionConfig::default())
        );
        assert_eq!(
            config.store_options(),
            expediter_store::Options::new("data/store")
        );
        let (log, theirs) = (
            config.log_options(),
            expediter_telemetry::logs::Options::default(),
        );
        assert_eq!(
            (log.filter, log.trace_ratio),
            (theirs.filter, theirs.trace_ratio)
        );
    }
}
