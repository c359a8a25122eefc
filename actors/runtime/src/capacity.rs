//! The node's attempts in flight, shared fairly.
//!
//! A share is reserved for merchants that hold little, so that hung merchants with a large
//! concurrency cannot take all of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A merchant that holds fewer attempts than this may use the reserved share.
const SMALL: u32 = 4;

/// Tells one that waits; false when it is gone, so that the next one is told.
pub(crate) type Wake = Box<dyn FnOnce() -> bool + Send>;

#[derive(Default)]
struct Waiting {
    small: VecDeque<Wake>,
    large: VecDeque<Wake>,
}

/// Counts attempts in flight against the node's limit.
pub(crate) struct Capacity {
    limit: usize,
    /// Above this, only merchants that hold little start more.
    open_to_all: usize,
    in_flight: AtomicUsize,
    denied: AtomicUsize,
    /// Nothing starts at all.
    held: AtomicBool,
    waiting: Mutex<Waiting>,
}

impl std::fmt::Debug for Capacity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capacity")
            .field("limit", &self.limit)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// One attempt's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Capacity>);

impl Capacity {
    /// `limit`: attempts in flight; a fifth of it is reserved for merchants that hold little.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open_to_all: limit - limit / 5,
            in_flight: AtomicUsize::new(0),
            denied: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            waiting: Mutex::default(),
        })
    }

    /// A place for a merchant that holds `held`, if there is one.
    pub(crate) fn take(self: &Arc<Self>, held: u32) -> Option<Permit> {
        if self.held.load(Ordering::Acquire) {
            return None;
        }
        let bound = if held < SMALL {
            self.limit
        } else {
            self.open_to_all
        };
        self.in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                (now < bound).then_some(now + 1)
            })
            .ok()
            .map(|_| Permit(Arc::clone(self)))
    }

    /// Calls `wake`, once, when there may be a place for a merchant that holds `held`. A place that
    /// came free meanwhile is given at once instead.
    pub(crate) fn wait(self: &Arc<Self>, held: u32, wake: Wake) -> Option<Permit> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permit) = self.take(held) {
            return Some(permit);
        }
        self.denied.fetch_add(1, Ordering::Relaxed);
        let queue = if held < SMALL {
            &mut waiting.small
        } else {
            &mut waiting.large
        };
        queue.push_back(wake);
        None
    }

    /// Lets nothing start, or everything again that waits.
    pub(crate) fn hold(&self, held: bool) {
        if !self.held.swap(held, Ordering::AcqRel) || held {
            return;
        }
        let waiting = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        for wake in waiting.small.into_iter().chain(waiting.large) {
            wake();
        }
    }

    /// Wakes one that waits for each place that it could have: the first one that takes the call.
    /// Who is woken and starts nothing calls this again for the next one.
    pub(crate) fn pass_on(&self) {
        // While held nobody could use it, and the end of that wakes all.
        while !self.held.load(Ordering::Acquire) {
            let wake = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let now = self.in_flight.load(Ordering::Acquire);
                if now >= self.limit {
                    return;
                }
                waiting.small.pop_front().or_else(|| {
                    (now < self.open_to_all)
                        .then(|| waiting.large.pop_front())
                        .flatten()
                })
            };
            // Called without the lock: it may give back places of its own.
            let Some(wake) = wake else { return };
            if wake() {
                return;
            }
        }
    }

    /// A merchant that holds so many waits among those who hold little.
    pub(crate) fn is_small(held: u32) -> bool {
        held < SMALL
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn denied(&self) -> usize {
        self.denied.load(Ordering::Relaxed)
    }

    /// How many wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.small.len() + waiting.large.len()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let capacity = &self.0;
        capacity.in_flight.fetch_sub(1, Ordering::AcqRel);
        capacity.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_for_those_who_hold_little() {
        let capacity = Capacity::new(10);
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = || {
            let woken = Arc::clone(&woken);
            Box::new(move || {
                woken.fetch_add(1, Ordering::Relaxed);
                true
            }) as Wake
        };
        let mut large: Vec<_> = (0..9).filter_map(|_| capacity.take(50)).collect();
        assert_eq!(large.len(), 8, "the rest is reserved");
        assert!(capacity.wait(50, wake()).is_none());
        let small: Vec<_> = (0..2).filter_map(|held| capacity.take(held)).collect();
        assert_eq!((small.len(), capacity.in_flight()), (2, 10));
        assert!(capacity.wait(0, wake()).is_none(), "full");
        capacity.hold(true);
        drop(large.pop());
        assert!(capacity.take(0).is_none(), "held");
        assert_eq!(woken.load(Ordering::Relaxed), 0, "nobody is woken in vain");
        assert!(capacity.wait(50, wake()).is_none());
        capacity.hold(false);
        assert_eq!(woken.load(Ordering::Relaxed), 3, "all that wait are woken");
        let refill = capacity.take(0);
        assert!(refill.is_some());
        assert!(capacity.wait(50, wake()).is_none() && capacity.wait(0, wake()).is_none());
        woken.store(0, Ordering::Relaxed);
        drop(small);
        assert_eq!(
            woken.load(Ordering::Relaxed),
            1,
            "the small one is woken first"
        );
        large.truncate(6);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_wake_that_nobody_takes_goes_to_the_next() {
        let capacity = Capacity::new(10);
        let mut held: Vec<_> = (0..10).filter_map(|_| capacity.take(0)).collect();
        let woken = Arc::new(AtomicUsize::new(0));
        assert!(capacity.wait(0, Box::new(|| false)).is_none());
        for small in [0, 50] {
            let woken = Arc::clone(&woken);
            let wake = Box::new(move || {
                woken.fetch_add(1, Ordering::Relaxed);
                true
            });
            assert!(capacity.wait(small, wake).is_none());
        }
        drop(held.pop());
        assert_eq!(woken.load(Ordering::Relaxed), 1, "the first one is gone");
        held.truncate(7);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        let last = capacity.take(0);
        let again = Arc::clone(&woken);
        let wake = Box::new(move || {
            again.fetch_add(1, Ordering::Relaxed);
            true
        });
        assert!(last.is_some() && capacity.wait(50, wake).is_none());
        held.pop();
        assert_eq!(woken.load(Ordering::Relaxed), 3);
    }
}
