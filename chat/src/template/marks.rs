//! Private-use characters that travel with a text through a template and are taken out after.
//!
//! A template is a program over strings, so what has to be known of the text it writes (where the
//! assistant speaks, where untrusted text must not join a control token) travels inside strings.
//! Invariant: `strip(escape(text)).text == text` for every text, private characters included.

use std::{borrow::Cow, ops::Range};

/// Stands where untrusted text would otherwise spell a control token, or a part of one.
pub(super) const CUT: char = '\u{f0000}';
/// Begins a `{% generation %}` block.
pub(super) const OPEN: char = '\u{f0001}';
/// Ends a `{% generation %}` block.
pub(super) const CLOSE: char = '\u{f0002}';
/// Says that the next character stands for a reserved one.
const ESCAPE: char = '\u{f0003}';
/// A reserved character and what stands for it after `ESCAPE` lie this far apart.
const SHIFT: u32 = 4;

/// A rendered text without its marks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stripped {
    pub(crate) text: String,
    /// Byte offsets into `text`, ascending, where a `CUT` stood.
    pub(crate) cuts: Vec<usize>,
    /// Byte ranges of `text` between `OPEN` and `CLOSE`, in the order of their ends.
    pub(crate) spans: Vec<Range<usize>>,
}

/// Whether a template must keep `c` as it is.
pub(super) fn is_reserved(c: char) -> bool {
    (CUT..=ESCAPE).contains(&c)
}

/// `text` such that `strip` gives it back: its reserved characters do not act as marks.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_reserved) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 4);
    for c in text.chars() {
        if is_reserved(c) {
            escaped.push(ESCAPE);
            escaped.extend(char::from_u32(u32::from(c) + SHIFT));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Takes the marks out. Total: a mark that a template tore from its partner is dropped.
pub(super) fn strip(rendered: &str) -> Stripped {
    let mut stripped =
        Stripped { text: String::with_capacity(rendered.len()), ..Stripped::default() };
    let mut open = Vec::new();
    let mut rest = rendered;
    while let Some(at) = rest.find(is_reserved) {
        stripped.text.push_str(&rest[..at]);
        let mut after = rest[at..].chars();
        let here = stripped.text.len();
        match after.next() {
            Some(CUT) => stripped.cuts.push(here),
            Some(OPEN) => open.push(here),
            Some(CLOSE) => stripped.spans.extend(open.pop().map(|start| start..here)),
            _ => {
                let mut next = after.clone();
                if let Some(original) = next.next().and_then(unescaped) {
                    stripped.text.push(original);
                    after = next;
                }
            }
        }
        rest = after.as_str();
    }
    stripped.text.push_str(rest);
    stripped
}

fn unescaped(c: char) -> Option<char> {
    char::from_u32(u32::from(c).checked_sub(SHIFT)?).filter(|&c| is_reserved(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{CLOSE, CUT, OPEN, Stripped, escape, strip};

    fn any_text() -> impl Strategy<Value = String> {
        let character = prop_oneof![any::<char>(), proptest::char::range('\u{efff0}', '\u{f0009}')];
        prop::collection::vec(character, 0..16).prop_map(String::from_iter)
    }

    #[test]
    fn marks_become_offsets_of_the_text() {
        let rendered = format!("a{OPEN}b{CUT}c{CLOSE}d{CLOSE}{OPEN}");
        let expected = Stripped { text: "abcd".into(), cuts: vec![2], spans: vec![1..3; 1] };
        assert_eq!(strip(&rendered), expected);
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_mark(text in any_text()) {
            let expected = Stripped { text: text.clone(), ..Stripped::default() };
            prop_assert_eq!(strip(&escape(&text)), expected);
        }

        #[test]
        fn torn_marks_do_no_harm(text in any_text()) {
            let stripped = strip(&text);
            for offset in stripped.cuts.iter().chain(stripped.spans.iter().flat_map(|s| [&s.start, &s.end])) {
                prop_assert!(stripped.text.is_char_boundary(*offset));
            }
        }
    }
}
