//! Tells a small episode with a template before it is trusted with others.

use serde_json::{Map, Value, json};

use super::Renderer;
use crate::{
    format::{Format, MessageParser, parse_message_with_tools},
    template::TemplateError,
};

const QUESTION: &str = "Where is it warmer, Bern or Oslo?";
const ANSWER: &str = "In Bern.";
/// Arguments of each call, and what the tool says.
const TURNS: [(&str, &str); 2] = [("Bern", "21 degrees"), ("Oslo", "17 degrees")];

/// The first message of the episode, and its tools.
pub(super) fn question() -> (Vec<Value>, Vec<Value>) {
    let tool = json!({"type": "function", "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "required": ["city"],
            "properties": {"city": {"type": "string", "description": "A city."}}}}});
    (vec![json!({"role": "user", "content": QUESTION})], vec![tool])
}

/// Whether episodes can be told with the template, and what is odd about it all the same.
pub(super) fn check(renderer: &Renderer) -> Result<Option<String>, TemplateError> {
    let encoder = &renderer.inner.encoder;
    let tokenizer = renderer.tokenizer();
    let (_, tools) = question();
    let (mut dialogue, _) = renderer.open(&tools, QUESTION)?;
    for (city, result) in TURNS {
        let arguments = Map::from_iter([("city".to_owned(), Value::from(city))]);
        let written = dialogue.message_of("", &[("weather", &arguments)])?;
        let mut reply = parse_message_with_tools(tokenizer, &written, &tools);
        let reads = matches!(reply.calls.as_slice(),
            [call] if call.name == "weather" && call.arguments == arguments);
        if !reads {
            let format = tokenizer.format().name();
            let call = tokenizer.decode(&written);
            let readers = readers(&call, &tools);
            return Err(TemplateError::Format { file: encoder.file(), call, format, readers });
        }
        // What a template does to reasoning is where they differ most.
        reply.text = format!("<think>\nI look up {city}.\n</think>\n\n");
        let continuation = dialogue.answer(&reply, &[result.to_owned()])?;
        if !tokenizer.decode(&continuation.results.token_ids).contains(result) {
            return Err(encoder.unfit("leaves out what a tool answers (messages of role `tool`)"));
        }
    }
    let written = dialogue.message_of(ANSWER, &[])?;
    if !tokenizer.decode(&written).contains(ANSWER) {
        return Err(encoder.unfit("leaves out what the assistant says"));
    }
    let report = encoder.template().probe_prefixes(Some(&renderer.inner.variables));
    match report.tool_loop? {
        None => Ok(None),
        Some(broken) => Ok(Some(format!(
            "{} writes a message of the assistant otherwise once others follow it; episodes keep \
             it as it was sampled, and a server that renders the whole conversation again shows \
             the model something else: {broken}",
            encoder.file()
        ))),
    }
}

/// Names of the formats that find the call in a message.
fn readers(message: &str, tools: &[Value]) -> Vec<&'static str> {
    let reads = |format: &Format| {
        let mut parser = MessageParser::new(*format, tools);
        parser.push_text(message.as_bytes());
        let calls = parser.finish().1.calls;
        matches!(calls.as_slice(), [call] if !call.malformed && call.name == "weather")
    };
    Format::ALL.into_iter().filter(reads).map(Format::name).collect()
}
