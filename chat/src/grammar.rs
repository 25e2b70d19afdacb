//! Which control tokens may come next inside an assistant message.
//!
//! Owns: nothing but the parser of the message being sampled, which knows where in its format the
//! message stands. Does not know: probabilities; the caller sums them over what is forbidden
//! (control-token mass).

use crate::{control::ControlTokens, format::MessageParser, tokenizer::Tokenizer};

/// Follows the tokens of one assistant message, started right after its header. It only watches: a
/// forbidden token may still be fed to [`MessageGrammar::advance`].
#[derive(Debug)]
pub struct MessageGrammar {
    parser: MessageParser,
}

impl MessageGrammar {
    /// The state right after `<|im_start|>assistant\n`.
    #[must_use]
    pub fn start(tokenizer: &Tokenizer) -> Self {
        Self { parser: MessageParser::of_tokens(tokenizer, &[]) }
    }

    /// For each control token, in the order of [`ControlTokens::all`], whether it would be
    /// misplaced as the next token.
    #[must_use]
    pub fn forbidden(&self, tokenizer: &Tokenizer) -> [bool; ControlTokens::COUNT] {
        tokenizer.control().forbidden(self.parser.allowed())
    }

    /// Takes the next token of the message.
    pub fn advance(&mut self, token: u32, tokenizer: &Tokenizer) {
        self.parser.push_token(token, tokenizer);
    }
}

#[cfg(test)]
mod tests {
    use super::MessageGrammar;
    use crate::{
        Format, Tokenizer,
        testing::{tokenizer, tokenizer_of},
    };

    /// The control tokens allowed after `text`.
    fn allowed_after(text: &str, tokenizer: &Tokenizer) -> Vec<&'static str> {
        let mut grammar = MessageGrammar::start(tokenizer);
        for token in tokenizer.encode(text).unwrap() {
            grammar.advance(token, tokenizer);
        }
        std::iter::zip(tokenizer.control().names(), grammar.forbidden(tokenizer))
            .filter_map(|(name, forbidden)| (!forbidden && !name.is_empty()).then_some(name))
            .collect()
    }

    #[test]
    fn allows_what_the_format_allows() {
        let cases: [(&str, &[&str]); 14] = [
            ("", &["<tool_call>"]),
            (" \n", &["<tool_call>"]),
            ("It is 42", &["<|im_end|>", "<tool_call>"]),
            ("<tool_call>", &["{\""]),
            ("<tool_call>\n", &["{\""]),
            ("<tool_call>\n{\"name\": \"product\", \"arguments\":", &["{\""]),
            ("<tool_call>\n{\"name\": \"product\", \"arguments\": {\"name\": \"lamp\"}", &["{\""]),
            ("<tool_call>\n{\"name\": \"product\", \"arguments\": {}}", &["</tool_call>"]),
            ("<tool_call>\n{\"name\": \"}\\\"}", &["{\""]),
            ("<tool_call>\n{\"name\": \"}\\\\\"}", &["</tool_call>"]),
            ("<tool_call>\n{}\n</tool_call>", &["<|im_end|>", "<tool_call>"]),
            ("<tool_call>\n{}\n</tool_call>\n<tool_call>", &["{\""]),
            ("It is 42<|im_end|>", &[]),
            ("<tool_response>It<|im_start|>", &["<|im_end|>", "<tool_call>"]),
        ];
        for (text, allowed) in cases {
            assert_eq!(allowed_after(text, tokenizer()), allowed, "after {text:?}");
        }
    }

    fn check(format: Format, cases: &[(&str, &[&str])]) {
        for (text, allowed) in cases {
            assert_eq!(allowed_after(text, tokenizer_of(format)), *allowed, "{format} {text:?}");
        }
    }

    #[test]
    fn llama3_ends_a_message_after_text_or_calls_and_begins_a_call_at_the_start() {
        let call = "{\"name\": \"f\", \"parameters\": {}}";
        check(
            Format::Llama3,
            &[
                ("", &["<|python_tag|>", "{\""]),
                ("It is", &["<|eot_id|>", "<|python_tag|>"]),
                ("{\"name\": \"f\", ", &["{\""]),
                (call, &["<|eot_id|>", "<|eom_id|>", "{\""]),
                (&format!("{call}; "), &["<|eot_id|>", "<|eom_id|>", "{\""]),
                ("<|python_tag|>", &["{\""]),
                ("{not JSON", &["<|eot_id|>", "<|python_tag|>"]),
                (&format!("{call}<|eom_id|>"), &[]),
                ("<think>I", &["<|eot_id|>", "<|python_tag|>"]),
                ("<think>I</think>", &["<|eot_id|>", "<|python_tag|>", "{\""]),
                ("I</think>\n\n", &["<|eot_id|>", "<|python_tag|>", "{\""]),
                ("I</think>\n\nIt", &["<|eot_id|>", "<|python_tag|>"]),
                (&format!("I</think>{call}"), &["<|eot_id|>", "<|eom_id|>", "{\""]),
            ],
        );
    }

    #[test]
    fn qwen_xml_closes_a_call_after_its_function() {
        check(
            Format::QwenXml,
            &[
                ("", &["<tool_call>"]),
                ("It is", &["<|im_end|>", "<tool_call>"]),
                ("<tool_call>\n<function=f>\n", &["</"]),
                ("<tool_call>\n<function=f>\n<parameter=a>\n1", &["</"]),
                ("<tool_call>\n<function=f>\n</function>\n", &["</tool_call>"]),
                ("<tool_call>\n<function=f>\n</function>x", &["</"]),
            ],
        );
    }

    #[test]
    fn pythonic_ends_a_message_after_text_or_the_list() {
        check(
            Format::Pythonic,
            &[
                ("", &[]),
                ("It is", &["<|im_end|>"]),
                ("[f(a=1", &[]),
                ("[f(a=1)", &[]),
                ("[f(a=1)]", &["<|im_end|>"]),
                ("[1, 2]", &["<|im_end|>"]),
                ("<think>I</think>", &["<|im_end|>"]),
                ("<think>I</think>\n[f(a=1", &[]),
                ("<think>I</think>\n[f(a=1)]", &["<|im_end|>"]),
            ],
        );
    }
}
