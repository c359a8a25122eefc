//! The control interface over HTTP, for a fleet that runs in another process.

use std::sync::Arc;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde::Serialize;

use super::answer::Answer;
use super::fleet::Shared;
use super::service::text;
use super::{Behaviour, Record};
use crate::Error;

pub(super) fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Response<Answer> {
    let mut parts = path.trim_matches('/').split('/');
    if parts.next() != Some("control") {
        return text(
            StatusCode::NOT_FOUND,
            "there are /m/<merchant>/orders and /control\n",
        );
    }
    let parts: Vec<&str> = parts.collect();
    let get = method == Method::GET;
    match parts[..] {
        ["stats"] if get => json(&shared.stats()),
        ["verdict"] if get => json(&shared.verdict()),
        ["arrivals"] if get => lines(Answer::arrivals(shared.merchants())),
        ["arrivals", id] if get => lines(Answer::arrivals(shared.known(id).into_iter().collect())),
        ["records"] if method == Method::DELETE => {
            shared.clear();
            done(Ok(()))
        }
        ["times"] if method == Method::DELETE => {
            shared.clear_times();
            done(Ok(()))
        }
        [] if method == Method::PUT => done(behaviour(body).and_then(|b| shared.set_default(b))),
        [id] if get => match shared.known(id) {
            Some(merchant) => json(&merchant.plan().behaviour),
            None => json(&shared.default_plan().behaviour),
        },
        [id] if method == Method::PUT => done(behaviour(body).and_then(|b| shared.set(id, b))),
        [id] if method == Method::DELETE => done(shared.unset(id)),
        _ => text(StatusCode::NOT_FOUND, "no such control\n"),
    }
}

/// Does the merchant have the order?
pub(super) fn look_up(shared: &Shared, merchant: &str, order_id: &str) -> Response<Answer> {
    if shared.record() != Record::Arrivals {
        return text(
            StatusCode::NOT_IMPLEMENTED,
            "look-up needs the arrivals to be recorded\n",
        );
    }
    let merchant = shared.known(merchant);
    match merchant.and_then(|merchant: Arc<_>| merchant.taken(order_id)) {
        Some(arrival) => json(&arrival),
        None => text(StatusCode::NOT_FOUND, "no such order\n"),
    }
}

fn behaviour(json: &[u8]) -> Result<Behaviour, Error> {
    Behaviour::from_json(json).map_err(Error::Behaviour)
}

fn done(result: Result<(), Error>) -> Response<Answer> {
    match result {
        Ok(()) => text(StatusCode::OK, ""),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn json(value: &impl Serialize) -> Response<Answer> {
    match serde_json::to_vec(value) {
        Ok(json) => typed(Answer::text(json), "application/json"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn lines(answer: Answer) -> Response<Answer> {
    typed(answer, "application/x-ndjson")
}

fn typed(answer: Answer, kind: &'static str) -> Response<Answer> {
    let mut response = Response::new(answer);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
