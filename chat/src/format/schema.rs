//! Types of parameters, for a format that writes every value as plain text.

use std::collections::BTreeMap;

use serde_json::Value;

use super::python;
use crate::json::python_json;

/// What the definitions of tools say about the types of their parameters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schemas {
    /// JSON Schema type names by tool and parameter; empty where a definition names none.
    tools: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

impl Schemas {
    /// Reads OpenAI tool definitions, bare or under `function`; what it cannot read it leaves out.
    pub(crate) fn of(tools: &[Value]) -> Self {
        let tools = tools.iter().filter_map(|tool| {
            let function = tool.get("function").unwrap_or(tool);
            let parameters = function.get("parameters")?;
            let properties = parameters.get("properties").unwrap_or(parameters).as_object()?;
            let types = |(name, schema): (&String, &Value)| (name.clone(), types(schema));
            Some((
                function.get("name")?.as_str()?.to_owned(),
                properties.iter().map(types).collect(),
            ))
        });
        Self { tools: tools.collect() }
    }

    /// The value that `text` writes for a parameter. Text that is no value of the declared type
    /// stays a string, which the tool then refuses by name. Where no type is declared, JSON that is
    /// not a string is read as JSON, and all else is a string.
    pub(crate) fn value(&self, tool: &str, parameter: &str, text: &str) -> Value {
        let types = self.tools.get(tool).and_then(|parameters| parameters.get(parameter));
        let value = match types.map(Vec::as_slice) {
            None | Some([]) => json(text).filter(|value| !value.is_string()),
            Some(types) => types.iter().find_map(|name| typed(name, text)),
        };
        value.unwrap_or_else(|| Value::from(text))
    }
}

/// The type names of a parameter: of its schema, or of the alternatives of it.
fn types(schema: &Value) -> Vec<String> {
    let alternatives = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(key)?.as_array());
    let declared: Vec<&Value> = match (schema, schema.get("type")) {
        (Value::String(_), _) => vec![schema],
        (_, Some(Value::Array(names))) => names.iter().collect(),
        (_, Some(name)) => vec![name],
        (_, None) => alternatives.into_iter().flatten().filter_map(|s| s.get("type")).collect(),
    };
    let mut names: Vec<_> =
        declared.into_iter().filter_map(Value::as_str).map(str::to_owned).collect();
    // Any text is a string, so that comes last.
    names.sort_by_key(|name| name == "string");
    names
}

fn typed(name: &str, text: &str) -> Option<Value> {
    let trimmed = text.trim();
    match name {
        "string" => Some(Value::from(text)),
        "integer" => json(trimmed).filter(is_whole),
        "number" => json(trimmed).filter(Value::is_number),
        "boolean" if trimmed.eq_ignore_ascii_case("true") => Some(Value::from(true)),
        "boolean" if trimmed.eq_ignore_ascii_case("false") => Some(Value::from(false)),
        "null" if ["null", "None"].contains(&trimmed) => Some(Value::Null),
        "array" => literal(trimmed).filter(Value::is_array),
        "object" => literal(trimmed).filter(Value::is_object),
        _ => None,
    }
}

/// An integer as JSON Schema has it: 2.0 is one.
fn is_whole(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

/// JSON, or what models write in its place.
fn literal(text: &str) -> Option<Value> {
    json(text).or_else(|| python::read(text))
}

fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

/// How a value is written: a string as it is, anything else as JSON.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => python_json(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Schemas;

    #[test]
    fn a_value_has_the_type_that_the_tool_declares() {
        let schemas = Schemas::of(&[json!({"type": "function", "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {
                "s": {"type": "string"},
                "i": {"type": "integer"},
                "n": {"type": "number"},
                "b": {"type": "boolean"},
                "a": {"type": "array"},
                "o": {"type": "object"},
                "maybe": {"type": ["string", "null"]},
                "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "any": {},
            }},
        }})]);
        let cases = [
            ("s", "1", json!("1")),
            ("s", " \"x\" ", json!(" \"x\" ")),
            ("i", "-3", json!(-3)),
            ("i", "3.5", json!("3.5")),
            ("i", "3.0", json!(3.0)),
            ("i", "-0", json!(-0.0)),
            ("i", "18446744073709551615", json!(u64::MAX)),
            ("i", "many", json!("many")),
            ("n", "2.5", json!(2.5)),
            ("n", "2", json!(2)),
            ("b", "True", json!(true)),
            ("b", "false", json!(false)),
            ("b", "1", json!("1")),
            ("a", "[1, \"x\"]", json!([1, "x"])),
            ("a", "['x', None]", json!(["x", null])),
            ("o", "{\"k\": true}", json!({"k": true})),
            ("o", "[1]", json!("[1]")),
            ("n", "1e400", json!("1e400")),
            ("maybe", "null", json!(null)),
            ("maybe", "nothing", json!("nothing")),
            ("either", "4", json!(4)),
            ("either", "four", json!("four")),
            ("any", "4", json!(4)),
            ("unknown", "\"4\"", json!("\"4\"")),
        ];
        for (parameter, text, value) in cases {
            assert_eq!(schemas.value("f", parameter, text), value, "{parameter} {text}");
        }
        assert_eq!(schemas.value("g", "s", "1"), json!(1));
    }

    #[test]
    fn definitions_of_any_shape_are_read_or_left_out() {
        let shapes = [json!(null), json!({"name": 3, "parameters": []}), json!({"function": 1})];
        assert_eq!(Schemas::of(&shapes).tools.len(), 0);
        let small = Schemas::of(&[json!({"name": "f", "parameters": {"x": "string"}})]);
        assert_eq!(small.value("f", "x", "1"), Value::from("1"));
    }
}
