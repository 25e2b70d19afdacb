//! The Hermes/Qwen tool-call format: JSON between `<tool_call>` and `</tool_call>`.

use ballast_proto::v1::StructuralState;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    json::python_json,
    layout::{Block, Layout},
    structure::structural_state,
    tokenizer::Tokenizer,
};

/// What one assistant message says.
#[derive(Clone, Debug, PartialEq)]
pub struct AssistantMessage {
    /// Text outside the calls, trimmed. A misplaced control tag stays visible in it.
    pub text: String,
    /// One per `<tool_call>`, in order, malformed ones included.
    pub calls: Vec<ParsedCall>,
    /// Structural state of the whole message.
    pub state: StructuralState,
}

/// A tool call as the policy wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedCall {
    /// Name of the tool; empty when malformed.
    pub name: String,
    /// Arguments; empty when malformed.
    pub arguments: Map<String, Value>,
    /// The exact text between the call's tags.
    pub raw: String,
    /// Whether the block is unclosed, holds a control tag, or is not a JSON object with a string
    /// `name` and an object `arguments`. Further keys are ignored.
    pub malformed: bool,
}

/// Parses sampled ids, with or without the trailing `<|im_end|>`. Every sequence of ids is
/// accepted, ids outside the vocabulary included.
#[must_use]
pub fn parse_message(tokenizer: &Tokenizer, ids: &[u32]) -> AssistantMessage {
    let control = tokenizer.control();
    let ids = ids.strip_suffix(&[control.im_end]).unwrap_or(ids);
    let layout = Layout::of(ids, control);
    let calls: Vec<_> = layout.blocks.iter().map(|block| parse_block(tokenizer, block)).collect();
    let state = structural_state(tokenizer, ids, &layout, &calls);
    AssistantMessage { text: tokenizer.decode(&layout.outside).trim().to_owned(), calls, state }
}

/// A call with its tags, as the template writes it.
#[must_use]
pub fn render_call(name: &str, arguments: &Map<String, Value>) -> String {
    format!("<tool_call>{}</tool_call>", render_call_body(name, arguments))
}

/// What stands between the tags of a call.
pub(crate) fn render_call_body(name: &str, arguments: &Map<String, Value>) -> String {
    let name = python_json(&Value::from(name));
    let arguments = python_json(&Value::Object(arguments.clone()));
    format!("\n{{\"name\": {name}, \"arguments\": {arguments}}}\n")
}

fn parse_block(tokenizer: &Tokenizer, block: &Block<'_>) -> ParsedCall {
    #[derive(Deserialize)]
    struct Call {
        name: String,
        arguments: Map<String, Value>,
    }

    let raw = tokenizer.decode(block.body);
    let well_formed = block.closed && !block.body.iter().any(|&id| tokenizer.control().is_tag(id));
    let call: Option<Call> = serde_json::from_str(&raw).ok();
    match call.filter(|call| well_formed && !call.name.is_empty()) {
        Some(Call { name, arguments }) => ParsedCall { name, arguments, raw, malformed: false },
        None => ParsedCall { name: String::new(), arguments: Map::new(), raw, malformed: true },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::{parse_message, render_call};
    use crate::{
        Renderer,
        testing::{any_arguments, any_ids, object, tokenizer},
    };

    fn parse(text: &str) -> super::AssistantMessage {
        parse_message(tokenizer(), &tokenizer().encode(text).unwrap())
    }

    #[test]
    fn a_call_is_spelled_as_in_training_data() {
        assert_eq!(
            render_call("product", &object(json!({"name": "lamp", "quantity": 2}))),
            "<tool_call>\n{\"name\": \"product\", \"arguments\": \
             {\"name\": \"lamp\", \"quantity\": 2}}\n</tool_call>"
        );
    }

    #[test]
    fn text_and_calls_are_told_apart() {
        let call = render_call("product", &object(json!({"name": "lamp"})));
        let message = parse(&format!("Let me look.\n{call}\n{call}<|im_end|>"));
        assert_eq!(message.text, "Let me look.");
        assert_eq!(message.calls.len(), 2);
        assert_eq!(message.calls[1].name, "product");
        assert_eq!(Value::Object(message.calls[1].arguments.clone()), json!({"name": "lamp"}));
        assert!(!message.calls[1].malformed);
    }

    #[test]
    fn a_malformed_call_keeps_its_raw_text() {
        let bodies = [
            "",
            "\n",
            "\n{\"name\": \"product\"}\n",
            "\n{\"name\": \"product\", \"arguments\": [1]}\n",
            "\n{\"name\": 3, \"arguments\": {}}\n",
            "\n{\"name\": \"\", \"arguments\": {}}\n",
            "\n{\"name\": \"product\", \"arguments\": {}}}\n",
            "\n{\"name\": \"a\", \"name\": \"b\", \"arguments\": {}}\n",
            "\n{\"name\": \"<|im_start|>\", \"arguments\": {}}\n",
        ];
        for body in bodies {
            let message = parse(&format!("<tool_call>{body}</tool_call><|im_end|>"));
            let [call] = &message.calls[..] else { panic!("{body:?} is one call") };
            assert!(
                call.malformed && call.name.is_empty() && call.arguments.is_empty(),
                "{body:?}"
            );
            assert_eq!(call.raw, body);
        }
    }

    #[test]
    fn an_unclosed_call_is_malformed_and_the_next_one_stands() {
        let message = parse(
            "<tool_call>\n{\"name\": \"a\", \"arguments\": {}}\n\
             <tool_call>\n{\"name\": \"b\", \"arguments\": {}}\n</tool_call> done",
        );
        assert_eq!(message.calls.iter().map(|c| c.malformed).collect::<Vec<_>>(), [true, false]);
        assert_eq!(message.calls[0].raw, "\n{\"name\": \"a\", \"arguments\": {}}\n");
        assert_eq!((message.calls[1].name.as_str(), message.text.as_str()), ("b", "done"));
    }

    proptest! {
        #[test]
        fn no_ids_make_the_parser_panic(ids in any_ids()) {
            let control = tokenizer().control();
            let message = parse_message(tokenizer(), &ids);
            let opened = ids.iter().filter(|&&id| id == control.tool_call_open).count();
            prop_assert_eq!(message.calls.len(), opened);
        }

        #[test]
        fn a_rendered_call_parses_to_itself(
            name in any::<String>().prop_filter("a tool has a name", |name| !name.is_empty()),
            arguments in any_arguments(),
        ) {
            let renderer = Renderer::new(tokenizer().clone());
            let ids = renderer.assistant_message("", &[(&name, &arguments)]).unwrap();
            let message = parse_message(tokenizer(), &ids);
            prop_assert_eq!(message.calls.len(), 1);
            prop_assert_eq!(&message.calls[0].name, &name);
            prop_assert_eq!(&message.calls[0].arguments, &arguments);
            prop_assert_eq!(message.text, "");
            let rendered = render_call(&name, &arguments) + "<|im_end|>";
            prop_assert_eq!(tokenizer().decode(&ids), rendered);
        }

        #[test]
        fn any_text_in_a_block_is_kept_raw(body in any::<String>()) {
            let control = tokenizer().control();
            let mut ids = vec![control.tool_call_open];
            ids.extend(tokenizer().encode_untrusted(&body).unwrap());
            ids.push(control.tool_call_close);
            let message = parse_message(tokenizer(), &ids);
            prop_assert_eq!(&message.calls[0].raw, &body);
            let is_object = serde_json::from_str::<Map<String, Value>>(&body).is_ok();
            prop_assert!(is_object || message.calls[0].malformed);
        }
    }
}
