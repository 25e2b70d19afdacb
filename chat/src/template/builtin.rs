//! The chat template of the small model, for everything outside Ballast that serves it.

use serde_json::json;

use crate::json::python_json;

/// Jinja template that renders what [`crate::Renderer`] renders, through `apply_chat_template` of
/// `transformers` or any server that uses it. The system message lists the tools and nothing else.
pub const CHAT_TEMPLATE: &str = include_str!("../chat_template.jinja");

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
    fn the_template_renders_what_the_renderer_renders() {
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
    fn the_template_gives_the_ids_of_the_renderer() {
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
