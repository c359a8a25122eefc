//! Where the bodies come from.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use expediter_types::OrderId;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Error;

/// Lines that are read ahead.
const AHEAD: usize = 1_024;

/// One order's body and where it stands.
#[derive(Debug)]
pub(super) struct Body {
    /// `orders.ndjson:17`
    pub(super) place: String,
    /// Or why it could not be read.
    pub(super) payload: Result<Bytes, String>,
    /// Bytes of the input up to here, over all files.
    pub(super) read: u64,
}

/// How the input is taken apart.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub(super) files: Vec<PathBuf>,
    /// One order a line instead of one a file.
    pub(super) lines: bool,
    /// The largest body, in bytes: what the broker takes.
    pub(super) max: usize,
}

impl Input {
    /// The size of all files; `None` when one is a pipe.
    pub(super) fn size(&self) -> Option<u64> {
        let len = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            (path.as_os_str() != "-" && found.is_file()).then_some(found.len())
        };
        self.files.iter().map(len).sum()
    }

    /// Opens all files, then reads on a thread of its own: stdin may block for ever.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub(super) fn start(self) -> Result<mpsc::Receiver<Body>, Error> {
        let open = |path: &PathBuf| {
            let name = path.display().to_string();
            if path.as_os_str() == "-" {
                return Ok((name, Box::new(std::io::stdin()) as Box<dyn Read + Send>));
            }
            match std::fs::File::open(path) {
                Ok(file) if !is_directory(path) => Ok((name, Box::new(file) as _)),
                Ok(_) => Err(Error::Usage(format!("{name} is a directory"))),
                Err(error) => Err(Error::Usage(format!("reading {name}: {error}"))),
            }
        };
        let files = self.files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let (sink, bodies) = mpsc::channel(AHEAD);
        let read = move || {
            let mut position = 0;
            for (name, file) in files {
                // An error: nobody wants more.
                let sent = match self.lines {
                    true => lines(&name, file, self.max, &mut position, &sink),
                    false => whole(name, file, self.max, &mut position, &sink),
                };
                if sent.is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(read)?;
        Ok(bodies)
    }
}

fn is_directory(path: &Path) -> bool {
    path.is_dir()
}

type Sink = mpsc::Sender<Body>;
type Sent = Result<(), Box<mpsc::error::SendError<Body>>>;

fn send(sink: &Sink, body: Body) -> Sent {
    sink.blocking_send(body).map_err(Box::new)
}

fn too_large(max: usize) -> String {
    format!("larger than the {max} bytes that the broker takes")
}

fn whole(place: String, file: impl Read, max: usize, position: &mut u64, sink: &Sink) -> Sent {
    let mut payload = Vec::new();
    let read = file.take(max as u64 + 1).read_to_end(&mut payload);
    *position += payload.len() as u64;
    let payload = match read {
        Err(error) => Err(error.to_string()),
        Ok(len) if len > max => Err(too_large(max)),
        Ok(_) => Ok(payload.into()),
    };
    send(
        sink,
        Body {
            place,
            payload,
            read: *position,
        },
    )
}

fn lines(name: &str, file: impl Read, max: usize, position: &mut u64, sink: &Sink) -> Sent {
    let mut reader = BufReader::with_capacity(256 << 10, file);
    for number in 1_u64.. {
        let place = format!("{name}:{number}");
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(max as u64 + 1)
            .read_until(b'\n', &mut line);
        let mut payload = match read {
            Ok(0) => return Ok(()),
            Ok(len) => {
                *position += len as u64;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        };
        let broken = payload.is_err();
        if line.len() > max && !line.ends_with(b"\n") {
            payload = Err(too_large(max));
            *position += skip_line(&mut reader).unwrap_or(0);
        }
        let body = line.trim_ascii();
        if payload.is_ok() && body.is_empty() {
            continue;
        }
        let payload = payload.map(|()| Bytes::copy_from_slice(body));
        send(
            sink,
            Body {
                place,
                payload,
                read: *position,
            },
        )?;
        if broken {
            return Ok(());
        }
    }
    Ok(())
}

/// Passes the rest of a line without keeping it.
fn skip_line(reader: &mut impl BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffered = reader.fill_buf()?;
        let (len, ends) = match buffered.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffered.len(), buffered.is_empty()),
        };
        reader.consume(len);
        skipped += len as u64;
        if ends {
            return Ok(skipped);
        }
    }
}

/// The value of a top-level field as an id or key: a text or a whole number.
///
/// # Errors
/// The line is no JSON object, or the field is missing or of another kind.
pub(super) fn field(payload: &[u8], name: &str) -> Result<String, String> {
    let object: serde_json::Map<String, Value> =
        serde_json::from_slice(payload).map_err(|error| format!("not a JSON object: {error}"))?;
    match object.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) if !number.is_f64() => Ok(number.to_string()),
        Some(_) => Err(format!(
            "field {name:?} is neither a text nor a whole number"
        )),
        None => Err(format!("no field {name:?}")),
    }
}

/// As [`field`], as an order's id.
///
/// # Errors
/// Besides, the value is no id.
pub(super) fn id_field(payload: &[u8], name: &str) -> Result<OrderId, String> {
    OrderId::new(&field(payload, name)?).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, max: usize) -> Vec<(String, Result<Bytes, String>, u64)> {
        let (sink, mut bodies) = mpsc::channel(16);
        let mut position = 0;
        lines("x", text.as_bytes(), max, &mut position, &sink).unwrap();
        drop(sink);
        std::iter::from_fn(|| bodies.blocking_recv())
            .map(|b| (b.place, b.payload, b.read))
            .collect()
    }

    #[test]
    fn lines_are_bounded_and_numbered() {
        let found = read("{}\r\n\n0123456789abcdef\n[1]", 8);
        let ok = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        assert_eq!(found[0], ("x:1".to_owned(), ok("{}"), 4));
        assert_eq!((found[1].0.as_str(), found[1].2), ("x:3", 22));
        assert!(
            found[1]
                .1
                .as_ref()
                .is_err_and(|why| why.contains("8 bytes"))
        );
        assert_eq!(found[2], ("x:4".to_owned(), ok("[1]"), 25));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn ids_come_from_a_field() {
        assert_eq!(id_field(br#"{"id":"a"}"#, "id").unwrap().as_str(), "a");
        assert_eq!(id_field(br#"{"n":17}"#, "n").unwrap().as_str(), "17");
        for (line, why) in [
            ("{}", "no field"),
            ("[]", "not a JSON object"),
            (r#"{"id":1.5}"#, "neither"),
            (r#"{"id":"a b"}"#, "visible ASCII"),
        ] {
            assert!(
                id_field(line.as_bytes(), "id").unwrap_err().contains(why),
                "{line}"
            );
        }
    }
}
