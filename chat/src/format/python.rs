//! Python literals as JSON values: strings, decimal numbers, `True`, `False`, `None`, lists, tuples
//! (lists in JSON), and dicts whose keys are strings.
//!
//! What Python itself would refuse is refused here, `true` and `null` for instance. So are string
//! prefixes (`r"x"`), joined strings (`"a" "b"`), `\N{..}`, sets, and numbers with a base or
//! underscores.

use std::str::Chars;

use serde_json::{Map, Number, Value};

use super::DEPTH_MAX;

/// The value of a literal, if `text` is one and nothing else.
pub(crate) fn read(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    let value = reader.value(DEPTH_MAX)?;
    reader.skip_white();
    reader.rest.is_empty().then_some(value)
}

/// Appends `value` as a literal. Strings have double quotes and the escapes of JSON, which are
/// escapes of Python.
pub(crate) fn write(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push_str("None"),
        Value::Bool(true) => text.push_str("True"),
        Value::Bool(false) => text.push_str("False"),
        Value::Number(_) | Value::String(_) => text.push_str(&crate::json::python_json(value)),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(entries) => {
            text.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                text.push_str(&crate::json::python_json(&Value::from(key.as_str())));
                text.push_str(": ");
                write(value, text);
            }
            text.push('}');
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip_white(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// A value, of lists and dicts at most `levels` deep.
    fn value(&mut self, levels: usize) -> Option<Value> {
        self.skip_white();
        match self.rest.chars().next()? {
            '[' => self.list(levels.checked_sub(1)?),
            '(' => self.tuple(levels.checked_sub(1)?),
            '{' => self.dict(levels.checked_sub(1)?),
            '"' | '\'' => self.string().map(Value::from),
            '0'..='9' | '.' | '-' | '+' => self.number(),
            _ => self.constant(),
        }
    }

    fn list(&mut self, levels: usize) -> Option<Value> {
        let mut items = Vec::new();
        self.sequence("[", "]", |reader| {
            items.push(reader.value(levels)?);
            Some(())
        })?;
        Some(Value::Array(items))
    }

    /// A tuple, or one value in parentheses, which no comma follows.
    fn tuple(&mut self, levels: usize) -> Option<Value> {
        let (mut items, text) = (Vec::new(), self.rest);
        self.sequence("(", ")", |reader| {
            items.push(reader.value(levels)?);
            Some(())
        })?;
        let inner = text[..text.len() - self.rest.len() - 1].trim_end();
        if items.len() == 1 && !inner.ends_with(',') { items.pop() } else { Some(items.into()) }
    }

    fn dict(&mut self, levels: usize) -> Option<Value> {
        let mut entries = Map::new();
        self.sequence("{", "}", |reader| {
            let key = reader.string()?;
            reader.skip_white();
            let value = if reader.take(":") { reader.value(levels)? } else { return None };
            // The last of two equal keys counts, as in Python.
            entries.insert(key, value);
            Some(())
        })?;
        Some(Value::Object(entries))
    }

    /// Items between brackets with commas between them and perhaps one after the last.
    fn sequence(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.take(open);
        loop {
            self.skip_white();
            if self.take(close) {
                return Some(());
            }
            item(self)?;
            self.skip_white();
            if !self.take(",") {
                return self.take(close).then_some(());
            }
        }
    }

    fn constant(&mut self) -> Option<Value> {
        let constants =
            [("None", Value::Null), ("True", Value::from(true)), ("False", Value::from(false))];
        let (name, value) = constants.into_iter().find(|(name, _)| self.rest.starts_with(name))?;
        self.take(name);
        let goes_on = self.rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        (!goes_on).then_some(value)
    }

    fn number(&mut self) -> Option<Value> {
        let is_part = |(index, c): (usize, char)| {
            let follows_exponent = self.rest[..index].ends_with(['e', 'E']);
            c.is_ascii_alphanumeric()
                || matches!(c, '.' | '_')
                || (matches!(c, '+' | '-') && (index == 0 || follows_exponent))
        };
        let end = self.rest.char_indices().find(|part| !is_part(*part));
        let (text, rest) = self.rest.split_at(end.map_or(self.rest.len(), |(index, _)| index));
        self.rest = rest;
        number(text).map(Value::Number)
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let triple: String = [quote; 3].iter().collect();
        let is_triple = self.take(&triple);
        if !is_triple {
            self.rest = &self.rest[1..];
        }
        let mut text = String::new();
        let mut chars = self.rest.chars();
        loop {
            let rest = chars.as_str();
            if is_triple && rest.starts_with(&triple) {
                self.rest = &rest[triple.len()..];
                return Some(text);
            }
            match chars.next()? {
                '\\' => escape(&mut chars, &mut text)?,
                '\n' if !is_triple => return None,
                c if c == quote && !is_triple => {
                    self.rest = chars.as_str();
                    return Some(text);
                }
                c => text.push(c),
            }
        }
    }
}

/// What stands for the escape whose backslash was just read.
fn escape(chars: &mut Chars<'_>, text: &mut String) -> Option<()> {
    let c = chars.next()?;
    match c {
        '\n' => {}
        '\\' | '\'' | '"' => text.push(c),
        'a' => text.push('\u{7}'),
        'b' => text.push('\u{8}'),
        'f' => text.push('\u{c}'),
        'n' => text.push('\n'),
        'r' => text.push('\r'),
        't' => text.push('\t'),
        'v' => text.push('\u{b}'),
        'x' => text.push(char::from_u32(hex(chars, 2)?)?),
        'u' => text.push(unicode(chars)?),
        'U' => text.push(char::from_u32(hex(chars, 8)?)?),
        'N' => return None,
        '0'..='7' => text.push(octal(c, chars)?),
        _ => text.extend(['\\', c]),
    }
    Some(())
}

/// The character of `\uXXXX`. Two halves of a surrogate pair make one, as in JSON: models write it.
fn unicode(chars: &mut Chars<'_>) -> Option<char> {
    let first = hex(chars, 4)?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first);
    }
    let (backslash, u) = (chars.next()?, chars.next()?);
    let second = hex(chars, 4).filter(|second| (0xdc00..0xe000).contains(second))?;
    let is_pair = (backslash, u) == ('\\', 'u');
    char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)).filter(|_| is_pair)
}

fn hex(chars: &mut Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0_u32, |value, _| Some((value << 4) | chars.next()?.to_digit(16)?))
}

/// One to three octal digits, of which `first` is read.
fn octal(first: char, chars: &mut Chars<'_>) -> Option<char> {
    let mut value = first.to_digit(8)?;
    for _ in 0..2 {
        let Some(digit) = chars.clone().next().and_then(|c| c.to_digit(8)) else { break };
        value = value * 8 + digit;
        chars.next();
    }
    char::from_u32(value)
}

/// A decimal number. An integer that 64 bits do not hold becomes a float, as in JSON.
fn number(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_integer = digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_integer {
        let has_leading_zero = digits.starts_with('0') && digits.bytes().any(|byte| byte != b'0');
        if digits.is_empty() || has_leading_zero {
            return None;
        }
        let signed = text.parse::<i64>().map(Number::from);
        if let Ok(number) = signed.or_else(|_| text.parse::<u64>().map(Number::from)) {
            return Some(number);
        }
    }
    // Rust also reads "inf" and "nan".
    let is_plain = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    text.parse().ok().filter(|_| is_plain).and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{read, write};
    use crate::{format::DEPTH_MAX, testing::any_arguments};

    #[test]
    fn literals_are_read_as_python_reads_them() {
        let cases = [
            ("1", json!(1)),
            (" -7 ", json!(-7)),
            ("+7", json!(7)),
            ("000", json!(0)),
            ("18446744073709551615", json!(u64::MAX)),
            ("18446744073709551616", json!(18446744073709551616.0)),
            ("1.5", json!(1.5)),
            ("1.", json!(1.0)),
            (".5", json!(0.5)),
            ("-2.5e-3", json!(-0.0025)),
            ("1E5", json!(100000.0)),
            ("True", json!(true)),
            ("False", json!(false)),
            ("None", json!(null)),
            ("[]", json!([])),
            ("[1, 'a', [None,],]", json!([1, "a", [null]])),
            ("()", json!([])),
            ("(1)", json!(1)),
            ("( 'a,' )", json!("a,")),
            ("(1 , )", json!([1])),
            ("((1, 2), (), (3))", json!([[1, 2], [], 3])),
            ("{}", json!({})),
            ("{'a': 1, \"b\": {'c': []}, 'a': 2}", json!({"a": 2, "b": {"c": []}})),
            ("'it\"s'", json!("it\"s")),
            ("\"it's\"", json!("it's")),
            ("'it\\'s'", json!("it's")),
            ("''", json!("")),
            ("''''a'\n''b'''", json!("'a'\n''b")),
            ("\"\"\"a\"b\"\"\"", json!("a\"b")),
            (r"'\n\t\\\x41\u00e9\U0001f600\101\0\q'", json!("\n\t\\A\u{e9}\u{1f600}A\0\\q")),
            (r"'\ud83d\ude00'", json!("\u{1f600}")),
            ("'a\\\nb'", json!("ab")),
        ];
        for (text, value) in cases {
            assert_eq!(read(text), Some(value), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let texts = [
            "",
            " ",
            "true",
            "null",
            "nan",
            "inf",
            "-inf",
            "Truer",
            "x",
            "01",
            "1_000",
            "0x10",
            "1e",
            "--1",
            "-",
            ".",
            "1e999",
            "'a",
            "'a\nb'",
            "'a' 'b'",
            "r'a'",
            "'''a''",
            "(,)",
            "(1",
            "(1]",
            "{'a', 'b'}",
            "{1: 2}",
            "{'a'}",
            "[1 2]",
            "[,]",
            "[1,,]",
            "[1",
            "{'a': 1",
            "1 2",
            "'\\x4'",
            "'\\ud83d'",
            "'\\ud83dx'",
            "'\\N{DASH}'",
            "1 + 1",
            "f()",
        ];
        for text in texts {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(read(&nested(DEPTH_MAX)).is_some());
        assert_eq!(read(&nested(DEPTH_MAX + 1)), None);
        assert_eq!(read(&"[".repeat(1_000_000)), None);
        assert_eq!(read(&"(".repeat(1_000_000)), None);
    }

    proptest! {
        #[test]
        fn a_written_value_reads_as_itself(arguments in any_arguments(), float in any::<f64>()) {
            let value = Value::Array(vec![Value::Object(arguments), Value::from(float)]);
            let mut text = String::new();
            write(&value, &mut text);
            prop_assert_eq!(read(&text), Some(value));
        }
    }
}
