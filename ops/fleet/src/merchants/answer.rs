use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::Ending;
use super::merchant::{InFlight, Merchant};
use super::plan::Reply;

const ENDLESS: &[u8] = &[b' '; 16 * 1024];
/// Between the part of a cut answer and the cut.
const WRITTEN: Duration = Duration::from_millis(5);
/// Arrivals that are copied out of a merchant at a time.
const ARRIVALS: usize = 500;

/// The body of an answer, of a merchant or of the control interface.
#[derive(Debug)]
pub(super) struct Answer {
    kind: Kind,
    /// The order is in flight until its answer has been handed over.
    _order: Option<InFlight>,
}

#[derive(Debug)]
enum Kind {
    Full(Bytes),
    /// Declares `declared` bytes, sends `sent`, and breaks off.
    Cut {
        sent: Option<Bytes>,
        declared: u64,
        /// Until what is sent is surely written: a body that fails at once takes the head with it.
        written: Pin<Box<Sleep>>,
    },
    Endless,
    Trickle(Box<Trickle>),
    Arrivals(Box<Arrivals>),
}

#[derive(Debug)]
struct Trickle {
    left: Bytes,
    every: Duration,
    next: Pin<Box<Sleep>>,
}

/// All arrivals of some merchants as lines of JSON, made as fast as they are read.
#[derive(Debug)]
struct Arrivals {
    merchants: std::vec::IntoIter<Arc<Merchant>>,
    current: Option<(Arc<Merchant>, usize)>,
}

/// An answer that breaks off on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the answer is cut, as the merchant's behaviour asks")]
pub(super) struct CutOff;

impl Answer {
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Self {
            kind: Kind::Full(text.into()),
            _order: None,
        }
    }

    pub(super) fn arrivals(merchants: Vec<Arc<Merchant>>) -> Self {
        let lines = Arrivals {
            merchants: merchants.into_iter(),
            current: None,
        };
        Self {
            kind: Kind::Arrivals(Box::new(lines)),
            _order: None,
        }
    }

    pub(super) fn order(reply: &Reply, order: InFlight) -> Self {
        let body = reply.body.clone();
        let kind = match reply.ending {
            Ending::Cut => Kind::Cut {
                declared: body.len() as u64,
                sent: Some(body.slice(..body.len() / 2)),
                written: Box::pin(tokio::time::sleep(WRITTEN)),
            },
            Ending::Endless => Kind::Endless,
            Ending::Trickle(every) => Kind::Trickle(Box::new(Trickle {
                left: body,
                every,
                next: Box::pin(tokio::time::sleep(every)),
            })),
            Ending::Respond | Ending::Hang | Ending::Reset | Ending::Close => Kind::Full(body),
        };
        Self {
            kind,
            _order: Some(order),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let data = match &mut self.kind {
            Kind::Full(body) if body.is_empty() => return Poll::Ready(None),
            Kind::Full(body) => std::mem::take(body),
            Kind::Cut { sent, written, .. } => match sent.take().filter(|half| !half.is_empty()) {
                Some(half) => {
                    written
                        .as_mut()
                        .reset(tokio::time::Instant::now() + WRITTEN);
                    half
                }
                None => {
                    ready!(written.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(CutOff)));
                }
            },
            Kind::Endless => Bytes::from_static(ENDLESS),
            Kind::Trickle(trickle) if trickle.left.is_empty() => return Poll::Ready(None),
            Kind::Trickle(trickle) => {
                ready!(trickle.next.as_mut().poll(cx));
                let next = tokio::time::Instant::now() + trickle.every;
                trickle.next.as_mut().reset(next);
                trickle.left.split_to(1)
            }
            Kind::Arrivals(arrivals) => match arrivals.next_lines() {
                Some(lines) => lines,
                None => return Poll::Ready(None),
            },
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.kind, Kind::Full(body) if body.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(body) => SizeHint::with_exact(body.len() as u64),
            Kind::Cut { declared, .. } => SizeHint::with_exact(*declared),
            Kind::Trickle(trickle) => SizeHint::with_exact(trickle.left.len() as u64),
            Kind::Endless | Kind::Arrivals(_) => SizeHint::default(),
        }
    }
}

impl Arrivals {
    fn next_lines(&mut self) -> Option<Bytes> {
        loop {
            let (merchant, from) = match self.current.take() {
                Some(current) => current,
                None => (self.merchants.next()?, 0),
            };
            let part = merchant.arrivals(from, ARRIVALS);
            if part.is_empty() {
                continue;
            }
            self.current = Some((merchant, from + part.len()));
            let mut lines = BytesMut::with_capacity(part.len() * 256).writer();
            for arrival in &part {
                // Writing plain fields to memory cannot fail.
                let _ = serde_json::to_writer(&mut lines, arrival);
                lines.get_mut().put_u8(b'\n');
            }
            return Some(lines.into_inner().freeze());
        }
    }
}
