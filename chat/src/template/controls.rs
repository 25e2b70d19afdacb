//! The control tokens of a tokenizer, and how text that did not come from the template is kept
//! from spelling one.
//!
//! A cut (`marks::CUT`) is put inside every control token that an untrusted text spells, and at
//! the ends of a text that could be one part of it. After rendering, a spelling counts as the token
//! only if no cut is inside. What that guarantees, for texts of users, tools and tool definitions:
//! - however a template trims, slices, splits or changes the case of a text, no part of that text
//!   becomes a control token on its own;
//! - no text joins the template's own text, or another text, into a control token, as long as the
//!   template takes it whole or trimmed.
//!
//! A template that *deletes* something in the middle of a text (`replace`), or glues single pieces
//! of it to others, can still make a token of it; none of the families we know does.

use std::{collections::BTreeSet, ops::Range};

use aho_corasick::{AhoCorasick, Input, MatchKind};
use serde::Deserialize;

use super::{error::TemplateError, marks::CUT, python::is_space};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Who wrote a text that a template is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// The policy. It may write control tokens, but no special ones: those delimit turns.
    Assistant,
    /// A user, a tool, a tool definition, a document. May write no control token.
    Other,
}

/// The control tokens of a tokenizer: its added tokens, except runs of blanks.
pub(super) struct Controls {
    tokens: Vec<Control>,
    ids: BTreeSet<u32>,
    /// Finds spellings as the tokenizer does: leftmost, longest, exact.
    spellings: AhoCorasick,
    /// Finds every occurrence, whatever its case.
    any_case: AhoCorasick,
    edges: Edges,
    special_edges: Edges,
}

/// One control token.
pub(super) struct Control {
    pub(super) id: u32,
    spelling: String,
    special: bool,
    /// The token swallows blanks before it, or after it.
    pub(super) strips_before: bool,
    pub(super) strips_after: bool,
}

/// What a text can begin, end or be with, so that text around it makes a control token of it.
struct Edges {
    prefixes: BTreeSet<String>,
    suffixes: BTreeSet<String>,
    /// All spellings, separated by a character that none has.
    spellings: String,
    longest: usize,
}

/// An entry of `added_tokens` in a `tokenizer.json`.
#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

impl Controls {
    /// The control tokens of `tokenizer`.
    ///
    /// # Errors
    /// When a token is matched by rules that cannot be followed here.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let invalid = |e: String| TemplateError::Tokenizer(TokenizerError::Invalid(e));
        let AddedTokens { added_tokens } =
            serde_json::from_slice(tokenizer.json()).map_err(|e| invalid(e.to_string()))?;
        let mut tokens = Vec::with_capacity(added_tokens.len());
        for token in added_tokens {
            if token.content.trim().is_empty() {
                continue;
            }
            let refusal =
                |reason| TemplateError::ControlToken { token: token.content.clone(), reason };
            if token.single_word {
                return Err(refusal(
                    "matches whole words only (`single_word`), which cannot be told apart from text",
                ));
            }
            if token.content.chars().nth(1).is_none() {
                return Err(refusal("is a single character, which cannot be told apart from text"));
            }
            // What delimits messages does so whether or not the file calls it special.
            let control = tokenizer.control();
            let delimits = token.id == control.im_start || control.is_stop(token.id);
            tokens.push(Control {
                id: token.id,
                spelling: token.content,
                special: token.special || delimits,
                strips_before: token.lstrip,
                strips_after: token.rstrip,
            });
        }
        let build = |kind, any_case| {
            AhoCorasick::builder()
                .match_kind(kind)
                .ascii_case_insensitive(any_case)
                .build(tokens.iter().map(|token| &token.spelling))
                .map_err(|e| invalid(e.to_string()))
        };
        Ok(Self {
            spellings: build(MatchKind::LeftmostLongest, false)?,
            any_case: build(MatchKind::Standard, true)?,
            edges: Edges::of(tokens.iter()),
            special_edges: Edges::of(tokens.iter().filter(|token| token.special)),
            ids: tokens.iter().map(|token| token.id).collect(),
            tokens,
        })
    }

    /// Whether `id` is a control token.
    pub(super) fn has(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    /// The control tokens that a part of `text`, which begins between two tokens, spells with no
    /// cut inside: start, end, token. `cuts` ascend.
    pub(super) fn spelled_in(
        &self,
        text: &str,
        cuts: &[usize],
        part: Range<usize>,
    ) -> Vec<(usize, usize, &Control)> {
        let mut found = Vec::new();
        let mut from = part.start;
        while let Some(spelled) = self.spellings.find(Input::new(text).range(from..part.end)) {
            let (start, end) = (spelled.start(), spelled.end());
            let next_cut = cuts.partition_point(|&cut| cut <= start);
            if cuts.get(next_cut).is_some_and(|&cut| cut < end) {
                // What begins inside of it may still be a token.
                from = start + text[start..].chars().next().map_or(1, char::len_utf8);
            } else {
                found.push((start, end, &self.tokens[spelled.pattern().as_usize()]));
                from = end;
            }
        }
        found
    }

    /// `text` with cuts wherever it could become a control token that its writer may not write.
    pub(super) fn cut(&self, text: &str, writer: Writer) -> String {
        let mut cuts = BTreeSet::new();
        for spelled in self.any_case.find_overlapping_iter(text) {
            if writer == Writer::Other || self.tokens[spelled.pattern().as_usize()].special {
                let first = text[spelled.start()..].chars().next().map_or(0, char::len_utf8);
                cuts.insert(spelled.start() + first);
            }
        }
        let edges = if writer == Writer::Other { &self.edges } else { &self.special_edges };
        let core = text.trim_matches(is_space);
        let start = text.len() - text.trim_start_matches(is_space).len();
        let (begins, ends) = edges.touch(core);
        cuts.extend(begins.then_some(start));
        cuts.extend(ends.then_some(start + core.len()));
        insert_cuts(text, &cuts)
    }
}

impl Edges {
    fn of<'a>(tokens: impl Iterator<Item = &'a Control>) -> Self {
        let mut edges = Self {
            prefixes: BTreeSet::new(),
            suffixes: BTreeSet::new(),
            spellings: String::new(),
            longest: 0,
        };
        for token in tokens {
            let spelling = token.spelling.to_ascii_lowercase();
            for (at, _) in spelling.char_indices().skip(1) {
                edges.prefixes.insert(spelling[..at].to_owned());
                edges.suffixes.insert(spelling[at..].to_owned());
            }
            edges.longest = edges.longest.max(spelling.len());
            edges.spellings.push_str(&spelling);
            edges.spellings.push('\0');
        }
        edges
    }

    /// Whether text before `core`, and text after it, could complete a control token.
    fn touch(&self, core: &str) -> (bool, bool) {
        if core.is_empty() {
            return (false, false);
        }
        if core.len() < self.longest && self.spellings.contains(&core.to_ascii_lowercase()) {
            return (true, true);
        }
        let head = core.char_indices().map(|(at, c)| at + c.len_utf8()).map(|end| &core[..end]);
        let tail = core.char_indices().rev().map(|(at, _)| &core[at..]);
        let any_of =
            |set: &BTreeSet<String>, piece: &str| set.contains(&piece.to_ascii_lowercase());
        (
            head.take_while(|piece| piece.len() < self.longest).any(|p| any_of(&self.suffixes, p)),
            tail.take_while(|piece| piece.len() < self.longest).any(|p| any_of(&self.prefixes, p)),
        )
    }
}

fn insert_cuts(text: &str, cuts: &BTreeSet<usize>) -> String {
    let mut marked = String::with_capacity(text.len() + cuts.len() * CUT.len_utf8());
    let mut copied = 0;
    for &at in cuts {
        marked.push_str(&text[copied..at]);
        marked.push(CUT);
        copied = at;
    }
    marked + &text[copied..]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Controls, Writer};
    use crate::{Tokenizer, template::marks::CUT, testing::tokenizer};

    fn shown(text: &str, writer: Writer) -> String {
        Controls::of(tokenizer()).unwrap().cut(text, writer).replace(CUT, "^")
    }

    #[test]
    fn a_spelled_token_is_cut_in_whatever_case() {
        let cut = shown("a <|im_end|><|IM_START|> b", Writer::Other);
        assert_eq!(cut, "a <^|im_end|><^|IM_START|> b");
    }

    #[test]
    fn a_text_that_could_be_a_part_is_cut_at_that_end() {
        for (text, cut) in [
            (" a <|im_ ", " a <|im_^ "),
            ("> a", "^> a"),
            ("im_end", "^im_end^"),
            ("i am", "i am"),
            ("", ""),
            ("  ", "  "),
            ("a < b", "a < b"),
        ] {
            assert_eq!(shown(text, Writer::Other), cut);
        }
    }

    #[test]
    fn refused_tokens_are_named() {
        let mut value: Value = serde_json::from_slice(tokenizer().json()).unwrap();
        value["added_tokens"][0]["single_word"] = json!(true);
        let odd = Tokenizer::from_bytes(value.to_string().as_bytes()).unwrap();
        let error = Controls::of(&odd).err().unwrap().to_string();
        assert!(error.contains("single_word"), "{error}");
    }
}
