use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::Ending;
use super::answer::Answer;
use super::control;
use super::fleet::Shared;
use super::merchant::Body;

/// A body may be no larger: the whole of it is held in memory.
const MAX_BODY: u64 = 64 * 1024 * 1024;

/// One client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    /// Set when it has to end with a TCP reset.
    pub(super) reset: AtomicBool,
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection ends without an answer")]
pub(super) struct HangUp;

impl Connection {
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, HangUp> {
        let path = request.uri().path();
        let Some(rest) = path.strip_prefix("/m/") else {
            return Ok(self.control(request).await);
        };
        let (merchant, rest) = rest.split_once('/').unwrap_or((rest, ""));
        if request.method() == Method::GET || request.method() == Method::HEAD {
            let order_id = rest.strip_prefix("orders/").unwrap_or_default();
            return Ok(control::look_up(&self.shared, merchant, order_id));
        }
        let Ok(merchant) = self.shared.merchant(merchant) else {
            return Ok(text(StatusCode::NOT_FOUND, "not a merchant id\n"));
        };
        let order = merchant.enter();
        let (head, body) = request.into_parts();
        let Ok(body) = read(body, self.shared.reads_bodies()).await else {
            order.incomplete();
            return Err(HangUp);
        };
        let record = self.shared.record();
        let decided = order.arrive(&head.headers, &body, record);
        drop(body);
        if !decided.delay.is_zero() {
            tokio::time::sleep(decided.delay).await;
        }
        let reply = decided.reply();
        match reply.ending {
            Ending::Hang => match std::future::pending::<Infallible>().await {},
            Ending::Reset => self.reset.store(true, Ordering::Relaxed),
            _ => {}
        }
        order.answered(&decided, record);
        if !reply.ending.answers() {
            return Err(HangUp);
        }
        let mut response = Response::new(Answer::order(reply, order));
        *response.status_mut() = reply.status;
        response.headers_mut().clone_from(&reply.headers);
        Ok(response)
    }

    async fn control(&self, request: Request<Incoming>) -> Response<Answer> {
        let (head, body) = request.into_parts();
        match read(body, true).await {
            Ok(body) => control::answer(&self.shared, &head.method, head.uri.path(), &body.bytes),
            Err(_) => text(StatusCode::BAD_REQUEST, "the body was cut\n"),
        }
    }
}

pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Response<Answer> {
    let mut response = Response::new(Answer::text(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Reads to the end; keeps the bytes only if somebody will look at them. A body that came in one
/// piece, as small ones do, is not copied.
async fn read(mut incoming: Incoming, keep: bool) -> Result<Body, HangUp> {
    let mut body = Body::default();
    let mut pieces = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(|_| HangUp)?.into_data() else {
            continue;
        };
        body.len += data.len() as u64;
        if body.len > MAX_BODY {
            return Err(HangUp);
        }
        if !keep {
            continue;
        }
        if body.bytes.is_empty() && pieces.is_empty() {
            body.bytes = data;
        } else {
            if pieces.is_empty() {
                pieces.extend_from_slice(&std::mem::take(&mut body.bytes));
            }
            pieces.extend_from_slice(&data);
        }
    }
    if !pieces.is_empty() {
        body.bytes = pieces.freeze();
    }
    Ok(body)
}
