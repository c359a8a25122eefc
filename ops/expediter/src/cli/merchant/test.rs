use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use expediter_core::{Order, payload_hash};
use expediter_http::{Exchange, HttpCourier};
use expediter_types::{AttemptClass, Envelope, Merchant, MerchantId, OrderId, UnixMillis};
use serde::Serialize;

use super::existing;
use crate::cli::error::note;
use crate::cli::out::Out;
use crate::cli::text::{clean, clean_lines, now, span};
use crate::cli::{Error, Global};

/// The largest payload, in bytes: what NATS carries by default.
const MAX_PAYLOAD: u64 = 1 << 20;

const EXAMPLES: &str = "\
The order goes straight from this machine to the merchant, past NATS, nodes and the merchant's
limits. It carries the header Expediter-Test: true; whether the merchant honours it is for the
merchant to say. Secrets are resolved here and shown as ***.

Examples:
  expediter merchant test luigis
  expediter merchant test luigis --payload order.json
  expediter merchant test local --allow 127.0.0.0/8 --json";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The merchant
    id: MerchantId,
    /// The order's body, or - for stdin [default: a small JSON object]
    #[arg(long, value_name = "FILE|-")]
    payload: Option<PathBuf>,
    /// The order's id [default: made up]
    #[arg(long = "id", value_name = "ORDER")]
    order: Option<OrderId>,
    /// Allow an address, network or host besides egress.allow; can be repeated
    #[arg(long, value_name = "CIDR|HOST")]
    allow: Vec<String>,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Error> {
    let payload = payload(args.payload.as_deref())?;
    let mut settings = global.settings()?;
    settings.egress.allow.extend(args.allow.iter().cloned());
    let options = settings
        .http_options()
        .map_err(|error| Error::Usage(error.to_string()))?;
    let connection = global.connect().await?;
    let merchant = existing(&connection, &args.id)
        .await?
        .registration
        .merchant
        .shared();
    let courier = HttpCourier::new(options).map_err(anyhow::Error::from)?;
    let order = Arc::new(order(&merchant, args.order, payload, now()));
    note(&format!(
        "sending order {} to {}",
        order.envelope.id, args.id
    ));
    let exchange = courier.test_exchange(merchant, Arc::clone(&order)).await;
    let mut out = Out::stdout();
    match global.json {
        true => out.json(&Shown::of(&args.id, &order, &exchange))?,
        false => out.text(&text(&exchange))?,
    }
    match exchange.answer.class {
        AttemptClass::Delivered | AttemptClass::AlreadyDone => Ok(()),
        class => Err(Error::failed(format!(
            "the merchant did not take it: {class}"
        ))),
    }
}

fn payload(file: Option<&Path>) -> Result<Bytes, Error> {
    let Some(file) = file else {
        return Ok(Bytes::from_static(br#"{"test":true}"#));
    };
    let unreadable = |error| Error::Usage(format!("reading {}: {error}", file.display()));
    let mut payload = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin()
            .lock()
            .take(MAX_PAYLOAD + 1)
            .read_to_end(&mut payload),
        false => std::fs::File::open(file)
            .and_then(|file| file.take(MAX_PAYLOAD + 1).read_to_end(&mut payload)),
    };
    read.map_err(unreadable)?;
    match payload.len() as u64 > MAX_PAYLOAD {
        true => Err(Error::Usage(format!(
            "{} is larger than 1 MiB",
            file.display()
        ))),
        false => Ok(payload.into()),
    }
}

fn order(merchant: &Merchant, id: Option<OrderId>, payload: Bytes, now: UnixMillis) -> Order {
    let made_up = || OrderId::new(&format!("test-{now}")).expect("visible ASCII characters");
    Order {
        seq: 0,
        envelope: Envelope {
            id: id.unwrap_or_else(made_up),
            merchant: merchant.id.clone(),
            generation: 1,
            created: now,
            deadline: None,
            not_before: None,
            key: None,
            priority: expediter_types::Priority::Normal,
            event_type: None,
            source: None,
            time: None,
            content_type: Some("application/json".into()),
            traceparent: None,
            test: true,
            origin: None,
        },
        payload_hash: payload_hash(&payload),
        payload,
    }
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    merchant: &'a str,
    order: &'a str,
    request: Request<'a>,
    /// `None`: there was none.
    response: Option<Response<'a>>,
    class: &'static str,
    detail: &'a str,
    retry_after_ms: Option<u128>,
    sent_after_ms: Option<u128>,
    took_ms: u128,
}

#[derive(Debug, Serialize)]
struct Request<'a> {
    method: &'a str,
    url: &'a str,
    headers: &'a [(String, String)],
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    version: &'a str,
    status: u16,
    headers: &'a [(String, String)],
    /// Its beginning.
    body: String,
    after_ms: Option<u128>,
}

impl<'a> Shown<'a> {
    fn of(merchant: &'a MerchantId, order: &'a Order, exchange: &'a Exchange) -> Self {
        let answer = &exchange.answer;
        Self {
            merchant: merchant.as_str(),
            order: order.envelope.id.as_str(),
            request: Request {
                method: &exchange.method,
                url: &exchange.url,
                headers: &exchange.request_headers,
            },
            response: answer.status.map(|status| Response {
                version: &exchange.version,
                status,
                headers: &exchange.response_headers,
                body: String::from_utf8_lossy(&exchange.body).into_owned(),
                after_ms: exchange.answered_after.map(|after| after.as_millis()),
            }),
            class: answer.class.as_str(),
            detail: &answer.detail,
            retry_after_ms: answer.retry_after.map(|wait| wait.as_millis()),
            sent_after_ms: exchange.sent_after.map(|after| after.as_millis()),
            took_ms: answer.took.as_millis(),
        }
    }
}

fn text(exchange: &Exchange) -> String {
    let answer = &exchange.answer;
    let mut lines = Vec::new();
    let header = |mark: &'static str| {
        move |(name, value): &(String, String)| format!("{mark} {}: {}", clean(name), clean(value))
    };
    if !exchange.method.is_empty() {
        lines.push(format!("> {} {}", exchange.method, clean(&exchange.url)));
        lines.extend(exchange.request_headers.iter().map(header(">")));
    }
    if let Some(status) = answer.status {
        lines.push(format!("< {} {status}", exchange.version));
        lines.extend(exchange.response_headers.iter().map(header("<")));
        let body = clean_lines(&String::from_utf8_lossy(&exchange.body));
        lines.extend(body.lines().map(|line| format!("< | {line}")));
    }
    lines.push(String::new());
    lines.push(format!("{}: {}", answer.class, clean(&answer.detail)));
    let mut timing = format!("took {}", span(answer.took));
    if let Some(sent) = exchange.sent_after {
        timing = format!("{timing}, connected after {}", span(sent));
    }
    if let Some(answered) = exchange.answered_after {
        timing = format!("{timing}, answered after {}", span(answered));
    }
    lines.push(timing);
    if let Some(wait) = answer.retry_after {
        lines.push(format!("the merchant asks to wait {}", span(wait)));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expediter_types::Answer;

    use super::*;

    #[test]
    fn an_exchange_is_shown_in_both_directions() {
        let exchange = Exchange {
            method: "POST".to_owned(),
            url: "https://a.example/".to_owned(),
            request_headers: vec![("x-api-key".to_owned(), "***".to_owned())],
            sent_after: Some(Duration::from_millis(12)),
            answered_after: Some(Duration::from_millis(40)),
            version: "HTTP/1.1".to_owned(),
            response_headers: vec![("content-type".to_owned(), "text/plain".to_owned())],
            body: Bytes::from_static(b"no\x1b[2J\nsecond"),
            answer: Answer {
                class: AttemptClass::Invalid,
                status: Some(422),
                retry_after: None,
                absent: false,
                detail: "HTTP 422".to_owned(),
                excerpt: Bytes::new(),
                took: Duration::from_millis(41),
            },
        };
        assert_eq!(
            text(&exchange),
            "> POST https://a.example/\n> x-api-key: ***\n< HTTP/1.1 422\n< content-type: text/plain\n\
             < | no\u{fffd}[2J\n< | second\n\ninvalid: HTTP 422\n\
             took 41 ms, connected after 12 ms, answered after 40 ms\n"
        );
    }
}
