//! Which tokens of a conversation the assistant says, for a model that is to learn them.
//!
//! A template says so itself with `{% generation %}` blocks, or it is found out: what an assistant
//! writes is what the template adds to the prompt before it, up to the token that ends a message.

use super::{
    chat::Conversation,
    encode::{EncodedConversation, TemplateEncoder},
    error::TemplateError,
    marks::Stripped,
    prefix::PrefixBreak,
};

impl TemplateEncoder {
    /// The token ids of a conversation that is to be learned. The mask is 1 where the assistant
    /// speaks, whether or not the template marks it.
    ///
    /// # Errors
    /// When the template marks nothing and writes an assistant's message in the middle of the
    /// conversation otherwise than at its end, so that no model could have said it; and as
    /// [`TemplateEncoder::encode`]. Cut such a conversation into one for each of these messages.
    pub fn encode_for_training(
        &self,
        conversation: &Conversation<'_>,
    ) -> Result<EncodedConversation, TemplateError> {
        if self.template().marks_assistant(conversation)? {
            return self.encode(conversation);
        }
        let whole = self.render(conversation)?;
        let mut spans = Vec::new();
        let messages = conversation.messages;
        let by_assistant = (0..messages.len()).filter(|at| messages[*at]["role"] == "assistant");
        for index in by_assistant {
            let beginning = |end: usize, add_generation_prompt| {
                let messages = &messages[..end];
                self.render(&Conversation { messages, add_generation_prompt, ..*conversation })
            };
            let (prompt, said) = (beginning(index, true)?, beginning(index + 1, false)?);
            self.check_kept(&prompt.text, &said, index)?;
            let end = self.stop_after(&said, prompt.text.len());
            let end = end.ok_or_else(|| self.unfit("ends no message of the assistant"))?;
            self.check_kept(&said.text[..end], &whole, index)?;
            spans.push(prompt.text.len()..end);
        }
        let whole = Stripped { spans, ..whole };
        self.encode_part(&whole, 0..whole.text.len())
    }

    fn check_kept(
        &self,
        before: &str,
        after: &Stripped,
        message: usize,
    ) -> Result<(), TemplateError> {
        if after.text.starts_with(before) {
            return Ok(());
        }
        Err(self.not_preserving(before, &after.text, message, "assistant".to_owned()))
    }

    /// The error of a template that wrote `before` and then, for `message`, does not begin with it.
    pub(crate) fn not_preserving(
        &self,
        before: &str,
        after: &str,
        message: usize,
        role: String,
    ) -> TemplateError {
        let broken = PrefixBreak::between(before.to_owned(), after.to_owned(), message, role);
        TemplateError::NotPreserving { file: self.file(), broken: Box::new(broken) }
    }

    /// The error of a template that does not do what it has to.
    pub(crate) fn unfit(&self, problem: impl Into<String>) -> TemplateError {
        TemplateError::Unfit { file: self.file(), problem: problem.into() }
    }

    /// What errors call the template.
    pub(crate) fn file(&self) -> String {
        self.template().file(true).unwrap_or("the chat template").to_owned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::{Conversation, TemplateEncoder};
    use crate::{ChatTemplate, testing::tokenizer};

    /// With `BEGIN` and `END` in place of the generation tags.
    const TEMPLATE: &str = "\
        {%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}\
        {%- if message.role == 'assistant' %}BEGIN{{- message.content or '' }}\
        {%- for call in message.tool_calls or [] %}\
        {{- '<tool_call>' }}{{- call.function | tojson }}{{- '</tool_call>' }}\
        {%- endfor %}{{- '<|im_end|>' }}END\
        {%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}\
        {%- endfor %}\
        {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

    fn encoder(source: &str) -> TemplateEncoder {
        let template = ChatTemplate::from_source(source, Map::new(), None).unwrap();
        TemplateEncoder::new(template, tokenizer().clone()).unwrap()
    }

    fn messages() -> Vec<Value> {
        vec![
            json!({"role": "user", "content": "price of lamp?"}),
            json!({"role": "assistant", "content": "I look.", "tool_calls": [
                {"function": {"name": "product", "arguments": {"name": "lamp <|im_end|>"}}}]}),
            json!({"role": "tool", "content": "14"}),
            json!({"role": "assistant", "content": "14"}),
            json!({"role": "user", "content": "again"}),
            json!({"role": "assistant", "content": "\n14"}),
        ]
    }

    #[test]
    fn the_derived_mask_is_that_of_generation_blocks() {
        let marked =
            TEMPLATE.replace("BEGIN", "{% generation %}").replace("END", "{% endgeneration %}");
        let plain = TEMPLATE.replace("BEGIN", "").replace("END", "");
        let messages = messages();
        for end in 1..=messages.len() {
            let conversation =
                Conversation { messages: &messages[..end], ..Conversation::default() };
            let marked = encoder(&marked).encode(&conversation).unwrap();
            let derived = encoder(&plain).encode_for_training(&conversation).unwrap();
            assert_eq!(derived, marked, "{end} messages");
            assert_eq!(derived.assistant_mask.contains(&1), end > 1);
        }
        let conversation = Conversation { messages: &messages, ..Conversation::default() };
        let plain = encoder(&plain).encode_for_training(&conversation).unwrap();
        let said = std::iter::zip(&plain.token_ids, &plain.assistant_mask);
        let said: Vec<_> = said.filter(|(_, mask)| **mask == 1).map(|(id, _)| *id).collect();
        assert_eq!(
            tokenizer().decode(&said),
            "I look.<tool_call>{\"name\": \"product\", \"arguments\": {\"name\": \
             \"lamp <|im_end|>\"}}</tool_call><|im_end|>14<|im_end|>\n14<|im_end|>"
        );
    }

    #[test]
    fn a_message_that_is_told_otherwise_later_is_refused() {
        let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
            {{ '<think></think>' if loop.last and m.role == 'assistant' }}{{ m.content }}<|im_end|>\n\
            {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let messages = messages();
        let encode = |messages| {
            let conversation = Conversation { messages, ..Conversation::default() };
            encoder(source).encode_for_training(&conversation)
        };
        assert!(encode(&messages[..2]).is_ok());
        let error = encode(&messages[..4]).unwrap_err().to_string();
        assert!(error.contains("with message 1 (assistant), the text changes"), "{error}");
        assert!(error.contains("chat template does not keep what it wrote"), "{error}");
    }
}
