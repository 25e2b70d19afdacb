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
    utf8: Utf8,
    begun: bool,
    white: String,
}

impl TrimmedText {
    /// Takes more bytes.
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.push(bytes, &mut text);
        self.emit(&text, events);
    }

    /// The message ends here.
    pub(crate) fn finish(&mut self, events: &mut Vec<Event>) {
        let mut text = String::new();
        self.utf8.finish(&mut text);
        self.emit(&text, events);
    }

    /// Whether anything but white space came.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    fn emit(&mut self, text: &str, events: &mut Vec<Event>) {
        let text = if self.begun { text } else { text.trim_start() };
        let (solid, white) = text.split_at(text.trim_end().len());
        if !solid.is_empty() {
            self.begun = true;
            events.push(Event::Text(std::mem::take(&mut self.white) + solid));
        }
        self.white.push_str(white);
    }
}

/// Counts the characters of the trimmed text.
#[derive(Clone, Debug, Default)]
pub(crate) struct CharCount {
    text: TrimmedText,
    chars: usize,
}

impl CharCount {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let mut events = Vec::new();
        self.text.push(bytes, &mut events);
        self.count(&events);
    }

    pub(crate) fn finish(mut self) -> usize {
        let mut events = Vec::new();
        self.text.finish(&mut events);
        self.count(&events);
        self.chars
    }

    fn count(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Text(text) = event {
                self.chars += text.chars().count();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{CharCount, TrimmedText, Utf8};
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
        fn trimmed_text_is_that_of_all_bytes_at_once(pieces in bytes()) {
            let whole = String::from_utf8_lossy(&pieces.concat()).trim().to_owned();
            let (mut trimmed, mut events, mut count) =
                (TrimmedText::default(), Vec::new(), CharCount::default());
            for piece in &pieces {
                trimmed.push(piece, &mut events);
                count.push(piece);
            }
            trimmed.finish(&mut events);
            let text: String = events
                .iter()
                .map(|event| match event {
                    Event::Text(text) => text.as_str(),
                    _ => "not text",
                })
                .collect();
            prop_assert_eq!(count.finish(), whole.chars().count());
            prop_assert_eq!(text, whole);
        }
    }
}
