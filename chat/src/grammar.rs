//! Which control tokens may come next inside an assistant message.
//!
//! Owns: the state of one message while it is sampled. Does not know: probabilities; the caller
//! sums them over what is forbidden (control-token mass).

use crate::{control::ControlTokens, tokenizer::Tokenizer};

/// A small automaton over the tokens of one assistant message, started right after its header.
/// It only watches: a forbidden token may still be fed to [`MessageGrammar::advance`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageGrammar {
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Empty,
    /// Some text or a finished call stands in the message, which may end here.
    Open,
    /// Inside a call.
    Call(Body),
    /// After the end of the message.
    Ended,
}

/// How far the JSON object of a call has come. Follows braces and strings only; what it takes for
/// complete may still be malformed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Body {
    depth: u32,
    begun: bool,
    in_string: bool,
    escaped: bool,
}

impl MessageGrammar {
    /// The state right after `<|im_start|>assistant\n`.
    #[must_use]
    pub fn start() -> Self {
        Self { state: State::Empty }
    }

    /// For each control token, in the order of [`ControlTokens::all`], whether it would be
    /// misplaced as the next token.
    #[must_use]
    pub fn forbidden(&self) -> [bool; 8] {
        let mut allowed = Allowed::default();
        match &self.state {
            State::Empty => allowed.tool_call_open = true,
            State::Open => {
                allowed.tool_call_open = true;
                allowed.im_end = true;
            }
            State::Call(body) if body.is_complete() => allowed.tool_call_close = true,
            State::Call(_) => allowed.brace_quote = true,
            State::Ended => {}
        }
        allowed.forbidden()
    }

    /// Takes the next token of the message.
    pub fn advance(&mut self, token: u32, tokenizer: &Tokenizer) {
        let control = tokenizer.control();
        if token == control.im_end || token == control.endoftext {
            self.state = State::Ended;
        } else if token == control.tool_call_open {
            self.state = State::Call(Body::default());
        } else if token == control.tool_call_close {
            self.state = State::Open;
        } else if !control.is_tag(token) {
            self.advance_text(&tokenizer.decode(&[token]));
        }
    }

    fn advance_text(&mut self, text: &str) {
        match &mut self.state {
            State::Empty if !text.trim().is_empty() => self.state = State::Open,
            State::Call(body) => text.chars().for_each(|c| body.push(c)),
            State::Empty | State::Open | State::Ended => {}
        }
    }
}

impl Body {
    fn is_complete(&self) -> bool {
        self.begun && self.depth == 0
    }

    fn push(&mut self, c: char) {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' => {
                self.depth = self.depth.saturating_add(1);
                self.begun = true;
            }
            '}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// The control tokens that are allowed in some state; all others never are.
#[derive(Default)]
struct Allowed {
    im_end: bool,
    tool_call_open: bool,
    tool_call_close: bool,
    brace_quote: bool,
}

impl Allowed {
    /// In the order of [`ControlTokens::all`].
    fn forbidden(&self) -> [bool; ControlTokens::NAMES.len()] {
        let Self { im_end, tool_call_open, tool_call_close, brace_quote } = *self;
        [false, im_end, false, tool_call_open, tool_call_close, false, false, brace_quote]
            .map(|allowed| !allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::MessageGrammar;
    use crate::{ControlTokens, testing::tokenizer};

    /// The control tokens allowed after `text`.
    fn allowed_after(text: &str) -> Vec<&'static str> {
        let mut grammar = MessageGrammar::start();
        for token in tokenizer().encode(text).unwrap() {
            grammar.advance(token, tokenizer());
        }
        std::iter::zip(ControlTokens::NAMES, grammar.forbidden())
            .filter_map(|(name, forbidden)| (!forbidden).then_some(name))
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
            assert_eq!(allowed_after(text), allowed, "after {text:?}");
        }
    }
}
