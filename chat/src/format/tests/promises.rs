//! What holds for every format and every message.

use ballast_proto::v1::StructuralState::{HealthyCall, HealthyResponse, Unspecified};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{joined, read, read_pieces};
use crate::{
    format::{
        AssistantMessage, CALL_BYTES_MAX, Event, Format, MessageParser, Span,
        parse_message_with_tools,
    },
    testing::{any_arguments, any_ids, tokenizer_of},
};

/// Checks what the documentation of [`Event`] promises.
fn check_events(events: &[Event], message: &AssistantMessage) -> Result<(), TestCaseError> {
    let (mut text, mut name, mut arguments, mut finished) =
        (String::new(), None, String::new(), Vec::new());
    for event in events {
        match event {
            Event::Text(delta) => text.push_str(delta),
            Event::CallStarted { index, name: started } => {
                prop_assert_eq!((*index, name.replace(started)), (finished.len(), None));
            }
            Event::Arguments { index, delta } => {
                prop_assert!(*index == finished.len() && name.is_some());
                arguments.push_str(delta);
            }
            Event::CallFinished { index, call } => {
                prop_assert_eq!(*index, finished.len());
                prop_assert!(call.raw.len() <= CALL_BYTES_MAX || call.malformed);
                if call.malformed {
                    prop_assert!(call.name.is_empty() && call.arguments.is_empty());
                } else {
                    prop_assert_eq!(name, Some(&call.name));
                    let streamed: Map<String, Value> = serde_json::from_str(&arguments).unwrap();
                    prop_assert_eq!(&Value::Object(streamed), &as_sent(&call.arguments));
                }
                (name, arguments) = (None, String::new());
                finished.push(call.clone());
            }
        }
    }
    prop_assert_eq!(&text, &message.text);
    prop_assert_eq!(text.trim(), &text);
    prop_assert_eq!(&finished, &message.calls);
    prop_assert_ne!(message.state, Unspecified);
    if message.state == HealthyCall {
        prop_assert!(!message.calls.is_empty() && message.calls.iter().all(|c| !c.malformed));
    }
    Ok(())
}

/// `serde_json` reads the last digit of a float approximately, so both sides are read once more.
fn as_sent(arguments: &Map<String, Value>) -> Value {
    serde_json::from_str(&crate::python_json(&Value::Object(arguments.clone()))).unwrap()
}

/// Texts of which many are nearly a message of some format.
fn any_message() -> impl Strategy<Value = String> {
    let fragments = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<|im_end|>",
        "<|im_start|>",
        "<tool_response>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
        "<|begin_of_text|>",
        "<think>",
        "</think>",
        "</thi",
        "<tool_",
        "<|",
        "{\"name\": \"f\", ",
        "\"name\": \"g\", ",
        "\"arguments\": {",
        "\"parameters\": {",
        "\"a\": 1",
        "\"a\": \"x\"",
        "}",
        "}}",
        "]",
        ")",
        "[",
        "(",
        "{",
        ", ",
        ",",
        ";",
        "; ",
        ":",
        "\"",
        "\\\"",
        "\\",
        "'",
        "\"\"\"",
        "'''",
        "[f(",
        "g(",
        "f",
        "a=1",
        "b=\"x\"",
        "c=[1, {'k': None}]",
        "=",
        "True",
        "null",
        "1.5",
        "-2",
        "\n",
        " ",
        "<function=f>",
        "<parameter=a>",
        "</parameter>",
        "</function>",
        "x < y",
        "caf\u{e9}",
        "\u{1f600}",
        "\u{3000}",
        "[f(a=1)]",
        "[f(a=1), ",
        "b=(1, ('x',))",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1]}}\n</tool_call>",
        "{\"name\": \"f\", \"parameters\": {\"a\": \"x\"}}",
        "{\"parameters\": {\"a\": {}}, \"type\": \"function\", \"name\": \"f\"}",
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    ]);
    prop::collection::vec(
        prop_oneof![6 => fragments.prop_map(str::to_owned), 1 => any::<String>()],
        0..14,
    )
    .prop_map(|pieces| pieces.concat())
}

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_message_in_pieces_is_the_message_at_once(
        format in any_format(),
        text in any_message(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        noise in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = text.into_bytes();
        if let Some((index, byte)) = noise {
            bytes.insert(index.index(bytes.len() + 1), byte);
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let (once, message) = read_pieces(format, &[], [&bytes[..]]);
        check_events(&once, &message)?;
        let pieces = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
        let (pieces, same) = read_pieces(format, &[], pieces);
        prop_assert_eq!(joined(pieces), joined(once.clone()));
        prop_assert_eq!(&same, &message);
        let (each, same) = read_pieces(format, &[], bytes.chunks(1));
        prop_assert_eq!(joined(each), joined(once));
        prop_assert_eq!(same, message);
    }

    #[test]
    fn no_tokens_make_a_parser_panic(format in any_format(), ids in any_ids()) {
        let tokenizer = tokenizer_of(format);
        let mut parser = MessageParser::of_tokens(tokenizer, &[]);
        let mut events: Vec<_> =
            ids.iter().flat_map(|id| parser.push_token(*id, tokenizer)).collect();
        let (last, message) = parser.finish();
        events.extend(last);
        check_events(&events, &message)?;
        prop_assert_eq!(message, parse_message_with_tools(tokenizer, &ids, &[]));
    }

    #[test]
    fn tokens_and_text_say_the_same(format in any_format(), text in any_message()) {
        let tokenizer = tokenizer_of(format);
        let of_tokens =
            parse_message_with_tools(tokenizer, &tokenizer.encode(&text).unwrap(), &[]);
        let of_text = read(format, &text);
        prop_assert_eq!(&of_tokens.text, &of_text.text);
        prop_assert_eq!(&of_tokens.calls, &of_text.calls);
        // What half of a message is differs between tokens and bytes.
        let healthy = [HealthyCall, HealthyResponse];
        if healthy.contains(&of_tokens.state) || healthy.contains(&of_text.state) {
            prop_assert_eq!(of_tokens.state, of_text.state);
        }
    }

    #[test]
    fn rendered_calls_parse_to_themselves(
        format in any_format(),
        calls in prop::collection::vec((name(), named_arguments()), 1..4),
        text in prop::sample::select(vec!["", "I look.", "<think>\n[f(a=1)] {\n</think>"]),
    ) {
        let calls: Vec<(&str, &Map<String, Value>)> =
            calls.iter().map(|(name, arguments)| (name.as_str(), arguments)).collect();
        let text = if format == Format::Pythonic && text == "I look." { "" } else { text };
        let Ok(rendered) = format.render(text, &calls) else {
            // Only a text value that holds the closing tag has no way to be written.
            prop_assert!(format == Format::QwenXml);
            return Ok(());
        };
        let tools: Vec<_> = calls.iter().map(|(name, arguments)| tool(name, arguments)).collect();
        // Tags spelled in arguments are text when they are no tokens.
        let tokenizer = tokenizer_of(format);
        let mut ids = Vec::new();
        for span in format.rules().render(text, &calls).unwrap() {
            match span {
                Span::Tag(role) => ids.extend(tokenizer.control().id(role)),
                Span::Text(text) => ids.extend(tokenizer.encode_untrusted(&text).unwrap()),
            }
        }
        prop_assert_eq!(tokenizer.decode(&ids), rendered);
        let one_type_per_name = calls.len() == 1;
        let message = parse_message_with_tools(tokenizer, &ids, &tools);
        prop_assert_eq!(message.calls.len(), calls.len());
        for (call, (name, arguments)) in message.calls.iter().zip(&calls) {
            prop_assert_eq!(&call.name, name);
            if format != Format::QwenXml || one_type_per_name {
                prop_assert_eq!(&call.arguments, *arguments);
            }
        }
        prop_assert_eq!((message.text.as_str(), message.state), (text, HealthyCall));
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z_][a-z0-9_.-]{0,8}"
}

fn named_arguments() -> impl Strategy<Value = Map<String, Value>> {
    (any_arguments(), prop::collection::vec("[a-z_][a-z0-9_]{0,5}", 4)).prop_map(
        |(arguments, names)| {
            names.into_iter().zip(arguments.into_iter().map(|(_, value)| value)).collect()
        },
    )
}

/// A definition that gives each argument the type it has.
fn tool(name: &str, arguments: &Map<String, Value>) -> Value {
    let type_of = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let properties: Map<String, Value> = arguments
        .iter()
        .map(|(name, value)| (name.clone(), json!({"type": type_of(value)})))
        .collect();
    json!({"function": {"name": name, "parameters": {"properties": properties}}})
}
