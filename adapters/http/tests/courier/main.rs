//! The courier against real sockets.

mod answers;
mod headers;
mod support;
mod tls;
mod transport;
