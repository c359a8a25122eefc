//! One setting's value, from a file or from the environment, as a type.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use expediter_types::{SecretRef, format_duration, parse_duration};
use toml::de::DeValue;

/// A value as it was given.
#[derive(Debug)]
pub(super) enum Given<'a> {
    /// A variable of the environment: everything is text there.
    Variable(&'a str),
    File(&'a DeValue<'a>),
}

/// What is read, or what is wrong with it.
pub(super) type Read<T> = Result<T, String>;

const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl<'a> Given<'a> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Variable(_) | Self::File(DeValue::String(_)) => "a text",
            Self::File(DeValue::Integer(_)) => "a whole number",
            Self::File(DeValue::Float(_)) => "a number",
            Self::File(DeValue::Boolean(_)) => "true or false",
            Self::File(DeValue::Datetime(_)) => "a date or time",
            Self::File(DeValue::Array(_)) => "a list",
            Self::File(DeValue::Table(_)) => "a section",
        }
    }

    fn wanted(&self, what: &str) -> String {
        format!("must be {what}, not {}", self.kind())
    }

    pub(super) fn text(&self) -> Read<&'a str> {
        match *self {
            Self::Variable(text) => Ok(text.trim()),
            Self::File(DeValue::String(text)) => Ok(text.trim()),
            Self::File(_) => Err(self.wanted("a text")),
        }
    }

    /// An empty text is none.
    pub(super) fn optional<T>(&self, read: impl FnOnce(&'a str) -> Read<T>) -> Read<Option<T>> {
        match self.text()? {
            "" => Ok(None),
            text => read(text).map(Some),
        }
    }

    pub(super) fn optional_text(&self) -> Read<Option<String>> {
        self.optional(|text| Ok(text.to_owned()))
    }

    pub(super) fn path(&self) -> Read<Option<PathBuf>> {
        self.optional(|text| Ok(PathBuf::from(text)))
    }

    /// Never repeats the text: a secret may have been written where its reference belongs.
    pub(super) fn reference(&self) -> Read<Option<SecretRef>> {
        self.optional(|text| match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(SecretRef::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(SecretRef::File(path.to_owned())),
            _ => Err("must say where the secret is, as env:NAME or file:PATH".to_owned()),
        })
    }

    pub(super) fn parsed<T: FromStr>(&self, what: &str) -> Read<T> {
        let text = self.text()?;
        text.parse()
            .map_err(|_| format!("{} is not {what}", quoted(text)))
    }

    pub(super) fn flag(&self) -> Read<bool> {
        match *self {
            Self::File(DeValue::Boolean(flag)) => Ok(*flag),
            Self::Variable(_) => self.parsed("true or false"),
            Self::File(_) => Err(self.wanted("true or false")),
        }
    }

    pub(super) fn whole(&self, range: RangeInclusive<u64>) -> Read<u64> {
        let (min, max) = (range.start(), range.end());
        let what = format!("a whole number from {min} to {max}");
        let (text, radix) = match *self {
            Self::File(DeValue::Integer(number)) => (number.as_str(), number.radix()),
            Self::Variable(text) => (text.trim(), 10),
            Self::File(_) => return Err(self.wanted(&what)),
        };
        let number = u64::from_str_radix(text, radix)
            .ok()
            .filter(|n| range.contains(n));
        number.ok_or_else(|| format!("{} is not {what}", quoted(text)))
    }

    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Read<usize> {
        usize::try_from(self.whole(range)?).map_err(|error| error.to_string())
    }

    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Read<f64> {
        let what = format!("a number from {:?} to {:?}", range.start(), range.end());
        let text = match *self {
            Self::File(DeValue::Float(number)) => number.as_str(),
            Self::File(DeValue::Integer(number)) => number.as_str(),
            Self::Variable(text) => text.trim(),
            Self::File(_) => return Err(self.wanted(&what)),
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("{} is not {what}", quoted(text)))
    }

    /// The range is in milliseconds.
    pub(super) fn duration(&self, range: RangeInclusive<u64>) -> Read<Duration> {
        let [min, max] =
            [range.start(), range.end()].map(|end| format_duration(Duration::from_millis(*end)));
        let what = format!("a duration from {min} to {max}, such as \"500ms\" or \"1h30m\"");
        let text = match self {
            Self::Variable(_) | Self::File(DeValue::String(_)) => self.text()?,
            Self::File(_) => return Err(self.wanted(&what)),
        };
        let allowed = Duration::from_millis(*range.start())..=Duration::from_millis(*range.end());
        let duration = parse_duration(text)
            .ok()
            .filter(|duration| allowed.contains(duration));
        duration.ok_or_else(|| format!("{} is not {what}", quoted(text)))
    }

    /// The range is in bytes.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Read<u64> {
        let [min, max] = [range.start(), range.end()].map(|end| format_size(*end));
        let what = format!("a size from {min} to {max}, such as \"64MiB\"");
        let text = match *self {
            Self::Variable(text) => text.trim(),
            Self::File(DeValue::String(text)) => text.trim(),
            // Only 0 needs no unit.
            Self::File(DeValue::Integer(number)) => number.as_str(),
            Self::File(_) => return Err(self.wanted(&what)),
        };
        let size = parse_size(text).filter(|size| range.contains(size));
        size.ok_or_else(|| format!("{} is not {what}", quoted(text)))
    }

    /// As [`Given::size`], or 0.
    pub(super) fn size_or_zero(&self, range: RangeInclusive<u64>) -> Read<u64> {
        match self.size(0..=0) {
            Ok(zero) => Ok(zero),
            Err(_) => self.size(range).map_err(|wrong| format!("{wrong}, nor 0")),
        }
    }

    /// Separated by commas in the environment.
    pub(super) fn list(&self) -> Read<Vec<String>> {
        const WHAT: &str = "a list of texts";
        let texts: Vec<&str> = match *self {
            Self::Variable(text) => text.split(',').collect(),
            Self::File(DeValue::Array(list)) => {
                let texts = list.iter().map(|entry| match entry.get_ref() {
                    DeValue::String(text) => Ok(&**text),
                    _ => Err(format!("must be {WHAT}")),
                });
                texts.collect::<Read<_>>()?
            }
            Self::File(_) => return Err(self.wanted(WHAT)),
        };
        let texts = texts
            .into_iter()
            .map(str::trim)
            .filter(|text| !text.is_empty());
        Ok(texts.map(str::to_owned).collect())
    }
}

/// At most 60 characters of what was given, for a message.
pub(super) fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(60).collect();
    if text.chars().nth(60).is_some() {
        format!("{shown:?}…")
    } else {
        format!("{shown:?}")
    }
}

fn parse_size(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (name, unit) = SIZES.iter().find(|(name, _)| text.ends_with(name))?;
    let number = text.strip_suffix(name)?.trim_end();
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number
        .parse::<u64>()
        .ok()
        .filter(|_| digits)?
        .checked_mul(*unit)
}

/// In the largest unit that divides it.
fn format_size(bytes: u64) -> String {
    let fits = SIZES
        .iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    match fits {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("0", 0),
            ("1B", 1),
            ("64MiB", 64 << 20),
            ("3 GiB", 3 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(parse_size(&format_size(bytes)), Some(bytes), "{text}");
        }
        for bad in [
            "",
            "64",
            "64MB",
            "-1B",
            "+1B",
            "1.5GiB",
            "99999999TiB",
            "MiB",
            "ä",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_secret_in_the_place_of_its_reference_is_not_repeated() {
        for secret in ["hunter2", "env:", "plain:hunter2"] {
            let message = Given::Variable(secret).reference().unwrap_err();
            assert!(message.contains("env:NAME") && !message.contains("hunter2"));
        }
        let found = Given::Variable("env:PASS").reference();
        assert_eq!(found, Ok(Some(SecretRef::Env("PASS".to_owned()))));
    }
}
