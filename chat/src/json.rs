//! JSON spelled as Python's `json.dumps(value, ensure_ascii=False)` spells it, which is what chat
//! models read and write in training data.

use std::io;

use serde::Serialize as _;
use serde_json::{Serializer, Value, ser::Formatter};

/// `value` as JSON with `", "` and `": "`, and floats as Python's `repr`.
#[must_use]
pub fn python_json(value: &Value) -> String {
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, Python))
        .expect("a value has string keys only, and writing to memory cannot fail");
    String::from_utf8(bytes).expect("the serializer writes UTF-8")
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(w, first)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        separate(w, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, w: &mut W, value: f64) -> io::Result<()> {
        w.write_all(python_float(value).as_bytes())
    }
}

fn separate<W: ?Sized + io::Write>(w: &mut W, first: bool) -> io::Result<()> {
    if first { Ok(()) } else { w.write_all(b", ") }
}

/// Shortest digits that read back as `value`, with an exponent below 1e-4 and from 1e16 on. What is
/// not finite has the name `json.dumps` gives it.
pub(crate) fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::python_json;

    /// The right-hand sides are what Python 3 prints.
    #[test]
    fn spells_as_python_does() {
        let value =
            json!({"a": [1, -2, true, null], "b": {}, "c": [], "d": "\"\\\n\t\u{1}\u{7f}\u{e9}/"});
        assert_eq!(
            python_json(&value),
            "{\"a\": [1, -2, true, null], \"b\": {}, \"c\": [], \
             \"d\": \"\\\"\\\\\\n\\t\\u0001\u{7f}\u{e9}/\"}"
        );
        let floats = [1.0, -0.0, 0.1, 1e15, 1e16, 1.5e300, 0.0001, 0.00001, 1.25e-7, 1e22];
        let printed = floats.map(|float| python_json(&json!(float)));
        assert_eq!(
            printed.join(" "),
            "1.0 -0.0 0.1 1000000000000000.0 1e+16 1.5e+300 0.0001 1e-05 1.25e-07 1e+22"
        );
    }
}
