//! JSON with line numbers, which the usual parser does not keep.

use std::borrow::Cow;

use super::document::{Entry, Node, SyntaxError, Value};

/// Deeper than any manifest.
const MAX_DEPTH: u32 = 32;

/// Reads one JSON value.
pub(super) fn parse(text: &str) -> Result<Node<'_>, SyntaxError> {
    let mut parser = Parser {
        text,
        at: 0,
        line: 1,
    };
    let node = parser.value(0)?;
    parser.space();
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err(parser.expected("the end of the document")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.line = self.line.saturating_add(u32::from(byte == b'\n'));
            self.at += 1;
        }
    }

    fn expected(&self, what: &str) -> SyntaxError {
        let found = self
            .text
            .get(self.at..)
            .and_then(|rest| rest.chars().next());
        let found = found.map_or("the end of the document".to_owned(), |c| format!("{c:?}"));
        self.wrong(format!("expected {what}, found {found}"))
    }

    fn wrong(&self, message: impl ToString) -> SyntaxError {
        SyntaxError {
            line: self.line,
            message: message.to_string(),
        }
    }

    /// Takes the next byte when it is this one.
    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn value(&mut self, depth: u32) -> Result<Node<'a>, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("nested too deeply"));
        }
        self.space();
        let line = self.line;
        let value = match self.peek() {
            Some(b'{') => self.table(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'a'..=b'z') => self.word()?,
            _ => return Err(self.expected("a value")),
        };
        Ok(Node { line, value })
    }

    fn table(&mut self, depth: u32) -> Result<Value<'a>, SyntaxError> {
        self.at += 1;
        let mut entries = Vec::new();
        if self.take(b'}') {
            return Ok(Value::Table(entries));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.expected("a key in double quotes"));
            }
            let (line, name) = (self.line, self.string()?);
            if !self.take(b':') {
                return Err(self.expected("a colon"));
            }
            entries.push(Entry {
                line,
                name,
                node: self.value(depth + 1)?,
            });
            if self.take(b'}') {
                return Ok(Value::Table(entries));
            }
            if !self.take(b',') {
                return Err(self.expected("a comma or }"));
            }
        }
    }

    fn list(&mut self, depth: u32) -> Result<Value<'a>, SyntaxError> {
        self.at += 1;
        let mut list = Vec::new();
        if self.take(b']') {
            return Ok(Value::List(list));
        }
        loop {
            list.push(self.value(depth + 1)?);
            if self.take(b']') {
                return Ok(Value::List(list));
            }
            if !self.take(b',') {
                return Err(self.expected("a comma or ]"));
            }
        }
    }

    /// The opening quote is next.
    fn string(&mut self) -> Result<Cow<'a, str>, SyntaxError> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let (mut end, mut plain) = (start + 1, true);
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => (end, plain) = (end + 2, false),
                Some(0..=31) | None => return Err(self.wrong("a text does not end on its line")),
                Some(_) => end += 1,
            }
        }
        self.at = end + 1;
        if plain && let Some(text) = self.text.get(start + 1..end) {
            return Ok(text.into());
        }
        let quoted = self.text.get(start..=end).unwrap_or_default();
        match serde_json::from_str::<String>(quoted) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(self.wrong("a text has an escape that JSON does not know")),
        }
    }

    fn token(&mut self) -> &'a str {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let in_token = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-');
        let len = rest.iter().take_while(|byte| in_token(byte)).count();
        let token = self.text.get(self.at..self.at + len).unwrap_or_default();
        self.at += len;
        token
    }

    fn number(&mut self) -> Result<Value<'a>, SyntaxError> {
        let token = self.token();
        // For the grammar only: its conversion to a float is not exact.
        let number: serde_json::Number = serde_json::from_str(token).map_err(|_| {
            let shown: String = token.chars().take(40).collect();
            self.wrong(format!("{shown:?} is no number"))
        })?;
        Ok(match (number.as_i64(), token.parse()) {
            (Some(whole), _) => Value::Integer(whole),
            (None, Ok(number)) => Value::Float(number),
            (None, Err(_)) => Value::Other("a number that cannot be read"),
        })
    }

    fn word(&mut self) -> Result<Value<'a>, SyntaxError> {
        match self.token() {
            flag @ ("true" | "false") => Ok(Value::Flag(flag == "true")),
            "null" => Ok(Value::Null),
            other => {
                let shown: String = other.chars().take(40).collect();
                Err(self.wrong(format!(
                    "{shown:?} is no JSON value; texts stand in double quotes"
                )))
            }
        }
    }
}
