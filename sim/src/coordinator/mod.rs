//! A coordinator: the real engine, roster, held commands, recovery and journal, in a process that can
//! die, be stopped, and go on when it should not.
//!
//! - `host`: the life of the process
//! - `driver`: the rules by which the real driver connects the parts
//! - `door`: what the services make of a message before the driver sees it
//! - `committer`: the journal's thread

mod committer;
mod door;
mod driver;
mod host;

pub(crate) use self::host::Host;

use ballast_coordinator::journal::{Journal, OpenError, Opened};

/// What an attempt to take the journal over came to.
pub(crate) type Opening = Result<Opened, OpenError>;

/// A commit in other hands for a while: the journal and the records.
pub(crate) type Loan = (Journal, Vec<ballast_coordinator::journal::Record>);
