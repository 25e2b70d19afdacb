//! One completion: what is asked for, what was sampled, and when it ends.
//!
//! Owns: stop tokens, stop strings, the token limit, and the text of the tokens so far.
//! Does not know: the decoder, other sequences, HTTP.

use std::sync::Arc;

use ballast_chat::Tokenizer;

use super::{stop::StopStrings, text::TextStream};
use crate::decoder::{Sampled, Sampling};

/// What is asked of one completion.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Token ids to continue; at least one.
    pub prompt: Arc<[u32]>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens to sample at most, from 1.
    pub tokens_max: usize,
    /// Tokens that end the completion. The one that did is reported, but adds no text.
    pub stop_tokens: Arc<[u32]>,
    /// Texts that end the completion and are left out of it.
    pub stop_strings: Vec<String>,
}

/// Why a completion ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// This stop token was sampled.
    StopToken(u32),
    /// This stop string was written.
    StopString(String),
    /// The token limit is reached.
    Length,
}

/// What one sampled token led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Token id.
    pub token: u32,
    /// Natural log of its probability under the distribution it was sampled from.
    pub logprob: f32,
    /// Natural log of its probability under the policy: softmax at temperature 1.
    pub policy_logprob: f32,
    /// Entropy of the policy at this position, in nats.
    pub entropy: f32,
    /// Probability of each control token under the policy, in the order of `ControlTokens::all`.
    pub control_probs: [f32; 8],
    /// Text that became certain with it; may belong to earlier tokens, and may be empty.
    pub text: String,
    /// Set on the last token.
    pub finish: Option<Finish>,
}

/// A completion under way.
#[derive(Debug)]
pub struct Sequence {
    tokens_left: usize,
    stop_tokens: Arc<[u32]>,
    text: TextStream,
    stops: StopStrings,
    /// Absent where the checkpoint has no tokenizer: then there is no text.
    tokenizer: Option<Tokenizer>,
}

impl Sequence {
    /// Before the first token.
    #[must_use]
    pub fn new(plan: &Plan, tokenizer: Option<Tokenizer>) -> Self {
        Self {
            tokens_left: plan.tokens_max,
            stop_tokens: Arc::clone(&plan.stop_tokens),
            text: TextStream::default(),
            stops: StopStrings::new(plan.stop_strings.clone()),
            tokenizer,
        }
    }

    /// Takes the next sampled token.
    pub fn accept(&mut self, sampled: &Sampled) -> Update {
        let Sampled { token, logprob, policy_logprob, entropy, control_probs, .. } = *sampled;
        self.tokens_left = self.tokens_left.saturating_sub(1);
        let (text, finish) = self.read(token);
        Update { token, logprob, policy_logprob, entropy, control_probs, text, finish }
    }

    fn read(&mut self, token: u32) -> (String, Option<Finish>) {
        if self.stop_tokens.contains(&token) {
            return self.close("", Finish::StopToken(token));
        }
        let piece = match &self.tokenizer {
            Some(tokenizer) => self.text.push(tokenizer, token),
            None => String::new(),
        };
        if self.tokens_left == 0 {
            return self.close(&piece, Finish::Length);
        }
        let released = self.stops.push(&piece);
        (released.text, released.stopped_by.map(Finish::StopString))
    }

    /// Releases what was held, and still looks for a stop string in it.
    fn close(&mut self, piece: &str, finish: Finish) -> (String, Option<Finish>) {
        let released = self.stops.push(&(piece.to_owned() + &self.text.finish()));
        match released.stopped_by {
            Some(string) => (released.text, Some(Finish::StopString(string))),
            None => (released.text + &self.stops.finish(), Some(finish)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tokenizer;

    fn sampled(token: u32) -> Sampled {
        let (logprob, policy_logprob) = (-0.5, -0.25);
        Sampled { slot: 0, token, logprob, policy_logprob, entropy: 0.0, control_probs: [0.0; 8] }
    }

    fn complete(text: &str, stop_strings: &[&str], tokens_max: usize) -> (String, usize, Finish) {
        let plan = Plan {
            prompt: [1].into(),
            sampling: Sampling::new(0, 1.0),
            tokens_max,
            stop_tokens: [tokenizer().control().im_end].into(),
            stop_strings: stop_strings.iter().map(|s| (*s).to_owned()).collect(),
        };
        let mut sequence = Sequence::new(&plan, Some(tokenizer().clone()));
        let mut written = String::new();
        for (count, token) in tokenizer().encode(text).unwrap().into_iter().enumerate() {
            let update = sequence.accept(&sampled(token));
            written.push_str(&update.text);
            if let Some(finish) = update.finish {
                return (written, count + 1, finish);
            }
        }
        panic!("{text:?} does not end");
    }

    #[test]
    fn a_stop_token_ends_it_without_its_text() {
        let (text, _, finish) = complete("42<|im_end|>more", &[], 100);
        assert_eq!(text, "42");
        assert_eq!(finish, Finish::StopToken(tokenizer().control().im_end));
    }

    #[test]
    fn a_stop_string_over_token_boundaries_ends_it() {
        let (text, _, finish) = complete("the answer is 42<|im_end|>", &["swer i"], 100);
        assert_eq!(text, "the an");
        assert_eq!(finish, Finish::StopString("swer i".into()));
    }

    #[test]
    fn the_limit_ends_it_with_all_its_text() {
        let (text, tokens, finish) = complete("lamp lamp lamp", &["lampx"], 2);
        assert_eq!((tokens, &finish), (2, &Finish::Length));
        let two = tokenizer().encode("lamp lamp lamp").unwrap();
        assert_eq!(text, tokenizer().decode(&two[..2]));
    }

    #[test]
    fn a_stop_string_on_the_last_allowed_token_is_still_seen() {
        let tokens = tokenizer().encode("lamp").unwrap().len();
        let (text, _, finish) = complete("lamp", &["lamp"], tokens);
        assert_eq!((text.as_str(), finish), ("", Finish::StopString("lamp".into())));
    }
}
