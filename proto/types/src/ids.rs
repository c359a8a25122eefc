use std::fmt;
use std::sync::Arc;

/// A message's sequence in the ORDERS or OUTCOMES stream. 0 means "before the first".
pub type Seq = u64;

/// A fixed slice of merchants; `0..partitions` (16 by default).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("merchant id {0:?} must be 1-64 of A-Z a-z 0-9 _ -")]
    Merchant(String),
    #[error("order id {0:?} must be 1-128 visible ASCII characters")]
    Order(String),
    #[error("node name {0:?} must be 1-64 of A-Z a-z 0-9 _ -")]
    Node(String),
}

fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Error values quote what was given; a hostile id must not flood a log.
fn quoted(text: &str) -> String {
    text.chars().take(160).collect()
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $error:ident, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and keeps it.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if $valid(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId::$error(quoted(text)))
                }
            }

            /// The id as it is written on wires.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// A destination of orders: `[A-Za-z0-9_-]{1,64}`, one NATS subject token.
    MerchantId,
    Merchant,
    is_token
);
text_id!(
    /// Names an order within its merchant: 1-128 visible ASCII characters.
    OrderId,
    Order,
    |text: &str| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
);
text_id!(
    /// A node's name, unique among the nodes of one NATS: `[A-Za-z0-9_-]{1,64}`.
    NodeName,
    Node,
    is_token
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_their_alphabet_only() {
        assert!(MerchantId::new("luigis_2-a").is_ok());
        for bad in ["", "a.b", "a b", "ä", "*", ">", &"x".repeat(65)] {
            assert!(MerchantId::new(bad).is_err(), "{bad:?}");
        }
        assert!(OrderId::new("2024/11/21#7").is_ok());
        for bad in ["", "a b", "ä", "a\n", &"x".repeat(129)] {
            assert!(OrderId::new(bad).is_err(), "{bad:?}");
        }
    }
}
