use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::Error;

/// Which addresses may be dialled: public ones, and what the operator lists.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    nets: Vec<IpNet>,
    hosts: Vec<String>,
}

/// Why an address may not be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address {address} of host {host} is {kind}: egress.allow does not list it")]
pub struct Blocked {
    pub host: String,
    pub address: IpAddr,
    /// What kind of address it is: `private`, `loopback`, …
    pub kind: &'static str,
}

impl Egress {
    /// Lists nothing: only public addresses.
    #[must_use]
    pub fn public_only() -> Self {
        Self::default()
    }

    /// Reads `10.1.2.3`, `10.0.0.0/8`, `fd00::/8` (those addresses) or `pos.local` (whatever
    /// addresses that very host has).
    pub fn new<T: AsRef<str>>(allow: &[T]) -> Result<Self, Error> {
        let mut egress = Self::default();
        for entry in allow {
            let entry = entry.as_ref().trim();
            if let Ok(net) = entry.parse::<IpNet>() {
                egress.nets.push(canonical_net(net));
            } else if let Ok(address) = entry.parse::<IpAddr>() {
                egress.nets.push(IpNet::from(address.to_canonical()));
            } else if is_host_name(entry) {
                egress.hosts.push(host_key(entry));
            } else {
                return Err(Error::Egress {
                    entry: entry.chars().take(160).collect(),
                });
            }
        }
        Ok(egress)
    }

    /// Whether this address may be dialled, whatever its host is called.
    #[must_use]
    pub fn allows(&self, address: &IpAddr) -> bool {
        restricted(*address).is_none() || self.lists(*address)
    }

    /// Whether this address of this host may be dialled.
    pub(crate) fn check(&self, host: &str, address: IpAddr) -> Result<(), Blocked> {
        match restricted(address) {
            Some(kind) if !self.lists(address) && !self.hosts.contains(&host_key(host)) => {
                Err(Blocked {
                    host: host.to_owned(),
                    address,
                    kind,
                })
            }
            _ => Ok(()),
        }
    }

    fn lists(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let embedded = match address {
            IpAddr::V6(v6) => embedded_v4(v6).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let lists = |address: IpAddr| self.nets.iter().any(|net| net.contains(&address));
        lists(address) || embedded.is_some_and(lists)
    }
}

/// Host names compare without case and without the dot that ends an absolute name.
fn host_key(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let text = text.trim_end_matches('.');
    // A last label of digits alone is a mistyped address.
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// Mapped addresses are judged as the v4 addresses they are, so nets are kept in that form too.
fn canonical_net(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return IpNet::V4(v4);
    }
    net
}

/// What kind of address it is, where it is none of the public internet.
fn restricted(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(v4) => restricted_v4(v4),
        IpAddr::V6(v6) => restricted_v6(v6),
    }
}

/// IANA special-purpose registry for IPv4, as of 2025.
fn restricted_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, 0, 0, 0] => Some("unspecified"),
        [0, ..] => Some("reserved"),
        [10, ..] | [192, 168, ..] => Some("private"),
        [172, b, ..] if b & 0xf0 == 16 => Some("private"),
        [100, b, ..] if b & 0xc0 == 64 => Some("shared by a carrier's NAT"),
        [127, ..] => Some("loopback"),
        [169, 254, ..] => Some("link-local"),
        [192, 0, 0, _] | [192, 88, 99, _] => Some("reserved"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("for documentation"),
        [198, 18..=19, ..] => Some("for benchmarks"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved"),
        _ => None,
    }
}

/// IANA special-purpose registry for IPv6, as of 2025; transition forms are judged by the v4
/// address in them.
fn restricted_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(v4) = embedded_v4(address) {
        return restricted_v4(v4);
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // The deprecated v4-compatible form, and everything else below 0::/8.
        [0x0000..=0x00ff, ..] => Some("reserved"),
        [0x0100, 0, 0, 0, ..] => Some("reserved"),
        // Teredo, benchmarks, ORCHID: IETF protocol assignments.
        [0x2001, 0x0000..=0x01ff, ..] => Some("reserved"),
        [0x2001, 0x0db8, ..] => Some("for documentation"),
        [0x3fff, 0x0000..=0x0fff, ..] => Some("for documentation"),
        [0x5f00, ..] => Some("reserved"),
        [0xfc00..=0xfdff, ..] => Some("private"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        // Only 2000::/3 is handed out.
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

/// The v4 address that a gateway on the way would dial: NAT64, 6to4, SIIT.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => Some(from(high, low)),
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(from(high, low)),
        [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(address: &str) -> Option<&'static str> {
        restricted(address.parse().unwrap())
    }

    #[test]
    fn special_addresses_are_known() {
        let table = [
            ("unspecified", "0.0.0.0 ::"),
            (
                "private",
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 fc00::1 fdff::1",
            ),
            ("shared by a carrier's NAT", "100.64.0.1 100.127.255.255"),
            (
                "loopback",
                "127.0.0.1 127.255.0.1 ::1 ::ffff:127.0.0.1 64:ff9b::127.0.0.1",
            ),
            (
                "link-local",
                "169.254.169.254 fe80::1 2002:a9fe:a9fe::1 ::ffff:0:169.254.169.254",
            ),
            (
                "for documentation",
                "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1",
            ),
            ("multicast", "224.0.0.1 239.255.255.255 ff02::1"),
            ("for benchmarks", "198.18.0.1 198.19.255.255"),
            ("site-local", "fec0::1"),
            (
                "reserved",
                "0.1.2.3 192.0.0.1 192.88.99.1 240.0.0.1 255.255.255.255 ::10.0.0.1 ::8.8.8.8 \
                 64:ff9b:1::1 100::1 2001::1 5f00::1 4000::1",
            ),
        ];
        for (expected, addresses) in table {
            for address in addresses.split_whitespace() {
                assert_eq!(kind(address), Some(expected), "{address}");
            }
        }
        let public = "8.8.8.8 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1 169.253.1.1 \
                      198.17.0.1 198.20.0.1 223.255.255.255 192.0.1.1 2606:4700::1111 \
                      2001:4860:4860::8888 64:ff9b::8.8.8.8 2002:808:808::1 ::ffff:8.8.8.8";
        for address in public.split_whitespace() {
            assert_eq!(kind(address), None, "{address}");
        }
    }

    #[test]
    fn what_is_listed_is_allowed_and_nothing_else() {
        let egress = Egress::new(&[
            "10.1.0.0/16",
            "127.0.0.1",
            "POS.local.",
            "fd00::/8",
            "::ffff:10.9.0.0/112",
        ])
        .unwrap();
        for address in [
            "10.1.2.3",
            "127.0.0.1",
            "fd00::1",
            "10.9.1.1",
            "64:ff9b::10.1.2.3",
        ] {
            assert!(egress.allows(&address.parse().unwrap()), "{address}");
        }
        for address in [
            "10.2.0.1",
            "127.0.0.2",
            "fc00::1",
            "10.8.1.1",
            "64:ff9b::10.2.2.3",
        ] {
            assert!(!egress.allows(&address.parse().unwrap()), "{address}");
        }
        let inner = "192.168.0.9".parse().unwrap();
        assert_eq!(egress.check("pos.LOCAL", inner), Ok(()));
        let blocked = egress.check("other.local", inner).unwrap_err();
        assert_eq!(
            blocked.to_string(),
            "address 192.168.0.9 of host other.local is private: egress.allow does not list it"
        );
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "a b",
            "http://x",
            "*.x",
            "10.0.0.0/8/8",
        ] {
            assert!(Egress::new(&[bad]).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn all_forms_of_a_v4_address_are_judged_alike(bits: u32, net: u32, length in 0_u8..=32) {
            let v4 = Ipv4Addr::from(bits);
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let forms = [
                IpAddr::V6(v4.to_ipv6_mapped()),
                IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
                IpAddr::V6(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1)),
            ];
            let net = Ipv4Net::new(Ipv4Addr::from(net), length).unwrap();
            let mapped = format!("{}/{}", net.addr().to_ipv6_mapped(), length + 96);
            for allow in [vec![], vec![net.to_string()], vec![mapped]] {
                let egress = Egress::new(&allow).unwrap();
                for form in forms {
                    prop_assert_eq!(egress.allows(&IpAddr::V4(v4)), egress.allows(&form));
                }
            }
        }
    }
}
