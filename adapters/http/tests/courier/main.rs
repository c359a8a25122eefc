//! The courier against real sockets.

mod answers;
mod headers;
mod inquiry;
mod support;
mod tls;
mod transport;
