use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a merchant answers. The default answers 200 at once.
///
/// In JSON all fields are optional, durations are texts such as `"250ms"`, and unknown fields are
/// refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// From the arrival of the order (its whole body) to the answer. Default 0.
    #[serde(with = "duration_text")]
    pub latency: Duration,
    /// Up to so much is added to the latency, evenly spread, by the arrival's number. Default 0.
    #[serde(with = "duration_text")]
    pub jitter: Duration,
    /// 200–999. Default 200.
    pub status: u16,
    /// The answer's body. Default `{"status":"accepted"}`.
    pub body: String,
    /// Default `content-type: application/json`.
    pub headers: Vec<(String, String)>,
    /// What becomes of the answer. Default [`Ending::Respond`].
    pub ending: Ending,
    /// The share of arrivals that is answered with `fail_status` instead, 0.0–1.0, spread as evenly as
    /// it goes and not by chance: with 0.2 every fifth arrival fails. Default 0.
    pub fail_ratio: f64,
    /// 200–999. Default 503.
    pub fail_status: u16,
    /// Beyond it 429 with Retry-After is answered, at once. Default `None`.
    pub rate_limit: Option<RateLimit>,
    /// Answers for the first arrivals after this behaviour was set, in order of arrival; the limit and
    /// the failures above do not apply to them. Default: empty.
    pub script: Vec<Step>,
}

/// What becomes of an answer whose latency has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It is sent.
    #[default]
    Respond,
    /// Nothing is ever sent; the connection stays open until the client closes it.
    Hang,
    /// The connection is reset (TCP RST) instead.
    Reset,
    /// The connection is closed (TCP FIN) instead.
    Close,
    /// The head and half of the body are sent, then the connection is closed.
    Cut,
    /// The head is sent, then a body that never ends, as fast as it is read.
    Endless,
    /// The head is sent, then the body, one byte each so often. In JSON `{"trickle":"100ms"}`.
    Trickle(#[serde(with = "duration_text")] Duration),
}

impl Ending {
    /// Whether the client gets a status.
    pub(super) fn answers(self) -> bool {
        !matches!(self, Self::Hang | Self::Reset | Self::Close)
    }
}

/// A token bucket of `per_second` tokens at most (at least one), refilled steadily.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// More than 0.
    pub per_second: f64,
    /// Sent in whole seconds, rounded up.
    #[serde(with = "duration_text")]
    pub retry_after: Duration,
}

/// One scripted answer. The default is that of [`Behaviour`], with the behaviour's own latency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    pub status: u16,
    pub body: String,
    pub headers: Vec<(String, String)>,
    pub ending: Ending,
    /// Default `None`: the behaviour's.
    #[serde(with = "optional_duration_text")]
    pub latency: Option<Duration>,
}

impl Default for Behaviour {
    fn default() -> Self {
        let Step {
            status,
            body,
            headers,
            ending,
            ..
        } = Step::default();
        Self {
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            status,
            body,
            headers,
            ending,
            fail_ratio: 0.0,
            fail_status: 503,
            rate_limit: None,
            script: Vec::new(),
        }
    }
}

impl Default for Step {
    fn default() -> Self {
        Self {
            status: 200,
            body: r#"{"status":"accepted"}"#.into(),
            headers: vec![("content-type".into(), "application/json".into())],
            ending: Ending::Respond,
            latency: None,
        }
    }
}

impl Step {
    /// The default with another status; beyond 2xx with an empty JSON object as its body.
    #[must_use]
    pub fn status(status: u16) -> Self {
        let mut step = Self {
            status,
            ..Self::default()
        };
        if !(200..300).contains(&status) {
            step.body = "{}".into();
        }
        step
    }

    /// The default with another ending.
    #[must_use]
    pub fn ending(ending: Ending) -> Self {
        Self {
            ending,
            ..Self::default()
        }
    }

    /// The same with one header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with a latency of its own.
    #[must_use]
    pub fn after(mut self, latency: Duration) -> Self {
        self.latency = Some(latency);
        self
    }
}

/// Presets, as the demo shows them.
impl Behaviour {
    /// The names that [`Self::preset`] knows.
    pub const PRESETS: [&str; 6] = [
        "fast",
        "slow",
        "flaky",
        "rate_limiting",
        "hung",
        "rejecting",
    ];

    /// 200 after 5 ms.
    #[must_use]
    pub fn fast() -> Self {
        Self {
            latency: Duration::from_millis(5),
            ..Self::default()
        }
    }

    /// 200 after 2 s.
    #[must_use]
    pub fn slow() -> Self {
        Self {
            latency: Duration::from_secs(2),
            ..Self::default()
        }
    }

    /// As [`Self::fast`], but every fifth answer is a 503.
    #[must_use]
    pub fn flaky() -> Self {
        Self {
            fail_ratio: 0.2,
            ..Self::fast()
        }
    }

    /// As [`Self::fast`] up to 20 orders a second; beyond, 429 with `Retry-After: 1`.
    #[must_use]
    pub fn rate_limiting() -> Self {
        let limit = RateLimit {
            per_second: 20.0,
            retry_after: Duration::from_secs(1),
        };
        Self {
            rate_limit: Some(limit),
            ..Self::fast()
        }
    }

    /// Takes orders and never answers.
    #[must_use]
    pub fn hung() -> Self {
        Self {
            ending: Ending::Hang,
            ..Self::default()
        }
    }

    /// 422 after 5 ms, with an error in JSON.
    #[must_use]
    pub fn rejecting() -> Self {
        let error = r#"{"error":{"code":"item_unavailable","message":"an item of this order is sold out"}}"#;
        Self {
            status: 422,
            body: error.into(),
            ..Self::fast()
        }
    }

    /// The preset of this name.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        Some(match name {
            "fast" => Self::fast(),
            "slow" => Self::slow(),
            "flaky" => Self::flaky(),
            "rate_limiting" => Self::rate_limiting(),
            "hung" => Self::hung(),
            "rejecting" => Self::rejecting(),
            _ => return None,
        })
    }

    /// Always the same status, at once, with an empty JSON object as the body beyond 2xx.
    #[must_use]
    pub fn status(status: u16) -> Self {
        let Step { status, body, .. } = Step::status(status);
        Self {
            status,
            body,
            ..Self::default()
        }
    }

    /// The same, with `script` for the first arrivals.
    #[must_use]
    pub fn scripted(self, script: Vec<Step>) -> Self {
        Self { script, ..self }
    }

    /// Reads the JSON of a behaviour; its field `preset` names one to start from.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, String> {
        let text = |error: serde_json::Error| error.to_string();
        let mut given: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(json).map_err(text)?;
        let base = match given.remove("preset") {
            None => Self::default(),
            Some(name) => name.as_str().and_then(Self::preset).ok_or_else(|| {
                format!("no preset {name}; there are {}", Self::PRESETS.join(", "))
            })?,
        };
        let mut fields = serde_json::to_value(base).map_err(text)?;
        for (name, value) in given {
            fields[name] = value;
        }
        serde_json::from_value(fields).map_err(text)
    }
}

mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&expediter_types::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        expediter_types::parse_duration(&text).map_err(D::Error::custom)
    }
}

mod optional_duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super::duration_text")] Duration);

    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        duration.map(Text).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_goes_both_ways() {
        for name in Behaviour::PRESETS {
            let preset = Behaviour::preset(name).expect("it is a preset");
            let json = serde_json::to_vec(&preset).expect("it is JSON");
            assert_eq!(Behaviour::from_json(&json), Ok(preset.clone()), "{name}");
            let by_name = format!("{{\"preset\":\"{name}\"}}");
            assert_eq!(
                Behaviour::from_json(by_name.as_bytes()),
                Ok(preset),
                "{name}"
            );
        }
        let trickle = Ending::Trickle(Duration::from_millis(30));
        let scripted = Behaviour::slow().scripted(vec![
            Step::status(503).header("retry-after", "3"),
            Step::ending(trickle).after(Duration::from_secs(1)),
        ]);
        let json = serde_json::to_vec(&scripted).expect("it is JSON");
        assert_eq!(Behaviour::from_json(&json), Ok(scripted));
    }

    #[test]
    fn json_is_checked() {
        let changed = Behaviour::from_json(br#"{"preset":"slow","latency":"3s","status":202}"#);
        let expected = Behaviour {
            latency: Duration::from_secs(3),
            status: 202,
            ..Behaviour::slow()
        };
        assert_eq!(changed, Ok(expected));
        for bad in [
            r#"{"latncy":"3s"}"#,
            r#"{"latency":3}"#,
            r#"{"preset":"nice"}"#,
            "[]",
        ] {
            assert!(Behaviour::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
