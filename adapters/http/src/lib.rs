//! Hands orders to merchants' HTTP APIs, and notifications to the operators' own.
//!
//! Constraints:
//! - One attempt is one request: nothing here, nor in the client below, sends a request again.
//!   Redirects are not followed, proxies of the environment are not used, cookies are not kept.
//! - An attempt that may have reached the merchant is never called [`Retry`]: only a request of
//!   which no byte can have been written is. What is not known is [`Ambiguous`].
//! - Addresses are judged where they are dialled (in the resolver), so that a name that changes
//!   its address between check and use gains nothing.
//! - Secrets leave in request headers alone: no answer, log or exchange carries one.
//!
//! A rustls crypto provider must be installed before a courier is made.
//!
//! [`Retry`]: expediter_types::AttemptClass::Retry
//! [`Ambiguous`]: expediter_types::AttemptClass::Ambiguous

mod body;
mod classify;
mod courier;
mod egress;
mod error;
mod exchange;
mod fault;
mod inquiry;
mod json_path;
mod lookup;
mod options;
mod prepared;
mod request;
mod resolver;
mod response;
mod retry_after;
mod secrets;
mod text;
mod webhook;

pub use classify::{classify, table};
pub use courier::HttpCourier;
pub use egress::{Blocked, Egress};
pub use error::Error;
pub use exchange::Exchange;
pub use options::Options;
pub use secrets::{SecretSource, Unresolved};
pub use webhook::{NotTaken, Webhook, WebhookError};
