//! Calls between `<tool_call>` and `</tool_call>`, whatever stands between the tags.

use std::fmt;

use serde_json::{Map, Value};

use super::{
    CallParser, Event, ParsedCall, Span,
    text::{TrimmedText, Utf8},
};
use crate::control::ControlRole::{self, CallClose, CallOpen, CallOpener, MessageEnd};

/// Reads what stands between the tags of one call.
pub(crate) trait Body: Clone + fmt::Debug + Send + Sync {
    /// `raw`, the text after the opening tag, has grown.
    fn advance(&mut self, raw: &str, index: usize, events: &mut Vec<Event>);

    /// Whether the call is complete, so that only the closing tag is missing.
    fn is_complete(&self) -> bool;

    /// `raw` is the whole text between the tags: the name and the arguments, if it is a call.
    /// Emits what was not emitted of it.
    fn finish(
        &mut self,
        raw: &str,
        index: usize,
        events: &mut Vec<Event>,
    ) -> Option<(String, Map<String, Value>)>;
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
    utf8: Utf8,
    raw: String,
    holds_tag: bool,
}

impl<B: Body> BlockParser<B> {
    pub(crate) fn new(fresh: B) -> Self {
        let outside = TrimmedText::default();
        Self { fresh, outside, block: None, blocks: 0, closed_any: false, misplaced: false }
    }

    fn end_block(&mut self, closed: bool, events: &mut Vec<Event>) {
        let Some(mut block) = self.block.take() else { return };
        let index = self.blocks - 1;
        block.utf8.finish(&mut block.raw);
        block.body.advance(&block.raw, index, events);
        let well_delimited = closed && !block.holds_tag;
        let parsed =
            if well_delimited { block.body.finish(&block.raw, index, events) } else { None };
        events.push(Event::CallFinished { index, call: ParsedCall::new(block.raw, parsed) });
    }
}

impl<B: Body> CallParser for BlockParser<B> {
    fn tag(&mut self, role: ControlRole, name: &str, events: &mut Vec<Event>) {
        match (role, &mut self.block) {
            (CallOpen, _) => {
                self.end_block(false, events);
                let (body, raw) = (self.fresh.clone(), String::new());
                self.block = Some(Block { body, utf8: Utf8::default(), raw, holds_tag: false });
                self.blocks += 1;
            }
            (CallClose, Some(_)) => {
                self.end_block(true, events);
                self.closed_any = true;
            }
            (_, Some(block)) => {
                block.holds_tag = true;
                self.text(name.as_bytes(), events);
            }
            (_, None) => {
                self.closed_any |= role == CallClose;
                self.misplaced = true;
                self.outside.push(name.as_bytes(), events);
            }
        }
    }

    fn text(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        match &mut self.block {
            Some(block) => {
                block.utf8.push(bytes, &mut block.raw);
                block.body.advance(&block.raw, self.blocks - 1, events);
            }
            None => self.outside.push(bytes, events),
        }
    }

    fn finish(&mut self, events: &mut Vec<Event>) {
        self.end_block(false, events);
        self.outside.finish(events);
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
