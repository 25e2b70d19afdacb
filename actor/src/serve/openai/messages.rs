//! Messages and tools of a chat request, as a chat template wants them.
//!
//! Templates know text and objects; clients may also send text in parts, and arguments as a string
//! that spells JSON. Everything else passes as it is, so a template may use further keys.

use serde_json::{Map, Value};

use super::ApiError;

/// Reads `messages` of a request.
///
/// # Errors
/// The first message that cannot be understood, by its path.
pub fn conversation(messages: Option<&Value>) -> Result<Vec<Value>, ApiError> {
    let list = messages.and_then(Value::as_array).filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| invalid("messages", "a list of at least one message"))?;
    list.iter().enumerate().map(|(at, value)| message(&format!("messages[{at}]"), value)).collect()
}

/// Reads `tools` of a request; none where it is absent. A bare definition, without
/// `{"type": "function", "function": ..}` around it, is accepted for models trained on those.
///
/// # Errors
/// The first tool that is no function with a name.
pub fn tools(tools: Option<&Value>) -> Result<Vec<Value>, ApiError> {
    let list = match tools {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(invalid("tools", "a list of tools")),
    };
    for (at, tool) in list.iter().enumerate() {
        let is_function = tool.get("type").and_then(Value::as_str) == Some("function");
        let name = if is_function { "/function/name" } else { "/name" };
        if !tool.pointer(name).is_some_and(Value::is_string) {
            let expected = "{\"type\": \"function\", \"function\": {\"name\": ..}}";
            return Err(invalid(&format!("tools[{at}]"), expected));
        }
    }
    Ok(list.clone())
}

fn message(path: &str, value: &Value) -> Result<Value, ApiError> {
    let mut message = value.as_object().cloned().ok_or_else(|| invalid(path, "an object"))?;
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
    let is_assistant = match role {
        "assistant" => true,
        "system" | "developer" | "user" | "tool" => false,
        _ => {
            let roles = "system, developer, user, assistant or tool";
            return Err(invalid(&format!("{path}.role"), roles));
        }
    };
    let content = match message.get("content") {
        None | Some(Value::Null) if is_assistant => Value::Null,
        Some(content) => text(&format!("{path}.content"), content)?.into(),
        None => return Err(invalid(&format!("{path}.content"), "text")),
    };
    message.insert("content".to_owned(), content);
    match message.get("tool_calls") {
        None => {}
        Some(Value::Null) => {
            message.shift_remove("tool_calls");
        }
        Some(calls) => {
            let calls = tool_calls(&format!("{path}.tool_calls"), calls)?;
            message.insert("tool_calls".to_owned(), calls);
        }
    }
    Ok(message.into())
}

/// A text, or a list of text parts: one per line.
fn text(path: &str, content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err(invalid(path, "text or a list of text parts")),
    };
    let mut lines = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let is_text = part.get("type").and_then(Value::as_str) == Some("text");
        let text = part.get("text").and_then(Value::as_str).filter(|_| is_text);
        lines.push(text.ok_or_else(|| {
            invalid(&format!("{path}[{at}]"), "a part of type text; this model reads text only")
        })?);
    }
    Ok(lines.join("\n"))
}

fn tool_calls(path: &str, calls: &Value) -> Result<Value, ApiError> {
    let calls = calls.as_array().ok_or_else(|| invalid(path, "a list of tool calls"))?;
    let call = |(at, call): (usize, &Value)| {
        let fault =
            || invalid(&format!("{path}[{at}].function"), "{\"name\": .., \"arguments\": ..}");
        let mut call = call.as_object().cloned().ok_or_else(fault)?;
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let function = function.filter(|f| f.get("name").is_some_and(Value::is_string));
        let function = function.ok_or_else(fault)?;
        if let Some(Value::String(spelled)) = function.get("arguments") {
            // Text that is no JSON object stays text: the model once wrote it so.
            if let Ok(arguments) = serde_json::from_str::<Map<String, Value>>(spelled) {
                function.insert("arguments".to_owned(), arguments.into());
            }
        }
        Ok(Value::Object(call))
    };
    calls.iter().enumerate().map(call).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn invalid(path: &str, expected: &str) -> ApiError {
    ApiError::invalid(path, format!("{path} must be {expected}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_become_text_and_spelled_arguments_objects() {
        let call = |arguments: Value| json!([{"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
        let messages = json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": call(json!("{\"x\": 1}"))},
            {"role": "tool", "tool_call_id": "a", "content": "3"},
            {"role": "assistant", "tool_calls": call(json!("no json"))},
            {"role": "assistant", "content": "c", "tool_calls": null},
        ]);
        let read = conversation(Some(&messages)).expect("a conversation");
        assert_eq!(read[0]["content"], "a\nb");
        assert_eq!(read[1]["tool_calls"], call(json!({"x": 1})));
        assert_eq!(read[2], messages[2]);
        assert_eq!(read[3]["tool_calls"], call(json!("no json")));
        assert_eq!(read[4], json!({"role": "assistant", "content": "c"}));
    }

    #[test]
    fn faults_are_named_by_their_path() {
        let faults = [
            (json!(null), "messages"),
            (json!([]), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": null}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": [{"type": "image_url"}]}]),
                "messages[0].content[0]",
            ),
            (json!([{"role": "assistant", "tool_calls": 3}]), "messages[0].tool_calls"),
            (
                json!([{"role": "assistant", "tool_calls": [{"function": {}}]}]),
                "messages[0].tool_calls[0].function",
            ),
        ];
        for (messages, path) in faults {
            let error = conversation(Some(&messages)).expect_err(path);
            assert_eq!(error.param.as_deref(), Some(path), "{messages}");
        }
        let error = tools(Some(&json!([{"type": "function"}]))).expect_err("no name");
        assert_eq!(error.param.as_deref(), Some("tools[0]"));
        assert_eq!(tools(Some(&Value::Null)), Ok(Vec::new()));
    }
}
