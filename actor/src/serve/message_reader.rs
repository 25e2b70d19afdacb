//! Text and tool calls of an assistant message, as its tokens are sampled.
//!
//! Invariants: nothing that is handed out has to be taken back, so a call is handed out when it is
//! complete; a call that does not parse comes out as the text it was.

use ballast_chat::{ControlRole, Event, MessageParser, Tokenizer, python_json};
use serde_json::Value;

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// More text.
    Text(String),
    /// A tool call.
    Call {
        /// Name of the tool.
        name: String,
        /// Its arguments, a JSON object.
        arguments: String,
    },
}

/// Reads one message, token by token, in the tokenizer's tool-call format. White space at the ends
/// of the text, and between text and a call, is left out.
#[derive(Debug)]
pub struct MessageReader {
    tokenizer: Tokenizer,
    /// Absent once the message is over.
    parser: Option<MessageParser>,
    /// Tokens since the newest part: the text of a call, should it not parse.
    unsaid: Vec<u32>,
}

impl MessageReader {
    /// Before the first token. `tools` are the definitions the model was told.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, tools: &[Value]) -> Self {
        let parser = Some(MessageParser::of_tokens(&tokenizer, tools));
        Self { tokenizer, parser, unsaid: Vec::new() }
    }

    /// Takes a token; not the one that ends the message.
    pub fn push(&mut self, token: u32) -> Vec<Part> {
        let Some(parser) = &mut self.parser else { return Vec::new() };
        let events = parser.push_token(token, &self.tokenizer);
        // A tag that opens a call is no part of the unclosed one before it.
        let opens = self.tokenizer.control().tag(token) == Some(ControlRole::CallOpen);
        if opens {
            let parts = self.parts(events);
            self.unsaid.push(token);
            return parts;
        }
        self.unsaid.push(token);
        self.parts(events)
    }

    /// What is left when the message is over.
    pub fn finish(&mut self) -> Vec<Part> {
        let Some(parser) = self.parser.take() else { return Vec::new() };
        let (events, _message) = parser.finish();
        self.parts(events)
    }

    fn parts(&mut self, events: Vec<Event>) -> Vec<Part> {
        let mut parts = Vec::new();
        for event in events {
            let part = match event {
                Event::Text(text) => Part::Text(text),
                Event::CallFinished { call, .. } if call.malformed => {
                    Part::Text(self.tokenizer.decode(&self.unsaid))
                }
                Event::CallFinished { call, .. } => {
                    let arguments = python_json(&Value::Object(call.arguments));
                    Part::Call { name: call.name, arguments }
                }
                // Both are told at once, when the call is known to be well formed.
                Event::CallStarted { .. } | Event::Arguments { .. } => continue,
            };
            self.unsaid.clear();
            parts.push(part);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use ballast_chat::parse_message;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::tokenizer;

    const CALL: &str =
        "<tool_call>\n{\"name\": \"product\", \"arguments\": {\"name\": \"lamp\"}}\n</tool_call>";

    fn read(ids: &[u32]) -> (String, Vec<(String, String)>) {
        let mut reader = MessageReader::new(tokenizer().clone(), &[]);
        let mut parts: Vec<Part> = ids.iter().flat_map(|id| reader.push(*id)).collect();
        parts.extend(reader.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(piece) => text.push_str(&piece),
                Part::Call { name, arguments } => calls.push((name, arguments)),
            }
        }
        (text, calls)
    }

    fn read_text(text: &str) -> (String, Vec<(String, String)>) {
        read(&tokenizer().encode(text).unwrap())
    }

    #[test]
    fn calls_leave_the_text_with_the_white_space_around_them() {
        let (text, calls) = read_text(&format!("Let me look.\n{CALL}\n{CALL}"));
        assert_eq!(text, "Let me look.");
        let call = ("product".to_owned(), "{\"name\": \"lamp\"}".to_owned());
        assert_eq!(calls, [call.clone(), call]);
    }

    #[test]
    fn what_does_not_parse_is_text() {
        for text in ["<tool_call>\nlamp\n</tool_call>", "<tool_call>\n{\"name\"", "</tool_call> x"]
        {
            assert_eq!(read_text(text), (text.to_owned(), Vec::new()), "{text}");
        }
        let (text, calls) = read_text(&format!("<tool_call>\nlamp {CALL}"));
        assert_eq!((text.as_str(), calls.len()), ("<tool_call>\nlamp ", 1));
    }

    #[test]
    fn text_comes_before_the_message_is_over() {
        let mut reader = MessageReader::new(tokenizer().clone(), &[]);
        let ids = tokenizer().encode("lamp lamp lamp").unwrap();
        let early: Vec<Part> =
            ids[..ids.len() - 1].iter().flat_map(|id| reader.push(*id)).collect();
        assert!(!early.is_empty());
    }

    proptest! {
        #[test]
        fn calls_are_those_of_the_whole_message(ids in prop::collection::vec(
            prop_oneof![
                0u32..700,
                prop::sample::select(tokenizer().encode(CALL).unwrap()),
            ],
            0..40,
        )) {
            let whole = parse_message(tokenizer(), &ids);
            let well_formed = whole.calls.iter().filter(|call| !call.malformed);
            let names: Vec<_> = well_formed.map(|call| call.name.clone()).collect();
            let (text, calls) = read(&ids);
            let read_names: Vec<_> = calls.into_iter().map(|(name, _)| name).collect();
            prop_assert_eq!(read_names, names);
            if whole.calls.is_empty() {
                prop_assert_eq!(text, whole.text);
            }
        }
    }
}
