//! What Python's strings, lists and numbers do that the template engine does otherwise or not at
//! all. What `minijinja_contrib::pycompat` does right is left to it.

use std::borrow::Cow;

use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, Tuple, ValueKind, from_args},
};
use minijinja_contrib::pycompat;

use super::MAX_DEPTH;
use crate::json::python_float;

/// Methods of values, by their Python names.
pub(super) fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if value.kind() == ValueKind::String
        && let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)
    {
        return result;
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// What `{{ value }}` writes: `str(value)`.
pub(super) fn print(
    out: &mut Output<'_>,
    _: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    Ok(out.write_str(&string(value)?)?)
}

/// The `string` filter: `str(value)`.
pub(super) fn string(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    let mut text = String::new();
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            write_repr(&mut text, value, 0)?;
        }
        _ => text = value.to_string(),
    }
    Ok(Cow::Owned(text))
}

/// `repr(value)`. The engine's own differs in floats.
fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        let detail = "cannot print a value that is nested so deeply";
        return Err(Error::new(ErrorKind::InvalidOperation, detail));
    }
    let brackets = match value.kind() {
        ValueKind::Number => {
            match f64::try_from(value.clone()) {
                Ok(float) if !value.is_integer() && float.is_finite() => {
                    out.push_str(&python_float(float));
                }
                _ => out.push_str(&value.to_string()),
            }
            return Ok(());
        }
        ValueKind::Seq | ValueKind::Iterable if value.is_tuple() => ['(', ')'],
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => ['[', ']'],
        ValueKind::Map if !value.is_kwargs() => ['{', '}'],
        _ => {
            out.push_str(&format!("{value:?}"));
            return Ok(());
        }
    };
    out.push(brackets[0]);
    let mut items = 0;
    for item in value.try_iter()? {
        out.push_str(if items > 0 { ", " } else { "" });
        write_repr(out, &item, depth + 1)?;
        if value.kind() == ValueKind::Map {
            out.push_str(": ");
            write_repr(out, &value.get_item(&item)?, depth + 1)?;
        }
        items += 1;
    }
    out.push_str(if items == 1 && brackets[0] == '(' { "," } else { "" });
    out.push(brackets[1]);
    Ok(())
}

/// The `trim` filter.
pub(super) fn trim(text: &Value, chars: Option<&str>) -> Value {
    Value::from(strip(&text.to_string(), chars, true, true))
}

/// The test `iterable`: nothing can be iterated over that Python refuses, none above all.
pub(super) fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
}

/// Options `sep` and `maxsplit`, by place or by name.
struct Split {
    separator: Option<String>,
    splits_max: usize,
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "strip" | "lstrip" | "rstrip" => from_args(args).map(|(chars,): (Option<&str>,)| {
            Value::from(strip(text, chars, method != "rstrip", method != "lstrip"))
        }),
        "split" => Split::from_args(args).and_then(|split| split.forwards(text)),
        "rsplit" => Split::from_args(args).and_then(|split| split.backwards(text)),
        "removeprefix" => from_args(args)
            .map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text))),
        "removesuffix" => from_args(args)
            .map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text))),
        "partition" => from_args(args).map(|(at,): (&str,)| match text.split_once(at) {
            Some((before, after)) => tuple([before, at, after]),
            None => tuple([text, "", ""]),
        }),
        "rpartition" => from_args(args).map(|(at,): (&str,)| match text.rsplit_once(at) {
            Some((before, after)) => tuple([before, at, after]),
            None => tuple(["", "", text]),
        }),
        _ => return None,
    })
}

fn tuple(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let drop = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(drop) } else { text };
    if end { text.trim_end_matches(drop) } else { text }
}

/// `str.isspace`: Unicode's blanks and the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

impl Split {
    fn from_args(args: &[Value]) -> Result<Self, Error> {
        let (positional, kwargs) = match args.split_last() {
            Some((last, rest)) if last.is_kwargs() => (rest, Kwargs::try_from(last.clone())?),
            _ => (args, Kwargs::from_iter::<[(&str, Value); 0]>([])),
        };
        let (separator, splits): (Option<String>, Option<i64>) = from_args(positional)?;
        let separator = match separator {
            Some(separator) => Some(separator),
            None => kwargs.get("sep")?,
        };
        let splits = match splits {
            Some(splits) => Some(splits),
            None => kwargs.get("maxsplit")?,
        };
        kwargs.assert_all_used()?;
        if separator.as_deref() == Some("") {
            return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
        }
        let splits_max = splits.and_then(|splits| usize::try_from(splits).ok());
        Ok(Self { separator, splits_max: splits_max.unwrap_or(usize::MAX) })
    }

    fn forwards(&self, text: &str) -> Result<Value, Error> {
        if let Some(separator) = &self.separator {
            let parts = text.splitn(self.splits_max.saturating_add(1), separator.as_str());
            return Ok(parts.map(Value::from).collect());
        }
        let mut parts = Vec::new();
        let mut rest = text.trim_start_matches(is_space);
        while !rest.is_empty() {
            let end = if parts.len() == self.splits_max { None } else { rest.find(is_space) };
            let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
            parts.push(Value::from(part));
            rest = after.trim_start_matches(is_space);
        }
        Ok(Value::from(parts))
    }

    fn backwards(&self, text: &str) -> Result<Value, Error> {
        let mut parts: Vec<Value> = Vec::new();
        if let Some(separator) = &self.separator {
            let limit = self.splits_max.saturating_add(1);
            parts.extend(text.rsplitn(limit, separator.as_str()).map(Value::from));
        } else {
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let blank =
                    if parts.len() == self.splits_max { None } else { rest.rfind(is_space) };
                let start =
                    blank.map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
                parts.push(Value::from(&rest[start..]));
                rest = rest[..start].trim_end_matches(is_space);
            }
        }
        parts.reverse();
        Ok(Value::from(parts))
    }
}
