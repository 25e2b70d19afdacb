//! What will happen when. Of two things due at the same time the one noted first happens first.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    faults::{FaultKind, Repair},
    network::{LinkId, Side},
    node::Node,
};

/// Time since the beginning of the simulation.
pub(crate) type Time = Duration;

/// Something that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A parcel reaches one end of a link.
    Arrive(LinkId, Side),
    /// A timer of a process; void if the process is another incarnation by then.
    Timer { node: Node, incarnation: u64, timer: Timer },
    /// The supervisor starts a process that is down.
    Start(Node),
    /// A fault strikes, and the next of its kind is put on the agenda.
    Fault(FaultKind),
    /// A fault is over.
    Repair(Repair),
    /// All faults are over.
    Heal,
    /// The run has to be finished by now.
    Deadline,
}

/// What a process waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Coordinator: ask the election who leads.
    Campaign,
    /// Coordinator: the run is rebuilt, serve it.
    Lead,
    /// Coordinator: the journal's thread writes.
    Commit,
    /// Coordinator: the journal's thread reports.
    Outcome,
    /// Coordinator: a lease, or the engine's own deadline.
    Deadline,
    /// Actor, learner: look for the coordinator.
    Connect,
    /// Actor, learner: the coordinator has not answered over this link.
    Unanswered(LinkId),
    /// Actor: say that it is alive.
    Beat(LinkId),
    /// Actor: what the learner publishes has been fetched.
    Fetched,
    /// Actor: an episode has come to its end.
    Episode(u64),
    /// Actor: a drain has taken its time.
    Drained,
    /// Learner: a batch is carried out.
    Done,
    /// Person: think of something to ask for.
    Ask,
    /// Person: no answer came over this link.
    GiveUp(LinkId),
}

/// The things that are due, in order.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    due: BTreeMap<(Time, u64), What>,
    noted: u64,
}

impl Agenda {
    pub(crate) fn note(&mut self, at: Time, what: What) {
        self.due.insert((at, self.noted), what);
        self.noted += 1;
    }

    pub(crate) fn next(&mut self) -> Option<(Time, What)> {
        self.due.pop_first().map(|((at, _), what)| (at, what))
    }
}
