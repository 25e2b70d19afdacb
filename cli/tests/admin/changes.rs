//! Commands that change something: what they ask for, what they say then.

use crate::{assert_contains, ballast, fake::Fake};

/// Runs a command; its stdout, and the only request it made.
async fn change(args: &[&str]) -> (String, String) {
    let fake = Fake::default();
    let address = fake.serve().await;
    let out = ballast(&[args, &["--coordinator", address.as_str()]].concat()).await.out();
    let call = fake.call();
    assert_eq!(call.user.as_deref(), Some("ada"), "{args:?}");
    (out, format!("{}: {}", call.name, call.request))
}

/// The JSON of the answer.
async fn answer(args: &[&str]) -> String {
    change(&[args, &["--json"]].concat()).await.0.trim().to_owned()
}

#[tokio::test]
async fn pause_resume_and_stop() {
    for (command, call, said) in [
        ("pause", "pause: PauseRequest", "continue with `ballast resume`"),
        ("resume", "resume: ResumeRequest", "resumed"),
        ("stop", "stop: StopRequest", "a checkpoint is written"),
    ] {
        let (out, made) = change(&[command]).await;
        assert_eq!(made, call);
        assert!(out.contains(said), "{out}");
        assert_eq!(answer(&[command]).await, "{}");
    }
}

#[tokio::test]
async fn set_says_from_when_on() {
    let command = ["set", "rl.learning_rate=1e-5", "schedule.rl_steps=5"];
    let (out, made) =
        change(&[&command[..], &["--reason", "KL grows", "--revision", "2"]].concat()).await;
    assert_contains(&out, &["from step 11 on", "revision 3"]);
    let changes = r#"changes: ["rl.learning_rate=1e-5", "schedule.rl_steps=5"]"#;
    let request =
        format!(r#"set: SetRequest {{ {changes}, reason: "KL grows", revision: Some(2) }}"#);
    assert_eq!(made, request);
    assert!(change(&command).await.1.contains(r#"reason: "", revision: None"#));
    assert_eq!(answer(&command).await, r#"{"revision":3,"step":11}"#);
    assert!(ballast(&["set"]).await.error().contains("KEY=VALUE"));
}

#[tokio::test]
async fn schedule_set_says_from_when_on() {
    let command = ["schedule", "set", "kind=adaptive", "steps=90"];
    let (out, made) = change(&[&command[..], &["--revision", "2"]].concat()).await;
    assert!(out.contains("from step 11 on"), "{out}");
    assert_contains(&made, &["set_schedule:", r#"["kind=adaptive", "steps=90"]"#, "Some(2)"]);
    assert_eq!(answer(&command).await, r#"{"revision":3,"step":11}"#);
}

#[tokio::test]
async fn an_actor_is_drained_by_name() {
    let command = ["actors", "drain", "actor-1", "--reason", "its machine goes down"];
    let (out, made) = change(&command).await;
    assert!(out.contains("draining actor-1"), "{out}");
    assert_contains(&made, &["drain_actor:", r#""actor-1""#, r#""its machine goes down""#]);
    assert_eq!(answer(&command).await, "{}");
}

#[tokio::test]
async fn a_checkpoint_and_an_evaluation_are_asked_for() {
    let (out, made) = change(&["checkpoint", "--reason", "before"]).await;
    assert!(out.contains("after step 12"), "{out}");
    assert_contains(&made, &["checkpoint:", r#""before""#]);
    assert_eq!(answer(&["checkpoint"]).await, r#"{"step":12}"#);

    let (out, made) = change(&["evaluate", "--reason", "after"]).await;
    assert!(out.contains("`requested`"), "{out}");
    assert_contains(&made, &["evaluate:", r#""after""#]);
    assert_eq!(answer(&["evaluate"]).await, "{}");
}
