//! Token ids to text, token by token.
//!
//! Invariant: the pieces, joined, are what decoding all tokens at once gives. A piece ends with a
//! whole character; the bytes of an unfinished one wait for the token that completes it.

use ballast_chat::Tokenizer;

/// The text of one growing sequence.
#[derive(Debug, Default)]
pub struct TextStream {
    /// Bytes of a character that is not whole yet: three at most.
    unfinished: Vec<u8>,
}

impl TextStream {
    /// The text that `token` completes. Bytes that are no text become U+FFFD.
    #[must_use]
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        self.unfinished.extend_from_slice(tokenizer.token_bytes(token));
        let mut text = String::new();
        loop {
            let error = match std::str::from_utf8(&self.unfinished) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.unfinished.clear();
                    return text;
                }
                Err(error) => error,
            };
            let (whole, rest) = self.unfinished.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(whole));
            let skipped = error.error_len();
            text.extend(skipped.map(|_| char::REPLACEMENT_CHARACTER));
            self.unfinished = rest[skipped.unwrap_or(0)..].to_vec();
            if skipped.is_none() {
                return text;
            }
        }
    }

    /// What is left when no further token comes: an unfinished character as U+FFFD.
    #[must_use]
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.unfinished);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::tokenizer;

    fn pieces(ids: &[u32]) -> Vec<String> {
        let mut stream = TextStream::default();
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(tokenizer(), *id)).collect();
        pieces.push(stream.finish());
        pieces
    }

    #[test]
    fn a_character_split_over_tokens_is_held_back() {
        let ids = tokenizer().encode("a\u{1f600}b").unwrap();
        assert!(ids.len() > 3, "the emoji is more than one token");
        let pieces = pieces(&ids);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert_eq!(pieces.concat(), "a\u{1f600}b");
    }

    #[test]
    fn an_unfinished_character_comes_at_the_end() {
        let ids = tokenizer().encode("\u{1f600}").unwrap();
        let pieces = pieces(&ids[..ids.len() - 1]);
        assert_eq!(pieces.concat(), "\u{fffd}");
        assert_eq!(pieces.last().unwrap(), "\u{fffd}");
    }

    #[test]
    fn bytes_that_are_no_text_do_not_wait_for_ever() {
        let continuation = tokenizer().encode("\u{1f600}").unwrap()[1];
        let mut stream = TextStream::default();
        for _ in 0..100 {
            assert!(!stream.push(tokenizer(), continuation).is_empty());
        }
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_whole(ids in prop::collection::vec(0u32..700, 0..60)) {
            prop_assert_eq!(pieces(&ids).concat(), tokenizer().decode(&ids));
        }
    }
}
