//! The resolver that the HTTP client dials by: what it does not hand out is not dialled.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::{Instant, timeout_at};

use crate::body::PROGRESS;
use crate::egress::{Blocked, Egress};
use crate::lookup::{Found, LookupFailure, Lookups, Names, Running, finish};

/// A name that no zone has (RFC 6761), absolute so that no search domain is tried: any resolver
/// that works says so. Asked where another name brings no answer, to tell a dead resolver, which
/// is our own trouble, from a zone that nobody serves, which is that merchant's.
const ABSENT: &str = "expediter-resolver-check.invalid.";

/// Why a name was not dialled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error(transparent)]
    Blocked(#[from] Blocked),
    #[error("host {host} has no address: {reason}")]
    NoAddress { host: String, reason: LookupFailure },
    #[error("no answer for host {host}, though the resolver works")]
    Unanswered { host: String },
    #[error("the resolver answers nothing, neither for {host} nor for a test name")]
    ResolverDown { host: String },
    #[error("host {host} could not be looked up: {reason}")]
    Local { host: String, reason: String },
}

/// Looks names up and hands out only what may be dialled.
#[derive(Clone)]
pub(crate) struct GuardedResolver {
    egress: Arc<Egress>,
    lookups: Lookups,
    /// Shorter than the client's connect timeout, so that the cause is known before that ends
    /// the attempt.
    patience: Duration,
}

impl fmt::Debug for GuardedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedResolver")
            .field("egress", &self.egress)
            .finish_non_exhaustive()
    }
}

impl GuardedResolver {
    pub(crate) fn new(egress: Arc<Egress>, names: Arc<dyn Names>, connect: Duration) -> Self {
        Self {
            egress,
            lookups: Lookups::new(names),
            patience: connect * 2 / 3,
        }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let found = self.look_up(host).await?;
        let mut blocked = None;
        let mut allowed = Vec::with_capacity(found.len());
        for address in found.iter() {
            match self.egress.check(host, *address) {
                Ok(()) => allowed.push(*address),
                Err(refusal) => blocked = blocked.or(Some(refusal)),
            }
        }
        match (allowed.is_empty(), blocked) {
            (false, _) => Ok(allowed),
            (true, Some(refusal)) => Err(refusal.into()),
            (true, None) => {
                let reason = LookupFailure::NotFound;
                Err(ResolveError::NoAddress {
                    host: host.to_owned(),
                    reason,
                })
            }
        }
    }

    async fn look_up(&self, host: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
        let local = |reason: LookupFailure| ResolveError::Local {
            host: host.to_owned(),
            reason: reason.to_string(),
        };
        let deadline = Instant::now() + self.patience;
        let mut search = self.lookups.begin(host).map_err(local)?;
        let mut found = within(Instant::now() + self.patience / 2, &mut search).await;
        if matches!(found, None | Some(Err(LookupFailure::NoAnswer))) {
            let mut check = self.lookups.begin(ABSENT).map_err(local)?;
            if found.is_none() {
                found = within(deadline, &mut search).await;
            }
            if matches!(found, None | Some(Err(LookupFailure::NoAnswer))) {
                // The check had half of the time already where the name was slow.
                let slack = self.patience / 10;
                let alive = match within(deadline.max(Instant::now() + slack), &mut check).await {
                    Some(Ok(_) | Err(LookupFailure::NotFound)) => true,
                    Some(Err(_)) | None => false,
                };
                let host = host.to_owned();
                return Err(match alive {
                    true => ResolveError::Unanswered { host },
                    false => ResolveError::ResolverDown { host },
                });
            }
        }
        match found {
            Some(Ok(addresses)) => Ok(addresses),
            Some(Err(reason @ LookupFailure::Local(_))) => Err(local(reason)),
            Some(Err(reason)) => Err(ResolveError::NoAddress {
                host: host.to_owned(),
                reason,
            }),
            None => Err(ResolveError::Unanswered {
                host: host.to_owned(),
            }),
        }
    }
}

async fn within(deadline: Instant, running: &mut Running) -> Option<Found> {
    timeout_at(deadline, finish(running)).await.ok()
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        // A connection that is finished for the pool, after its attempt found another, has none.
        let progress = PROGRESS.try_with(Arc::clone).ok();
        Box::pin(async move {
            if let Some(progress) = &progress {
                progress.resolving();
            }
            let addresses = this.addresses(name.as_str()).await?;
            if let Some(progress) = &progress {
                progress.resolved(&addresses);
            }
            // The client puts the port of the URL or of its scheme in place of 0.
            let addresses = addresses
                .into_iter()
                .map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct FakeNames {
        dead: bool,
        asked: AtomicUsize,
    }

    impl Names for FakeNames {
        #[expect(clippy::disallowed_methods, reason = "runs on a look-up's own thread")]
        fn addresses(&self, host: &str) -> Found {
            let addresses = |list: &[&str]| Ok(list.iter().map(|a| a.parse().unwrap()).collect());
            match host {
                _ if self.dead => Err(LookupFailure::NoAnswer),
                "both.example" => addresses(&["10.0.0.1", "8.8.8.8", "::1"]),
                "inner.example" => addresses(&["10.0.0.1", "::ffff:127.0.0.1"]),
                "slow.example" => {
                    self.asked.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1_500));
                    addresses(&["8.8.8.8"])
                }
                "lame.example" => Err(LookupFailure::NoAnswer),
                "full.example" => Err(LookupFailure::Local("no descriptors".to_owned())),
                "panic.example" => panic!("a resolver that dies"),
                _ => Err(LookupFailure::NotFound),
            }
        }
    }

    fn resolver(names: FakeNames, allow: &[&str]) -> (GuardedResolver, Arc<FakeNames>) {
        let names = Arc::new(names);
        let egress = Arc::new(Egress::new(allow).unwrap());
        let connect = Duration::from_millis(600);
        (
            GuardedResolver::new(egress, Arc::clone(&names) as Arc<dyn Names>, connect),
            names,
        )
    }

    #[tokio::test]
    async fn only_what_may_be_dialled_is_handed_out() {
        let (public, _) = resolver(FakeNames::default(), &[]);
        assert_eq!(
            public.addresses("both.example").await.unwrap(),
            ["8.8.8.8".parse::<IpAddr>().unwrap()]
        );
        let refusal = public.addresses("inner.example").await.unwrap_err();
        assert!(
            matches!(
                refusal,
                ResolveError::Blocked(Blocked {
                    kind: "private",
                    ..
                })
            ),
            "{refusal}"
        );
        let (listed, _) = resolver(FakeNames::default(), &["inner.example"]);
        assert_eq!(listed.addresses("inner.example").await.unwrap().len(), 2);
        assert_eq!(listed.addresses("both.example").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn causes_are_told_apart() {
        let (works, _) = resolver(FakeNames::default(), &[]);
        let of = async |host: &str| works.addresses(host).await.unwrap_err();
        assert!(matches!(
            of("absent.example").await,
            ResolveError::NoAddress { .. }
        ));
        assert!(matches!(
            of("lame.example").await,
            ResolveError::Unanswered { .. }
        ));
        assert!(matches!(
            of("slow.example").await,
            ResolveError::Unanswered { .. }
        ));
        assert!(matches!(
            of("full.example").await,
            ResolveError::Local { .. }
        ));
        assert!(matches!(
            of("panic.example").await,
            ResolveError::NoAddress { .. }
        ));
        assert!(matches!(
            of("panic.example").await,
            ResolveError::NoAddress { .. }
        ));
        let (dead, _) = resolver(
            FakeNames {
                dead: true,
                ..FakeNames::default()
            },
            &[],
        );
        let down = dead.addresses("both.example").await.unwrap_err();
        assert!(matches!(down, ResolveError::ResolverDown { .. }), "{down}");
    }

    #[tokio::test]
    async fn many_wait_for_one_look_up() {
        let (works, names) = resolver(FakeNames::default(), &[]);
        let waiting = (0..50).map(|_| works.addresses("slow.example"));
        futures::future::join_all(waiting).await;
        assert!(
            works
                .lookups
                .begin("slow.example")
                .unwrap()
                .peek()
                .is_none(),
            "it still runs"
        );
        assert_eq!(names.asked.load(Ordering::SeqCst), 1);
    }
}
