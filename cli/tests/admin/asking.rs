//! Whom a command asks, and what people are told when that fails.

use tonic::{Code, Status};

use crate::{assert_contains, ballast, ballast_as, fake::Fake};

/// Port 1 is reserved and nobody listens there.
const NOBODY: &str = "127.0.0.1:1";

#[tokio::test]
async fn an_absent_coordinator_is_named_with_the_remedy() {
    let error = ballast(&["status", "--coordinator", NOBODY]).await.error();
    assert_contains(&error, &["no coordinator answers at 127.0.0.1:1", "--coordinator HOST:PORT"]);
}

#[tokio::test]
async fn each_address_is_tried() {
    let fake = Fake::default();
    let addresses = format!("{NOBODY},{}", fake.serve().await);
    let out = ballast(&["pause", "--coordinator", &addresses]).await.out();
    assert!(out.contains("paused"), "{out}");
    let error = ballast(&["pause", "--coordinator", "127.0.0.1:1,[::1]:1"]).await.error();
    assert_contains(&error, &["127.0.0.1:1 (", "[::1]:1 ("]);
    let error = ballast(&["pause", "--coordinator", "127.0.0.1:1,nowhere"]).await.error();
    assert!(error.contains("`nowhere` is not an address"), "{error}");
}

#[tokio::test]
async fn a_standby_leads_to_the_leader() {
    let leader = Fake::default();
    let standby = Fake::standby(&leader.serve().await);
    let address = standby.serve().await;
    ballast(&["set", "rl.temperature=0.9", "--coordinator", &address]).await.out();
    assert_eq!(leader.call().name, "set");
    assert_eq!(leader.call().user.as_deref(), Some("ada"));
}

#[tokio::test]
async fn standbys_that_name_each_other_are_not_asked_for_ever() {
    let second = Fake::standby(NOBODY);
    let first = Fake::standby(&second.serve().await);
    let address = first.serve().await;
    let error = ballast(&["pause", "--coordinator", &address]).await.error();
    assert_contains(&error, &[&format!("no coordinator answers at {address} (a standby"), NOBODY]);
    assert_eq!((first.calls().len(), second.calls().len()), (1, 1));
}

#[tokio::test]
async fn a_fault_of_the_request_is_told_in_the_coordinators_words() {
    for code in [Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound] {
        let address = Fake::refusing(Status::new(code, "no actor is called x")).serve().await;
        let drain = ["actors", "drain", "x", "--coordinator", &address];
        assert_eq!(ballast(&drain).await.error(), "error: no actor is called x\n");
    }
    let address = Fake::refusing(Status::data_loss("segment 3 \u{7}is torn")).serve().await;
    let error = ballast(&["trajectory", "7", "--coordinator", &address]).await.error();
    assert_contains(&error, &[&address, r"segment 3 \u{7}is torn (DataLoss)"]);
}

#[tokio::test]
async fn everybody_says_who_they_are_as_far_as_it_is_known() {
    for (environment, user) in [
        (&[("USER", "ada"), ("LOGNAME", "eve")][..], Some("ada")),
        (&[("USER", ""), ("LOGNAME", "eve")], Some("eve")),
        (&[("USER", "a\u{7}a")], None),
        (&[], None),
    ] {
        let fake = Fake::default();
        let address = fake.serve().await;
        ballast_as(environment, &["stop", "--coordinator", &address]).await.out();
        assert_eq!(fake.call().user.as_deref(), user, "{environment:?}");
    }
}
