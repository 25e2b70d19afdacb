//! Where the tool calls of a message begin and end, by its control tags.

use crate::control::ControlTokens;

/// A message cut along its control tags. Tags count by id: letters that merely spell a tag are
/// text.
pub(crate) struct Layout<'a> {
    /// Ids outside every block, stray tags included.
    pub(crate) outside: Vec<u32>,
    /// One per `<tool_call>`, in order.
    pub(crate) blocks: Vec<Block<'a>>,
    /// Whether a tag stands outside every block. One inside makes the block's call malformed.
    pub(crate) has_stray_tag: bool,
}

/// What follows a `<tool_call>`, up to the next `</tool_call>` or `<tool_call>` or the end.
pub(crate) struct Block<'a> {
    pub(crate) body: &'a [u32],
    /// Whether `</tool_call>` ends it.
    pub(crate) closed: bool,
}

impl<'a> Layout<'a> {
    pub(crate) fn of(mut ids: &'a [u32], control: &ControlTokens) -> Self {
        let mut layout = Self { outside: Vec::new(), blocks: Vec::new(), has_stray_tag: false };
        while let [id, rest @ ..] = ids {
            ids = rest;
            if *id == control.tool_call_open {
                let block = Block::at_start_of(rest, control);
                ids = &rest[block.body.len() + usize::from(block.closed)..];
                layout.blocks.push(block);
            } else {
                layout.has_stray_tag |= control.is_tag(*id);
                layout.outside.push(*id);
            }
        }
        layout
    }
}

impl<'a> Block<'a> {
    fn at_start_of(ids: &'a [u32], control: &ControlTokens) -> Self {
        let delimiters = [control.tool_call_open, control.tool_call_close];
        match ids.iter().position(|id| delimiters.contains(id)) {
            Some(end) => Self { body: &ids[..end], closed: ids[end] == control.tool_call_close },
            None => Self { body: ids, closed: false },
        }
    }
}
