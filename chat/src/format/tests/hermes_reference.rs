//! The Hermes format once more, read from all ids at once: what the parser is measured by.

use ballast_proto::v1::StructuralState;
use proptest::prelude::*;
use serde_json::{Map, Value};

use crate::{
    AssistantMessage, ControlRole, ParsedCall, Tokenizer, parse_message,
    testing::{any_ids, tokenizer},
};

/// What follows a `<tool_call>`, up to the next `</tool_call>` or `<tool_call>` or the end.
struct Block<'a> {
    body: &'a [u32],
    closed: bool,
}

fn reference(tokenizer: &Tokenizer, ids: &[u32]) -> AssistantMessage {
    let control = tokenizer.control();
    let tag = |role| control.id(role).unwrap();
    let (open, close) = (tag(ControlRole::CallOpen), tag(ControlRole::CallClose));
    let ids = ids.strip_suffix(&[control.im_end]).unwrap_or(ids);
    let (mut outside, mut blocks, mut rest) = (vec![Vec::new()], Vec::new(), ids);
    while let [id, after @ ..] = rest {
        rest = after;
        if *id == open {
            let end = after.iter().position(|id| [open, close].contains(id));
            let body = &after[..end.unwrap_or(after.len())];
            let closed = end.is_some_and(|end| after[end] == close);
            rest = &after[body.len() + usize::from(closed)..];
            blocks.push(Block { body, closed });
            outside.push(Vec::new());
        } else {
            outside.last_mut().unwrap().push(*id);
        }
    }
    let calls: Vec<_> = blocks.iter().map(|block| call(tokenizer, block)).collect();
    let state = state(tokenizer, ids, &outside.concat(), &calls);
    // A character that a call interrupts is none.
    let text: String = outside.iter().map(|ids| tokenizer.decode(ids)).collect();
    AssistantMessage { text: text.trim().to_owned(), calls, state }
}

fn call(tokenizer: &Tokenizer, block: &Block<'_>) -> ParsedCall {
    let raw = tokenizer.decode(block.body);
    let well_formed = block.closed && !block.body.iter().any(|&id| tokenizer.control().is_tag(id));
    let object: Option<Map<String, Value>> = serde_json::from_str(&raw).ok();
    let parsed = object.filter(|_| well_formed).and_then(|mut object| {
        match (object.remove("name"), object.remove("arguments")) {
            (Some(Value::String(name)), Some(Value::Object(arguments))) if !name.is_empty() => {
                Some((name, arguments))
            }
            _ => None,
        }
    });
    ParsedCall::new(raw, parsed)
}

fn state(
    tokenizer: &Tokenizer,
    ids: &[u32],
    outside: &[u32],
    calls: &[ParsedCall],
) -> StructuralState {
    let control = tokenizer.control();
    let has_stray_tag = outside.iter().any(|&id| control.is_tag(id));
    let texts = ids.split(|&id| control.is_tag(id));
    let text: String = texts.map(|ids| tokenizer.decode(ids)).collect();
    let text_chars = text.trim().chars().count();
    let control_tokens = ids.iter().filter(|id| control.all().contains(id)).count();
    if !calls.is_empty() && calls.iter().all(|call| !call.malformed) && !has_stray_tag {
        StructuralState::HealthyCall
    } else if calls.is_empty() && !has_stray_tag && text_chars > 0 {
        StructuralState::HealthyResponse
    } else if text_chars < 5
        || (calls.iter().all(|call| call.malformed) && 2 * control_tokens > ids.len())
    {
        StructuralState::Collapsed
    } else {
        StructuralState::Polluted
    }
}

/// Tokens of texts that are nearly calls, among any others.
fn nearly_calls() -> impl Strategy<Value = Vec<u32>> {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let texts =
        [call, "<tool_call>{", "I look. ", "}", "</tool_call>", " ", "\u{e9}", "<|im_end|>"];
    let text = prop::sample::select(texts.to_vec());
    let tokens = text.prop_map(|text| tokenizer().encode(text).unwrap());
    let one = any_ids().prop_map(|ids| ids.into_iter().take(1).collect());
    prop::collection::vec(prop_oneof![3 => tokens, 1 => one], 0..8).prop_map(|ids| ids.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_parser_reads_what_the_reference_reads(ids in prop_oneof![any_ids(), nearly_calls()]) {
        prop_assert_eq!(parse_message(tokenizer(), &ids), reference(tokenizer(), &ids));
    }
}
