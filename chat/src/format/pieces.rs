//! A message that came as text, cut along the tags that are spelled in it.

use crate::control::{ControlRole, Frame};

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A tag.
    Tag(ControlRole),
    /// What stands between tags; not empty.
    Text(Vec<u8>),
}

/// Finds tags in bytes that come in parts. What may be the beginning of a tag is held back.
#[derive(Clone, Debug)]
pub(crate) struct TagScanner {
    frame: Frame,
    /// Shorter than the longest tag.
    held: Vec<u8>,
}

enum Match {
    Tag(ControlRole, usize),
    /// The bytes end before it is certain.
    Open,
    None,
}

impl TagScanner {
    pub(crate) fn new(frame: Frame) -> Self {
        Self { frame, held: Vec::new() }
    }

    /// Takes more bytes and gives what is certain.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let bytes = [&std::mem::take(&mut self.held), bytes].concat();
        let (mut pieces, mut text_start, mut at) = (Vec::new(), 0, 0);
        while at < bytes.len() {
            match self.tag_at(&bytes[at..]) {
                Match::Tag(role, length) => {
                    push_text(&mut pieces, &bytes[text_start..at]);
                    pieces.push(Piece::Tag(role));
                    at += length;
                    text_start = at;
                }
                Match::Open => break,
                Match::None => at += 1,
            }
        }
        push_text(&mut pieces, &bytes[text_start..at]);
        self.held = bytes[at..].to_vec();
        pieces
    }

    /// What was held back, which is text after all.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    fn tag_at(&self, bytes: &[u8]) -> Match {
        if bytes.first() != Some(&b'<') {
            return Match::None;
        }
        for (role, name) in self.frame.tags() {
            if bytes.starts_with(name.as_bytes()) {
                return Match::Tag(*role, name.len());
            }
        }
        let could_be = |name: &str| name.as_bytes().starts_with(bytes);
        let is_open = self.frame.tags().iter().any(|(_, name)| could_be(name));
        if is_open { Match::Open } else { Match::None }
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &[u8]) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::{Piece, TagScanner};
    use crate::control::{
        ControlRole::{CallOpen, MessageEnd},
        Frame,
    };

    #[test]
    fn what_may_become_a_tag_is_held_back() {
        let text = |text: &str| Piece::Text(text.into());
        let mut scanner = TagScanner::new(Frame::ChatMl);
        assert_eq!(scanner.push(b"a < b <tool_"), [text("a < b ")]);
        assert_eq!(scanner.push(b"ca"), []);
        assert_eq!(scanner.push(b"ll>x"), [Piece::Tag(CallOpen), text("x")]);
        assert_eq!(scanner.push(b"<<|im_end|><"), [text("<"), Piece::Tag(MessageEnd)]);
        assert_eq!(scanner.push(b"tool_box"), [text("<tool_box")]);
        assert_eq!(scanner.push(b"<too"), []);
        assert_eq!(scanner.finish(), b"<too");
        assert_eq!(scanner.finish(), b"");
    }
}
