//! The structural state of an assistant message: healthy, polluted or collapsed.

use ballast_proto::v1::StructuralState;

use crate::format::ParsedCall;

/// A message with fewer characters than this beside its control tags says nothing.
const TEXT_CHARS_MIN: usize = 5;

/// What a state is judged by, of a message whose stop tag is stripped.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    /// The calls, as far as the message has any.
    pub(crate) calls: &'a [ParsedCall],
    /// Whether something stands where the format has no place for it: in all formats a tag outside
    /// the calls, in some of them text beside the calls too.
    pub(crate) misplaced: bool,
    /// Characters of the trimmed text, in calls and around them, without tags.
    pub(crate) text_chars: usize,
    /// How many of `total` are control tokens, the opener of the format included.
    pub(crate) control: usize,
    /// Tokens of the message. For a message that came as text: bytes, where a tag counts as those of
    /// an ordinary token.
    pub(crate) total: usize,
}

/// Classifies a message. The definition is the same for every format; what a call is and what is
/// misplaced, each format says itself.
///
/// - Healthy call: at least one call, all well formed, and nothing misplaced.
/// - Healthy response: no call, nothing misplaced, and some text, however short.
/// - Collapsed: nearly no text beside the tags; or no call is well formed and more than half of the
///   tokens are control tokens.
/// - Polluted: everything else.
pub(crate) fn structural_state(evidence: &Evidence<'_>) -> StructuralState {
    let Evidence { calls, misplaced, text_chars, control, total } = *evidence;
    let all_parse = calls.iter().all(|call| !call.malformed);
    let none_parses = calls.iter().all(|call| call.malformed);

    if !calls.is_empty() && all_parse && !misplaced {
        StructuralState::HealthyCall
    } else if calls.is_empty() && !misplaced && text_chars > 0 {
        StructuralState::HealthyResponse
    } else if text_chars < TEXT_CHARS_MIN || (none_parses && 2 * control > total) {
        StructuralState::Collapsed
    } else {
        StructuralState::Polluted
    }
}

#[cfg(test)]
mod tests {
    use ballast_proto::v1::StructuralState::{
        self, Collapsed, HealthyCall, HealthyResponse, Polluted,
    };

    use crate::{parse_message, testing::tokenizer};

    const CALL: &str =
        "<tool_call>\n{\"name\": \"product\", \"arguments\": {\"name\": \"lamp\"}}\n</tool_call>";

    fn state(text: &str) -> StructuralState {
        parse_message(tokenizer(), &tokenizer().encode(text).unwrap()).state
    }

    #[test]
    fn healthy_calls() {
        assert_eq!(state(CALL), HealthyCall);
        assert_eq!(state(&format!("{CALL}<|im_end|>")), HealthyCall);
        assert_eq!(state(&format!("I look.\n{CALL}\n{CALL}\n<|im_end|>")), HealthyCall);
    }

    #[test]
    fn healthy_responses() {
        for text in ["4", "42<|im_end|>", "The price is 14.<|im_end|>", "{\"a\": 1}"] {
            assert_eq!(state(text), HealthyResponse, "{text}");
        }
    }

    #[test]
    fn polluted_messages() {
        let cases = [
            format!("{CALL}</tool_call>"),
            format!("{CALL}<|im_end|><|im_end|>"),
            format!("{CALL}<|im_start|>"),
            format!("<tool_response>{CALL}"),
            format!("<tool_call>{CALL}"),
            format!("{CALL}\n<tool_call>\n{{\"name\": 3}}\n</tool_call>"),
            "The price <tool_call> is 14.<|im_end|>".to_owned(),
            "<tool_call>\n{\"name\": \"product\", \"arguments\": {\"name\"<|im_end|>".to_owned(),
            "The price is 14.<|endoftext|>".to_owned(),
        ];
        for text in cases {
            assert_eq!(state(&text), Polluted, "{text}");
        }
    }

    #[test]
    fn collapsed_messages() {
        let cases = [
            "",
            "<|im_end|>",
            " \n <|im_end|>",
            "<tool_call><|im_end|>",
            "<tool_call><|im_end|><|im_end|>",
            "<tool_call>\n{}\n</tool_call><|im_end|>",
            "42 <|im_start|>",
            "<tool_call>{\"{\"{\"{\"{\"{\"<|im_end|>",
        ];
        for text in cases {
            assert_eq!(state(text), Collapsed, "{text}");
        }
    }

    #[test]
    fn the_text_minimum_is_exact() {
        assert_eq!(state("1234<|im_start|>"), Collapsed);
        assert_eq!(state("12345<|im_start|>"), Polluted);
    }

    #[test]
    fn more_than_half_is_more_than_half() {
        // Six tags and the digits of a text: a digit is always one token.
        let tags = "<tool_call>".repeat(6);
        assert_eq!(state(&format!("{tags}123456")), Polluted);
        assert_eq!(state(&format!("{tags}12345")), Collapsed);
    }
}
