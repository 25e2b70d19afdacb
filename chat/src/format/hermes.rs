//! The Hermes/Qwen format: JSON between `<tool_call>` and `</tool_call>`.
//!
//! ```text
//! I will look.
//! <tool_call>
//! {"name": "product", "arguments": {"name": "lamp"}}
//! </tool_call>
//! ```
//! A call is a JSON object with a string `name` and an object `arguments`; further keys are
//! ignored. Text may stand around the calls; a tag may not.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    CallParser, Event, Inexpressible, Span, ToolCallFormat,
    block::{self, BlockParser, Body},
    json_call::JsonCall,
};
use crate::{
    control::{
        ControlRole::{self, CallClose, CallOpen, CallOpener},
        Frame,
    },
    json::python_json,
};

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
        Ok(block::render(text, calls.iter().map(|(name, arguments)| render_body(name, arguments))))
    }

    fn parser(&self, _tools: &[Value]) -> Box<dyn CallParser> {
        Box::new(BlockParser::new(JsonBody { call: JsonCall::new("arguments") }))
    }
}

/// What stands between the tags of a call.
pub(super) fn render_body(name: &str, arguments: &Map<String, Value>) -> String {
    let name = python_json(&Value::from(name));
    let arguments = python_json(&Value::Object(arguments.clone()));
    format!("\n{{\"name\": {name}, \"arguments\": {arguments}}}\n")
}

#[derive(Clone, Debug)]
struct JsonBody {
    call: JsonCall,
}

impl Body for JsonBody {
    fn advance(&mut self, raw: &str, index: usize, events: &mut Vec<Event>) {
        self.call.scanner.advance(raw, false);
        self.call.emit(raw, index, events);
    }

    fn is_complete(&self) -> bool {
        self.call.scanner.is_balanced()
    }

    fn finish(
        &mut self,
        raw: &str,
        index: usize,
        events: &mut Vec<Event>,
    ) -> Option<(String, Map<String, Value>)> {
        #[derive(Deserialize)]
        struct Call {
            name: String,
            arguments: Map<String, Value>,
        }

        // `serde` would take the array ["product", {}] for a call as well.
        let is_object = raw.trim_start().starts_with('{');
        let Call { name, arguments } = serde_json::from_str(raw).ok().filter(|_| is_object)?;
        if name.is_empty() {
            return None;
        }
        self.call.complete(&name, &arguments, index, events);
        Some((name, arguments))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use crate::{
        AssistantMessage, ControlRole, Renderer, parse_message, render_call,
        testing::{any_arguments, any_ids, object, tokenizer},
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
