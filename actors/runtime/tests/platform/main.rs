//! The platform on fakes: an in-memory store and log, and a courier that answers as it is told.

mod actix_contract;
mod flow;
mod losses;
mod panics;
mod shared;
mod world;
