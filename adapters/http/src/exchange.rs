use std::time::Duration;

use bytes::Bytes;
use expediter_types::Answer;
use reqwest::header::HeaderMap;

use crate::secrets::Scrubber;

/// One attempt as it went over the wire, for people; secrets are masked with `***`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Empty where the attempt ended before there was a request, as with a missing secret.
    pub method: String,
    /// Without its query.
    pub url: String,
    /// As they were given to the client, which adds host, length and its name.
    pub request_headers: Vec<(String, String)>,
    /// From the start to the moment a connection took the request.
    pub sent_after: Option<Duration>,
    /// From the start to the response's status and headers.
    pub answered_after: Option<Duration>,
    /// `HTTP/1.1` or `HTTP/2.0`; empty without a response.
    pub version: String,
    pub response_headers: Vec<(String, String)>,
    /// Beginning of the response's body, at most [`expediter_types::MAX_EXCERPT`] bytes; unlike
    /// that of the answer also for deliveries.
    pub body: Bytes,
    /// What the attempt counts as.
    pub answer: Answer,
}

/// An exchange while it goes on.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) request_headers: Vec<(String, String)>,
    pub(crate) sent_after: Option<Duration>,
    pub(crate) answered_after: Option<Duration>,
    pub(crate) version: String,
    pub(crate) response_headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn with(self, answer: Answer) -> Exchange {
        Exchange {
            method: self.method,
            url: self.url,
            request_headers: self.request_headers,
            sent_after: self.sent_after,
            answered_after: self.answered_after,
            version: self.version,
            response_headers: self.response_headers,
            body: self.body,
            answer,
        }
    }
}

/// Headers for people.
pub(crate) fn shown(headers: &HeaderMap, scrubber: &Scrubber) -> Vec<(String, String)> {
    let show = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
        let text = match value.is_sensitive() {
            true => "***".to_owned(),
            false => scrubber.text(&String::from_utf8_lossy(value.as_bytes())),
        };
        (name.to_string(), text)
    };
    headers.iter().map(show).collect()
}
