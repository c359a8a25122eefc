//! The real binary is killed, cut off, wiped and paused under load, and nothing is lost.
//!
//! Each test ends with the same judge: what the broker acknowledged, against what merchants and
//! OUTCOMES saw.

mod broker;
mod kills;
mod network;
mod nodes;
mod order;
mod planned;
mod rates;
mod scale;
mod shop;
mod store;
