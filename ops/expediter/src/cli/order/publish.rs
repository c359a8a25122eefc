use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use expediter_nats::{Connection, OrderPublisher, Published, Registry, largest_order};
use expediter_types::{MerchantId, OrderId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::input::{Body, Input, field, id_field};
use super::message::{Message, Shared, made_up_id, rate};
use crate::cli::error::note;
use crate::cli::out::Out;
use crate::cli::text::{clean, count, counted, span};
use crate::cli::{Error, Global};

/// Orders that wait for the broker's word.
const WINDOW: usize = 2_048;
/// Failures that are told one by one.
const TOLD: u64 = 20;
/// Headers that the broker counts to the size of a message, at most about so many bytes.
const HEADER_ROOM: usize = 4 << 10;

const EXAMPLES: &str = "\
Any NATS client can publish to orders.<merchant>; this is the convenience. An order's id names it
for ever: publishing it again is harmless with the same body, and ends as a dead letter with
another one.

Examples:
  expediter order publish luigis -f order.json --id 4711
  echo '{\"pizza\":1}' | expediter order publish luigis -f - --deadline 30m
  expediter order publish luigis -f orders.ndjson --ndjson --id-field number --key-field table
  expediter order publish luigis -f order.json --id 4712 --priority high
  expediter order publish luigis -f late.json --id 9 --not-before 2026-12-24T18:00:00Z";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The merchant
    merchant: MerchantId,
    /// File with the order's body, or - for stdin; can be repeated
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE|-")]
    files: Vec<PathBuf>,
    /// The order's id [default: made up]
    #[arg(long, conflicts_with = "ndjson")]
    id: Option<OrderId>,
    /// One order a line, as JSON objects
    #[arg(long)]
    ndjson: bool,
    /// With --ndjson: the field with the id; empty: ids are made up
    #[arg(long, requires = "ndjson", default_value = "id", value_name = "NAME")]
    id_field: String,
    /// With --ndjson: the field with the ordering key
    #[arg(long, requires = "ndjson", value_name = "NAME")]
    key_field: Option<String>,
    #[command(flatten)]
    shared: Shared,
}

/// One order for machines, without --ndjson.
#[derive(Debug, Serialize)]
struct One<'a> {
    merchant: &'a str,
    id: &'a str,
    seq: u64,
    duplicate: bool,
}

/// All orders for machines, with --ndjson.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    merchant: &'a str,
    published: u64,
    /// Of these, known to the broker already.
    duplicates: u64,
    failed: u64,
    failures: &'a [Failure],
    seconds: f64,
    per_second: u64,
}

#[derive(Debug, Serialize)]
struct Failure {
    place: String,
    message: String,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    if args.id.is_some() && args.files.len() > 1 {
        return Err(Error::Usage(
            "--id names one order, but there are several files".to_owned(),
        ));
    }
    // What all orders share is checked before anything is sent.
    let any = OrderId::new("any").map_err(|error| Error::Usage(error.to_string()))?;
    args.shared.message(&args.merchant, any, None, b"")?;
    let connection = global.connect().await?;
    let largest = largest_order(&connection).await?;
    warn_if_unknown(&connection, &args.merchant).await?;
    let input = Input {
        files: args.files.clone(),
        lines: args.ndjson,
        max: largest.saturating_sub(HEADER_ROOM).max(1),
    };
    let mut run = Run {
        connection: &connection,
        publisher: OrderPublisher::new(&connection, WINDOW),
        args: &args,
        json: global.json,
        out: Out::stdout(),
        bar: bar(args.ndjson, input.size()),
        started: Instant::now(),
        published: 0,
        duplicates: 0,
        failed: 0,
        failures: Vec::new(),
    };
    let interrupted = run.all(input).await?;
    run.end(interrupted)
}

async fn warn_if_unknown(connection: &Connection, merchant: &MerchantId) -> Result<(), Error> {
    if Registry::new(connection).get(merchant).await?.is_none() {
        note(&format!(
            "warning: no merchant {merchant} is registered: its orders wait for the grace of \
             orders.unknown_merchant_grace, then become dead letters"
        ));
    }
    Ok(())
}

struct Run<'a> {
    connection: &'a Connection,
    publisher: OrderPublisher,
    args: &'a Args,
    json: bool,
    out: Out,
    bar: ProgressBar,
    started: Instant,
    published: u64,
    duplicates: u64,
    failed: u64,
    failures: Vec<Failure>,
}

/// What the broker said to one order.
type Acked = (String, OrderId, Result<Published, expediter_nats::Error>);

impl Run<'_> {
    /// Publishes everything; true when it was interrupted.
    async fn all(&mut self, input: Input) -> Result<bool, Error> {
        let mut bodies = input.start()?;
        let mut pending = FuturesUnordered::new();
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let (mut more, mut interrupted) = (true, false);
        while more || !pending.is_empty() {
            tokio::select! {
                biased;
                _ = &mut interrupt, if !interrupted => {
                    // What is sent already is waited for, so that its fate is known.
                    (more, interrupted) = (false, true);
                }
                Some(acked) = pending.next(), if !pending.is_empty() => self.acked(acked)?,
                body = bodies.recv(), if more && pending.len() < WINDOW => match body {
                    None => more = false,
                    Some(Body { place, payload, read }) => {
                        self.bar.set_position(read);
                        match payload.and_then(|payload| self.message(payload)) {
                            Err(message) => self.fail(place, message),
                            Ok((Message { id, headers }, payload)) => {
                                let merchant = &self.args.merchant;
                                let sent = self.publisher.publish(merchant, headers, payload).await?;
                                pending.push(async move { (place, id, sent.wait().await) });
                            }
                        }
                    }
                },
            }
        }
        self.bar.finish_and_clear();
        Ok(interrupted)
    }

    fn message(&self, payload: Bytes) -> Result<(Message, Bytes), String> {
        let args = self.args;
        let made_up = || made_up_id(self.connection.client()).map_err(|error| error.to_string());
        let id = match &args.id {
            Some(id) => id.clone(),
            None if args.ndjson && !args.id_field.is_empty() => id_field(&payload, &args.id_field)?,
            None => made_up()?,
        };
        let key = args
            .key_field
            .as_ref()
            .map(|name| field(&payload, name))
            .transpose()?;
        let message = args.shared.message(&args.merchant, id, key, &payload);
        message
            .map(|message| (message, payload))
            .map_err(|error| error.to_string())
    }

    fn acked(&mut self, (place, id, result): Acked) -> Result<(), Error> {
        let Published { seq, duplicate } = match result {
            Ok(published) => published,
            Err(error) => {
                self.fail(place, Error::from(error).to_string());
                return Ok(());
            }
        };
        self.published += 1;
        self.duplicates += u64::from(duplicate);
        if self.args.ndjson {
            let rate = rate(self.published, self.started.elapsed());
            self.bar.set_message(format!(
                "{}, {}/s",
                counted(self.published, "order"),
                count(rate)
            ));
            return Ok(());
        }
        let merchant = self.args.merchant.as_str();
        if self.json {
            return self.out.json(&One {
                merchant,
                id: id.as_str(),
                seq,
                duplicate,
            });
        }
        let known = if duplicate {
            "  (the broker had it already)"
        } else {
            ""
        };
        self.out.line(format_args!(
            "published  {merchant}  {id}  sequence {seq}{known}"
        ))
    }

    fn fail(&mut self, place: String, message: String) {
        self.failed += 1;
        if self.failed <= TOLD {
            self.bar
                .suspend(|| note(&format!("{place}: {}", clean(&message))));
            self.failures.push(Failure { place, message });
        }
    }

    fn end(mut self, interrupted: bool) -> Result<(), Error> {
        let took = self.started.elapsed();
        let per_second = rate(self.published, took);
        if self.args.ndjson {
            if self.json {
                self.out.json(&Summary {
                    merchant: self.args.merchant.as_str(),
                    published: self.published,
                    duplicates: self.duplicates,
                    failed: self.failed,
                    failures: &self.failures,
                    seconds: took.as_secs_f64(),
                    per_second,
                })?;
            } else {
                let mut line = format!(
                    "published {} in {} ({}/s)",
                    counted(self.published, "order"),
                    span(took),
                    count(per_second)
                );
                if self.duplicates > 0 {
                    line = format!("{line}, {} of them known already", count(self.duplicates));
                }
                self.out.line(line)?;
            }
        }
        if self.failed > TOLD {
            note(&format!("… and {} more", count(self.failed - TOLD)));
        }
        match (self.failed, interrupted) {
            (0, false) => Ok(()),
            (0, true) => Err(Error::failed("interrupted before the end of the input")),
            (failed, _) => Err(Error::failed(format!(
                "{} not published",
                match failed {
                    1 => "1 order was".to_owned(),
                    n => format!("{} orders were", count(n)),
                }
            ))),
        }
    }
}

/// Hidden where nobody watches.
fn bar(wanted: bool, size: Option<u64>) -> ProgressBar {
    if !wanted {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:30} {percent:>3}%  {msg}  ({eta} left)",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  ({elapsed})"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
