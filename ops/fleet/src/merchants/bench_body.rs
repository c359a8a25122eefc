//! The body that a benchmark's publisher sends and the judge reads: JSON of a fixed layout, so that it
//! is read without a JSON parser, with a checksum over everything in it.

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const SEQ: &[u8] = b"{\"seq\":";
const SEQ_WIDTH: usize = 12;
const SENT: &[u8] = b",\"sent_us\":";
const SENT_WIDTH: usize = 16;
const SUM: &[u8] = b",\"sum\":\"";
const SUM_WIDTH: usize = 16;
const PAD: &[u8] = b"\",\"pad\":\"";
const END: &[u8] = b"\"}";

const SENT_AT: usize = SEQ.len() + SEQ_WIDTH + SENT.len();
const SUM_AT: usize = SENT_AT + SENT_WIDTH + SUM.len();
const SUM_END: usize = SUM_AT + SUM_WIDTH;

/// The size in bytes of a body without padding.
pub const BENCH_BODY_MIN: usize = SUM_END + PAD.len() + END.len();

const FILLER: [u8; 4096] = filler();

/// What the judge needs to know about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchMark {
    /// The merchant's running number of the order, below 10^12.
    pub seq: u64,
    /// When it was published, in microseconds since 1970.
    pub sent_us: u64,
}

/// A body of `size` bytes (at least [`BENCH_BODY_MIN`]), for example
/// `{"seq":          12,"sent_us":1763690000000000,"sum":"9e1f…","pad":"x8s…"}`.
///
/// Numbers are right-aligned with spaces, which JSON allows; `seq` is taken modulo 10^12, `sent_us`
/// modulo 10^16.
#[must_use]
pub fn bench_body(seq: u64, sent_us: u64, size: usize) -> Bytes {
    let mut body = BytesMut::with_capacity(size.max(BENCH_BODY_MIN));
    body.put_slice(SEQ);
    put_number(&mut body, seq, SEQ_WIDTH);
    body.put_slice(SENT);
    put_number(&mut body, sent_us, SENT_WIDTH);
    body.put_slice(SUM);
    body.put_bytes(b'0', SUM_WIDTH);
    body.put_slice(PAD);
    let mut pad = size.saturating_sub(BENCH_BODY_MIN);
    while pad > 0 {
        let part = pad.min(FILLER.len());
        body.put_slice(&FILLER[..part]);
        pad -= part;
    }
    body.put_slice(END);
    let sum = checksum(&body);
    body[SUM_AT..SUM_END].copy_from_slice(&hex(sum));
    body.freeze()
}

/// `None` when the body is not one of [`bench_body`] or has been changed or cut.
#[must_use]
pub fn read_bench_body(body: &[u8]) -> Option<BenchMark> {
    if body.len() < BENCH_BODY_MIN || !body.starts_with(SEQ) || !body.ends_with(END) {
        return None;
    }
    let seq = read_number(&body[SEQ.len()..SEQ.len() + SEQ_WIDTH])?;
    let sent_us = read_number(&body[SENT_AT..SENT_AT + SENT_WIDTH])?;
    (body[SUM_AT..SUM_END] == hex(checksum(body))).then_some(BenchMark { seq, sent_us })
}

/// Over all but the checksum itself, and so over the length too.
fn checksum(body: &[u8]) -> u64 {
    xxh3_64_with_seed(&body[SUM_END..], xxh3_64(&body[..SUM_AT]))
}

fn put_number(body: &mut BytesMut, mut number: u64, width: usize) {
    let at = body.len();
    body.put_bytes(b' ', width);
    for place in body[at..].iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
}

fn read_number(field: &[u8]) -> Option<u64> {
    let digits = field.trim_ascii_start();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u64::from(digit - b'0'))
    })
}

fn hex(number: u64) -> [u8; SUM_WIDTH] {
    let mut out = [0; SUM_WIDTH];
    for (place, digit) in out.iter_mut().enumerate() {
        let nibble = (number >> (60 - 4 * place)) as usize & 0xf;
        *digit = b"0123456789abcdef"[nibble];
    }
    out
}

/// Letters without a pattern: padding that compresses to nothing would flatter what is measured.
const fn filler() -> [u8; 4096] {
    let mut out = [0; 4096];
    let mut state: u32 = 0x9e37_79b9;
    let mut at = 0;
    while at < out.len() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        out[at] = b"0123456789abcdefghijklmnopqrstuv"[(state >> 27) as usize];
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publisher_and_judge_agree() {
        for (seq, sent_us, size) in [
            (0, 0, 0),
            (7, 1_763_690_000_000_000, BENCH_BODY_MIN),
            (999_999_999_999, 9_999_999_999_999_999, 1024),
            (1_234_567, 1_763_690_000_123_456, 20_000),
        ] {
            let body = bench_body(seq, sent_us, size);
            assert_eq!(body.len(), size.max(BENCH_BODY_MIN));
            assert_eq!(read_bench_body(&body), Some(BenchMark { seq, sent_us }));
            let json: serde_json::Value = serde_json::from_slice(&body).expect("it is JSON");
            assert_eq!(json["seq"], seq);
            assert_eq!(json["sent_us"], sent_us);
        }
    }

    #[test]
    fn every_change_is_noticed() {
        let body = bench_body(41, 1_763_690_000_000_000, 200);
        for at in 0..body.len() {
            let mut changed = body.to_vec();
            changed[at] ^= 1;
            assert_eq!(read_bench_body(&changed), None, "byte {at}");
        }
        for len in 0..body.len() {
            let mut cut = body[..len].to_vec();
            assert_eq!(read_bench_body(&cut), None, "{len} bytes");
            cut.extend_from_slice(END);
            if cut.len() != body.len() {
                assert_eq!(read_bench_body(&cut), None, "{len} bytes and an end");
            }
        }
    }

    /// A publisher in another process may be of another version: the layout is fixed.
    #[test]
    fn golden() {
        let expected = "{\"seq\":          12,\"sent_us\":1763690000000000,\"sum\":\"";
        assert!(bench_body(12, 1_763_690_000_000_000, 100).starts_with(expected.as_bytes()));
    }
}
