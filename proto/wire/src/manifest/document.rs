use std::borrow::Cow;

use toml::de::{DeTable, DeValue};

/// A value of a document and the line where it stands.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// From 1.
    pub(super) line: u32,
    pub(super) value: Value<'a>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Integer(i64),
    Float(f64),
    Flag(bool),
    /// JSON only.
    Null,
    List(Vec<Node<'a>>),
    Table(Vec<Entry<'a>>),
    /// A kind that no key takes, by its name.
    Other(&'static str),
}

#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) line: u32,
    pub(super) name: Cow<'a, str>,
    pub(super) node: Node<'a>,
}

impl Value<'_> {
    /// For "expected …, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Flag(_) => "true or false",
            Self::Null => "null",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// What is wrong with the document itself.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: u32,
    pub(super) message: String,
}

/// Reads TOML; all errors of its grammar at once.
pub(super) fn parse_toml(text: &str) -> Result<Node<'_>, Vec<SyntaxError>> {
    let lines = Lines::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node {
            line: 1,
            value: convert_table(&lines, table.into_inner()),
        });
    }
    let errors = errors.into_iter().map(|error| SyntaxError {
        line: error.span().map_or(0, |span| lines.of(span.start)),
        message: error.message().to_owned(),
    });
    Err(errors.collect())
}

fn convert_table<'a>(lines: &Lines, table: DeTable<'a>) -> Value<'a> {
    let entries = table.into_iter().map(|(name, value)| {
        let line = lines.of(name.span().start);
        // A table's own span starts at its first key or header; the name is where people look.
        let node = Node {
            line,
            value: convert(lines, value.into_inner()),
        };
        Entry {
            line,
            name: name.into_inner(),
            node,
        }
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| entry.line);
    Value::Table(entries)
}

fn convert<'a>(lines: &Lines, value: DeValue<'a>) -> Value<'a> {
    match value {
        DeValue::String(text) => Value::Text(text),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other("a number beyond 64 bits"),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::Other("a number that cannot be read"),
        },
        DeValue::Boolean(flag) => Value::Flag(flag),
        DeValue::Datetime(_) => Value::Other("a date or time"),
        DeValue::Array(list) => {
            let list = list.into_iter().map(|node| {
                let line = lines.of(node.span().start);
                Node {
                    line,
                    value: convert(lines, node.into_inner()),
                }
            });
            Value::List(list.collect())
        }
        DeValue::Table(table) => convert_table(lines, table),
    }
}

/// Where lines start.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self(ends.map(|(at, _)| at + 1).collect())
    }

    /// The line of a byte, from 1.
    fn of(&self, at: usize) -> u32 {
        let before = self.0.partition_point(|start| *start <= at);
        u32::try_from(before + 1).unwrap_or(u32::MAX)
    }
}
