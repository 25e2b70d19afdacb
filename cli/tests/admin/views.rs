//! Commands that only look: for people, and as JSON.

use serde_json::{Value, json};

use crate::{assert_contains, ballast, fake::Fake};

/// What a command prints for people and for programs, and its request.
async fn look(args: &[&str]) -> (String, Value, String) {
    let fake = Fake::default();
    let address = fake.serve().await;
    let args = [args, &["--coordinator", address.as_str()]].concat();
    let (text, json) =
        (ballast(&args).await.out(), ballast(&[&args[..], &["--json"]].concat()).await);
    (text, json.json(), fake.calls()[0].request.clone())
}

/// The lines of a table as cells that single spaces separate.
fn rows(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn status() {
    let (text, json, _) = look(&["status"]).await;
    assert_contains(&text, &["run demo: running", "training 7/120", "actor-1: 16 episodes"]);
    assert_eq!(
        (&json["run"], &json["state"], &json["step"]),
        (&json!("demo"), &json!("running"), &json!(7))
    );
}

#[tokio::test]
async fn watch_goes_on_after_a_restart_until_the_run_is_over() {
    let address = Fake::default().serve().await;
    let ran = ballast(&["watch", "--json", "--coordinator", &address]).await;
    assert!(ran.stderr.contains("the coordinator is gone"), "{}", ran.stderr);
    let steps: Vec<Value> = ran
        .out()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["step"].take())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4]);

    let address = Fake::default().serve().await;
    let out = ballast(&["watch", "--plain", "--coordinator", &address]).await.out();
    assert_contains(&out, &["training", "the coordinator is gone", "the run is over"]);
}

#[tokio::test]
async fn schedule() {
    let (text, json, _) = look(&["schedule"]).await;
    assert_contains(
        &text,
        &[
            "phases, revision 2",
            "explore, because the main part begins with it",
            "32 groups without a success (3 so far)",
            "25.0%, no RL step measured yet",
            "decided to step 10",
        ],
    );
    assert!(
        rows(&text).contains(&"10 0:01:15 rl step phase `explore`: RL alone".to_owned()),
        "{text}"
    );
    assert_eq!((&json["decided_step"], &json["sft_share"]), (&json!(10), &json!(0.25)));
    assert_eq!(json["decisions"][0]["what"], "rl step");
    assert!(json["strain"].is_null());
}

#[tokio::test]
async fn settings() {
    let (text, json, _) = look(&["settings"]).await;
    assert_contains(&text, &["# revision 2", "[rl]\nlearning_rate = 1e-5"]);
    assert_eq!(json, json!({"settings": "[rl]\nlearning_rate = 1e-5\n", "revision": 2}));
}

#[tokio::test]
async fn actors() {
    let (text, json, _) = look(&["actors"]).await;
    let rows = rows(&text);
    assert_eq!(rows[2], "actor-0 16 v6 0.5 s 300 MiB 2 at work");
    assert_eq!(rows[3], "actor-1 16 v6 0.5 s 300 MiB 2 draining");
    assert_eq!(json["actors"][1]["draining"], true);
    assert_eq!(json.as_object().map(serde_json::Map::len), Some(1));
}

#[tokio::test]
async fn checkpoints() {
    let (text, json, _) = look(&["checkpoints"]).await;
    assert_eq!(rows(&text)[3], "10 runs/demo/checkpoints/step-10");
    assert_eq!(json["checkpoints"][0], json!({"step": 5, "path": "runs/demo/checkpoints/step-5"}));
}

#[tokio::test]
async fn trajectories() {
    let (text, json, request) = look(&["trajectories"]).await;
    let rows = rows(&text);
    assert_eq!(rows[2], "512 37 explore market/train/91 3 812 v40 0.250 failure turn limit");
    assert_eq!(rows[3], "9 - unspecified - 0 0 - - not scored unspecified");
    assert_eq!(json["trajectories"][0]["stop_reason"], "turn_limit");
    assert_eq!(json["trajectories"][0]["task"]["seed"], 91);
    assert!(json["trajectories"][1]["reward"].is_null());
    assert_contains(&request, &["limit: 50", "success: None", "mode: Unspecified"]);
}

#[tokio::test]
async fn trajectories_are_chosen_by_outcome_and_mode() {
    let (_, _, request) =
        look(&["trajectories", "--failed", "--mode", "explore", "--limit", "5"]).await;
    assert_contains(&request, &["limit: 5", "success: Some(false)", "mode: Explore"]);
    let (_, _, request) = look(&["trajectories", "--succeeded", "--mode", "evaluate"]).await;
    assert_contains(&request, &["success: Some(true)", "mode: Evaluate"]);
    let both = ballast(&["trajectories", "--failed", "--succeeded"]).await.error();
    assert!(both.contains("cannot be used with"), "{both}");
    let many = ballast(&["trajectories", "--limit", "1001"]).await.error();
    assert!(many.contains("1..=1000"), "{many}");
}

#[tokio::test]
async fn a_trajectory_is_shown_message_by_message() {
    let (text, json, request) = look(&["trajectory", "512"]).await;
    assert!(request.contains("episode_id: 512"), "{request}");
    assert_contains(
        &text,
        &[
            "512, group 37, explore",
            "market/train/91, 4 calls",
            "success, reward 1.000, stopped with done",
            "\"total 12\"",
            "4, 2 of them actions",
            "v40 (abababab)",
            "1.2e-4",
            "5.3 s",
        ],
    );
    let rows = rows(&text);
    let spans = rows.iter().position(|row| row.starts_with("span role")).expect("a table");
    assert_eq!(rows[spans + 2], "0 user 2");
    let first = r#"1 assistant 2 polluted ok {"name": "search", "arguments": {"item": "tea"}}"#;
    assert_eq!(rows[spans + 3], first);
    // The tokens are for programs, and no control character reaches the terminal.
    assert_eq!(rows[spans + 4], r#"malformed {"name": \u{1b}[31m"#);
    let trajectory = &json["trajectory"];
    assert_eq!(trajectory["token_ids"], json!([11, 12, 13, 14]));
    assert_eq!(trajectory["loss_mask"], "00000101");
    assert_eq!(trajectory["spans"][1]["calls"][1]["status"], "malformed");
    assert_eq!(trajectory["spans"][1]["calls"][1]["raw"], "\n{\"name\": \u{1b}[31m\n");
    assert!(trajectory["spans"][0]["state"].is_null());
}

#[tokio::test]
async fn quarantine() {
    let (text, json, _) = look(&["quarantine"]).await;
    assert_eq!(rows(&text)[2], r"0:01:01 33 actor-1 behavior_logprobs[4] is NaN \u{1b}[2J");
    assert!(text.contains("299 more are too old"), "{text}");
    assert_eq!((&json["total"], &json["trajectories"][0]["t"]), (&json!(300), &json!(61.5)));
}

#[tokio::test]
async fn audit() {
    let (text, json, _) = look(&["audit"]).await;
    let rows = rows(&text);
    let refused = "refused: schedule.kind: unknown variant";
    assert_eq!(rows[2], format!("1:02:05 ada at 127.0.0.1 set schedule.kind=adaptve - {refused}"));
    assert_eq!(rows[3], "0:01:30 ada at 127.0.0.1 pause lunch done");
    assert_eq!(json["entries"][1]["reason"], "lunch");
}

#[tokio::test]
async fn lengths() {
    let (text, json, _) = look(&["lengths"]).await;
    assert_contains(
        &text,
        &["40 episodes, mean 18.5 tokens", "0.0132 (Kolmogorov-Smirnov), p-value 0.970: no sign"],
    );
    let rows = rows(&text);
    assert!(rows.iter().any(|row| row.starts_with("17-20 75.0% ####")), "{text}");
    assert!(rows.contains(&"actor lost 3 2 22.0".to_owned()), "{text}");
    assert_eq!((&json["p_value"], &json["dropped"][0]["unknown"]), (&json!(0.97), &json!(2)));
    assert_eq!(json["sampled"]["bins"], json!([0, 30, 10]));
}
