//! The `tojson` filter as `transformers` defines it: `json.dumps` of Python, which escapes no HTML
//! and keeps the order of keys, with its four options.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Rest, ValueKind},
};

use super::{MAX_DEPTH, marks::is_reserved};
use crate::json::python_float;

/// The options of `json.dumps` that a template can set.
struct Style {
    ascii: bool,
    /// What one level of indentation is; none means everything on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sorted: bool,
}

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let style = Style::from_args(&args, &kwargs)?;
    let mut out = String::new();
    write(&mut out, value, &style, 0)?;
    Ok(Value::from(out))
}

impl Style {
    fn from_args(positional: &[Value], kwargs: &Kwargs) -> Result<Self, Error> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        if positional.len() > names.len() {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        let option = |index: usize| -> Result<Value, Error> {
            let named: Option<Value> = kwargs.get(names[index])?;
            Ok(named.or_else(|| positional.get(index).cloned()).unwrap_or(Value::from(())))
        };
        let [ascii, indent, separators, sorted] = [option(0)?, option(1)?, option(2)?, option(3)?];
        kwargs.assert_all_used()?;
        let indent = indentation(&indent)?;
        let (item_separator, key_separator) = if separators.is_none() {
            (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
        } else {
            pair(&separators)?
        };
        let (ascii, sorted) = (ascii.is_true(), sorted.is_true());
        Ok(Self { ascii, indent, item_separator, key_separator, sorted })
    }
}

/// Python takes a number of blanks or the text itself.
fn indentation(value: &Value) -> Result<Option<String>, Error> {
    if value.is_none() {
        return Ok(None);
    }
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let blanks = i64::try_from(value.clone())?.clamp(0, 64);
    Ok(Some(" ".repeat(usize::try_from(blanks).unwrap_or_default())))
}

fn pair(value: &Value) -> Result<(String, String), Error> {
    let items: Vec<_> = value.try_iter()?.map(|item| item.to_string()).collect();
    match <[String; 2]>::try_from(items) {
        Ok([items, keys]) => Ok((items, keys)),
        Err(_) => Err(invalid("tojson: separators takes an item and a key separator")),
    }
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("tojson: the value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<_> = value.try_iter()?.collect();
            write_container(out, ['[', ']'], &items, style, depth, |out, item| {
                write(out, item, style, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut entries = entries(value)?;
            if style.sorted {
                entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            write_container(out, ['{', '}'], &entries, style, depth, |out, (key, item)| {
                write_string(out, key, style.ascii);
                out.push_str(&style.key_separator);
                write(out, item, style, depth + 1)
            })?;
        }
        other => return Err(invalid(&format!("tojson: {other} is not JSON serializable"))),
    }
    Ok(())
}

fn write_container<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: &[T],
    style: &Style,
    depth: usize,
    mut write_item: impl FnMut(&mut String, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, depth + 1);
        write_item(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// The entries of a map, in their order, with keys as `json.dumps` spells them.
fn entries(map: &Value) -> Result<Vec<(String, Value)>, Error> {
    map.try_iter()?
        .map(|key| {
            let name = match key.kind() {
                ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                ValueKind::None => "null".to_owned(),
                ValueKind::Bool => (if key.is_true() { "true" } else { "false" }).to_owned(),
                ValueKind::Number => number(&key),
                other => return Err(invalid(&format!("tojson: a key cannot be {other}"))),
            };
            Ok((name, map.get_item(&key)?))
        })
        .collect()
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => python_float(float),
        _ => value.to_string(),
    }
}

/// The marks of [`super::marks`] are no part of the text, so not even ASCII output escapes them.
fn write_string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' => write_escape(out, c),
            '\u{7f}'.. if ascii && !is_reserved(c) => write_escape(out, c),
            _ => out.push(c),
        }
    }
    out.push('"');
}

fn write_escape(out: &mut String, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        out.push_str(&format!("\\u{unit:04x}"));
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}
