use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest URL, in bytes.
const MAX_URL: usize = 2048;

/// Checks that a text is a URL that every HTTP client reads alike: ASCII, http or https, a host,
/// no user and no fragment.
///
/// # Errors
/// What is wrong and what is allowed; the URL itself is not quoted, it may contain a secret.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_URL {
        return Err(format!(
            "{} bytes, at most {MAX_URL} are accepted",
            text.len()
        ));
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b))
    {
        return Err("has characters that a URL must write as %XX (or a host as xn--)".into());
    }
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let rest = rest.ok_or("must start with http:// or https://")?;
    if rest.contains('#') {
        return Err("must not have a fragment (#…)".into());
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("must not contain a user or password: use a header with env: or file:".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or("has [ without ]")?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| "has no IPv6 address between [ and ]")?;
            match port.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if port.is_empty() => (None, None),
                None => return Err("has something other than :port after ]".into()),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(authority), None),
        },
    };
    if let Some(port) = port {
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        port.parse::<u16>()
            .ok()
            .filter(|port| *port > 0 && digits)
            .ok_or("has a port that is not from 1 to 65535")?;
    }
    host.map_or(Ok(()), check_host)
}

fn check_host(host: &str) -> Result<(), String> {
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.is_empty() {
        return Err("has no host".into());
    }
    if name.len() > 253 || !name.split('.').all(label) {
        return Err("has a host that is neither a name nor an address".into());
    }
    // Clients read a host with a number at its end as an address, in forms such as 0x7f.1 too.
    let last = name.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    if numeric && name.parse::<Ipv4Addr>().is_err() {
        return Err("has a host that is neither a name nor an address".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn urls_are_checked() {
        for good in [
            "https://pos.luigis.example/orders",
            "http://127.0.0.1:8080/a?b=c",
            "http://[::1]:80",
            "https://a_b.example.",
            "http://localhost?x",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, part) in [
            ("", "start with"),
            ("ftp://a/", "start with"),
            ("https://", "no host"),
            ("https://:80/", "no host"),
            ("https:///x", "no host"),
            ("https://user:hunter2@a/", "user"),
            ("https://a b/", "%XX"),
            ("https://ä.example/", "xn--"),
            ("https://a/#x", "fragment"),
            ("https://a:0/", "port"),
            ("https://a:99999/", "port"),
            ("https://a:+80/", "port"),
            ("https://a:/", "port"),
            ("https://[::1/", "]"),
            ("https://[zz]/", "IPv6"),
            ("https://[::1]x/", "after ]"),
            ("https://1.2.3/", "neither"),
            ("https://0x7f.1/", "neither"),
            ("https://a..b/", "neither"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(
                error.contains(part) && !error.contains("hunter2"),
                "{bad}: {error}"
            );
        }
        assert!(check(&format!("https://a/{}", "x".repeat(2048))).is_err());
    }
}
