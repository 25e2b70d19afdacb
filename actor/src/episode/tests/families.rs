//! Episodes of the families, in which the policy writes what their chat templates would write, have
//! the token ids that `transformers` gives the whole conversation. The fixtures are those of `chat`.

use ballast_chat::TemplateFiles;
use serde_json::{Map, json};

use super::*;
use crate::{language::Language, testing::staged, weights::StagedPolicy};

fn fixtures() -> Vec<Value> {
    let fixtures = include_str!("../../../../chat/tests/episode_fixtures.json");
    serde_json::from_str(fixtures).expect("the script wrote it")
}

fn language_of(fixture: &Value) -> Language {
    let config = fixture["tokenizer_config"].to_string().into_bytes();
    let config_json = json!({
        "vocab_size": 1024,
        "tool_call_format": fixture["tool_call_format"],
        "chat_template_kwargs": fixture["variables"],
    });
    Language::of(&StagedPolicy {
        config_json: config_json.to_string().into_bytes().into(),
        tokenizer_json: fixture["tokenizer_json"].as_str().expect("JSON").to_owned().into(),
        template_files: TemplateFiles::from_iter([("tokenizer_config.json".to_owned(), config)]),
        ..staged(1)
    })
    .expect("a language")
}

fn numbers<T: serde::de::DeserializeOwned>(fixture: &Value, key: &str) -> Vec<T> {
    serde_json::from_value(fixture[key].clone()).expect("numbers")
}

#[test]
fn an_episode_has_the_ids_of_the_whole_conversation() {
    for fixture in fixtures() {
        let family = fixture["family"].as_str().expect("a name");
        let messages = fixture["messages"].as_array().expect("messages");
        let (token_ids, loss_mask): (Vec<u32>, Vec<u8>) =
            (numbers(&fixture, "token_ids"), numbers(&fixture, "loss_mask"));
        let mut assignment = testing::assignment(1, Mode::Explore);
        assignment.limits.trajectory_tokens_max = 4096;
        assignment.limits.message_tokens_max = 1024;
        let mut episode = Episode::new(Duration::ZERO, assignment, language_of(&fixture));

        let mut policy = std::iter::zip(&token_ids, &loss_mask)
            .filter_map(|(token, mask)| (*mask == 1).then_some(*token));
        let mut said = messages.iter().filter(|message| message["role"] == "assistant");
        let mut results = messages.iter().filter(|message| message["role"] == "tool");
        let tools = fixture["tools"].as_array().expect("tools").clone();
        let prompt = messages[0]["content"].as_str().expect("a text").to_owned();
        let mut commands = episode.take(Event::Started { tools, prompt });
        let trajectory = loop {
            commands = match commands.pop().expect("a command") {
                Command::Sample => episode.take(sampled(policy.next().expect("a token"))),
                Command::CallTools(requests) => {
                    let calls = said.next().expect("a message")["tool_calls"].clone();
                    assert_eq!(requests, calls_of(&calls), "{family}");
                    let results = results.by_ref().take(requests.len());
                    let results =
                        results.map(|result| ok(result["content"].as_str().expect("text")));
                    episode.take(Event::ToolsReturned(results.collect()))
                }
                Command::Score(answer) => {
                    assert_eq!(answer.as_deref(), Some("It is warm."), "{family}");
                    episode.take(score(true))
                }
                Command::Finish(trajectory) => break *trajectory,
                other => panic!("{family}: {other:?}"),
            };
        };
        verify_trajectory(&trajectory).expect("M1");
        // Behind the last message the template may write a newline, which nobody reads.
        let end = token_ids.len().min(trajectory.token_ids.len());
        assert!(token_ids.len() - end <= 1, "{family}");
        assert_eq!(trajectory.token_ids, token_ids[..end], "{family}");
        assert_eq!(trajectory.loss_mask, loss_mask[..end], "{family}");
        let states: Vec<_> =
            trajectory.spans.iter().map(|span| (span.role(), span.state())).collect();
        let healthy = [StructuralState::HealthyCall, StructuralState::HealthyResponse];
        let assistant = states.iter().filter(|(role, _)| *role == Role::Assistant);
        assert!(
            assistant.clone().all(|(_, state)| healthy.contains(state)),
            "{family}: {states:?}"
        );
        assert_eq!(assistant.count(), 3, "{family}");
    }
}

fn calls_of(calls: &Value) -> Vec<ToolRequest> {
    let calls = calls.as_array().expect("calls").iter().map(|call| &call["function"]);
    let object = |value: &Value| -> Map<String, Value> {
        serde_json::from_value(value.clone()).expect("an object")
    };
    calls
        .map(|function| ToolRequest {
            name: function["name"].as_str().expect("a name").to_owned(),
            arguments: object(&function["arguments"]),
        })
        .collect()
}
