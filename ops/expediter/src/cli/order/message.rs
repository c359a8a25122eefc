//! An order as a message: what people typed, checked as a node will read it.

use std::time::Duration;

use async_nats::HeaderMap;
use expediter_types::{Incarnation, InvalidId, MerchantId, OrderId};
use expediter_wire::order::{
    CE_ID, CE_SOURCE, CE_TYPE, CONTENT_TYPE, DEADLINE, KEY, NATS_MSG_ID, NOT_BEFORE, PRIORITY,
    msg_id, read_order,
};

use super::Error;
use crate::cli::text::now;

/// Headers that all orders of one call share.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Shared {
    /// Ordering key: orders that share it are sent in this order where the merchant asks for it
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Expires then: a duration such as 10m, or RFC 3339
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    /// Not sent before: a duration such as 10m, or RFC 3339
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Which of a merchant's waiting orders go first, where the merchant asks for no order
    /// [default: normal]
    #[arg(long, value_name = "CLASS", value_parser = ["high", "normal", "low"])]
    priority: Option<String>,
    /// CloudEvents type, passed on to the merchant
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// CloudEvents source, passed on to the merchant
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Media type of the body [default: application/json where it looks like JSON]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// A further header; can be repeated
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let name = name.trim();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("{name:?} is no header name"));
    }
    // They would tell the broker other things than how to keep an order.
    if name.to_ascii_lowercase().starts_with("nats-") {
        return Err("Nats- headers are for the broker".to_owned());
    }
    if value.chars().any(char::is_control) {
        return Err(format!("the value of {name} contains control characters"));
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

/// An order that can be published.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: OrderId,
    pub(super) headers: HeaderMap,
}

impl Shared {
    /// The headers of one order. `key` is its own; it rules over the shared one.
    ///
    /// # Errors
    /// What a node would refuse, before anything is published.
    pub(super) fn message(
        &self,
        merchant: &MerchantId,
        id: OrderId,
        key: Option<String>,
        payload: &[u8],
    ) -> Result<Message, Error> {
        let json = looks_like_json(payload).then(|| "application/json".to_owned());
        let key = key.or_else(|| self.key.clone());
        let own = [
            (CE_ID, Some(id.to_string())),
            (KEY, key),
            (DEADLINE, self.deadline.clone()),
            (NOT_BEFORE, self.not_before.clone()),
            (PRIORITY, self.priority.clone()),
            (CE_TYPE, self.event_type.clone()),
            (CE_SOURCE, self.source.clone()),
            (CONTENT_TYPE, self.content_type.clone().or(json)),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let all: Vec<(String, String)> = own.chain(self.headers.iter().cloned()).collect();
        let given = all
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let read = read_order(given, merchant, 1, now(), Incarnation::default());
        let envelope = read.map_err(|invalid| Error::Usage(invalid.to_string()))?;
        let mut headers = HeaderMap::new();
        // A further header may name another generation, which is no repeat to the broker.
        let message_id = msg_id(merchant, envelope.generation, &id);
        headers.insert(NATS_MSG_ID, message_id.as_str());
        for (name, value) in &all {
            headers.append(name.as_str(), value.as_str());
        }
        Ok(Message { id, headers })
    }
}

/// An id nobody else has, for orders that come without one.
pub(super) fn made_up_id(client: &async_nats::Client) -> Result<OrderId, InvalidId> {
    let inbox = client.new_inbox();
    let unique = inbox.rsplit('.').next().unwrap_or(&inbox);
    OrderId::new(&format!("o-{unique}"))
}

fn looks_like_json(payload: &[u8]) -> bool {
    let first = payload.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'{' | b'[' | b'"'))
}

/// How long `count` orders took, per second.
pub(super) fn rate(count: u64, took: Duration) -> u64 {
    let nanos = took.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(shared: &Shared) -> Result<Message, Error> {
        let merchant = MerchantId::new("luigis").unwrap();
        shared.message(&merchant, OrderId::new("4711").unwrap(), None, b" {}")
    }

    #[test]
    fn an_order_names_itself_to_the_broker_and_to_nodes() {
        let shared = Shared {
            key: Some("table 7".to_owned()),
            priority: Some("high".to_owned()),
            headers: vec![pair("x-shop = 9").unwrap()],
            ..Shared::default()
        };
        let headers = message(&shared).unwrap().headers;
        let get = |name| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(get("Nats-Msg-Id").as_deref(), Some("luigis/4711"));
        assert_eq!(get("ce-id").as_deref(), Some("4711"));
        assert_eq!(get("Expediter-Key").as_deref(), Some("table 7"));
        assert_eq!(get("Expediter-Priority").as_deref(), Some("high"));
        assert_eq!(get("content-type").as_deref(), Some("application/json"));
        assert_eq!(get("x-shop").as_deref(), Some("9"));

        let shared = Shared {
            headers: vec![pair("Expediter-Generation=2").unwrap()],
            ..Shared::default()
        };
        let headers = message(&shared).unwrap().headers;
        let id = headers.get("Nats-Msg-Id").map(|value| value.as_str());
        assert_eq!(id, Some("luigis/2/4711"));
    }

    #[test]
    fn what_a_node_would_refuse_is_refused_here() {
        for shared in [
            Shared {
                deadline: Some("tomorrow".to_owned()),
                ..Shared::default()
            },
            Shared {
                key: Some("k".repeat(300)),
                ..Shared::default()
            },
            Shared {
                headers: vec![("CE-ID".to_owned(), "other".to_owned())],
                ..Shared::default()
            },
        ] {
            assert!(
                matches!(message(&shared), Err(Error::Usage(_))),
                "{shared:?}"
            );
        }
        for bad in ["novalue", "=x", "a b=x", "Nats-Msg-Id=x", "a=\u{1b}"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_per_second() {
        assert_eq!(rate(100, Duration::from_millis(500)), 200);
        assert_eq!(rate(0, Duration::ZERO), 0);
    }
}
