//! Calls between `<tool_call>` and `</tool_call>`, whatever stands between the tags.

use std::fmt;

use serde_json::{Map, Value};

use super::{CallParser, Event, ParsedCall, Span, text::TrimmedText};
use crate::control::ControlRole::{self, CallClose, CallOpen, CallOpener, MessageEnd};

/// Reads what stands between the tags of one call.
pub(crate) trait Body: Clone + fmt::Debug + Send + Sync {
    /// `raw`, the text after the opening tag, has grown.
    fn advance(&mut self, raw: &str, index: usize, events: &mut Vec<Event>);

    /// Whether the call is complete, so that only the closing tag is missing.
    fn is_complete(&self) -> bool;

    /// `raw`, to whose end it advanced, is the whole text between the tags: the name and the
    /// arguments, if it is a call.
    fn finish(self, raw: &str) -> Option<(String, Map<String, Value>)>;
}

/// Tells calls from the text around them. A call reaches from `<tool_call>` to the next
/// `</tool_call>` or `<tool_call>` or the end; only the first closes it. Any other tag inside makes
/// it malformed, and any tag outside is misplaced.
#[derive(Debug)]
pub(crate) struct BlockParser<B> {
    /// A body at the start of a call.
    fresh: B,
    outside: TrimmedText,
    block: Option<Block<B>>,
    blocks: usize,
    closed_any: bool,
    misplaced: bool,
}

#[derive(Debug)]
struct Block<B> {
    body: B,
    raw: String,
    holds_tag: bool,
}

impl<B: Body> BlockParser<B> {
    pub(crate) fn new(fresh: B) -> Self {
        let outside = TrimmedText::default();
        Self { fresh, outside, block: None, blocks: 0, closed_any: false, misplaced: false }
    }

    fn end_block(&mut self, closed: bool, events: &mut Vec<Event>) {
        let Some(Block { body, raw, holds_tag }) = self.block.take() else { return };
        let parsed = if closed && !holds_tag { body.finish(&raw) } else { None };
        let call = ParsedCall::new(raw, parsed);
        events.push(Event::CallFinished { index: self.blocks - 1, call });
    }
}

impl<B: Body> CallParser for BlockParser<B> {
    fn tag(&mut self, role: ControlRole, name: &str, events: &mut Vec<Event>) {
        match (role, &mut self.block) {
            (CallOpen, _) => {
                self.end_block(false, events);
                let (body, raw) = (self.fresh.clone(), String::new());
                self.block = Some(Block { body, raw, holds_tag: false });
                self.blocks += 1;
            }
            (CallClose, Some(_)) => {
                self.end_block(true, events);
                self.closed_any = true;
            }
            (_, Some(block)) => {
                block.holds_tag = true;
                self.text(name, events);
            }
            (_, None) => {
                self.closed_any |= role == CallClose;
                self.misplaced = true;
                self.outside.push(name, events);
            }
        }
    }

    fn text(&mut self, text: &str, events: &mut Vec<Event>) {
        match &mut self.block {
            Some(block) => {
                block.raw.push_str(text);
                block.body.advance(&block.raw, self.blocks - 1, events);
            }
            None => self.outside.push(text, events),
        }
    }

    fn finish(&mut self, events: &mut Vec<Event>) {
        self.end_block(false, events);
    }

    fn has_calls(&self) -> bool {
        self.blocks > 0
    }

    fn is_misplaced(&self) -> bool {
        self.misplaced
    }

    fn allowed(&self) -> &'static [ControlRole] {
        match &self.block {
            Some(block) if block.body.is_complete() => &[CallClose],
            Some(_) => &[CallOpener],
            None if self.closed_any || self.outside.has_begun() => &[MessageEnd, CallOpen],
            None => &[CallOpen],
        }
    }
}

/// `text` (may be empty), then each body in its tags on a line of its own.
pub(crate) fn render(text: &str, bodies: impl IntoIterator<Item = String>) -> Vec<Span> {
    let mut spans = vec![Span::Text(text.to_owned())];
    for (index, body) in bodies.into_iter().enumerate() {
        let is_first = index == 0 && text.is_empty();
        spans.extend([
            Span::Text(if is_first { "" } else { "\n" }.to_owned()),
            Span::Tag(CallOpen),
            Span::Text(body),
            Span::Tag(CallClose),
        ]);
    }
    spans
}
