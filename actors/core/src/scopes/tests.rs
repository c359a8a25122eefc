use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;

fn limits(rate: &str, burst: u32, concurrency: Option<u32>) -> ScopeLimits {
    ScopeLimits {
        rates: rate
            .split_whitespace()
            .map(|r| r.parse().unwrap())
            .collect(),
        burst,
        concurrency,
    }
}

fn whole(slots: u32) -> Slice {
    let share = Slice::WHOLE;
    Slice { share, slots }
}

fn one(limits: ScopeLimits) -> (Scopes, ScopeId, Needs) {
    let mut scopes = Scopes::default();
    let id = ScopeId(1);
    scopes.put(id, limits, 0);
    scopes.lease(id, whole(100), u64::MAX, 0);
    (scopes, id, Needs::of([id]))
}

#[test]
fn a_rate_starts_empty_and_has_a_burst() {
    let (mut scopes, _, needs) = one(limits("10/s", 3, None));
    assert!(!scopes.take(needs, 99_999) && scopes.take(needs, 100_000));
    let burst = (0..9).filter(|_| scopes.take(needs, 10 * SECOND)).count();
    assert_eq!(burst, 3);
    let ticket = scopes.enqueue(needs, 10 * SECOND);
    assert_eq!(scopes.next_at(10 * SECOND), Some(10 * SECOND + 100_000));
    assert_eq!(scopes.dispatch(10 * SECOND + 99_999), []);
    assert_eq!(scopes.dispatch(10 * SECOND + 100_000), [ticket]);
    scopes.give_back(needs, true, 10 * SECOND + 100_000);
    assert!(scopes.take(needs, 10 * SECOND + 100_000), "it never began");
}

#[test]
fn those_who_wait_take_turns() {
    let (mut scopes, id, needs) = one(limits("", 1, Some(1)));
    assert!(scopes.take(needs, 0) && !scopes.take(needs, 0));
    let first = scopes.enqueue(needs, 0);
    let second = scopes.enqueue(needs, 0);
    scopes.give_back(needs, false, 1);
    assert!(!scopes.take(needs, 1), "others wait");
    assert_eq!(scopes.dispatch(1), [first]);
    let again = scopes.enqueue(needs, 2);
    scopes.give_back(needs, false, 2);
    assert_eq!(scopes.dispatch(2), [second]);
    assert_eq!(scopes.waiting(), 1);
    assert_eq!(scopes.status(id, 2).unwrap().held, Some(Held::Concurrency));
    scopes.put(id, limits("", 1, Some(2)), 3);
    assert_eq!(scopes.dispatch(3), [again], "a change acts at once");
    let last = scopes.enqueue(needs, 4);
    assert_eq!(scopes.dispatch(4), []);
    assert_eq!(scopes.remove(id, 5), [last], "and so does its end");
}

#[test]
fn a_closed_scope_opens_by_itself_and_one_without_a_slice_does_not() {
    let (mut scopes, id, needs) = one(limits("1000/s", 5, Some(5)));
    scopes.close(id, 7 * SECOND);
    let ticket = scopes.enqueue(needs, SECOND);
    assert_eq!(scopes.next_at(SECOND), Some(7 * SECOND));
    assert_eq!(scopes.dispatch(7 * SECOND), [ticket]);
    scopes.lease(id, Slice::default(), u64::MAX, 7 * SECOND);
    let ticket = scopes.enqueue(needs, 8 * SECOND);
    assert_eq!(scopes.next_at(8 * SECOND), None);
    assert_eq!(scopes.take_hungry(), [id]);
    assert_eq!(scopes.want(id, 8 * SECOND).unwrap().wants, whole(5));
    scopes.lease(id, whole(5), 9 * SECOND, 8 * SECOND);
    assert_eq!(scopes.dispatch(8 * SECOND + 1_000), [ticket]);
    scopes.give_back(needs, false, 8 * SECOND);
    assert!(!scopes.take(needs, 9 * SECOND), "the lease ended");
    assert_eq!(scopes.want(id, 8 * SECOND + 2_000).unwrap().in_use, 1);
    assert_eq!(
        scopes.want(id, 60 * SECOND).unwrap().wants,
        Slice::default()
    );
}

/// Two full scopes, each with merchants of its own: the one that needs both gets its turn.
#[test]
fn two_full_scopes_do_not_keep_a_merchant_out_by_turns() {
    let mut scopes = Scopes::default();
    let (a, b) = (ScopeId(1), ScopeId(2));
    for id in [a, b] {
        scopes.put(id, limits("", 1, Some(1)), 0);
        scopes.lease(id, whole(1), u64::MAX, 0);
        assert!(scopes.take(Needs::of([id]), 0));
    }
    let both = scopes.enqueue(Needs::of([b, a]), 0);
    let mut turns = 0;
    for now in 1..20 {
        let id = if now % 2 == 0 { a } else { b };
        scopes.enqueue(Needs::of([id]), now);
        scopes.give_back(Needs::of([id]), false, now);
        if scopes.dispatch(now).contains(&both) {
            turns += 1;
        }
    }
    assert_eq!(turns, 1);
}

/// A merchant whose other scope is full does not hold up those behind it.
#[test]
fn who_lacks_something_else_is_passed() {
    let mut scopes = Scopes::default();
    let (a, b) = (ScopeId(1), ScopeId(2));
    scopes.put(a, limits("", 1, Some(3)), 0);
    scopes.put(b, limits("", 1, Some(1)), 0);
    for id in [a, b] {
        scopes.lease(id, whole(3), u64::MAX, 0);
    }
    assert!(scopes.take(Needs::of([b]), 0), "and never ends");
    let stuck: Vec<Ticket> = (0..9)
        .map(|_| scopes.enqueue(Needs::of([a, b]), 0))
        .collect();
    let mut went = 0;
    for now in 1..100 {
        let ticket = scopes.enqueue(Needs::of([a]), now);
        let granted = scopes.dispatch(now);
        assert!(granted.iter().all(|g| !stuck.contains(g)));
        went += usize::from(granted.contains(&ticket));
        scopes.give_back(Needs::of([a]), false, now);
    }
    assert!(went >= 98, "{went}");
}

proptest! {
    /// However the share moves between nodes, together they pass no more than the rate and the
    /// burst in any window.
    #[test]
    fn moving_shares_never_pass_more_than_the_limit(
        count in 1_u32..50, burst in 4_u32..20, quota in 1_u32..400,
        steps in proptest::collection::vec((1_u64..400_000, 0_usize..3, 0_u32..=4, 0_usize..3), 1..250),
    ) {
        let rates = format!("{count}/s {quota}/10s");
        let id = ScopeId(1);
        let needs = Needs::of([id]);
        let mut nodes: Vec<Scopes> = (0..3).map(|_| Scopes::default()).collect();
        let mut shares = [0_u32; 3];
        for node in &mut nodes {
            node.put(id, limits(&rates, burst, None), 0);
        }
        let (mut now, mut went) = (0, Vec::new());
        for (passed, node, share, taker) in steps {
            now += passed;
            let others: u32 = shares.iter().sum::<u32>() - shares[node];
            shares[node] = (share * 250).min(Slice::WHOLE - others);
            let slice = Slice { share: shares[node], slots: 0 };
            nodes[node].lease(id, slice, u64::MAX, now);
            while nodes[taker].take(needs, now) {
                went.push(now);
            }
        }
        for (rate, period) in [(u64::from(count), SECOND), (u64::from(quota), 10 * SECOND)] {
            for (i, from) in went.iter().enumerate() {
                for (j, to) in went.iter().enumerate().skip(i) {
                    let allowed = u64::from(burst) + (to - from) * rate / period;
                    prop_assert!((j - i + 1) as u64 <= allowed, "{} in {}", j - i + 1, to - from);
                }
            }
        }
    }
}

#[test]
fn who_leaves_the_queue_gives_back_what_it_had() {
    let mut scopes = Scopes::default();
    let (narrow, wide) = (ScopeId(1), ScopeId(2));
    scopes.put(narrow, limits("", 1, Some(1)), 0);
    scopes.put(wide, limits("", 1, Some(1)), 0);
    scopes.lease(narrow, whole(1), u64::MAX, 0);
    scopes.lease(wide, whole(1), u64::MAX, 0);
    let (both, one) = (Needs::of([narrow, wide]), Needs::of([narrow]));
    assert!(scopes.take(Needs::of([wide]), 0));
    let first = scopes.enqueue(both, 0);
    let second = scopes.enqueue(one, 0);
    // The first keeps its place in the narrow one while it waits for the other.
    let granted = scopes.dispatch(0);
    scopes.leave(first, 0);
    let granted = [granted, scopes.dispatch(0)].concat();
    assert_eq!(granted, [second]);
    assert_eq!(scopes.waiting(), 0);
    scopes.leave(first, 0);
    let status = scopes.status(narrow, 0).unwrap();
    assert_eq!((status.in_use, status.waiting), (1, 0));
}
