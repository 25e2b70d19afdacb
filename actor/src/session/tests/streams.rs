//! Streams that break, coordinators that come and go: no episode is lost, none runs twice.

use ballast_runtime::leader::LEADER_METADATA;

use super::*;

/// An actor whose two slots hold episodes 1 and 2, which wait for the test.
async fn busy_pair() -> (Pair, Seat) {
    let mut pair = Pair::start();
    let mut seat = pair.seat().await;
    seat.welcome().await;
    seat.assign(1, Some(LATER)).await;
    seat.assign(2, Some(LATER)).await;
    seat.runs(2).await;
    (pair, seat)
}

#[tokio::test]
async fn episodes_go_on_when_the_stream_breaks_and_the_next_one_claims_them() {
    let mut pair = Pair::start();
    let mut first = pair.seat().await;
    let generation = first.welcome().await;
    first.assign(1, Some(LATER)).await;
    first.runs(1).await;
    drop(first);

    let mut second = pair.seat().await;
    let hello = second.hello().await;
    assert_eq!((&*hello.claims, &*hello.run_id), (&[1][..], "one"));
    assert_eq!(hello.generation, generation, "it is the same incarnation");
    second.welcome_to("one").await;
    assert_eq!(second.slots().await, 1, "credits start anew");
    pair.release();
    assert_eq!(second.trajectory().await.episode_id, 1);
    assert_eq!(second.slots().await, 1);
    second.acknowledge(1).await;
    second.assign(2, None).await;
    assert_eq!(second.trajectory().await.episode_id, 2);
}

#[tokio::test]
async fn a_stream_that_breaks_before_the_welcome_changes_nothing() {
    let (mut pair, seat) = busy_pair().await;
    seat.abort(Status::unavailable("it steps down")).await;
    for _ in 0..3 {
        let mut unwelcome = pair.seat().await;
        assert_eq!(unwelcome.hello().await.claims, [1, 2]);
        drop(unwelcome);
    }
    pair.release();
    let mut last = pair.seat().await;
    assert_eq!(last.hello().await.claims, [1, 2]);
    last.welcome_to("one").await;
    let mut ids = [last.trajectory().await.episode_id, last.trajectory().await.episode_id];
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
}

#[tokio::test]
async fn a_trajectory_is_sent_until_it_is_acknowledged() {
    let mut pair = Pair::start();
    let mut first = pair.seat().await;
    first.welcome().await;
    first.assign(5, None).await;
    let sent = first.trajectory().await;
    drop(first);

    let mut second = pair.seat().await;
    assert_eq!(second.hello().await.claims, [5]);
    second.welcome_to("one").await;
    assert_eq!(second.trajectory().await, sent, "the same trajectory, not another episode");
    assert_eq!(second.slots().await, 2);
    second.acknowledge(5).await;
    // The acknowledgement is seen before the episode that follows it.
    second.assign(6, None).await;
    assert_eq!(second.trajectory().await.episode_id, 6);
    drop(second);
    assert_eq!(pair.seat().await.hello().await.claims, [6]);
}

#[tokio::test]
async fn a_stream_that_breaks_while_trajectories_are_sent_again_loses_none() {
    let (mut pair, seat) = busy_pair().await;
    drop(seat);
    pair.release();
    pair.idles().await;
    let mut second = pair.seat().await;
    assert_eq!(second.hello().await.claims, [1, 2]);
    second.welcome_to("one").await;
    second.trajectory().await;
    drop(second);

    let mut third = pair.seat().await;
    assert_eq!(third.hello().await.claims, [1, 2]);
    third.welcome_to("one").await;
    assert_eq!(third.trajectory().await.episode_id, 1);
    assert_eq!(third.trajectory().await.episode_id, 2);
    assert_eq!(third.slots().await, 2);
}

#[tokio::test]
async fn claims_that_nobody_waits_for_are_forgotten() {
    let mut pair = Pair::start();
    let mut first = pair.seat().await;
    first.welcome().await;
    first.assign(1, None).await;
    first.trajectory().await;
    first.assign(2, Some(LATER)).await;
    first.runs(1).await;
    drop(first);

    let mut second = pair.seat().await;
    assert_eq!(second.hello().await.claims, [1, 2]);
    second.welcome_to("one").await;
    second.acknowledge(1).await;
    second.discard(2).await;
    second.runs(0).await;
    drop(second);
    let hello = pair.seat().await.hello().await;
    assert_eq!((&*hello.claims, &*hello.run_id), (&[][..], ""));
}

#[tokio::test]
async fn a_discarded_episode_is_stopped_and_its_slot_offered_again() {
    let (pair, mut seat) = busy_pair().await;
    seat.discard(1).await;
    // No report of it, nor of one that was never here.
    seat.discard(77).await;
    assert_eq!(seat.slots().await, 1);
    seat.runs(1).await;
    seat.assign(3, None).await;
    assert_eq!(seat.trajectory().await.episode_id, 3);
    pair.release();
    assert_eq!(seat.trajectory().await.episode_id, 2);
}

#[tokio::test]
async fn another_run_abandons_what_the_old_one_left() {
    let (mut pair, seat) = busy_pair().await;
    drop(seat);
    let mut second = pair.seat().await;
    let hello = second.hello().await;
    assert_eq!((&*hello.claims, &*hello.run_id), (&[1, 2][..], "one"));
    second.welcome_to("two").await;
    assert_eq!(second.slots().await, 2);
    // Another episode under an id that the old run knew as well.
    second.assign(1, None).await;
    pair.release();
    assert_eq!(second.trajectory().await.episode_id, 1);
    assert_eq!(second.slots().await, 1);
    second.runs(0).await;
    drop(second);
    let hello = pair.seat().await.hello().await;
    assert_eq!((&*hello.claims, &*hello.run_id), (&[1][..], "two"));
}

#[tokio::test]
async fn an_episode_that_is_here_is_not_run_again() {
    let (mut pair, mut seat) = busy_pair().await;
    seat.discard(2).await;
    assert_eq!(seat.slots().await, 1);
    seat.assign(1, None).await;
    let mut again = pair.seat().await;
    assert_eq!(again.hello().await.claims, [1]);
}

#[tokio::test]
async fn while_the_coordinator_is_away_episodes_finish_and_none_starts() {
    let (mut pair, seat) = busy_pair().await;
    drop(seat);
    // It answers nothing for as long as the episodes take.
    let mut silent = pair.seat().await;
    assert_eq!(silent.hello().await.claims, [1, 2]);
    pair.release();
    pair.idles().await;
    let sampled = pair.counters.tokens_sampled();
    silent.welcome_to("one").await;
    assert_eq!(silent.trajectory().await.episode_id, 1);
    assert_eq!(silent.trajectory().await.episode_id, 2);
    assert_eq!(silent.slots().await, 2);
    assert_eq!(pair.counters.tokens_sampled(), sampled);
}

#[tokio::test]
async fn the_next_candidate_is_tried_when_the_coordinator_dies() {
    let (first, mut second) = (Candidate::start(), Candidate::start());
    let others = format!(",{}", second.address);
    let mut pair = Pair::among(first, &others);
    let mut seat = pair.seat().await;
    seat.welcome().await;
    seat.assign(1, Some(LATER)).await;
    seat.runs(1).await;
    drop(std::mem::replace(&mut pair.coordinator, Candidate::start()));

    let mut seat = second.seat().await;
    assert_eq!(seat.hello().await.claims, [1]);
    seat.welcome_to("one").await;
    pair.release();
    assert_eq!(seat.trajectory().await.episode_id, 1);
}

#[tokio::test]
async fn a_standby_names_the_leader() {
    let mut leader = Candidate::start();
    let mut pair = Pair::start();
    let mut status = Status::unavailable("a standby");
    let named = leader.address.parse().expect("ASCII");
    status.metadata_mut().insert(LEADER_METADATA, named);
    pair.seat().await.abort(status).await;
    leader.seat().await.welcome().await;
}

#[tokio::test]
async fn a_signal_without_a_coordinator_ends_an_actor_that_has_nothing() {
    let mut pair = Pair::start();
    let seat = pair.seat().await;
    pair.cancelled.cancel();
    pair.ends().await.expect("nothing to drain");
    drop(seat);
}

#[tokio::test]
async fn a_drain_outlives_the_stream_it_began_on() {
    let (mut pair, mut seat) = busy_pair().await;
    pair.release();
    seat.trajectory().await;
    seat.trajectory().await;
    pair.cancelled.cancel();
    seat.abort(Status::unavailable("it steps down")).await;
    let mut next = pair.seat().await;
    assert_eq!(next.hello().await.claims, [1, 2]);
    next.welcome_to("one").await;
    for id in [1, 2] {
        assert_eq!(next.trajectory().await.episode_id, id);
        next.acknowledge(id).await;
    }
    assert_eq!(next.next_but_beats().await, None);
    drop(next);
    pair.ends().await.expect("drained");
}

#[tokio::test]
async fn an_actor_that_was_sent_away_does_not_come_back() {
    let mut pair = Pair::start();
    let mut seat = pair.seat().await;
    seat.welcome().await;
    seat.assign(1, None).await;
    seat.trajectory().await;
    assert_eq!(seat.slots().await, 1);
    seat.say(coordinator_message::Message::Drain(Drain {})).await;
    // A refusal shows that the drain was seen.
    seat.assign(2, None).await;
    let refused = seat.next_but_beats().await;
    assert!(matches!(refused, Some(actor_message::Message::Returned(_))), "{refused:?}");
    // The coordinator closes without an acknowledgement: its run is over.
    drop(seat);
    let ended = timeout(PATIENCE, &mut pair.actor).await.expect("in time");
    ended.expect("no panic").expect("drained");
    assert!(pair.coordinator.sessions.try_recv().is_err(), "it came back");
}
