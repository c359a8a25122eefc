use std::collections::VecDeque;

use super::*;

const WHOLE: Slice = Slice {
    share: Slice::WHOLE,
    slots: 3,
};

fn node(n: usize) -> NodeName {
    NodeName::new(&format!("n{n}")).unwrap()
}

#[test]
fn what_is_left_goes_round() {
    assert_eq!(fair(&[1_000], 1_000, 0), [1_000]);
    assert_eq!(fair(&[100], 1_000, 0), [1_000], "alone, everything");
    assert_eq!(fair(&[1_000, 1_000], 1_000, 0), [500, 500]);
    assert_eq!(fair(&[100, 1_000], 1_000, 0), [100, 900]);
    assert_eq!(fair(&[100, 0, 100], 1_000, 0), [500, 0, 500]);
    assert_eq!(fair(&[9, 9, 9], 1, 0), [1, 0, 0]);
    assert_eq!(fair(&[9, 9, 9], 1, 1), [0, 1, 0]);
    assert_eq!(fair(&[9, 9, 9], 5, 2), [2, 1, 2]);
    assert_eq!(fair(&[0, 0], 5, 2), [0, 0]);
}

#[test]
fn one_node_gets_everything_with_one_write() {
    let mut one = Lessee::new(node(0));
    let demand = Demand {
        wants: WHOLE,
        in_use: 0,
        ..Demand::default()
    };
    assert_eq!(one.slice(3, 10), Slice::default());
    let (revision, table) = one.plan(demand, 3, 10).unwrap();
    assert_eq!((revision, table.entries.len()), (0, 1));
    assert_eq!(
        one.slice(3, 11),
        Slice::default(),
        "not before it is confirmed"
    );
    one.confirmed(1, 20);
    assert_eq!(one.slice(3, 21), WHOLE);
    assert_eq!(one.slice(2, 21).slots, 2, "a lower limit acts at once");
    assert_eq!(one.plan(demand, 3, 500_000), None);
    assert_eq!(one.slice(3, 10 + TTL - MARGIN), Slice::default());
    assert!(one.plan(demand, 3, 10 + RENEWAL).is_some());
    one.confirmed(2, 10 + RENEWAL);
    assert!(one.plan(Demand::default(), 3, 20 + RENEWAL).is_some());
    assert_eq!(one.slice(3, 20 + RENEWAL), Slice::default());
    one.confirmed(3, 30 + RENEWAL);
    assert!(one.is_out());
    // One that wants nothing still tells the others.
    let closed = Demand {
        closed_until: 77,
        ..Demand::default()
    };
    let (_, table) = one.plan(closed, 3, 40 + RENEWAL).unwrap();
    assert_eq!((table.closed_until, table.entries.len()), (77, 0));
    one.confirmed(4, 50 + RENEWAL);
    assert_eq!(one.plan(closed, 3, 60 + RENEWAL), None);
    assert_eq!(one.closed_until(), 77);
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A write on its way, and whether its answer arrives.
struct Sent {
    by: usize,
    life: u32,
    over: Seq,
    table: SliceTable,
    arrives: u64,
    answered: bool,
}

struct Node {
    lessee: Lessee,
    life: u32,
    /// What the watch has not shown yet.
    watch: VecDeque<(u64, Seq, SliceTable)>,
    paused_until: u64,
    wants: Slice,
    in_use: u32,
    closed_until: u64,
    /// When the write without an answer is given up.
    asks_at: Option<u64>,
    had: Slice,
}

/// Writes are late, refused, stored without an answer; nodes sleep, crash and change their minds.
fn run(seed: u64) {
    let mut rng = Rng(seed);
    let count = 1 + usize::try_from(rng.below(4)).unwrap();
    let whole = 1 + u32::try_from(rng.below(6)).unwrap();
    let mut now = 1_000_000_000;
    let mut value = (0, SliceTable::default());
    let mut sent: Vec<Sent> = Vec::new();
    let mut nodes: Vec<Node> = (0..count)
        .map(|n| Node {
            lessee: Lessee::new(node(n)),
            life: 0,
            watch: VecDeque::new(),
            paused_until: 0,
            wants: Slice::default(),
            in_use: 0,
            closed_until: 0,
            asks_at: None,
            had: Slice::default(),
        })
        .collect();
    let calm_from = now + 60_000_000;
    let ends = calm_from + 40_000_000;
    while now < ends {
        now += 1 + rng.below(40_000);
        let calm = now > calm_from;
        if calm && now < calm_from + 12_000_000 {
            nodes
                .iter_mut()
                .for_each(|node| node.had = Slice::default());
        }
        sent.sort_by_key(|write| write.arrives);
        while sent.first().is_some_and(|write| write.arrives <= now) {
            let write = sent.remove(0);
            let stored = write.over == value.0;
            if stored {
                value = (value.0 + 1, write.table);
                for node in &mut nodes {
                    let late = now + rng.below(if calm { 20_000 } else { 400_000 });
                    node.watch.push_back((late, value.0, value.1.clone()));
                }
            }
            let node = &mut nodes[write.by];
            if write.answered && node.life == write.life && node.asks_at.is_some() {
                if stored {
                    node.lessee.confirmed(value.0, now);
                } else {
                    node.lessee.settle(value.0, value.1.clone(), now);
                }
                node.asks_at = None;
            }
        }
        for (n, node) in nodes.iter_mut().enumerate() {
            if !calm && rng.below(3_000) == 0 {
                node.paused_until = now + rng.below(8_000_000);
            }
            if !calm && rng.below(6_000) == 0 {
                node.lessee = Lessee::new(super::tests::node(n));
                node.life += 1;
                (node.in_use, node.asks_at) = (0, None);
                node.lessee.observe(value.0, value.1.clone(), now);
            }
            if !calm && rng.below(200) == 0 {
                node.wants = Slice {
                    share: [0, 100, 1_000][usize::try_from(rng.below(3)).unwrap()],
                    slots: u32::try_from(rng.below(4)).unwrap(),
                };
            }
            if !calm && rng.below(500) == 0 {
                node.closed_until = now;
            }
            if calm {
                node.wants = Slice {
                    share: Slice::WHOLE,
                    slots: whole,
                };
            }
            if node.paused_until > now {
                continue;
            }
            while node.watch.front().is_some_and(|(at, ..)| *at <= now) {
                let (_, revision, table) = node.watch.pop_front().unwrap();
                node.lessee.observe(revision, table, now);
            }
            if node.asks_at.is_some_and(|at| at <= now) {
                node.lessee.settle(value.0, value.1.clone(), now);
                node.asks_at = None;
            }
            let slice = node.lessee.slice(whole, now);
            node.in_use = node.in_use.min(slice.slots);
            if rng.below(3) == 0 {
                node.in_use = slice.slots.min(u32::try_from(rng.below(5)).unwrap());
            }
            node.had.share = node.had.share.max(slice.share);
            node.had.slots = node.had.slots.max(slice.slots);
            let demand = Demand {
                wants: node.wants,
                in_use: node.in_use,
                closed_until: node.closed_until,
            };
            if node.asks_at.is_none()
                && let Some((over, table)) = node.lessee.plan(demand, whole, now)
            {
                let fate = if calm { 9 } else { rng.below(10) };
                let late = if fate == 0 { 3_000_000 } else { 30_000 };
                node.asks_at = Some(now + 1_000_000);
                if fate != 1 {
                    sent.push(Sent {
                        by: n,
                        life: node.life,
                        over,
                        table,
                        arrives: now + 1 + rng.below(late),
                        answered: fate > 2,
                    });
                }
            }
        }
        let used: Vec<Slice> = nodes
            .iter()
            .map(|node| node.lessee.slice(whole, now))
            .collect();
        let share: u32 = used.iter().map(|slice| slice.share).sum();
        let slots: u32 = used.iter().map(|slice| slice.slots).sum();
        assert!(
            share <= Slice::WHOLE && slots <= whole,
            "seed {seed}: {used:?} of {whole}"
        );
    }
    let poor = nodes
        .iter()
        .filter(|node| node.had.share == 0 || node.had.slots == 0);
    assert_eq!(
        poor.count(),
        0,
        "seed {seed}: {count} nodes, {whole} slots, {:?}",
        value.1
    );
    let closed = nodes.iter().map(|node| node.closed_until).max();
    let known = nodes.iter().map(|node| node.lessee.closed_until()).min();
    assert!(
        known >= closed,
        "seed {seed}: all wait for what one was told"
    );
    let all: u32 = nodes
        .iter()
        .map(|node| node.lessee.slice(whole, now).share)
        .sum();
    assert!(all >= 990, "seed {seed}: {all} of the rate is used");
}

#[test]
fn slices_never_add_up_to_more_than_the_whole_and_all_get_some() {
    for seed in 0..400 {
        run(seed);
    }
}
