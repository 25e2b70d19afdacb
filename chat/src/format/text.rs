//! Bytes to text while they come in.

use super::Event;

/// Decodes UTF-8 piece by piece. All it gave, joined, is `String::from_utf8_lossy` of all bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Utf8 {
    /// The beginning of a character whose end has not come, at most three bytes.
    held: Vec<u8>,
}

impl Utf8 {
    /// Takes more bytes and appends to `text` what is certain.
    pub(crate) fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.held.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let is_last = done + chunk.invalid().len() == self.held.len();
            if chunk.invalid().is_empty() || (is_last && is_incomplete(chunk.invalid())) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += chunk.invalid().len();
        }
        self.held.drain(..done);
    }

    /// The bytes end here.
    pub(crate) fn finish(&mut self, text: &mut String) {
        if !self.held.is_empty() {
            self.held.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Whether more bytes could make a character of it.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// The text of a message beside its calls, trimmed: white space is held back until something
/// follows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrimmedText {
    begun: bool,
    white: String,
}

impl TrimmedText {
    pub(crate) fn push(&mut self, text: &str, events: &mut Vec<Event>) {
        let text = if self.begun { text } else { text.trim_start() };
        let (solid, white) = text.split_at(text.trim_end().len());
        if !solid.is_empty() {
            self.begun = true;
            events.push(Event::Text(std::mem::take(&mut self.white) + solid));
        }
        self.white.push_str(white);
    }

    /// Whether anything but white space came.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }
}

/// Counts the characters of the trimmed text.
#[derive(Clone, Debug, Default)]
pub(crate) struct CharCount {
    chars: usize,
    white: usize,
}

impl CharCount {
    pub(crate) fn push(&mut self, text: &str) {
        let text = if self.chars == 0 { text.trim_start() } else { text };
        let (solid, white) = text.split_at(text.trim_end().len());
        if !solid.is_empty() {
            self.chars += std::mem::take(&mut self.white) + solid.chars().count();
        }
        self.white += white.chars().count();
    }

    pub(crate) fn chars(&self) -> usize {
        self.chars
    }
}

/// What ends the reasoning of a message. It is text like the reasoning itself, also where a tokenizer
/// has a token for it.
pub(crate) const REASONING_END: &str = "</think>";

/// Finds where reasoning ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReasoningScanner {
    /// How much of [`REASONING_END`] came last. Its first byte is in it once, so that is all there is
    /// to know.
    matched: usize,
}

impl ReasoningScanner {
    /// Reads `text` up to where reasoning ends, and says where that is; all of it, if nowhere.
    pub(crate) fn read(&mut self, text: &str) -> Option<usize> {
        let end = text.bytes().position(|byte| {
            let goes_on = byte == REASONING_END.as_bytes()[self.matched];
            self.matched = if goes_on { self.matched + 1 } else { usize::from(byte == b'<') };
            self.matched == REASONING_END.len()
        })?;
        self.matched = 0;
        Some(end + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{CharCount, ReasoningScanner, TrimmedText, Utf8};
    use crate::format::Event;

    /// Bytes of which many are nearly a character.
    fn bytes() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![
            any::<u8>(),
            prop::sample::select(b" \n\xe2\x82\xac\xf0\x9f\x98\x80\xed\xa0\xc3a".to_vec()),
        ];
        prop::collection::vec(prop::collection::vec(byte, 0..5), 0..12)
    }

    proptest! {
        #[test]
        fn text_is_that_of_all_bytes_at_once(pieces in bytes()) {
            let (mut utf8, mut text) = (Utf8::default(), String::new());
            for piece in &pieces {
                utf8.push(piece, &mut text);
                prop_assert!(utf8.held.len() <= 3);
            }
            utf8.finish(&mut text);
            let whole = pieces.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }

        #[test]
        fn trimmed_text_is_that_of_all_pieces_at_once(
            pieces in prop::collection::vec("[ \n\u{3000}a\u{e9}]{0,4}", 0..12),
        ) {
            let (mut trimmed, mut events, mut count) =
                (TrimmedText::default(), Vec::new(), CharCount::default());
            for piece in &pieces {
                trimmed.push(piece, &mut events);
                count.push(piece);
            }
            let text: String = events
                .iter()
                .map(|event| match event {
                    Event::Text(text) => text.as_str(),
                    _ => "not text",
                })
                .collect();
            let whole = pieces.concat();
            prop_assert_eq!(count.chars(), whole.trim().chars().count());
            prop_assert_eq!(text, whole.trim());
        }

        #[test]
        fn reasoning_ends_where_the_tag_ends(
            pieces in prop::collection::vec("(<|</think>|</|think>|</thi|nk>|x){0,3}", 0..8),
        ) {
            let (mut scanner, mut ends, mut read) = (ReasoningScanner::default(), Vec::new(), 0);
            for piece in &pieces {
                let mut rest = piece.as_str();
                while let Some(end) = scanner.read(rest) {
                    ends.push(read + piece.len() - rest.len() + end);
                    rest = &rest[end..];
                }
                read += piece.len();
            }
            let whole = pieces.concat();
            let found = whole.match_indices("</think>").map(|(at, tag)| at + tag.len());
            prop_assert_eq!(ends, found.collect::<Vec<_>>());
        }
    }
}
