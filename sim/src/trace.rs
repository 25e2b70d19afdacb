//! What happened, line by line: hashed always, printed if asked for, and the newest lines kept.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
};

use crate::agenda::Time;

/// Lines shown with a violation.
const KEPT: usize = 40;

/// The lines of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: Fnv,
    lines: VecDeque<String>,
    print: bool,
}

impl Trace {
    pub(crate) fn new(print: bool) -> Self {
        Self { hash: Fnv::default(), lines: VecDeque::with_capacity(KEPT), print }
    }

    pub(crate) fn note(&mut self, now: Time, what: fmt::Arguments<'_>) {
        let mut line = match self.lines.len() {
            KEPT => self.lines.pop_front().unwrap_or_default(),
            _ => String::new(),
        };
        line.clear();
        // Writing to a string does not fail.
        write!(line, "{:>12.6} {what}", now.as_secs_f64()).ok();
        self.hash.add(line.as_bytes());
        if self.print {
            println!("{line}");
        }
        self.lines.push_back(line);
    }

    /// Equal for equal runs.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.0
    }

    /// The newest lines, oldest first.
    pub(crate) fn newest(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

/// Fowler, Noll and Vo's hash: the same on every machine and for every version of the compiler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.add(bytes);
        hash.0
    }
}
