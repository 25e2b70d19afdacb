//! The tokens that carry the structure of a conversation.

/// What a control token does. A tokenizer has some of them, spelled as its [`Frame`] spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRole {
    /// Begins a message.
    MessageStart,
    /// Ends the header of a message.
    HeaderEnd,
    /// Ends a message.
    MessageEnd,
    /// Ends a message that waits for the results of its calls.
    CallsEnd,
    /// Begins a document.
    DocumentStart,
    /// Ends a document; also the padding token.
    DocumentEnd,
    /// Begins a tool call.
    CallOpen,
    /// Ends a tool call.
    CallClose,
    /// Begins a tool's result.
    ResultOpen,
    /// Ends a tool's result.
    ResultClose,
    /// An ordinary token that every call holds, such as `{"`. Not a tag; watched because it is
    /// what a collapsing policy over-amplifies beside the tags.
    CallOpener,
}

/// How a family of checkpoints delimits messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `<|im_start|>role\n`, text, `<|im_end|>`: Qwen and most others.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|>\n\n`, text, `<|eot_id|>`: Llama 3.
    Llama3,
}

/// A tag and how it is spelled.
type Spelling = (ControlRole, &'static str);

const CHATML: [Spelling; ControlTokens::TAGS] = [
    (ControlRole::MessageStart, "<|im_start|>"),
    (ControlRole::MessageEnd, "<|im_end|>"),
    (ControlRole::DocumentEnd, "<|endoftext|>"),
    (ControlRole::CallOpen, "<tool_call>"),
    (ControlRole::CallClose, "</tool_call>"),
    (ControlRole::ResultOpen, "<tool_response>"),
    (ControlRole::ResultClose, "</tool_response>"),
];

const LLAMA3: [Spelling; ControlTokens::TAGS] = [
    (ControlRole::MessageStart, "<|start_header_id|>"),
    (ControlRole::MessageEnd, "<|eot_id|>"),
    (ControlRole::DocumentEnd, "<|end_of_text|>"),
    (ControlRole::CallOpen, "<|python_tag|>"),
    (ControlRole::CallsEnd, "<|eom_id|>"),
    (ControlRole::HeaderEnd, "<|end_header_id|>"),
    (ControlRole::DocumentStart, "<|begin_of_text|>"),
];

impl Frame {
    /// Its tags, in the order of every array "per control token".
    pub(crate) fn tags(self) -> &'static [Spelling; ControlTokens::TAGS] {
        match self {
            Self::ChatMl => &CHATML,
            Self::Llama3 => &LLAMA3,
        }
    }

    /// How `role` is spelled; empty when this frame has no such tag.
    pub(crate) fn spelling(self, role: ControlRole) -> &'static str {
        let mut tags = self.tags().iter();
        tags.find(|(tag, _)| *tag == role).map_or("", |(_, name)| name)
    }
}

/// Ids of the control tokens of a tokenizer: at most seven tags that delimit messages, calls and
/// results, and one ordinary token that every call holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlTokens {
    /// Begins a message: `<|im_start|>`, or `<|start_header_id|>`.
    pub im_start: u32,
    /// Ends a message: `<|im_end|>`, or `<|eot_id|>`.
    pub im_end: u32,
    /// Ends a document, and pads: `<|endoftext|>`, or `<|end_of_text|>`.
    pub endoftext: u32,
    frame: Frame,
    opener: &'static str,
    /// In the order of [`ControlTokens::names`]; none where the tokenizer has no such token.
    ids: [Option<u32>; Self::COUNT],
}

impl ControlTokens {
    /// Number of control tokens, and the length of every array "per control token".
    pub const COUNT: usize = 8;

    /// Number of tags: every control token but the last, which is ordinary text.
    pub(crate) const TAGS: usize = 7;

    /// How the control tokens of the Hermes format are spelled, in the order of
    /// [`ControlTokens::all`]: those of the small model's tokenizer.
    pub const NAMES: [&'static str; Self::COUNT] = names(Frame::ChatMl, "{\"");

    /// Looks every control token up. `opener` is the ordinary token of the format, or empty.
    ///
    /// # Errors
    /// The names of those that `required` lists, or that frame a message, and do not exist.
    pub(crate) fn find(
        frame: Frame,
        opener: &'static str,
        required: &[ControlRole],
        single_token: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, Vec<&'static str>> {
        use ControlRole::{DocumentEnd, HeaderEnd, MessageEnd, MessageStart};
        let names = names(frame, opener);
        let ids = names.map(&single_token);
        let missing: Vec<_> = roles(frame)
            .zip(std::iter::zip(names, ids))
            .filter(|(role, (_, id))| {
                let frames = [MessageStart, HeaderEnd, MessageEnd, DocumentEnd].contains(role);
                id.is_none() && (frames || required.contains(role))
            })
            .map(|(_, (name, _))| name)
            .collect();
        match (&ids, missing.is_empty()) {
            (&[Some(im_start), Some(im_end), Some(endoftext), ..], true) => {
                Ok(Self { im_start, im_end, endoftext, frame, opener, ids })
            }
            _ => Err(missing),
        }
    }

    /// The ids in the order of every array "per control token". The place of a token that the
    /// tokenizer lacks repeats `im_end`, and the grammar never forbids it.
    #[must_use]
    pub fn all(&self) -> [u32; Self::COUNT] {
        self.ids.map(|id| id.unwrap_or(self.im_end))
    }

    /// How each is spelled, in the order of [`ControlTokens::all`]; empty for one the format has
    /// not.
    #[must_use]
    pub fn names(&self) -> [&'static str; Self::COUNT] {
        names(self.frame, self.opener)
    }

    /// How messages are delimited.
    #[must_use]
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// The id of a control token, if the tokenizer has it.
    #[must_use]
    pub fn id(&self, role: ControlRole) -> Option<u32> {
        let index = roles(self.frame).position(|other| other == role)?;
        self.ids[index]
    }

    /// What the tag `id` does; none for ordinary tokens, the call's opener among them.
    #[must_use]
    pub fn tag(&self, id: u32) -> Option<ControlRole> {
        let index = self.ids[..Self::TAGS].iter().position(|tag| *tag == Some(id))?;
        Some(self.frame.tags()[index].0)
    }

    /// Whether `id` is a tag.
    #[must_use]
    pub fn is_tag(&self, id: u32) -> bool {
        self.tag(id).is_some()
    }

    /// Whether the policy ends its message with `id`.
    #[must_use]
    pub fn is_stop(&self, id: u32) -> bool {
        self.stops().contains(&id)
    }

    /// The tokens that end an assistant message.
    #[must_use]
    pub fn stops(&self) -> Vec<u32> {
        let stops = [ControlRole::MessageEnd, ControlRole::CallsEnd, ControlRole::DocumentEnd];
        stops.into_iter().filter_map(|role| self.id(role)).collect()
    }

    /// For each control token whether the tokenizer has it and `allowed` does not list it.
    pub(crate) fn forbidden(&self, allowed: &[ControlRole]) -> [bool; Self::COUNT] {
        let mut forbidden = self.ids.map(|id| id.is_some());
        for (forbidden, role) in forbidden.iter_mut().zip(roles(self.frame)) {
            *forbidden &= !allowed.contains(&role);
        }
        forbidden
    }
}

/// In the order of [`ControlTokens::all`].
fn roles(frame: Frame) -> impl Iterator<Item = ControlRole> {
    frame.tags().iter().map(|(role, _)| *role).chain([ControlRole::CallOpener])
}

const fn names(frame: Frame, opener: &'static str) -> [&'static str; ControlTokens::COUNT] {
    let [a, b, c, d, e, f, g] = match frame {
        Frame::ChatMl => CHATML,
        Frame::Llama3 => LLAMA3,
    };
    [a.1, b.1, c.1, d.1, e.1, f.1, g.1, opener]
}

#[cfg(test)]
mod tests {
    use super::{ControlRole, ControlTokens, Frame};

    fn find(frame: Frame, absent: &[&str]) -> Result<ControlTokens, Vec<&'static str>> {
        let names = super::names(frame, "{\"");
        ControlTokens::find(frame, "{\"", &[ControlRole::CallOpen], |name| {
            let index = names.iter().position(|other| *other == name);
            index.filter(|_| !absent.contains(&name)).map(|index| 10 + index as u32)
        })
    }

    #[test]
    fn only_the_opener_is_not_a_tag() {
        for frame in [Frame::ChatMl, Frame::Llama3] {
            let control = find(frame, &[]).unwrap();
            assert_eq!(control.all(), [10, 11, 12, 13, 14, 15, 16, 17]);
            let tags = control.all().map(|id| control.is_tag(id));
            assert_eq!(tags, [true, true, true, true, true, true, true, false]);
            assert!(!control.is_tag(9));
            assert_eq!(control.id(ControlRole::CallOpener), Some(17));
            assert_eq!(control.tag(13), Some(ControlRole::CallOpen));
        }
    }

    #[test]
    fn each_frame_has_its_stop_tokens() {
        assert_eq!(find(Frame::ChatMl, &[]).unwrap().stops(), [11, 12]);
        assert_eq!(find(Frame::Llama3, &[]).unwrap().stops(), [11, 14, 12]);
    }

    #[test]
    fn an_absent_token_is_an_error_only_where_it_is_needed() {
        let absent = ["<|im_end|>", "<tool_call>", "<tool_response>"];
        assert_eq!(find(Frame::ChatMl, &absent), Err(vec!["<|im_end|>", "<tool_call>"]));
        let control = find(Frame::ChatMl, &["<tool_response>"]).unwrap();
        assert_eq!(control.all(), [10, 11, 12, 13, 14, 11, 16, 17]);
        assert_eq!(control.id(ControlRole::ResultOpen), None);
        assert_eq!(control.forbidden(&[]), [true, true, true, true, true, false, true, true]);
    }
}
