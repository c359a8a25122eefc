//! Chaos: real brokers, real nodes and many merchants, faults by a seeded schedule, and a judge.
//!
//! [`run`] opens a [`Stage`], lets orders flow while faults ([`Fault`]) come and go, ends them all,
//! waits until every acknowledged order has its outcome, and gives the [`Report`] of the judge.

mod fault;
mod judge;
mod report;
mod run;
mod shop;
mod stage;

pub use fault::{Event, Fault, Scenario, Target};
pub use judge::Evidence;
pub use report::Report;
pub use run::{Options, run};
pub use shop::Shop;
pub use stage::Stage;
