//! What the runtime relies on in actix; a new version must not change it silently.

use actix::{Actor, Addr, Context, Handler, Message};

struct Counter(u32);

impl Actor for Counter {
    type Context = Context<Self>;
}

fn start(value: u32) -> Addr<Counter> {
    Counter::create(|ctx| {
        ctx.set_mailbox_capacity(0);
        Counter(value)
    })
}

struct Add;
impl Message for Add {
    type Result = ();
}
impl Handler<Add> for Counter {
    type Result = ();
    fn handle(&mut self, _: Add, _: &mut Self::Context) {
        self.0 += 1;
    }
}

struct Get(tokio::sync::oneshot::Sender<u32>);
impl Message for Get {
    type Result = ();
}
impl Handler<Get> for Counter {
    type Result = ();
    fn handle(&mut self, get: Get, _: &mut Self::Context) {
        get.0.send(self.0).expect("the test waits");
    }
}

struct Panic;
impl Message for Panic {
    type Result = ();
}
impl Handler<Panic> for Counter {
    type Result = ();
    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("provoked");
    }
}

async fn value(actor: &Addr<Counter>) -> u32 {
    let (reply, answer) = tokio::sync::oneshot::channel();
    assert!(actor.try_send(Get(reply)).is_ok());
    answer.await.expect("it answers")
}

#[test]
fn an_unbounded_mailbox_takes_everything_in_order() {
    actix_rt::System::new().block_on(async {
        let actor = start(0);
        for _ in 0..10_000 {
            assert!(actor.try_send(Add).is_ok());
        }
        assert_eq!(value(&actor).await, 10_000);
    });
}

#[test]
fn a_panic_in_a_handler_closes_the_mailbox_and_only_this_one() {
    actix_rt::System::new().block_on(async {
        let (broken, sound) = (start(0), start(7));
        assert!(broken.try_send(Panic).is_ok());
        tokio::task::yield_now().await;
        while broken.connected() {
            tokio::task::yield_now().await;
        }
        assert!(
            broken.try_send(Add).is_err(),
            "the supervisor of actix would not help"
        );
        assert_eq!(value(&sound).await, 7);
    });
}
