//! Which calls of the disk fail, how, and which one is the last of its process.

use std::{collections::BTreeMap, fmt};

use ballast_coordinator::journal::StorageError;

use super::{Kind, Meanwhile};
use crate::dice::Dice;

/// Share of the puts into an object store that are not answered, while there is trouble at all.
const UNANSWERED_SHARE: f64 = 0.02;

/// What a process asks of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Whether something is there.
    Look,
    /// What is in it.
    Read,
    /// Something new, which needs room.
    Make,
    /// More in a place that is reserved.
    Write,
    Sync,
    /// Less.
    Tidy,
}

/// How a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Whole,
    /// The process dies in the midst of it.
    Last,
    /// It may have come into effect, in part, or not; the process hears of a failure.
    Unanswered,
}

/// What is wrong at present.
#[derive(Default)]
pub(super) struct Trouble {
    /// No room for anything new.
    pub(super) full: bool,
    /// No call gets through.
    pub(super) away: bool,
    pub(super) fail_sync: bool,
    pub(super) fail_write: bool,
    /// Whether nothing goes wrong any more.
    mended: bool,
    /// Calls that failed.
    pub(super) failed: u64,
    processes: u64,
    /// Calls until a process dies; 0: it is dead.
    dying: BTreeMap<u64, u64>,
    /// Calls until something else happens in the midst of what a process does.
    meanwhile: BTreeMap<u64, (u64, Meanwhile)>,
}

impl Trouble {
    pub(super) fn next_process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }

    pub(super) fn die_after(&mut self, process: u64, calls: u64) {
        self.dying.insert(process, calls + 1);
    }

    pub(super) fn is_dead(&self, process: u64) -> bool {
        self.dying.get(&process) == Some(&0)
    }

    pub(super) fn meanwhile(&mut self, process: u64, calls: u64, happens: Meanwhile) {
        self.meanwhile.insert(process, (calls, happens));
    }

    pub(super) fn take_meanwhile(&mut self, process: u64) -> Option<Meanwhile> {
        self.meanwhile.remove(&process).map(|(_, happens)| happens)
    }

    /// What happens before this call of a process, if anything does.
    pub(super) fn due(&mut self, process: u64) -> Option<Meanwhile> {
        let (calls, _) = self.meanwhile.get_mut(&process)?;
        if *calls == 0 {
            return self.take_meanwhile(process);
        }
        *calls -= 1;
        None
    }

    pub(super) fn mend(&mut self) {
        (self.full, self.away, self.fail_sync, self.fail_write) = (false, false, false, false);
        self.mended = true;
        // Who is dead stays dead.
        self.dying.retain(|_, calls| *calls == 0);
    }

    /// How this call goes.
    pub(super) fn step(
        &mut self,
        process: u64,
        call: Call,
        kind: Kind,
        dice: &mut Dice,
    ) -> Result<Step, StorageError> {
        match self.dying.get_mut(&process) {
            Some(0) => return Err(died()),
            Some(calls) => {
                *calls -= 1;
                if *calls == 0 {
                    return match call {
                        Call::Make | Call::Write | Call::Sync => Ok(Step::Last),
                        Call::Look | Call::Read | Call::Tidy => Err(died()),
                    };
                }
            }
            None => {}
        }
        if self.away && call != Call::Write && call != Call::Sync {
            self.failed += 1;
            return Err(StorageError::Unavailable("the disk does not answer".into()));
        }
        if self.full && call == Call::Make {
            self.failed += 1;
            return Err(StorageError::Unavailable("the disk is full; free space".into()));
        }
        let fails = match call {
            Call::Write => std::mem::take(&mut self.fail_write),
            Call::Sync => std::mem::take(&mut self.fail_sync),
            Call::Make => kind == Kind::Objects && !self.mended && dice.chance(UNANSWERED_SHARE),
            Call::Look | Call::Read | Call::Tidy => false,
        };
        Ok(if fails { Step::Unanswered } else { Step::Whole })
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trouble").field("full", &self.full).field("away", &self.away).finish()
    }
}

pub(super) fn died() -> StorageError {
    StorageError::Fatal("the process died in the midst of this".into())
}

pub(super) fn unanswered() -> StorageError {
    StorageError::Unavailable("no answer in time".into())
}
