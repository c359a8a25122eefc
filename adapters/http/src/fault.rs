//! What an exchange without an answer means.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use expediter_types::{AttemptClass, format_duration};
use rustls::AlertDescription;

use crate::body::{Progress, TooLate};
use crate::prepared::Target;
use crate::resolver::ResolveError;

/// Linux errno values; std names no kinds for them.
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const EADDRNOTAVAIL: i32 = 99;
const ENOBUFS: i32 = 105;

/// No answer, and why.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) class: AttemptClass,
    /// For people; may be long, may quote what the other side sent.
    pub(crate) detail: String,
}

/// The attempt's time is up and no status came.
pub(crate) fn timed_out(target: &Target, progress: &Progress, timeout: Duration) -> Fault {
    let what = format!("nothing within {}", format_duration(timeout));
    unanswered(target, progress, &what)
}

/// The client gave up.
pub(crate) fn judge(error: &reqwest::Error, target: &Target, progress: &Progress) -> Fault {
    for cause in causes(error) {
        if let Some(late) = cause.downcast_ref::<TooLate>() {
            return Fault {
                class: AttemptClass::Local,
                detail: late.to_string(),
            };
        }
        if let Some(error) = cause.downcast_ref::<ResolveError>() {
            let class = match error {
                ResolveError::Blocked(_) => AttemptClass::Misconfigured,
                ResolveError::NoAddress { .. } | ResolveError::Unanswered { .. } => {
                    AttemptClass::Retry
                }
                ResolveError::ResolverDown { .. } | ResolveError::Local { .. } => {
                    AttemptClass::Local
                }
            };
            return Fault {
                class,
                detail: error.to_string(),
            };
        }
        if let Some(error) = cause.downcast_ref::<rustls::Error>()
            && is_about_certificates(error)
        {
            let detail = format!("TLS with {}: {error}", target.place);
            return Fault {
                class: AttemptClass::Misconfigured,
                detail,
            };
        }
        if let Some(error) = cause.downcast_ref::<h2::Error>()
            && is_unprocessed(error)
        {
            let detail = format!("{} took no request: {error}", target.place);
            return Fault {
                class: AttemptClass::Retry,
                detail,
            };
        }
        if let Some(error) = cause.downcast_ref::<io::Error>()
            && !progress.may_be_sent()
            && is_local(error, target, progress)
        {
            let detail = format!("connect to {}: {error}: this node's fault", target.place);
            return Fault {
                class: AttemptClass::Local,
                detail,
            };
        }
    }
    if error.is_builder() {
        // The client refuses the URL.
        let detail = "url: the client cannot use it".to_owned();
        return Fault {
            class: AttemptClass::Misconfigured,
            detail,
        };
    }
    unanswered(target, progress, &root(error))
}

/// Retry where no byte of the request can have been written, else ambiguous.
fn unanswered(target: &Target, progress: &Progress, what: &str) -> Fault {
    if progress.may_be_sent() {
        let detail = format!(
            "{}: {what} (the request may have been received)",
            target.place
        );
        return Fault {
            class: AttemptClass::Ambiguous,
            detail,
        };
    }
    let phase = if progress.is_resolving() {
        format!("look up {}", target.host)
    } else {
        let addresses = progress.addresses().iter().take(3).map(ToString::to_string);
        let addresses = addresses.collect::<Vec<_>>().join(", ");
        let addresses = match addresses.is_empty() {
            true => String::new(),
            false => format!(" ({addresses})"),
        };
        format!("connect to {}{addresses}", target.place)
    };
    let detail = format!("{phase}: {what} (before the request was sent)");
    Fault {
        class: AttemptClass::Retry,
        detail,
    }
}

/// The merchant's certificate does not convince us, or it wants one of ours. Such an alert comes
/// instead of an answer: a server that refuses the client's certificate reads no request, also
/// where the client (TLS 1.3) has sent it by then.
fn is_about_certificates(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::UnsupportedNameType
        | rustls::Error::InvalidCertRevocationList(_) => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            AlertDescription::NoCertificate
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::CertificateRequired
        ),
        _ => false,
    }
}

/// The peer says itself that it did not look at the request (RFC 9113, 6.8 and 8.7): streams
/// above the last one of an orderly GOAWAY, and refused ones.
fn is_unprocessed(error: &h2::Error) -> bool {
    let reason = error.reason();
    error.is_remote()
        && ((error.is_go_away() && reason == Some(h2::Reason::NO_ERROR))
            || (error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM)))
}

fn is_local(error: &io::Error, target: &Target, progress: &Progress) -> bool {
    match error.raw_os_error() {
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM) => true,
        // No port is left. For an IPv6 address it also says that this machine has none of its
        // own, which concerns only merchants that are there.
        Some(EADDRNOTAVAIL) => {
            !target.is_v6 && !progress.addresses().iter().any(|address| address.is_ipv6())
        }
        _ => false,
    }
}

/// The chain of causes, also through I/O errors, which leave out the error they carry.
fn causes<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    fn next<'e>(error: &&'e (dyn StdError + 'static)) -> Option<&'e (dyn StdError + 'static)> {
        let error: &'e (dyn StdError + 'static) = *error;
        match error.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    }
    // Longer than any real chain: an error that names itself as its cause must not hang us.
    std::iter::successors(Some(error), next).take(16)
}

/// The innermost cause in words.
fn root(error: &reqwest::Error) -> String {
    match causes(error).last() {
        Some(cause) => match cause.downcast_ref::<io::Error>() {
            Some(io) if io.raw_os_error().is_some() => io.kind().to_string(),
            // The outermost error would quote the URL.
            _ if cause.is::<reqwest::Error>() => "the client failed".to_owned(),
            _ => cause.to_string(),
        },
        None => "the client failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use expediter_types::{Merchant, MerchantId};

    use super::*;
    use crate::Egress;

    #[test]
    fn faults_of_this_node_are_known() {
        let target = |url: &str| {
            let merchant = Merchant::to(MerchantId::new("m").unwrap(), url);
            Target::of(&merchant, &Egress::new(&["::1"]).unwrap()).unwrap()
        };
        let (v4, v6) = (target("http://8.8.8.8/"), target("http://[::1]/"));
        let progress = Progress::new(Instant::now());
        let local =
            |errno, target| is_local(&io::Error::from_raw_os_error(errno), target, &progress);
        for errno in [ENOMEM, ENFILE, EMFILE, ENOBUFS, EADDRNOTAVAIL] {
            assert!(local(errno, &v4), "{errno}");
        }
        assert!(!local(EADDRNOTAVAIL, &v6));
        // Refused, reset, timed out, unreachable: the merchant's or the way's.
        for errno in [111, 104, 110, 101, 113] {
            assert!(!local(errno, &v4), "{errno}");
        }
        progress.resolved(&["8.8.8.8".parse().unwrap(), "2600::1".parse().unwrap()]);
        assert!(!is_local(
            &io::Error::from_raw_os_error(EADDRNOTAVAIL),
            &v4,
            &progress
        ));
        assert_eq!(
            io::Error::from_raw_os_error(EADDRNOTAVAIL).kind(),
            io::ErrorKind::AddrNotAvailable
        );
    }

    #[test]
    fn causes_inside_of_io_errors_are_found() {
        let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(inner));
        let found = causes(&wrapped).find_map(|cause| cause.downcast_ref::<rustls::Error>());
        assert!(found.is_some_and(is_about_certificates));
    }
}
