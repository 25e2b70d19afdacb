//! What all formats promise, what each makes of single messages, and what they refuse.

mod hermes_reference;
mod limits;
mod messages;
mod promises;

use serde_json::Value;

use super::{AssistantMessage, Event, Format, MessageParser};

fn read_pieces<'a>(
    format: Format,
    tools: &[Value],
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, AssistantMessage) {
    let mut parser = MessageParser::new(format, tools);
    let mut events: Vec<_> = pieces.into_iter().flat_map(|piece| parser.push_text(piece)).collect();
    let (last, message) = parser.finish();
    events.extend(last);
    (events, message)
}

fn read(format: Format, text: &str) -> AssistantMessage {
    read_pieces(format, &[], [text.as_bytes()]).1
}

/// Neighbouring deltas of one kind joined, so that two ways to cut a message compare equal.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(Event::Text(text)), Event::Text(delta)) => text.push_str(&delta),
            (
                Some(Event::Arguments { index, delta: text }),
                Event::Arguments { index: same, delta },
            ) if *index == same => text.push_str(&delta),
            (_, event) => joined.push(event),
        }
    }
    joined
}
