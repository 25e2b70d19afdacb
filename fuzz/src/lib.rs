//! What every tool-call format promises of any bytes: a message read in pieces is the message read
//! at once, what was emitted adds up to what was parsed, and a well-formed call that is written
//! again reads the same.

#![forbid(unsafe_code)]

use ballast_chat::{AssistantMessage, Event, Format, MessageParser, ParsedCall, python_json};
use serde_json::{Map, Value};

/// The first bytes of the input say how the rest is cut.
const CUTS: usize = 4;

/// Checks one input.
///
/// # Panics
/// When a promise is broken: that is the finding.
pub fn check(format: Format, data: &[u8]) {
    let Some((cuts, text)) = data.split_at_checked(CUTS) else { return };
    let (once, message) = read(format, [text]);
    let (pieces, same) = read(format, cut(cuts, text));
    assert_eq!(message, same, "the message depends on how it is cut");
    assert_eq!(joined(&once), joined(&pieces), "the events depend on how the message is cut");
    check_events(&once, &message);
    check_rendering(format, &message.calls);
}

fn read<'a>(
    format: Format,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, AssistantMessage) {
    let mut parser = MessageParser::new(format, &[]);
    let mut events: Vec<_> = pieces.into_iter().flat_map(|piece| parser.push_text(piece)).collect();
    let (last, message) = parser.finish();
    events.extend(last);
    (events, message)
}

/// `text` in pieces of 1 to 16 bytes, as `cuts` says over and over.
fn cut<'a>(cuts: &'a [u8], mut text: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    cuts.iter().cycle().map_while(move |cut| {
        let (piece, rest) = text.split_at(text.len().min(usize::from(cut % 16) + 1));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Neighbouring deltas of one kind joined.
fn joined(events: &[Event]) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(Event::Text(text)), Event::Text(delta)) => text.push_str(delta),
            (
                Some(Event::Arguments { index, delta: text }),
                Event::Arguments { index: same, delta },
            ) if index == same => text.push_str(delta),
            (_, event) => joined.push(event.clone()),
        }
    }
    joined
}

fn check_events(events: &[Event], message: &AssistantMessage) {
    let (mut text, mut name, mut arguments, mut calls) =
        (String::new(), None, String::new(), Vec::new());
    for event in events {
        match event {
            Event::Text(delta) => text.push_str(delta),
            Event::CallStarted { index, name: started } => {
                assert!(*index == calls.len() && name.replace(started).is_none());
            }
            Event::Arguments { index, delta } => {
                assert!(*index == calls.len() && name.is_some());
                arguments.push_str(delta);
            }
            Event::CallFinished { index, call } => {
                assert_eq!(*index, calls.len());
                if !call.malformed {
                    assert_eq!(name, Some(&call.name));
                    let streamed: Value =
                        serde_json::from_str(&arguments).expect("arguments are JSON");
                    let arguments = Value::Object(call.arguments.clone());
                    // The last digit of a float is read approximately.
                    assert!(
                        has_float(&arguments) || arguments == streamed,
                        "{arguments} {streamed}"
                    );
                }
                (name, arguments) = (None, String::new());
                calls.push(call.clone());
            }
        }
    }
    assert_eq!(text, message.text);
    assert_eq!(calls, message.calls);
}

fn check_rendering(format: Format, calls: &[ParsedCall]) {
    let calls: Vec<_> = calls.iter().filter(|call| !call.malformed).collect();
    let written: Vec<(&str, &Map<String, Value>)> =
        calls.iter().map(|call| (call.name.as_str(), &call.arguments)).collect();
    let is_exact = calls.iter().all(|call| {
        let arguments = Value::Object(call.arguments.clone());
        let text = format!("{} {}", call.name, python_json(&arguments));
        // An escaped tag would be written as a tag. As tokens the two differ, as text they do not.
        let spells_a_tag = text.contains("<|") || text.contains("tool_");
        !spells_a_tag && !has_float(&arguments)
    });
    if calls.is_empty() || !is_exact {
        return;
    }
    let text = format.render("", &written).expect("a call that was read can be written");
    let (_, message) = read(format, [text.as_bytes()]);
    let again: Vec<(&str, &Map<String, Value>)> =
        message.calls.iter().map(|call| (call.name.as_str(), &call.arguments)).collect();
    assert_eq!(again, written, "{text}");
}

fn has_float(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_float),
        Value::Object(entries) => entries.values().any(has_float),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}
