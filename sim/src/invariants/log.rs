//! The records that are durable and will stay: what a leader was told, and what a leader that took
//! over has found.

use std::collections::BTreeSet;

use ballast_proto::v1::AuditEntry;
use bytes::Bytes;

use super::Checked;
use crate::trace::Fnv;

#[derive(Debug)]
struct Known {
    term: u64,
    head: u64,
    payload: u64,
}

/// All of them, by position.
#[derive(Debug, Default)]
pub(super) struct Log {
    records: Vec<Known>,
    audited: BTreeSet<String>,
    ended: bool,
}

impl Log {
    pub(super) fn len(&self) -> u64 {
        self.records.len() as u64
    }

    /// Returns its position.
    pub(super) fn push(&mut self, term: u64, head: &Bytes, payload: &Bytes) -> u64 {
        let (head, payload) = (Fnv::of(head), Fnv::of(payload));
        self.records.push(Known { term, head, payload });
        self.len() - 1
    }

    /// Whether the record at a position is this one.
    pub(super) fn compare(&self, at: u64, term: u64, head: &Bytes, payload: &Bytes) -> Checked {
        let Some(known) = self.records.get(at as usize) else { return Ok(()) };
        if (known.head, known.payload) != (Fnv::of(head), Fnv::of(payload)) {
            let before = known.term;
            return Err(format!("record {at} was one of term {before}, and is another of {term}"));
        }
        Ok(())
    }

    /// Term of the record at a position.
    pub(super) fn term(&self, at: u64) -> Option<u64> {
        self.records.get(at as usize).map(|known| known.term)
    }

    pub(super) fn on_audit(&mut self, entry: &AuditEntry) {
        self.audited.insert(entry.reason.clone());
    }

    pub(super) fn has_audit(&self, reason: &str) -> bool {
        self.audited.contains(reason)
    }

    pub(super) fn on_ended(&mut self) {
        self.ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }
}
