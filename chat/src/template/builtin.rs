//! The chat template of the small model, and of every checkpoint that comes without one.

use serde_json::json;

use crate::{control::Frame, format::Format, json::python_json};

/// The chat template of the small model: the system message lists the tools and nothing else, calls
/// are those of the Hermes format. It renders alike in `transformers` and any server that uses it.
pub const CHAT_TEMPLATE: &str = include_str!("../chat_template.jinja");

/// The same between the headers of Llama 3, with its calls.
const LLAMA3: &str = include_str!("../chat_template_llama3.jinja");

/// What writes the calls of a message in either template.
const CALLS: (&str, &str) = ("        {%- for call in message.tool_calls", "{%- endfor %}\n");

/// Takes its place for the Qwen XML format.
const QWEN_XML_CALLS: &str = r"        {%- for call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {%- set function = call.function or call %}
            {{- '<tool_call>\n<function=' + function.name + '>\n' }}
            {%- for name, value in function.arguments.items() %}
                {{- '<parameter=' + name + '>\n' }}
                {{- value if value is string else value | tojson }}
                {{- '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
";

/// Takes its place for the Pythonic format.
const PYTHONIC_CALLS: &str = r"        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {{- '[' if loop.first else ', ' }}
            {{- function.name + '(' }}
            {%- for name, value in function.arguments.items() %}
                {{- name + '=' }}
                {{- literal(value) }}
                {{- '' if loop.last else ', ' }}
            {%- endfor %}
            {{- ')' }}
            {{- ']' if loop.last }}
        {%- endfor %}
";

/// Writes a value as Python does, its strings as JSON does, which are Python's too.
const LITERAL: &str = r"{%- macro literal(value) %}
    {%- if value is mapping %}
        {{- '{' }}
        {%- for key, item in value.items() %}
            {{- key | tojson }}
            {{- ': ' }}
            {{- literal(item) }}
            {{- '' if loop.last else ', ' }}
        {%- endfor %}
        {{- '}' }}
    {%- elif value is string or value is number and value is not boolean %}
        {{- value | tojson }}
    {%- elif value is iterable %}
        {{- '[' }}
        {%- for item in value %}
            {{- literal(item) }}
            {{- '' if loop.last else ', ' }}
        {%- endfor %}
        {{- ']' }}
    {%- else %}
        {{- value | string }}
    {%- endif %}
{%- endmacro %}
";

/// The template of a checkpoint that has none.
pub(super) fn source(format: Format, frame: Frame) -> String {
    let template = match frame {
        Frame::ChatMl => CHAT_TEMPLATE,
        Frame::Llama3 => LLAMA3,
    };
    match format {
        Format::Hermes | Format::Llama3 => template.to_owned(),
        Format::QwenXml => with_calls(template, QWEN_XML_CALLS),
        Format::Pythonic => LITERAL.to_owned() + &with_calls(template, PYTHONIC_CALLS),
    }
}

fn with_calls(template: &str, calls: &str) -> String {
    let (begin, end) = CALLS;
    let (before, rest) = template.split_once(begin).unwrap_or((template, ""));
    let (_, after) = rest.split_once(end).unwrap_or_default();
    [before, calls, after].concat()
}

/// Contents of a `tokenizer_config.json` that lets `transformers` load the tokenizer: which tokens
/// end and pad a sequence, and the chat template.
#[must_use]
pub fn tokenizer_config_json() -> String {
    python_json(&json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::{CHAT_TEMPLATE, tokenizer_config_json};
    use crate::{
        ChatTemplate, ControlTokens,
        template::{Conversation, TemplateEncoder},
        testing::{self, CONVERSATION, QUESTION, tokenizer, tools},
    };

    fn template() -> ChatTemplate {
        ChatTemplate::from_source(CHAT_TEMPLATE, Map::new(), None).unwrap()
    }

    fn messages() -> Vec<Value> {
        let call =
            |name, argument| json!({"function": {"name": name, "arguments": {"name": argument}}});
        vec![
            json!({"role": "user", "content": QUESTION}),
            json!({"role": "assistant", "tool_calls": [call("product", "lamp"), call("customer", "anna")]}),
            json!({"role": "tool", "content": "{\"price\": 14, \"stock\": 7}"}),
            json!({"role": "tool", "content": "{\"balance\": 230}"}),
            json!({"role": "assistant", "content": "Anna can pay 14."}),
        ]
    }

    #[test]
    fn the_template_renders_the_example() {
        let (messages, tools) = (messages(), tools());
        let render = |messages, add_generation_prompt| {
            let tools = Some(&*tools);
            let conversation =
                Conversation { messages, tools, add_generation_prompt, ..Conversation::default() };
            template().render(&conversation).unwrap().text
        };
        assert_eq!(render(&messages, false), CONVERSATION);
        let prompt = CONVERSATION.rsplit_once("Anna can").unwrap().0;
        assert_eq!(render(&messages[..4], true), prompt);
    }

    #[test]
    fn a_conversation_at_once_has_the_ids_of_one_turn_by_turn() {
        let (messages, tools) = (messages(), tools());
        let encoder = TemplateEncoder::new(template(), tokenizer().clone()).unwrap();
        let conversation =
            Conversation { messages: &messages, tools: Some(&tools), ..Conversation::default() };
        let turn_by_turn = testing::Conversation::example().token_ids;
        assert_eq!(encoder.encode(&conversation).unwrap().token_ids, turn_by_turn);
    }

    #[test]
    fn the_config_names_control_tokens() {
        let config: Value = serde_json::from_str(&tokenizer_config_json()).unwrap();
        assert_eq!(config["eos_token"], ControlTokens::NAMES[1]);
        assert_eq!(config["pad_token"], ControlTokens::NAMES[2]);
        assert_eq!(config["chat_template"], CHAT_TEMPLATE);
    }
}
