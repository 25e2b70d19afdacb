//! The network: links that keep their order and lose nothing until they break, as TCP does.
//!
//! A link that breaks loses what is under way in both directions. Each end learns of it in its own
//! time, and one that is not told (a cable, a machine without power) only by its keepalive.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use ballast_coordinator::engine::{ChangeAnswer, ChangeRefusal};
use ballast_proto::v1::{
    AdminChange, CompleteStepRequest, NextBatchRequest, TrainBatch, actor_message,
    coordinator_message,
};

use crate::{
    agenda::{Agenda, Time, What},
    dice::Dice,
    node::Node,
};

/// A peer that is silent because it, or the way to it, is gone is found out within this.
const KEEPALIVE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];
/// A peer that closes, or whose machine says that the process is gone, is found out within this.
const TOLD: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(5)];
const DELAY: [Duration; 2] = [Duration::from_micros(100), Duration::from_millis(3)];
const DELAY_LONG: [Duration; 2] = [Duration::from_millis(30), Duration::from_millis(2500)];

/// One connection from a client to a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u64);

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// From an actor.
    Actor(actor_message::Message),
    /// From a learner: it wants batches.
    NextBatch(NextBatchRequest),
    /// From a learner, with a number for the answer.
    CompleteStep(u64, CompleteStepRequest),
    /// From a person.
    Change(AdminChange),
    /// To an actor.
    Coordinator(coordinator_message::Message),
    /// To an actor or a learner: an answer that is final (FAILED_PRECONDITION).
    Refused(String),
    /// To a learner: its stream begins.
    Accepted,
    /// To a learner.
    Batch(Box<TrainBatch>),
    /// To a learner.
    StepAnswer(u64, Result<(), String>),
    /// To a person.
    ChangeAnswer(Result<ChangeAnswer, ChangeRefusal>),
}

/// What comes out of a link.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them are messages")]
pub(crate) enum Parcel {
    Message(Message),
    /// Nothing more will.
    End,
}

/// How a process leaves its links behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Its machine tells the peers.
    Told,
    /// Nobody tells them.
    Silent,
}

/// One direction of a link.
#[derive(Debug)]
struct Pipe {
    open: bool,
    parcels: VecDeque<(Time, Parcel)>,
    /// When the last parcel is due.
    last: Time,
}

#[derive(Debug)]
struct Link {
    client: Node,
    server: Node,
    to_client: Pipe,
    to_server: Pipe,
}

impl Link {
    /// What goes to this side.
    fn to(&mut self, side: Side) -> &mut Pipe {
        match side {
            Side::Client => &mut self.to_client,
            Side::Server => &mut self.to_server,
        }
    }

    fn node(&self, side: Side) -> Node {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }
}

/// All links.
#[derive(Debug)]
pub(crate) struct Network {
    links: BTreeMap<LinkId, Link>,
    next: u64,
    /// Between these nothing gets through.
    apart: BTreeSet<(Node, Node)>,
    /// Share of messages that take long.
    slow_share: f64,
    dice: Dice,
}

impl Network {
    pub(crate) fn new(slow_share: f64, dice: Dice) -> Self {
        Self { links: BTreeMap::new(), next: 0, apart: BTreeSet::new(), slow_share, dice }
    }

    /// A new link, unless the two are kept apart.
    pub(crate) fn connect(&mut self, now: Time, client: Node, server: Node) -> Option<LinkId> {
        if self.apart.contains(&(client, server)) {
            return None;
        }
        let id = LinkId(self.next);
        self.next += 1;
        let pipe = || Pipe { open: true, parcels: VecDeque::new(), last: now };
        let (to_client, to_server) = (pipe(), pipe());
        self.links.insert(id, Link { client, server, to_client, to_server });
        Some(id)
    }

    pub(crate) fn node(&self, link: LinkId, side: Side) -> Option<Node> {
        self.links.get(&link).map(|link| link.node(side))
    }

    /// Parcels on their way to the coordinator: what a sender's window bounds.
    pub(crate) fn under_way(&self, link: LinkId) -> usize {
        self.links.get(&link).map_or(0, |link| link.to_server.parcels.len())
    }

    pub(crate) fn send(
        &mut self,
        (now, agenda): (Time, &mut Agenda),
        link: LinkId,
        from: Side,
        message: Message,
    ) {
        let range = if self.dice.chance(self.slow_share) { DELAY_LONG } else { DELAY };
        let delay = self.dice.time(range[0], range[1]);
        self.put(agenda, link, from.other(), now + delay, Parcel::Message(message));
    }

    /// One side closes in order: what it sent arrives, what comes to it is thrown away.
    pub(crate) fn close(&mut self, (now, agenda): (Time, &mut Agenda), link: LinkId, by: Side) {
        let delay = self.dice.time(TOLD[0], TOLD[1]);
        self.shut(link, by);
        self.put(agenda, link, by.other(), now + delay, Parcel::End);
    }

    /// A link breaks.
    pub(crate) fn cut(&mut self, (now, agenda): (Time, &mut Agenda), link: LinkId, exit: Exit) {
        for side in [Side::Client, Side::Server] {
            let range = match exit {
                Exit::Told => TOLD,
                Exit::Silent => KEEPALIVE,
            };
            let due = now + self.dice.time(range[0], range[1]);
            if let Some(link) = self.links.get_mut(&link) {
                let pipe = link.to(side);
                pipe.parcels.clear();
                pipe.last = now;
            }
            self.put(agenda, link, side, due, Parcel::End);
        }
    }

    /// A process is gone. What it sent may still arrive.
    pub(crate) fn leave(&mut self, now: (Time, &mut Agenda), node: Node, exit: Exit) {
        let (now, agenda) = now;
        let sides = self.links.iter().filter_map(|(id, link)| {
            let side = (link.server == node).then_some(Side::Server);
            Some((*id, side.or_else(|| (link.client == node).then_some(Side::Client))?))
        });
        for (link, side) in sides.collect::<Vec<_>>() {
            if self.dice.chance(0.5) {
                self.cut((now, agenda), link, exit);
                self.shut(link, side);
            } else if exit == Exit::Told {
                self.close((now, agenda), link, side);
            } else {
                self.shut(link, side);
                let due = now + self.dice.time(KEEPALIVE[0], KEEPALIVE[1]);
                self.put(agenda, link, side.other(), due, Parcel::End);
            }
        }
        self.links.retain(|_, link| link.to_client.open || link.to_server.open);
    }

    /// Keeps two apart, or not any more. What they have open breaks in silence.
    pub(crate) fn set_apart(&mut self, now: (Time, &mut Agenda), pair: (Node, Node), apart: bool) {
        if !apart {
            self.apart.remove(&pair);
            return;
        }
        self.apart.insert(pair);
        let (now, agenda) = now;
        for link in self.between(pair) {
            self.cut((now, agenda), link, Exit::Silent);
        }
    }

    pub(crate) fn join_all(&mut self) {
        self.apart.clear();
    }

    pub(crate) fn all(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    fn between(&self, pair: (Node, Node)) -> Vec<LinkId> {
        let links = self.links.iter().filter(|(_, link)| (link.client, link.server) == pair);
        links.map(|(id, _)| *id).collect()
    }

    /// What has arrived at one side, if anything has: each parcel once.
    pub(crate) fn take(&mut self, now: Time, link: LinkId, side: Side) -> Option<Parcel> {
        let pipe = self.links.get_mut(&link)?.to(side);
        pipe.parcels.front().filter(|(due, _)| *due <= now)?;
        let (_, parcel) = pipe.parcels.pop_front()?;
        if matches!(parcel, Parcel::End) {
            self.shut(link, side);
        }
        Some(parcel)
    }

    /// Nothing reaches this side any more.
    fn shut(&mut self, link: LinkId, side: Side) {
        let Some(both) = self.links.get_mut(&link) else { return };
        let pipe = both.to(side);
        (pipe.open, pipe.parcels) = (false, VecDeque::new());
        if !both.to_client.open && !both.to_server.open {
            self.links.remove(&link);
        }
    }

    fn put(&mut self, agenda: &mut Agenda, link: LinkId, to: Side, due: Time, parcel: Parcel) {
        let Some(both) = self.links.get_mut(&link) else { return };
        let pipe = both.to(to);
        if !pipe.open {
            return;
        }
        pipe.last = pipe.last.max(due);
        pipe.parcels.push_back((pipe.last, parcel));
        agenda.note(pipe.last, What::Arrive(link, to));
    }
}
