//! Names on NATS: streams, buckets, subjects, and which partition a merchant is in.

use expediter_types::{MerchantId, NodeName, Partition, Seq};

use crate::audit::AuditTarget;

/// The log of orders.
pub const ORDERS: &str = "ORDERS";
/// Claims, outcomes, dead letters, marks.
pub const OUTCOMES: &str = "OUTCOMES";
/// What operators did.
pub const AUDIT: &str = "AUDIT";
/// KV: one key a node, the lease.
pub const NODES: &str = "NODES";
/// KV: one key a merchant, the registry.
pub const MERCHANTS: &str = "MERCHANTS";
/// KV: shift plans.
pub const SHIFT: &str = "SHIFT";
/// KV: what operators and closed merchants decided.
pub const CONTROL: &str = "CONTROL";
/// KV: which node may use which slice of a limit that merchants share.
pub const SCOPES: &str = "SCOPES";

/// Subjects of ORDERS as publishers see them.
pub const ORDERS_SUBJECTS: [&str; 1] = ["orders.*"];
/// Subjects of OUTCOMES.
pub const OUTCOMES_SUBJECTS: [&str; 6] = [
    "outcomes.*",
    "dead.*.*",
    "claim.*",
    "mark.>",
    "attempt.*.*",
    "shift.*",
];

/// Subjects of AUDIT.
pub const AUDIT_SUBJECTS: [&str; 1] = ["audit.>"];

/// Stands for a merchant whose subject token is no merchant id; itself a valid id.
pub const INVALID_MERCHANT: &str = "_invalid";

/// Destination of the transform of ORDERS, whose source is `orders.*`.
#[must_use]
pub fn orders_transform(partitions: u16) -> String {
    format!("orders.{{{{partition({partitions},1)}}}}.{{{{wildcard(1)}}}}")
}

/// The partition of a merchant, as the broker's `partition(partitions,1)` transform computes it:
/// FNV-1a of 32 bits over the token, modulo the number. 0 when there are no partitions.
#[must_use]
pub fn partition_of(merchant: &str, partitions: u16) -> Partition {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in merchant.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let partition = hash.checked_rem(u32::from(partitions)).unwrap_or(0);
    Partition(u16::try_from(partition).unwrap_or(0))
}

/// `orders.<merchant>`: where publishers publish.
#[must_use]
pub fn publish(merchant: &MerchantId) -> String {
    format!("orders.{merchant}")
}

/// `orders.<p>.<merchant>`: where the log has them.
#[must_use]
pub fn orders(partition: Partition, merchant: &MerchantId) -> String {
    format!("orders.{partition}.{merchant}")
}

/// `orders.<p>.*`: a partition's orders.
#[must_use]
pub fn orders_filter(partition: Partition) -> String {
    format!("orders.{partition}.*")
}

/// The partition and the merchant's token (not necessarily a merchant id) of a stored order.
#[must_use]
pub fn parse_orders(subject: &str) -> Option<(Partition, &str)> {
    let (partition, merchant) = subject.strip_prefix("orders.")?.split_once('.')?;
    let one_token = !merchant.is_empty() && !merchant.contains('.');
    Some((parse_partition(partition)?, merchant)).filter(|_| one_token)
}

/// `outcomes.<p>`
#[must_use]
pub fn outcomes(partition: Partition) -> String {
    format!("outcomes.{partition}")
}

/// `dead.<p>.<merchant>`
#[must_use]
pub fn dead(partition: Partition, merchant: &MerchantId) -> String {
    format!("dead.{partition}.{merchant}")
}

/// `claim.<p>`
#[must_use]
pub fn claim(partition: Partition) -> String {
    format!("claim.{partition}")
}

/// `mark.<p>`: a mark that holds.
#[must_use]
pub fn mark(partition: Partition) -> String {
    format!("mark.{partition}")
}

/// `mark.<p>.<n>`: a part of a mark, from 1.
#[must_use]
pub fn mark_part(partition: Partition, part: u32) -> String {
    format!("mark.{partition}.{part}")
}

/// `attempt.<p>.<merchant>`
#[must_use]
pub fn attempt(partition: Partition, merchant: &MerchantId) -> String {
    format!("attempt.{partition}.{merchant}")
}

/// `shift.<p>`
#[must_use]
pub fn shift(partition: Partition) -> String {
    format!("shift.{partition}")
}

/// Filters of everything about a partition in OUTCOMES.
#[must_use]
pub fn outcomes_filters(partition: Partition) -> Vec<String> {
    let p = partition;
    vec![
        outcomes(p),
        format!("dead.{p}.*"),
        claim(p),
        mark(p),
        format!("mark.{p}.*"),
        format!("attempt.{p}.*"),
        shift(p),
    ]
}

/// Where the record about a target stands: `audit.<kind>.<id>`, and for what belongs to a merchant
/// `audit.<kind>.<merchant>.<id>`. Of the id, bytes other than `A-Z a-z 0-9 _ -` stand as `%XX`.
#[must_use]
pub fn audit(target: &AuditTarget) -> String {
    let (kind, id) = (escaped(&target.kind), escaped(&target.id));
    match &target.merchant {
        Some(merchant) if target.kind != "merchant" => format!("audit.{kind}.{merchant}.{id}"),
        _ => format!("audit.{kind}.{id}"),
    }
}

/// Filters of the records about a merchant and what belongs to it.
#[must_use]
pub fn audit_filters(merchant: &MerchantId) -> Vec<String> {
    vec![
        format!("audit.merchant.{merchant}"),
        format!("audit.*.{merchant}.*"),
    ]
}

/// A subject's token; an empty text is `%`.
fn escaped(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("%{byte:02X}"));
        }
    }
    if token.is_empty() {
        token.push('%');
    }
    token
}

/// `expediter.ctl.partition.<p>`: requests to the owner of a partition.
#[must_use]
pub fn control_partition(partition: Partition) -> String {
    format!("expediter.ctl.partition.{partition}")
}

/// `expediter.ctl.node.<name>`: requests to a node.
#[must_use]
pub fn control_node(node: &NodeName) -> String {
    format!("expediter.ctl.node.{node}")
}

/// `Nats-Msg-Id` of a record: `<p>/<epoch>/<writer>/<number>`, and `.<part>` for a part of a mark. A
/// record is repeated under the same id until it is decided. `writer` is of that epoch only: where
/// OUTCOMES came back empty, epochs have the numbers of former ones, whose last records may still
/// arrive.
#[must_use]
pub fn record_msg_id(
    partition: Partition,
    epoch: Seq,
    writer: &str,
    number: u64,
    part: Option<u32>,
) -> String {
    let part = part.map_or(String::new(), |part| format!(".{part}"));
    format!("{partition}/{epoch}/{writer}/{number}{part}")
}

/// What a subject of OUTCOMES is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomesSubject {
    Outcomes(Partition),
    Dead(Partition, MerchantId),
    Claim(Partition),
    Mark(Partition),
    MarkPart(Partition, u32),
    Attempt(Partition, MerchantId),
    Shift(Partition),
}

impl OutcomesSubject {
    /// Reads a subject; `None` for any other.
    #[must_use]
    pub fn parse(subject: &str) -> Option<Self> {
        let mut tokens = subject.split('.');
        let kind = tokens.next()?;
        let partition = parse_partition(tokens.next()?)?;
        let (third, rest) = (tokens.next(), tokens.next());
        if rest.is_some() {
            return None;
        }
        match (kind, third) {
            ("outcomes", None) => Some(Self::Outcomes(partition)),
            ("claim", None) => Some(Self::Claim(partition)),
            ("mark", None) => Some(Self::Mark(partition)),
            ("shift", None) => Some(Self::Shift(partition)),
            ("mark", Some(part)) => Some(Self::MarkPart(partition, parse_decimal(part)?)),
            ("dead", Some(id)) => Some(Self::Dead(partition, MerchantId::new(id).ok()?)),
            ("attempt", Some(id)) => Some(Self::Attempt(partition, MerchantId::new(id).ok()?)),
            _ => None,
        }
    }

    /// Its partition.
    #[must_use]
    pub fn partition(&self) -> Partition {
        match self {
            Self::Outcomes(p)
            | Self::Dead(p, _)
            | Self::Claim(p)
            | Self::Mark(p)
            | Self::MarkPart(p, _)
            | Self::Attempt(p, _)
            | Self::Shift(p) => *p,
        }
    }
}

fn parse_partition(token: &str) -> Option<Partition> {
    u16::try_from(parse_decimal(token)?).ok().map(Partition)
}

/// Only the canonical form: one subject has one meaning and one meaning has one subject.
fn parse_decimal(token: &str) -> Option<u32> {
    let canonical = token == "0" || !token.starts_with('0');
    let digits = !token.is_empty() && token.bytes().all(|b| b.is_ascii_digit());
    token.parse().ok().filter(|_| canonical && digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_has_an_id_of_its_own() {
        let id = |writer, part| record_msg_id(Partition(3), 4, writer, 2, part);
        assert_eq!(id("a", None), "3/4/a/2");
        assert_eq!(id("a", Some(1)), "3/4/a/2.1");
        assert_ne!(id("a", None), id("b", None));
    }

    #[test]
    fn partitions_follow_fnv_1a() {
        // The published vectors of FNV-1a, 32 bits.
        for (text, hash) in [
            ("", 0x811c_9dc5_u32),
            ("a", 0xe40c_292c),
            ("foobar", 0xbf9c_f968),
        ] {
            for partitions in [1, 7, 16, 1000] {
                let expected = u16::try_from(hash % u32::from(partitions)).unwrap();
                assert_eq!(
                    partition_of(text, partitions).0,
                    expected,
                    "{text} {partitions}"
                );
            }
        }
        assert_eq!(partition_of("a", 0).0, 0);
    }

    #[test]
    fn subjects_are_read_back() {
        let p = Partition(12);
        let id = MerchantId::new("luigis_2-a").unwrap();
        use OutcomesSubject as S;
        for (subject, expected) in [
            (outcomes(p), S::Outcomes(p)),
            (dead(p, &id), S::Dead(p, id.clone())),
            (claim(p), S::Claim(p)),
            (mark(p), S::Mark(p)),
            (mark_part(p, 3), S::MarkPart(p, 3)),
            (attempt(p, &id), S::Attempt(p, id.clone())),
            (shift(p), S::Shift(p)),
        ] {
            assert_eq!(S::parse(&subject), Some(expected), "{subject}");
        }
        assert_eq!(parse_orders(&orders(p, &id)), Some((p, id.as_str())));
        assert_eq!(
            orders_transform(16),
            "orders.{{partition(16,1)}}.{{wildcard(1)}}"
        );
    }

    #[test]
    fn any_target_of_an_audit_record_has_a_subject() {
        let merchant = MerchantId::new("luigis").unwrap();
        let order = |id| AuditTarget::order(&merchant, &expediter_types::OrderId::new(id).unwrap());
        for (target, subject) in [
            (AuditTarget::merchant(&merchant), "audit.merchant.luigis"),
            (order("A-17"), "audit.order.luigis.A-17"),
            (order("a.b*>%"), "audit.order.luigis.a%2Eb%2A%3E%25"),
            (
                AuditTarget::group("soups & more"),
                "audit.group.soups%20%26%20more",
            ),
            (AuditTarget::credential(""), "audit.credential.%"),
            (AuditTarget::group("ä"), "audit.group.%C3%A4"),
        ] {
            assert_eq!(audit(&target), subject);
        }
    }

    #[test]
    fn other_subjects_are_refused() {
        for bad in [
            "",
            "claim",
            "claim.",
            "claim.x",
            "claim.01",
            "claim.+1",
            "claim.70000",
            "claim.1.2.3",
        ] {
            assert_eq!(OutcomesSubject::parse(bad), None, "{bad}");
        }
        for bad in [
            "",
            "orders.1",
            "orders.1.",
            "orders.x.a",
            "orders.1.a.b",
            "order.1.a",
        ] {
            assert_eq!(parse_orders(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_subject_panics(text in "(orders|mark|dead)?[.a-z0-9ä]{0,20}") {
            let _ = OutcomesSubject::parse(&text);
            let _ = parse_orders(&text);
        }
    }
}
