//! The Hermes/Qwen format: JSON between `<tool_call>` and `</tool_call>`.
//!
//! ```text
//! I will look.
//! <tool_call>
//! {"name": "product", "arguments": {"name": "lamp"}}
//! </tool_call>
//! ```
//! A call is a JSON object with a string `name` and an object `arguments`, each given once; further
//! keys are ignored. Text may stand around the calls, reasoning too, and the tag begins a call
//! wherever it stands. Any other tag is misplaced.
//!
//! The `hermes` parser of vLLM also takes a call without a closing tag, arguments that are no
//! object, and numbers that JSON has not (`NaN`, `1e400`); here these are malformed. One malformed
//! call makes all of a message text there; here each call stands for itself.

use serde_json::{Map, Value};

use super::{
    CallParser, Inexpressible, Span, ToolCallFormat,
    block::{self, BlockParser},
    json_call::{self, JsonCall},
};
use crate::control::{
    ControlRole::{self, CallClose, CallOpen, CallOpener},
    Frame,
};

/// The key of the arguments.
const ARGUMENTS: &str = "arguments";

/// See the module.
#[derive(Debug)]
pub(crate) struct Hermes;

impl ToolCallFormat for Hermes {
    fn name(&self) -> &'static str {
        "hermes"
    }

    fn frames(&self) -> &'static [Frame] {
        &[Frame::ChatMl]
    }

    fn opener(&self) -> &'static str {
        "{\""
    }

    fn required(&self) -> &'static [ControlRole] {
        &[CallOpen, CallClose, CallOpener]
    }

    fn render(
        &self,
        text: &str,
        calls: &[(&str, &Map<String, Value>)],
    ) -> Result<Vec<Span>, Inexpressible> {
        Ok(block::render(text, calls.iter().map(|(name, arguments)| body(name, arguments))))
    }

    fn parser(&self, _tools: &[Value]) -> Box<dyn CallParser> {
        Box::new(BlockParser::new(JsonCall::new(&[ARGUMENTS])))
    }
}

/// What stands between the tags of a call.
pub(super) fn body(name: &str, arguments: &Map<String, Value>) -> String {
    format!("\n{}\n", json_call::write(name, ARGUMENTS, arguments))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use crate::{
        AssistantMessage, ControlRole, Format, parse_message, render_call,
        testing::{any_arguments, any_ids, object, tokenizer, written_call},
    };

    fn parse(text: &str) -> AssistantMessage {
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
            "\n[\"product\", {}]\n",
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
            let open = tokenizer().control().id(ControlRole::CallOpen).unwrap();
            let message = parse_message(tokenizer(), &ids);
            let opened = ids.iter().filter(|&&id| id == open).count();
            prop_assert_eq!(message.calls.len(), opened);
        }

        #[test]
        fn a_rendered_call_parses_to_itself(
            name in any::<String>().prop_filter("a tool has a name", |name| !name.is_empty()),
            arguments in any_arguments(),
        ) {
            let ids = written_call(Format::Hermes, &name, &arguments);
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
            let mut ids = vec![control.id(ControlRole::CallOpen).unwrap()];
            ids.extend(tokenizer().encode_untrusted(&body).unwrap());
            ids.extend(control.id(ControlRole::CallClose));
            let message = parse_message(tokenizer(), &ids);
            prop_assert_eq!(&message.calls[0].raw, &body);
            let is_object = serde_json::from_str::<Map<String, Value>>(&body).is_ok();
            prop_assert!(is_object || message.calls[0].malformed);
        }
    }
}
