//! Simulated merchants: one HTTP/1.1 server that plays any number of them.
//!
//! Merchants are told apart by the path: an order for `acme` is any request but GET to
//! `/m/acme/orders` (or anything else below `/m/acme/`). How a merchant answers is its [`Behaviour`],
//! which can be changed at any time through the [`FleetHandle`], or over HTTP when the fleet runs in
//! another process ([`RemoteFleet`]). What reached the merchants is recorded for the judges of tests
//! ([`Arrival`]) and of benchmarks ([`Verdict`]).
//!
//! | request | what it does |
//! |---|---|
//! | `POST /m/<merchant>/orders` | an order arrives |
//! | `GET /m/<merchant>/orders/<order id>` | look-up: 200 when the merchant has the order, else 404; needs [`Record::Arrivals`] |
//! | `PUT /control` | sets the [`Behaviour`] (JSON) of all merchants that have none of their own |
//! | `PUT /control/<merchant>` | sets the merchant's own; `{"preset":"slow"}` starts from a preset |
//! | `GET /control/<merchant>` | the merchant's behaviour |
//! | `DELETE /control/<merchant>` | back to the behaviour of all |
//! | `GET /control/stats` | [`Stats`] |
//! | `GET /control/arrivals[/<merchant>]` | every [`Arrival`], one JSON object a line |
//! | `GET /control/verdict` | [`Verdict`] |
//! | `DELETE /control/records` | forgets all that was recorded; behaviours stay |
//! | `DELETE /control/times` | the judge's times begin anew; its counts go on |
//!
//! Constraints: the hot path (an order that is answered at once) takes two short locks of its own
//! merchant and no lock that is held for longer; nothing on it grows with the number of merchants.
//! Latencies have the timer's resolution, 1 ms.

mod answer;
mod behaviour;
mod bench_body;
mod control;
mod fleet;
mod judge;
mod merchant;
mod plan;
mod record;
mod remote;
mod server;
mod service;
#[cfg(test)]
mod tests;

pub use behaviour::{Behaviour, Ending, RateLimit, Step};
pub use bench_body::{BENCH_BODY_MIN, BenchMark, bench_body, read_bench_body};
pub use fleet::{Fleet, FleetHandle, Options};
pub use judge::{Latency, Tally, Verdict};
pub use record::{Arrival, MerchantStats, Record, Stats};
pub use remote::RemoteFleet;
