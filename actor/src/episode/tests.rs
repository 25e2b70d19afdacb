use ballast_proto::{
    ManifestHash, PolicyVersion,
    v1::{Role, StructuralState},
    verify_trajectory,
};

use super::*;
use crate::testing::{self, language, tokenizer};

mod families;

const NOW: Duration = Duration::from_secs(1);

fn started() -> Event {
    Event::Started { tools: Vec::new(), prompt: "price of lamp".into() }
}

fn sampled(token: u32) -> Event {
    Event::TokenSampled(TokenSample {
        token,
        logprob: -0.25,
        control_probs: [0.5, 0.25, 0.125, 0.0625, 0.0, 0.0, 0.0, 0.0],
        policy_version: PolicyVersion(3),
        manifest_hash: ManifestHash([3; 32]),
    })
}

fn call_text(name: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{}}}}\n</tool_call>")
}

fn ok(text: &str) -> ToolResult {
    ToolResult { status: CallStatus::Ok, text: text.to_owned() }
}

fn score(success: bool) -> Event {
    Event::Scored(Score { reward: if success { 1.0 } else { 0.0 }, success })
}

/// An episode whose assignment was changed by `change`.
fn episode(mode: Mode, change: impl FnOnce(&mut Assignment)) -> Episode {
    let mut assignment = testing::assignment(1, mode);
    change(&mut assignment);
    Episode::new(Duration::ZERO, assignment, language())
}

impl Episode {
    fn take(&mut self, event: Event) -> Vec<Command> {
        self.handle(NOW, event).expect("a legal event")
    }

    /// Lets the policy (or the expert) write `message` and ends it.
    fn says(&mut self, message: &str) -> Vec<Command> {
        let token_ids = tokenizer().encode(&format!("{message}<|im_end|>")).expect("encodable");
        if self.assignment.mode == Mode::Demonstrate {
            let said = ballast_chat::parse_message(tokenizer(), &token_ids);
            let action = match said.calls.into_iter().next() {
                Some(ParsedCall { name, arguments, .. }) => ExpertAction::Call { name, arguments },
                None => ExpertAction::Answer(said.text),
            };
            return self.take(Event::ExpertActed(action));
        }
        token_ids.into_iter().map(|token| self.take(sampled(token))).last().expect("a token")
    }
}

fn finished(commands: Vec<Command>) -> Trajectory {
    match commands.as_slice() {
        [Command::Finish(trajectory)] => {
            verify_trajectory(trajectory).expect("M1");
            (**trajectory).clone()
        }
        other => panic!("{other:?}"),
    }
}

/// An episode that has just come to `state`.
fn in_state(state: State, mode: Mode) -> Episode {
    let mut episode = episode(mode, |_| {});
    if state != State::Prompting {
        episode.take(started());
    }
    match state {
        State::Prompting | State::Generating => {}
        State::CallingTools => drop(episode.says(&call_text("product"))),
        State::Scoring => drop(episode.says("14")),
        State::Finished => {
            episode.says("14");
            episode.take(score(true));
        }
    }
    assert_eq!(episode.state(), state);
    episode
}

#[test]
fn every_event_in_every_state() {
    use State::{CallingTools, Finished, Generating, Prompting, Scoring};
    let text = tokenizer().encode("1").expect("encodable")[0];
    let events: [Event; 7] = [
        started(),
        sampled(text),
        Event::ExpertActed(ExpertAction::Answer("14".into())),
        Event::ToolsReturned(vec![ok("{}")]),
        score(true),
        Event::InfrastructureFailed("disk".into()),
        Event::DeadlineReached,
    ];
    // One row per state, one column per event, in the order above; `None` is illegal.
    let (no, finish) = (None, Some(Finished));
    let table = |sampled, acted| {
        [
            (Prompting, [Some(Generating), no, no, no, no, finish, no]),
            (Generating, [no, sampled, acted, no, no, finish, Some(Scoring)]),
            (CallingTools, [no, no, no, Some(Generating), no, finish, Some(Scoring)]),
            (Scoring, [no, no, no, no, finish, finish, no]),
            (Finished, [no; 7]),
        ]
    };
    let modes = [
        (Mode::Explore, table(Some(Generating), no)),
        (Mode::Demonstrate, table(no, Some(Scoring))),
        (Mode::Evaluate, table(Some(Generating), no)),
    ];
    for (mode, rows) in modes {
        for (state, row) in rows {
            for (event, expected) in events.iter().zip(row) {
                let mut episode = in_state(state, mode);
                let result = episode.handle(NOW, event.clone());
                let case = format!("{mode:?} {state:?} {}", event.name());
                assert_eq!(episode.state(), expected.unwrap_or(state), "{case}");
                assert_eq!(result.is_ok(), expected.is_some(), "{case}");
            }
        }
    }
}

#[test]
fn a_wrong_number_of_results_is_illegal() {
    let mut episode = in_state(State::CallingTools, Mode::Explore);
    assert!(episode.handle(NOW, Event::ToolsReturned(Vec::new())).is_err());
    assert!(episode.handle(NOW, Event::ToolsReturned(vec![ok("1"), ok("2")])).is_err());
    assert_eq!(episode.state(), State::CallingTools);
}

#[test]
fn a_conversation_is_recorded_token_by_token() {
    let mut episode = episode(Mode::Explore, |_| {});
    let opening = episode.take(started());
    let [Command::Feed(prompt), Command::Sample] = opening.as_slice() else {
        panic!("{opening:?}")
    };
    let prompt = prompt.clone();
    let calls = episode.says(&format!("{}\n{}", call_text("product"), call_text("customer")));
    let request = |name: &str| ToolRequest { name: name.into(), arguments: serde_json::Map::new() };
    assert_eq!(calls, [Command::CallTools(vec![request("product"), request("customer")])]);
    let refused = ToolResult { status: CallStatus::ToolError, text: "no".into() };
    let after = episode.take(Event::ToolsReturned(vec![ok("{\"price\": 14}"), refused]));
    let [Command::Feed(results), Command::Sample] = after.as_slice() else { panic!("{after:?}") };
    let results = results.clone();
    assert_eq!(episode.says("14"), [Command::Score(Some("14".into()))]);
    let trajectory = finished(episode.take(score(true)));

    let text = tokenizer().decode(&trajectory.token_ids);
    let expected = format!(
        "{}{}\n{}<|im_end|>{}14<|im_end|>",
        tokenizer().decode(&prompt),
        call_text("product"),
        call_text("customer"),
        tokenizer().decode(&results),
    );
    assert_eq!(text, expected);
    assert!(text.contains(
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n{\"price\": 14}\n</tool_response>\n\
         <tool_response>\nno\n</tool_response><|im_end|>\n<|im_start|>assistant\n14"
    ));
    let roles: Vec<Role> = trajectory.spans.iter().map(|span| span.role()).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::Tool, Role::Assistant]);
    let statuses: Vec<_> = trajectory.spans[2].calls.iter().map(|call| call.status()).collect();
    assert_eq!(statuses, [CallStatus::Ok, CallStatus::ToolError]);
    assert_eq!(trajectory.spans[2].state(), StructuralState::HealthyCall);
    assert_eq!(trajectory.spans[4].state(), StructuralState::HealthyResponse);
    for (index, mask) in trajectory.loss_mask.iter().enumerate() {
        let expected = if *mask == 1 { (-0.25, 3) } else { (0.0, 0) };
        let kept = (trajectory.behavior_logprobs[index], trajectory.policy_versions[index]);
        assert_eq!(kept, expected);
    }
    assert_eq!(trajectory.stop_reason(), StopReason::Done);
    assert_eq!((trajectory.reward, trajectory.success), (Some(1.0), Some(true)));
    assert_eq!(trajectory.answer.as_deref(), Some("14"));
    assert_eq!(trajectory.sampled_versions.len(), 1);
    assert_eq!(trajectory.duration_ms, 1000);
}

#[test]
fn a_malformed_call_is_answered_and_kept() {
    let mut episode = in_state(State::Generating, Mode::Explore);
    let message = format!("<tool_call>\nlamp!\n</tool_call>\n{}", call_text("product"));
    let commands = episode.says(&message);
    assert!(matches!(commands.as_slice(), [Command::CallTools(calls)] if calls.len() == 1));
    let commands = episode.take(Event::ToolsReturned(vec![ok("{\"price\": 14}")]));
    let [Command::Feed(results), Command::Sample] = commands.as_slice() else {
        panic!("{commands:?}")
    };
    let read = tokenizer().decode(results);
    let (malformed, price) = (read.find("malformed call"), read.find("14"));
    assert!(malformed.is_some() && malformed < price, "{read}");
    episode.says("14");
    let trajectory = finished(episode.take(score(true)));
    let [malformed, sound] = trajectory.spans[2].calls.as_slice() else { panic!("two calls") };
    assert_eq!(malformed.status(), CallStatus::Malformed);
    assert_eq!(malformed.raw, "\nlamp!\n");
    assert_eq!(malformed.arguments_json, "");
    assert_eq!((sound.status(), sound.arguments_json.as_str()), (CallStatus::Ok, "{}"));
}

#[test]
fn a_message_of_malformed_calls_alone_goes_on() {
    let mut episode = in_state(State::Generating, Mode::Explore);
    assert_eq!(episode.says("<tool_call>"), [Command::CallTools(Vec::new())]);
    let commands = episode.take(Event::ToolsReturned(Vec::new()));
    assert!(matches!(commands.as_slice(), [Command::Feed(_), Command::Sample]));
}

#[test]
fn control_token_mass_is_the_mean_of_what_the_grammar_forbids() {
    let mut episode = in_state(State::Generating, Mode::Explore);
    // At the start only <tool_call> (0.0625 here) may come; after text <|im_end|> (0.25) may too.
    let text = tokenizer().encode("1").expect("encodable")[0];
    episode.take(sampled(text));
    episode.take(sampled(tokenizer().control().im_end));
    let trajectory = finished(episode.take(score(false)));
    let at_start = 0.5 + 0.25 + 0.125;
    let in_text = 0.5 + 0.125;
    assert_eq!(trajectory.control_token_mass, Some((at_start + in_text) / 2.0));
}

#[test]
fn the_end_of_text_ends_a_message() {
    let mut episode = in_state(State::Generating, Mode::Explore);
    episode.take(sampled(tokenizer().encode("7").expect("encodable")[0]));
    let commands = episode.take(sampled(tokenizer().control().endoftext));
    assert!(matches!(commands.as_slice(), [Command::Score(Some(_))]), "{commands:?}");
}

#[test]
fn a_long_message_reaches_its_limit() {
    let mut episode = episode(Mode::Explore, |a| a.limits.message_tokens_max = 3);
    episode.take(started());
    let text = tokenizer().encode("1").expect("encodable")[0];
    assert_eq!(episode.take(sampled(text)), [Command::Sample]);
    assert_eq!(episode.take(sampled(text)), [Command::Sample]);
    assert_eq!(episode.take(sampled(text)), [Command::Score(None)]);
    let trajectory = finished(episode.take(score(false)));
    assert_eq!(trajectory.stop_reason(), StopReason::TokenLimit);
    assert_eq!((trajectory.reward, trajectory.answer), (Some(0.0), None));
}

#[test]
fn the_last_turn_runs_its_calls_and_ends_the_episode() {
    let mut episode = episode(Mode::Explore, |a| a.limits.turns_max = 1);
    episode.take(started());
    episode.says(&call_text("product"));
    assert_eq!(episode.take(Event::ToolsReturned(vec![ok("1")])), [Command::Score(None)]);
    let trajectory = finished(episode.take(score(false)));
    assert_eq!(trajectory.stop_reason(), StopReason::TurnLimit);
    let last = trajectory.spans.last().expect("a span");
    assert_eq!((last.role(), last.calls[0].status()), (Role::Assistant, CallStatus::Ok));
}

#[test]
fn a_trajectory_never_exceeds_its_limit() {
    let opening = tokenizer().encode("x").map(|_| in_state(State::Generating, Mode::Explore));
    let prompt = opening.expect("encodable").record.len();
    for limit in prompt + 1..prompt + 80 {
        let mut episode = episode(Mode::Explore, |a| a.limits.trajectory_tokens_max = limit);
        episode.take(started());
        let message = call_text("product") + "<|im_end|>";
        let tokens = tokenizer().encode(&message).expect("encodable");
        let mut script = tokens.into_iter().cycle();
        let mut commands = vec![Command::Sample];
        let trajectory = loop {
            commands = match commands.pop().expect("a command") {
                Command::Sample => episode.take(sampled(script.next().expect("endless"))),
                Command::CallTools(_) => episode.take(Event::ToolsReturned(vec![ok("14")])),
                Command::Score(answer) => {
                    assert_eq!(answer, None);
                    episode.take(score(false))
                }
                Command::Finish(trajectory) => break *trajectory,
                other => panic!("{other:?}"),
            };
        };
        verify_trajectory(&trajectory).expect("M1");
        assert!(trajectory.token_ids.len() <= limit, "{} > {limit}", trajectory.token_ids.len());
        assert_eq!(trajectory.stop_reason(), StopReason::TokenLimit);
    }
}

#[test]
fn a_message_of_which_nothing_was_written_leaves_no_trace() {
    let mut episode = in_state(State::CallingTools, Mode::Explore);
    episode.take(Event::ToolsReturned(vec![ok("14")]));
    assert_eq!(episode.take(Event::DeadlineReached), [Command::Score(None)]);
    let trajectory = finished(episode.take(score(false)));
    assert_eq!(trajectory.stop_reason(), StopReason::TimeLimit);
    assert_eq!(trajectory.spans.last().map(|span| span.role()), Some(Role::Tool));
}

#[test]
fn infrastructure_failures_have_no_score() {
    let mut failed = in_state(State::Scoring, Mode::Explore);
    let trajectory = finished(failed.take(Event::InfrastructureFailed("disk".into())));
    assert_eq!(failed.failure(), Some("disk"));
    assert_eq!(trajectory.stop_reason(), StopReason::Infrastructure);
    assert_eq!((trajectory.reward, trajectory.success, trajectory.answer), (None, None, None));
}

#[test]
fn an_impossible_logprob_is_not_recorded() {
    for logprob in [f32::NAN, f32::NEG_INFINITY, 0.1] {
        let mut episode = in_state(State::Generating, Mode::Explore);
        let Event::TokenSampled(sample) = sampled(5) else { panic!("a sample") };
        let event = Event::TokenSampled(TokenSample { logprob, ..sample });
        let trajectory = finished(episode.take(event));
        assert_eq!(trajectory.stop_reason(), StopReason::Infrastructure);
    }
}

#[test]
fn a_prompt_beyond_the_limit_names_the_remedy() {
    let mut episode = episode(Mode::Explore, |a| a.limits.trajectory_tokens_max = 4);
    let trajectory = finished(episode.take(started()));
    assert!(trajectory.token_ids.is_empty());
    let failure = episode.failure().expect("a failure");
    assert!(failure.contains("trajectory_tokens_max is 4; raise it"), "{failure}");
}

#[test]
fn an_expert_beyond_the_message_limit_is_stopped() {
    let mut episode = episode(Mode::Demonstrate, |a| a.limits.message_tokens_max = 2);
    assert_eq!(episode.take(started()), [Command::AskExpert]);
    assert_eq!(episode.says(&call_text("product")), [Command::Score(None)]);
    let trajectory = finished(episode.take(score(false)));
    assert_eq!(trajectory.stop_reason(), StopReason::TokenLimit);
    assert!(trajectory.loss_mask.iter().all(|mask| *mask == 0));
}
