//! What surrounds Expediter when it is shown, measured or tested: a real broker and simulated merchants.
//!
//! * [`nats_server`] runs nats-server as a child process, alone or as a cluster, and can kill it.
//! * [`merchants`] is one HTTP server that plays any number of merchants, good and bad, and keeps a
//!   record of what reached them.
//!
//! Constraints: loopback only; nothing outlives this process, even when it is killed with SIGKILL; the
//! environment is not read (the operating system's PATH look-up of a program excepted). Linux only.

mod child;
mod error;
pub mod merchants;
pub mod nats_server;

pub use child::spawn_bound;
pub use error::Error;
