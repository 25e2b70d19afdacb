//! L1: of each position at most one leader was told that it is durable, a leader that takes over has
//! the largest term so far, and terms only grow along the journal.

use std::collections::BTreeSet;

use ballast_coordinator::journal::Record;

use super::{Checked, log::Log};

/// Who led.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    /// Positions of which a leader was told.
    told: BTreeSet<u64>,
    newest: u64,
    last: u64,
}

impl Leaders {
    pub(super) fn on_taken_over(&mut self, term: u64) -> Checked {
        if term <= self.newest {
            return Err(format!("term {term} begins after term {}", self.newest));
        }
        self.newest = term;
        Ok(())
    }

    pub(super) fn on_appended(
        &mut self,
        log: &Log,
        term: u64,
        position: u64,
        record: &Record,
    ) -> Checked {
        if !self.told.insert(position) {
            return Err(format!("two leaders were told that their record {position} is durable"));
        }
        if position > log.len() {
            return Err(format!("record {position} is durable, and {} is not", log.len()));
        }
        // Its successor may have found the record before its writer heard of its success.
        match log.term(position) {
            Some(writer) if writer != term => {
                Err(format!("term {term} was told of record {position}, which is term {writer}'s"))
            }
            Some(_) => log.compare(position, term, &record.head, &record.payload),
            None if term < self.newest => Err(format!(
                "term {term} was told that record {position} is durable, after term {} had taken \
                 the journal over",
                self.newest
            )),
            None => Ok(()),
        }
    }

    pub(super) fn on_committed(&mut self, term: u64) -> Checked {
        if term < self.last {
            return Err(format!("a record of term {term} follows one of term {}", self.last));
        }
        self.last = term;
        Ok(())
    }
}
