//! Commands that wait for the disk (ADR 0007): what an event led to leaves the process only when the
//! record of that event is durable. Nobody outside ever knows more than the journal does.

use std::collections::VecDeque;

use crate::{engine::Command, journal::Position};

/// Events whose records are not durable yet; beyond it no input is taken.
pub const HELD_MAX: usize = 1024;

/// Commands in the order of their events.
#[derive(Debug)]
pub struct Held {
    /// Position of the next record.
    next: Position,
    waiting: VecDeque<(Position, Vec<Command>)>,
}

impl Held {
    /// Nothing waits; the next record gets this position.
    #[must_use]
    pub fn new(next: Position) -> Self {
        Self { next, waiting: VecDeque::new() }
    }

    /// Holds what an event led to. Returns the position its record will get.
    pub fn hold(&mut self, commands: Vec<Command>) -> Position {
        let position = self.next;
        self.next = Position(position.0 + 1);
        self.waiting.push_back((position, commands));
        position
    }

    /// Everything before a position is durable: the commands that may run now, in order.
    pub fn release(&mut self, end: Position) -> Vec<Command> {
        let mut released = Vec::new();
        while let Some((position, commands)) = self.waiting.pop_front() {
            if position >= end {
                self.waiting.push_front((position, commands));
                break;
            }
            released.extend(commands);
        }
        released
    }

    /// Whether no further event may be taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= HELD_MAX
    }

    /// Whether every record is durable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Position of the next record.
    #[must_use]
    pub fn next(&self) -> Position {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inform(text: &str) -> Command {
        Command::Inform(text.into())
    }

    #[test]
    fn commands_leave_in_order_and_never_before_their_record() {
        let mut held = Held::new(Position(7));
        assert_eq!(held.hold(vec![inform("a"), inform("b")]), Position(7));
        assert_eq!(held.hold(Vec::new()), Position(8));
        assert_eq!(held.hold(vec![inform("c")]), Position(9));
        assert!(held.release(Position(7)).is_empty());
        assert_eq!(held.release(Position(9)), [inform("a"), inform("b")]);
        assert!(!held.is_empty());
        assert_eq!(held.release(Position(100)), [inform("c")]);
        assert!(held.is_empty());
        assert_eq!(held.next(), Position(10));
    }

    #[test]
    fn it_fills_up() {
        let mut held = Held::new(Position(0));
        for _ in 0..HELD_MAX {
            held.hold(Vec::new());
        }
        assert!(held.is_full());
        held.release(Position(1));
        assert!(!held.is_full());
    }
}
