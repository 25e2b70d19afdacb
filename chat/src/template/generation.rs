//! `{% generation %}` blocks, which no Jinja engine knows: `transformers` adds them to mark what
//! the assistant says.
//!
//! The tags are rewritten, before compiling, into a call block of a function that puts marks
//! around its body. `transformers` compiles them into a call block as well, so scoping is the same.

use minijinja::{Error, State, Value, value::Kwargs};

use super::marks::{CLOSE, OPEN};

/// The function that a generation block becomes a call of.
pub(super) const FUNCTION: &str = "__generation__";

/// The template with its generation tags rewritten, and whether it had any. Lines stay lines, so
/// errors name the right one; tags in comments, raw blocks and string literals stay as they are.
pub(super) fn rewrite_tags(source: &str) -> (String, bool) {
    let mut rewritten = String::with_capacity(source.len());
    let mut copied = 0;
    let mut at = 0;
    while let Some(offset) = source[at..].find('{') {
        let open = at + offset;
        let body = open + 2;
        at = match source.as_bytes().get(open + 1) {
            Some(b'#') => source[body..].find("#}").map_or(source.len(), |end| body + end + 2),
            Some(b'{') => end_of_expression(source, body, "}}"),
            Some(b'%') => {
                let (start, end) = word(source, body);
                let replacement = match &source[start..end] {
                    "generation" if is_bare(source, end) => format!("call {FUNCTION}()"),
                    "endgeneration" if is_bare(source, end) => "endcall".to_owned(),
                    "raw" if is_bare(source, end) => {
                        at = end_of_raw(source, end);
                        continue;
                    }
                    _ => {
                        at = end_of_expression(source, body, "%}");
                        continue;
                    }
                };
                rewritten.push_str(&source[copied..start]);
                rewritten.push_str(&replacement);
                copied = end;
                end
            }
            _ => open + 1,
        };
    }
    rewritten.push_str(&source[copied..]);
    (rewritten, copied > 0)
}

/// What a generation block calls: the body, between marks.
pub(super) fn mark_generation(state: &mut State<'_, '_>, kwargs: Kwargs) -> Result<Value, Error> {
    let caller: Value = kwargs.get("caller")?;
    let body = caller.call(state, &[])?;
    Ok(Value::from(format!("{OPEN}{body}{CLOSE}")))
}

/// The range of the name a tag begins with; `from` is behind its `{%`.
fn word(source: &str, from: usize) -> (usize, usize) {
    let tag = &source[from..];
    let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
    let start = source.len() - tag.len();
    let length = tag.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tag.len());
    (start, start + length)
}

/// Whether the tag ends here: nothing follows its name.
fn is_bare(source: &str, from: usize) -> bool {
    let rest = source[from..].trim_start();
    rest.strip_prefix(['-', '+']).unwrap_or(rest).starts_with("%}")
}

fn end_of_raw(source: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(offset) = source[at..].find("{%") {
        at += offset + 2;
        let (start, end) = word(source, at);
        if &source[start..end] == "endraw" {
            return end;
        }
    }
    source.len()
}

/// The offset behind `close`, which counts outside string literals and brackets only.
fn end_of_expression(source: &str, from: usize, close: &str) -> usize {
    let bytes = source.as_bytes();
    let (mut depth, mut at) = (0_usize, from);
    while let Some(&byte) = bytes.get(at) {
        if depth == 0 && bytes[at..].starts_with(close.as_bytes()) {
            return at + close.len();
        }
        match byte {
            b'\'' | b'"' => at = end_of_string(bytes, at),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    source.len()
}

/// The offset of the quote that ends the string literal that begins at `from`.
fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() && bytes[at] != bytes[from] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::rewrite_tags;

    #[test]
    fn tags_become_call_blocks() {
        let (rewritten, found) =
            rewrite_tags("a{%- generation -%}b{% endgeneration %}{%+ generation+%}");
        assert!(found);
        assert_eq!(
            rewritten,
            "a{%- call __generation__() -%}b{% endcall %}{%+ call __generation__()+%}"
        );
    }

    #[test]
    fn what_only_looks_like_a_tag_stays() {
        let source = "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}\
                      {{ '{% generation %}' }}{{ {'a': {'b': \"\\\"}}{% generation %}\"}} }}\
                      {% if generation %}{% set x = '%}{% generation %}' %}{% generation x %}{";
        assert_eq!(rewrite_tags(source), (source.to_owned(), false));
    }

    proptest! {
        #[test]
        fn any_source_can_be_scanned(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "{%", "%}", "{{", "}}", "{#", "#}", "-", " ", "'", "\"", "\\", "{", "(", "raw",
                    "endraw", "generation", "endgeneration", "\u{e9}", "\n",
                ]),
                0..24,
            )
        ) {
            let source = pieces.concat();
            let (rewritten, found) = rewrite_tags(&source);
            prop_assert_eq!(found, rewritten != source);
            prop_assert_eq!(source.lines().count(), rewritten.lines().count());
        }
    }
}
