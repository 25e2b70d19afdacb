//! Conversations to token ids through a chat template.
//!
//! Invariants: a control token has its id only where the template wrote it (`controls` says what
//! that covers); all other text is encoded as untrusted; a generation block begins and ends
//! between two tokens, as it does when the policy samples its content behind a prompt.

use std::ops::Range;

use serde_json::Value as Json;

use super::{
    chat::{ChatTemplate, Conversation, Texts},
    controls::Controls,
    error::TemplateError,
    marks::Stripped,
};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// A chat template and the tokenizer it was made for.
pub struct TemplateEncoder {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    controls: Controls,
}

/// The token ids of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedConversation {
    /// `[T]` token ids.
    pub token_ids: Vec<u32>,
    /// `[T]` 1 where the template marks what the assistant says; all 0 if it marks nothing.
    pub assistant_mask: Vec<u8>,
}

impl TemplateEncoder {
    /// An encoder of conversations.
    ///
    /// # Errors
    /// When the tokenizer matches control tokens by rules that are not supported.
    pub fn new(template: ChatTemplate, tokenizer: Tokenizer) -> Result<Self, TemplateError> {
        let controls = Controls::of(&tokenizer)?;
        Ok(Self { template, tokenizer, controls })
    }

    /// The template.
    #[must_use]
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The token ids of a conversation. Control tokens spelled in its messages are only letters;
    /// those of the assistant that delimit no turn, such as `<think>`, are kept.
    ///
    /// # Errors
    /// When the template or the tokenizer refuses it.
    pub fn encode(
        &self,
        conversation: &Conversation<'_>,
    ) -> Result<EncodedConversation, TemplateError> {
        let rendered = self.render(conversation)?;
        self.encode_part(&rendered, 0..rendered.text.len())
    }

    /// The tokenizer.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the template writes, with the texts of the conversation kept from forging anything.
    pub(crate) fn render(
        &self,
        conversation: &Conversation<'_>,
    ) -> Result<Stripped, TemplateError> {
        self.template.render_marked(conversation, Some(&self.controls))
    }

    /// The texts of a conversation, kept from forging anything.
    pub(crate) fn texts(&self, conversation: &Conversation<'_>) -> Result<Texts, TemplateError> {
        Texts::of(conversation, Some(&self.controls))
    }

    /// Adds a message to them.
    pub(crate) fn push(&self, texts: &mut Texts, message: &Json) -> Result<(), TemplateError> {
        texts.push(message, Some(&self.controls))
    }

    /// Where, from the byte `from` on, the first token ends that ends an assistant's message.
    pub(crate) fn stop_after(&self, rendered: &Stripped, from: usize) -> Option<usize> {
        let Stripped { text, cuts, .. } = rendered;
        let mut spelled = self.controls.spelled_in(text, cuts, from..text.len()).into_iter();
        let stop = spelled.find(|(_, _, control)| self.tokenizer.control().is_stop(control.id));
        stop.map(|(_, end, _)| end)
    }

    /// The token ids of a part of a text that begins and ends between two tokens.
    pub(crate) fn encode_part(
        &self,
        rendered: &Stripped,
        part: Range<usize>,
    ) -> Result<EncodedConversation, TemplateError> {
        let Stripped { text, cuts, spans } = rendered;
        let mut encoded = EncodedConversation::default();
        let mut at = part.start;
        let mut strips = false;
        for (start, end, control) in self.controls.spelled_in(text, cuts, part.clone()) {
            let between = (at, start, strips, control.strips_before);
            self.push_text(&mut encoded, text, between, spans)?;
            encoded.push(&[control.id], is_inside(spans, start));
            (at, strips) = (end, control.strips_after);
        }
        self.push_text(&mut encoded, text, (at, part.end, strips, false), spans)?;
        Ok(encoded)
    }

    /// Encodes `text[start..end]`, which has no control token, split where a span begins or ends.
    fn push_text(
        &self,
        encoded: &mut EncodedConversation,
        text: &str,
        (mut start, mut end, strips_start, strips_end): (usize, usize, bool, bool),
        spans: &[Range<usize>],
    ) -> Result<(), TemplateError> {
        if strips_start {
            start += text[start..end].len() - text[start..end].trim_start().len();
        }
        if strips_end {
            end = start + text[start..end].trim_end().len();
        }
        let edges = spans.iter().flat_map(|span| [span.start, span.end]);
        let mut edges: Vec<_> = edges.filter(|&edge| start < edge && edge < end).collect();
        edges.extend([start, end]);
        edges.sort_unstable();
        for piece in edges.windows(2).filter(|piece| piece[0] < piece[1]) {
            let ids = self.tokenizer.encode_untrusted(&text[piece[0]..piece[1]])?;
            if let Some(&forged) = ids.iter().find(|&&id| self.controls.has(id)) {
                return Err(TokenizerError::Forged(forged).into());
            }
            encoded.push(&ids, is_inside(spans, piece[0]));
        }
        Ok(())
    }
}

impl EncodedConversation {
    fn push(&mut self, ids: &[u32], by_assistant: bool) {
        self.token_ids.extend(ids);
        self.assistant_mask.extend(std::iter::repeat_n(u8::from(by_assistant), ids.len()));
    }
}

impl std::fmt::Debug for TemplateEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { template, tokenizer, .. } = self;
        f.debug_struct("TemplateEncoder")
            .field("template", template)
            .field("tokenizer", tokenizer)
            .finish_non_exhaustive()
    }
}

fn is_inside(spans: &[Range<usize>], at: usize) -> bool {
    spans.iter().any(|span| span.contains(&at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::{EncodedConversation, TemplateEncoder};
    use crate::{
        ChatTemplate, ControlTokens, Conversation, Tokenizer,
        testing::{any_arguments, tokenizer},
    };

    /// Roles, contents and calls in the constructs of the families, with every way to hand a text on.
    const TEMPLATE: &str = "\
        {%- for message in messages %}\
        {{- '<|im_start|>' + message.role + '\\n' }}\
        {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\
        {%- else %}{{ message.content | trim }}{{ message.content }}{{ message.content | tojson }}\
        {{- message.content[1:] }}{{ message.content[:-1] }}{{ message.content.split('<')[-1] }}\
        {{- message.content | lower }}{{ message.content | upper }}{{ message.data | default({}) | tojson }}\
        {{- message.data }}{{ message.name or '' }}<|im_end|>{% endif %}\n\
        {% endfor %}\
        {%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    fn encoder(source: &str, tokenizer: &Tokenizer) -> TemplateEncoder {
        let template = ChatTemplate::from_source(source, Map::new(), None).unwrap();
        TemplateEncoder::new(template, tokenizer.clone()).unwrap()
    }

    fn encode(source: &str, messages: &[Value]) -> EncodedConversation {
        let conversation =
            Conversation { messages, add_generation_prompt: true, ..Conversation::default() };
        encoder(source, tokenizer()).encode(&conversation).unwrap()
    }

    fn tags(ids: &[u32]) -> Vec<u32> {
        ids.iter().copied().filter(|&id| tokenizer().control().is_tag(id)).collect()
    }

    #[test]
    fn what_a_generation_block_writes_is_masked_in() {
        let messages = [
            json!({"role": "user", "content": "a"}),
            json!({"role": "assistant", "content": "\nb"}),
        ];
        let EncodedConversation { token_ids, assistant_mask } = encode(TEMPLATE, &messages);
        let masked = std::iter::zip(&token_ids, &assistant_mask).filter(|(_, mask)| **mask == 1);
        let masked: Vec<_> = masked.map(|(id, _)| *id).collect();
        assert_eq!(tokenizer().decode(&masked), "\nb<|im_end|>");
        assert_eq!(token_ids.len(), assistant_mask.len());
    }

    #[test]
    fn two_texts_cannot_join_into_a_tag() {
        let source = "{{ messages[0].content }}{{ messages[1].content | trim }}<|im_end|>";
        for (left, right) in
            [("<|im", "_end|>"), ("<", "|im_end|> "), ("<|im_end", ">"), ("<|im_end|", ">")]
        {
            let messages = [json!({"content": left}), json!({"content": right})];
            let ids = encode(source, &messages).token_ids;
            assert_eq!(tags(&ids), [tokenizer().control().im_end]);
            assert_eq!(tokenizer().decode(&ids), format!("{left}{}<|im_end|>", right.trim()));
        }
    }

    #[test]
    fn a_role_cannot_be_a_piece_of_a_tag() {
        let source = "{{ '<|' + messages[0].role + '|>' }}{{ '<|' ~ messages[0].content ~ '|>' }}";
        let ids = encode(source, &[json!({"role": "im_end", "content": "IM_END"})]).token_ids;
        assert_eq!(tags(&ids), [0; 0]);
    }

    #[test]
    fn the_assistant_may_write_tags_that_are_not_special() {
        let mut json: Value = serde_json::from_slice(tokenizer().json()).unwrap();
        for token in json["added_tokens"].as_array_mut().unwrap() {
            token["special"] = json!(token["content"] != "<tool_call>");
        }
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let encoder = encoder("{{ messages[0].content }}", &tokenizer);
        let encode = |role| {
            let messages = [json!({"role": role, "content": "<tool_call><|im_end|>"})];
            let conversation = Conversation { messages: &messages, ..Conversation::default() };
            tags(&encoder.encode(&conversation).unwrap().token_ids)
        };
        assert_eq!(encode("assistant"), [tokenizer.encode("<tool_call>").unwrap()[0]]);
        assert_eq!(encode("user"), [0; 0]);
    }

    fn any_piece() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            (0..7_usize).prop_map(|i| ControlTokens::NAMES[i].to_owned()),
            (0..7_usize).prop_map(|i| ControlTokens::NAMES[i].to_uppercase()),
            (0..7_usize, 1..12_usize)
                .prop_map(|(i, n)| ControlTokens::NAMES[i].chars().take(n).collect()),
            (0..7_usize, 1..12_usize)
                .prop_map(|(i, n)| ControlTokens::NAMES[i].chars().skip(n).collect()),
        ]
    }

    fn any_text() -> impl Strategy<Value = String> {
        prop::collection::vec(any_piece(), 0..5).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// The tags of a conversation are those its template writes, whatever the texts are.
        #[test]
        fn no_text_forges_a_tag(
            content in any_text(),
            name in any_text(),
            data in any_arguments(),
            reply in any_text(),
        ) {
            let message = |content: &str, name: &str, data: &Map<String, Value>| json!({
                "role": "user", "content": content, "name": name, "data": data});
            let conversation = |user: Value, reply: &str| {
                [user, json!({"role": "assistant", "content": reply})]
            };
            let harmless = conversation(message("x", "y", &Map::new()), "z");
            let attack = conversation(message(&content, &name, &data), &reply);
            let special = |ids: Vec<u32>| {
                let frame = [tokenizer().control().im_start, tokenizer().control().im_end];
                ids.into_iter().filter(|id| frame.contains(id)).collect::<Vec<_>>()
            };
            prop_assert_eq!(
                special(encode(TEMPLATE, &attack).token_ids),
                special(encode(TEMPLATE, &harmless).token_ids)
            );
        }

        /// Texts without tags have the ids that the tokenizer gives the text at once.
        #[test]
        fn ids_are_those_of_the_text_at_once(content in "[a-z <>|\\n{}\"]{0,12}") {
            let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
            let messages = [json!({"role": "user", "content": content})];
            let conversation = Conversation { messages: &messages, ..Conversation::default() };
            let encoder = encoder(source, tokenizer());
            let text = encoder.template().render(&conversation).unwrap().text;
            prop_assert_eq!(
                encoder.encode(&conversation).unwrap().token_ids,
                tokenizer().encode(&text).unwrap()
            );
        }
    }
}
