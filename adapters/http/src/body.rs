//! The request's body, which also tells how far the request came.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use expediter_ports::MayLeave;
use http_body::{Body, Frame, SizeHint};

tokio::task_local! {
    /// Of the attempt that is polled, for the resolver below the client.
    pub(crate) static PROGRESS: Arc<Progress>;
}

/// How far an attempt came.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
    /// Microseconds from `started` to the moment a connection took the request; 0: none did.
    taken: AtomicU64,
    resolving: AtomicBool,
    addresses: OnceLock<Arc<[IpAddr]>>,
}

impl Progress {
    pub(crate) fn new(started: Instant) -> Arc<Self> {
        Arc::new(Self {
            started,
            taken: AtomicU64::new(0),
            resolving: AtomicBool::new(false),
            addresses: OnceLock::new(),
        })
    }

    /// A connection took the request: from here on bytes of it may have been written.
    fn take(&self) {
        if self.taken.load(Ordering::Acquire) == 0 {
            let after = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.taken.store(after.max(1), Ordering::Release);
        }
    }

    /// Whether a byte of the request may have been written.
    pub(crate) fn may_be_sent(&self) -> bool {
        self.taken.load(Ordering::Acquire) != 0
    }

    /// When a connection took the request, from the start of the attempt.
    pub(crate) fn sent_after(&self) -> Option<Duration> {
        match self.taken.load(Ordering::Acquire) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    pub(crate) fn resolving(&self) {
        self.resolving.store(true, Ordering::Release);
    }

    /// Keeps the first answer: one attempt dials one set of addresses.
    pub(crate) fn resolved(&self, addresses: &[IpAddr]) {
        let _ = self.addresses.set(addresses.into());
    }

    /// What the name was resolved to; empty for an address in the URL or a pooled connection.
    pub(crate) fn addresses(&self) -> &[IpAddr] {
        self.addresses.get().map_or(&[], |addresses| &**addresses)
    }

    /// A look-up has begun and brought nothing so far.
    pub(crate) fn is_resolving(&self) -> bool {
        self.resolving.load(Ordering::Acquire) && self.addresses.get().is_none()
    }
}

/// A payload that marks the moment a connection takes it.
///
/// The client's connections ask [`Body::is_end_stream`] of a request they take from their queue
/// (to know which headers to write), and nothing does before; [`Body::poll_frame`] is needed for
/// every byte of the payload. So a request of which neither was called was not written, whatever
/// the error that ended it, and one that was handed back by a dying connection is not marked. As
/// it cannot be cloned, no layer of the client can send it again on its own.
#[derive(Debug)]
pub(crate) struct TrackedBody {
    payload: Option<Bytes>,
    progress: Arc<Progress>,
    may_leave: MayLeave,
    /// It was not to leave when a connection took it.
    refused: AtomicBool,
}

/// The right to send it, or its time, ran out while the connection was made: nothing of the order was
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node's lease or the order's time ran out before: nothing was sent")]
pub(crate) struct TooLate;

impl TrackedBody {
    pub(crate) fn new(payload: Bytes, progress: Arc<Progress>, may_leave: MayLeave) -> Self {
        Self {
            payload: Some(payload).filter(|bytes| !bytes.is_empty()),
            progress,
            may_leave,
            refused: AtomicBool::new(false),
        }
    }

    /// False: it must not leave, and what was begun is broken off before any of the payload.
    fn leaves(&self) -> bool {
        if self.progress.may_be_sent() {
            return true;
        }
        if self.refused.load(Ordering::Acquire) || !self.may_leave.now() {
            self.refused.store(true, Ordering::Release);
            return false;
        }
        self.progress.take();
        true
    }
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        if !self.leaves() {
            return Poll::Ready(Some(Err(TooLate)));
        }
        Poll::Ready(self.payload.take().map(|payload| Ok(Frame::data(payload))))
    }

    fn is_end_stream(&self) -> bool {
        // Without a payload, too, it has to be asked for one, so that it can be broken off.
        self.leaves() && self.payload.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(
            self.payload
                .as_ref()
                .map_or(0, |payload| payload.len() as u64),
        )
    }
}
