//! What every process of the simulation reaches: time, the network, the disk, the observers.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ballast_coordinator::journal::Reader;

use crate::{
    agenda::{Agenda, Time, Timer, What},
    dice::{Dice, Part},
    disk::{Disk, Drive},
    election::Election,
    invariants::Oracle,
    network::{LinkId, Message, Network, Side},
    node::Node,
    plant::Plant,
    scenario::Scenario,
    totals::Totals,
    trace::Trace,
};

/// Hash of a version's weights, as it is on the wire.
pub(crate) type Hash = [u8; 32];

/// Weights: the optimizer step they are of, and their hash.
pub(crate) type Held = (u64, Hash);

/// What learners offer and keep.
#[derive(Debug)]
pub(crate) struct Weights {
    /// By the address of a learner that is there.
    pub(crate) offered: BTreeMap<String, Held>,
    /// The newest weights of every version there ever was.
    pub(crate) all: BTreeMap<u64, Hash>,
    /// The newest checkpoint, on a disk that keeps it, and the run it is of.
    pub(crate) saved: (Held, String),
}

/// The world without its processes.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) seed: u64,
    pub(crate) now: Time,
    pub(crate) agenda: Agenda,
    pub(crate) network: Network,
    pub(crate) disk: Disk,
    pub(crate) election: Election,
    pub(crate) weights: Weights,
    pub(crate) scenario: Scenario,
    pub(crate) plant: Option<Plant>,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    pub(crate) totals: Totals,
    /// Of the faults.
    pub(crate) dice: Dice,
    /// Whether all faults are over.
    pub(crate) healed: bool,
    pub(crate) slow_disk: bool,
    /// Whether each coordinator takes connections.
    pub(crate) serving: Vec<bool>,
    /// The coordinator that is started again, where there is no election.
    pub(crate) home: usize,
    /// The learner that is started again.
    pub(crate) learner_home: usize,
    /// Episodes, and the name of the actor that got them.
    pub(crate) assigned: Vec<(u64, String)>,
    /// Whether a coordinator has left with the run's result.
    pub(crate) finished: bool,
}

impl Env {
    pub(crate) fn new(seed: u64, plant: Option<Plant>, print: bool) -> Self {
        let scenario = Scenario::new(seed);
        let dice = |part| Dice::new(seed, part, 0);
        let disk = Disk::new(scenario.storage, dice(Part::Disk), plant);
        Self {
            seed,
            now: Time::ZERO,
            agenda: Agenda::default(),
            network: Network::new(scenario.slow_share, dice(Part::Network)),
            disk,
            election: Election::new(dice(Part::Election)),
            weights: Weights {
                offered: BTreeMap::new(),
                all: BTreeMap::new(),
                saved: ((0, [7; 32]), String::new()),
            },
            plant,
            oracle: Oracle::new(&scenario),
            trace: Trace::new(print),
            totals: Totals::default(),
            dice: dice(Part::Faults),
            healed: false,
            slow_disk: false,
            serving: vec![false; 2],
            home: 0,
            learner_home: 0,
            assigned: Vec::new(),
            finished: false,
            scenario,
        }
    }

    /// Whether this bug is planted.
    pub(crate) fn has(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    pub(crate) fn timer(&mut self, node: Node, incarnation: u64, at: Time, timer: Timer) {
        self.agenda.note(at.max(self.now), What::Timer { node, incarnation, timer });
    }

    pub(crate) fn send(&mut self, link: LinkId, from: Side, message: Message) {
        self.network.send((self.now, &mut self.agenda), link, from, message);
    }

    pub(crate) fn close(&mut self, link: LinkId, by: Side) {
        self.network.close((self.now, &mut self.agenda), link, by);
    }

    /// A connection to a coordinator, if that takes any.
    pub(crate) fn connect(&mut self, client: Node, coordinator: usize) -> Option<LinkId> {
        let server = Node::Coordinator(coordinator);
        let serves = self.serving.get(coordinator) == Some(&true);
        if serves { self.network.connect(self.now, client, server) } else { None }
    }

    /// Reads what a power cut would leave, whatever it leaves.
    pub(crate) fn worst(&self) -> Reader {
        reader(self.disk.at_worst())
    }
}

/// Reads the journal of a disk.
pub(crate) fn reader(drive: Arc<Drive>) -> Reader {
    Reader::open(drive)
}
