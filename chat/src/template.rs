//! The chat template of the small model, for everything outside Ballast that serves it.

use serde_json::json;

use crate::json::python_json;

/// Jinja template that renders what [`crate::Renderer`] renders, through `apply_chat_template` of
/// `transformers` or any server that uses it. The system message lists the tools and nothing else.
pub const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

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
    use minijinja::{Environment, Value, context};
    use serde_json::json;

    use super::{CHAT_TEMPLATE, tokenizer_config_json};
    use crate::{
        ControlTokens, python_json,
        testing::{CONVERSATION, QUESTION, tools},
    };

    fn render(messages: &serde_json::Value, add_generation_prompt: bool) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", |value: Value| {
            python_json(&serde_json::to_value(value).unwrap())
        });
        let context = context! { tools => tools(), messages, add_generation_prompt };
        environment.render_str(CHAT_TEMPLATE, context).unwrap()
    }

    #[test]
    fn the_template_renders_what_the_renderer_renders() {
        let call =
            |name, argument| json!({"function": {"name": name, "arguments": {"name": argument}}});
        let messages = json!([
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "tool_calls": [call("product", "lamp"), call("customer", "anna")]},
            {"role": "tool", "content": "{\"price\": 14, \"stock\": 7}"},
            {"role": "tool", "content": "{\"balance\": 230}"},
            {"role": "assistant", "content": "Anna can pay 14."},
        ]);
        assert_eq!(render(&messages, false), CONVERSATION);
        let prompt = CONVERSATION.rsplit_once("Anna can").unwrap().0;
        let open = json!(messages.as_array().unwrap()[..4]);
        assert_eq!(render(&open, true), prompt);
    }

    #[test]
    fn the_config_names_control_tokens() {
        let config: serde_json::Value = serde_json::from_str(&tokenizer_config_json()).unwrap();
        assert_eq!(config["eos_token"], ControlTokens::NAMES[1]);
        assert_eq!(config["pad_token"], ControlTokens::NAMES[2]);
        assert_eq!(config["chat_template"], CHAT_TEMPLATE);
    }
}
