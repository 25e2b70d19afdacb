//! Whole episodes in the templates of the families, turn by turn, have the token ids that
//! `transformers` gives the conversation at once: `episode_fixtures.json`, made by the script beside
//! it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ballast_chat::{
    Format, Renderer, TemplateFiles, Tokenizer, parse_message_with_tools, split_reasoning,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Fixture {
    family: String,
    tool_call_format: String,
    variables: Map<String, Value>,
    tokenizer_json: String,
    tokenizer_config: Value,
    tools: Vec<Value>,
    messages: Vec<Value>,
    token_ids: Vec<u32>,
    loss_mask: Vec<u8>,
}

fn fixtures() -> Vec<Fixture> {
    serde_json::from_str(include_str!("episode_fixtures.json")).expect("the script wrote it")
}

impl Fixture {
    fn renderer(&self) -> Renderer {
        self.renderer_with(&self.variables)
    }

    fn renderer_with(&self, variables: &Map<String, Value>) -> Renderer {
        let format: Format = self.tool_call_format.parse().unwrap();
        let tokenizer = Tokenizer::with_format(self.tokenizer_json.as_bytes(), format).unwrap();
        let config = self.tokenizer_config.to_string().into_bytes();
        let files = TemplateFiles::from_iter([("tokenizer_config.json".to_owned(), config)]);
        let config = json!({"chat_template_kwargs": variables}).to_string();
        Renderer::of_checkpoint(tokenizer, &files, config.as_bytes()).unwrap()
    }

    /// Runs of tokens with the same mask: what the policy reads and writes, in turns.
    fn runs(&self) -> Vec<&[u32]> {
        let same = |a: &usize, b: &usize| self.loss_mask[*a] == self.loss_mask[*b];
        let at: Vec<usize> = (0..self.token_ids.len()).collect();
        at.chunk_by(same).map(|run| &self.token_ids[run[0]..=run[run.len() - 1]]).collect()
    }
}

/// Name and arguments of each call of a message.
fn calls(message: &Value) -> Vec<(&str, &Map<String, Value>)> {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    calls
        .map(|call| {
            let function = &call["function"];
            (function["name"].as_str().unwrap(), function["arguments"].as_object().unwrap())
        })
        .collect()
}

#[test]
fn an_episode_turn_by_turn_is_the_conversation_at_once() {
    let fixtures = fixtures();
    assert_eq!(fixtures.len(), 6);
    for fixture in fixtures {
        let (family, renderer) = (&fixture.family, fixture.renderer());
        let header = renderer.assistant_header();
        let request = fixture.messages[0]["content"].as_str().unwrap();
        let (mut dialogue, opening) = renderer.open(&fixture.tools, request).unwrap();
        let opening = opening.into_iter().flat_map(|segment| segment.token_ids);
        let mut read: Vec<u32> = opening.chain(header.iter().copied()).collect();
        let mut runs = fixture.runs().into_iter();
        let mut messages = fixture.messages[1..].iter().peekable();
        while let Some(message) = messages.next() {
            assert_eq!(runs.next().unwrap(), read, "{family}: what the policy reads");
            let written = runs.next().unwrap();

            let said = message["content"].as_str().unwrap();
            let expert = dialogue.message_of(said, &calls(message)).unwrap();
            // An expert gives no reasoning; Qwen3 writes that down.
            if family == "qwen3" {
                let expert = renderer.tokenizer().decode(&expert);
                assert!(expert.starts_with("<think>\n\n</think>\n\n"), "{expert}");
            } else {
                assert_eq!(expert, written, "{family}: what an expert writes");
            }
            for ids in [&expert, written] {
                let parsed = parse_message_with_tools(renderer.tokenizer(), ids, dialogue.tools());
                let found: Vec<_> =
                    parsed.calls.iter().map(|call| (&*call.name, &call.arguments)).collect();
                assert_eq!(found, calls(message), "{family}");
                assert_eq!(split_reasoning(&parsed.text).1, said, "{family}");
            }

            let reply = parse_message_with_tools(renderer.tokenizer(), written, dialogue.tools());
            let mut results = Vec::new();
            while let Some(result) = messages.next_if(|message| message["role"] == "tool") {
                results.push(result["content"].as_str().unwrap().to_owned());
            }
            if results.is_empty() {
                break;
            }
            let continuation = dialogue.answer(&reply, &results).unwrap();
            read = [continuation.trailer, continuation.results.token_ids, header.to_vec()].concat();
        }
        let trailer = runs.next().map_or(0, <[u32]>::len);
        assert!(trailer <= 1 && runs.next().is_none(), "{family}");
    }
}

/// The mask that is found without generation blocks is that of the prompts of an episode.
#[test]
fn what_the_assistant_says_is_found_without_generation_blocks() {
    for fixture in fixtures() {
        let source = fixture.tokenizer_config["chat_template"].as_str().unwrap();
        let bos = fixture.tokenizer_config["bos_token"].clone();
        let tokens = Map::from_iter([("bos_token".to_owned(), bos)]);
        let template = ballast_chat::ChatTemplate::from_source(source, tokens, None).unwrap();
        let renderer = fixture.renderer();
        let tokenizer = renderer.tokenizer().clone();
        let encoder = ballast_chat::TemplateEncoder::new(template, tokenizer).unwrap();
        let encoded = encoder.encode_for_training(&ballast_chat::Conversation {
            messages: &fixture.messages,
            tools: Some(&fixture.tools),
            extra: Some(&fixture.variables),
            ..Default::default()
        });
        let encoded = encoded.unwrap();
        assert_eq!(encoded.token_ids, fixture.token_ids, "{}", fixture.family);
        assert_eq!(encoded.assistant_mask, fixture.loss_mask, "{}", fixture.family);
    }
}

/// Without thinking, Qwen3's generation prompt has an empty thought, which the template leaves out of
/// a message that others follow. An episode keeps it, and says so when the template is loaded.
#[test]
fn qwen3_without_thinking_keeps_its_empty_thoughts() {
    let fixture = fixtures().into_iter().find(|fixture| fixture.family == "qwen3").unwrap();
    assert_eq!(fixture.renderer().remark(), None);
    let variables = Map::from_iter([("enable_thinking".to_owned(), Value::from(false))]);
    let renderer = fixture.renderer_with(&variables);
    let remark = renderer.remark().unwrap();
    assert!(remark.contains("tokenizer_config.json writes a message of the assistant"), "{remark}");
    let header = renderer.tokenizer().decode(renderer.assistant_header());
    assert_eq!(header, "<|im_start|>assistant\n<think>\n\n</think>\n\n");

    let (mut dialogue, _) = renderer.open(&fixture.tools, "How is it?").unwrap();
    let city = Map::from_iter([("city".to_owned(), Value::from("Bern"))]);
    for _ in 0..2 {
        let written = dialogue.message_of("", &[("weather", &city)]).unwrap();
        let reply = parse_message_with_tools(renderer.tokenizer(), &written, dialogue.tools());
        assert_eq!(reply.text, "");
        let continuation = dialogue.answer(&reply, &["21".to_owned()]).unwrap();
        let read = [continuation.trailer, continuation.results.token_ids].concat();
        assert_eq!(
            renderer.tokenizer().decode(&read),
            "\n<|im_start|>user\n<tool_response>\n21\n</tool_response><|im_end|>\n"
        );
    }
}

/// Tags in what is called and answered are letters, special or not: Qwen's tags of calls are not.
#[test]
fn no_tag_in_an_argument_or_a_result_is_one() {
    for fixture in fixtures() {
        let renderer = fixture.renderer();
        let control = renderer.tokenizer().control();
        let tags = control.names().concat();
        let (mut dialogue, _) = renderer.open(&fixture.tools, &tags).unwrap();
        let arguments = Map::from_iter([("city".to_owned(), Value::from(tags.as_str()))]);
        let written = dialogue.message_of("", &[("weather", &arguments)]).unwrap();
        let reply = parse_message_with_tools(renderer.tokenizer(), &written, dialogue.tools());
        assert_eq!(reply.calls[0].arguments, arguments, "{}", fixture.family);
        let read = |result: &str| {
            let continuation = dialogue.clone().answer(&reply, &[result.to_owned()]).unwrap();
            let tags = continuation.results.token_ids.into_iter().filter(|id| control.is_tag(*id));
            tags.collect::<Vec<_>>()
        };
        assert_eq!(read(&tags), read("21"), "{}", fixture.family);
        assert!(dialogue.answer(&reply, &[tags]).is_ok());
    }
}
