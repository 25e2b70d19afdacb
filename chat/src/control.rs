//! The tokens that carry the structure of a conversation.

/// Ids of the control tokens: seven tags that delimit messages, tool calls and tool results, and
/// `{"`, with which the JSON body of a call begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlTokens {
    /// `<|im_start|>`: begins a message.
    pub im_start: u32,
    /// `<|im_end|>`: ends a message.
    pub im_end: u32,
    /// `<|endoftext|>`: ends a document; also the padding token.
    pub endoftext: u32,
    /// `<tool_call>`.
    pub tool_call_open: u32,
    /// `</tool_call>`.
    pub tool_call_close: u32,
    /// `<tool_response>`.
    pub tool_response_open: u32,
    /// `</tool_response>`.
    pub tool_response_close: u32,
    /// The token `{"`. Ordinary JSON, hence not a tag; watched because it is what a collapsing
    /// policy over-amplifies beside the tags.
    pub brace_quote: u32,
}

impl ControlTokens {
    /// How each control token is spelled, in the order of [`ControlTokens::all`].
    pub const NAMES: [&'static str; 8] = [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        "{\"",
    ];

    /// Number of tags: every control token but the last, `{"`.
    pub(crate) const TAGS: usize = 7;

    /// The ids in the order of the fields, which is the order of every array "per control token".
    #[must_use]
    pub fn all(&self) -> [u32; 8] {
        [
            self.im_start,
            self.im_end,
            self.endoftext,
            self.tool_call_open,
            self.tool_call_close,
            self.tool_response_open,
            self.tool_response_close,
            self.brace_quote,
        ]
    }

    /// Whether `id` is one of the seven tags, that is any control token but `{"`.
    #[must_use]
    pub fn is_tag(&self, id: u32) -> bool {
        self.all()[..Self::TAGS].contains(&id)
    }

    /// The inverse of [`ControlTokens::all`].
    pub(crate) fn from_all(ids: [u32; 8]) -> Self {
        let [
            im_start,
            im_end,
            endoftext,
            tool_call_open,
            tool_call_close,
            tool_response_open,
            tool_response_close,
            brace_quote,
        ] = ids;
        Self {
            im_start,
            im_end,
            endoftext,
            tool_call_open,
            tool_call_close,
            tool_response_open,
            tool_response_close,
            brace_quote,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ControlTokens;

    #[test]
    fn only_the_brace_is_not_a_tag() {
        let ids = [10, 11, 12, 13, 14, 15, 16, 17];
        let control = ControlTokens::from_all(ids);
        assert_eq!(control.all(), ids);
        assert_eq!(
            ids.map(|id| control.is_tag(id)),
            [true, true, true, true, true, true, true, false]
        );
        assert!(!control.is_tag(9));
    }
}
