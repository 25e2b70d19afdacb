//! The drain, step by step; the engine is real.

use std::sync::{
    Mutex,
    mpsc::{Sender, channel},
};

use ballast_proto::v1::{Mode, actor_message::Message};

use super::*;
use crate::{
    engine::spawn,
    testing::{assignment, engine, plays, staged, wire},
};

/// Work whose one slot holds episode 4, which has said a word and waits for the gate to open.
async fn busy() -> (Work, Sender<()>) {
    let (gate, gated) = channel();
    let (gated, words) = (Mutex::new(gated), plays(&["1 2 3 4 5 6 7 8 9"]));
    let script = move |seed, index| {
        if index > 0 {
            let gated = gated.lock().expect("no panic");
            // Open when the test has dropped its end.
            gated.recv().expect_err("nothing is ever sent");
        }
        words(seed, index)
    };
    let handle = spawn(engine(Arc::new(script), 1).0).expect("a thread");
    handle.mailbox.stage(staged(0));
    let counters = handle.counters;
    let mut work = Work::new(1, handle.mailbox, handle.reports);
    work.on_welcome("one");
    assert!(matches!(work.next_message(), Some(Message::SlotsFree(_))));
    work.on_assignment(wire(assignment(4, Mode::Explore))).expect("a credit");
    while counters.tokens_sampled() == 0 {
        tokio::task::yield_now().await;
    }
    (work, gate)
}

#[tokio::test]
async fn what_runs_when_the_drain_is_out_of_time_is_given_back() {
    let (mut work, gate) = busy().await;
    let never = CancellationToken::new();
    work.drain();
    assert!(matches!(work.drain, Drain::Finishing { .. }) && !work.is_over(true));
    work.drain = Drain::Finishing { until: Instant::now() };
    work.advance(&never).await.expect("an engine");
    assert!(matches!(work.drain, Drain::Leaving { .. }), "{:?}", work.drain);
    assert!(!work.is_over(true), "the coordinator is not told yet");
    assert!(work.is_over(false), "without a coordinator nobody can be told");
    drop(gate);
    work.advance(&never).await.expect("an engine");
    let Some(Message::Returned(returned)) = work.next_message() else { panic!("not returned") };
    assert_eq!(returned.episode_id, 4);
    assert!(returned.tokens > 100, "its prompt alone is longer than {}", returned.tokens);
    assert!(work.is_over(true));
    work.engine.stop();
}

#[tokio::test]
async fn every_part_of_a_drain_ends_in_time() {
    let (_engine, reports) = mpsc::channel(1);
    let mut work = Work::new(1, Arc::new(Mailbox::new(1)), reports);
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    work.on_welcome("one");
    assert!(work.next_message().is_some());
    work.on_assignment(wire(assignment(4, Mode::Explore))).expect("a credit");
    work.advance(&cancelled).await.expect("an engine");
    let Drain::Finishing { until } = work.drain else { panic!("{:?}", work.drain) };
    assert!(until <= Instant::now() + DRAIN_GRACE);
    work.drain = Drain::Finishing { until: Instant::now() };
    work.advance(&cancelled).await.expect("an engine");
    let Drain::Leaving { until } = work.drain else { panic!("{:?}", work.drain) };
    assert!(until <= Instant::now() + LEAVE_GRACE);
    // The engine is stuck: it reports nothing.
    assert!(!work.is_over(true));
    work.drain = Drain::Leaving { until: Instant::now() };
    work.advance(&cancelled).await.expect("an engine");
    assert!(work.is_over(true) && work.is_over(false));
}
