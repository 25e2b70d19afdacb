//! The processes and the order in which things happen to them.

use std::collections::BTreeMap;

use crate::{
    actor::Actor,
    agenda::{Timer, What},
    coordinator::Host,
    env::Env,
    invariants::Sizes,
    learner::Learner,
    network::{LinkId, Message, Parcel, Side},
    node::Node,
    person::Person,
    plant::Plant,
};

/// Everything there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) hosts: Vec<Host>,
    pub(crate) actors: Vec<Actor>,
    pub(crate) learners: Vec<Learner>,
    person: Person,
    /// Processes that are stopped, and what has come for them since.
    pub(crate) paused: BTreeMap<Node, Vec<What>>,
}

impl World {
    pub(crate) fn new(seed: u64, plant: Option<Plant>, print: bool) -> Self {
        let env = Env::new(seed, plant, print);
        let hosts = (0..2).map(|index| Host::new(&env, index)).collect();
        let actor = |index| Actor::new(&env, index, format!("actor-{index}"));
        let actors: Vec<_> = (0..env.scenario.actors).map(actor).collect();
        let learners = vec![Learner::new(&env, 0, "learner".into())];
        let person = Person::new(&env);
        Self { hosts, actors, learners, person, paused: BTreeMap::new(), env }
    }

    /// Plays the run to its end, or to the first promise that is broken.
    pub(crate) fn play(&mut self) {
        self.begin();
        while let Some((at, what)) = self.env.agenda.next() {
            self.env.now = at;
            self.env.totals.events += 1;
            self.happen(what);
            self.look();
            if self.env.finished || self.env.oracle.is_broken() {
                break;
            }
        }
        if self.env.finished && !self.env.oracle.is_broken() {
            let worst = self.env.worst();
            self.env.oracle.on_end(&worst);
        }
    }

    fn begin(&mut self) {
        for index in 0..self.hosts.len() {
            self.note_start(Node::Coordinator(index));
        }
        for index in 0..self.actors.len() {
            self.note_start(Node::Actor(index));
        }
        self.note_start(Node::Learner(0));
        self.person.start(&mut self.env);
        self.env.agenda.note(self.env.scenario.heal_at, What::Heal);
        self.plan_faults();
    }

    fn note_start(&mut self, node: Node) {
        let at = self.env.now + self.env.dice.millis(0, 2_000);
        self.env.agenda.note(at, What::Start(node));
    }

    fn happen(&mut self, what: What) {
        if let Some(waiting) = self.paused_queue(what) {
            return waiting.push(what);
        }
        match what {
            What::Arrive(link, side) => self.arrive(link, side),
            What::Timer { node, incarnation, timer } => {
                if self.incarnation(node) == incarnation {
                    self.on_timer(node, timer);
                }
            }
            What::Start(node) => self.start(node),
            What::Fault(kind) => self.strike(kind),
            What::Repair(repair) => self.repair(repair),
            What::Heal => self.heal(),
            What::Deadline => {
                let what = "the run has not ended, long after the last fault".to_owned();
                self.env.oracle.broken("A1", what);
            }
        }
        for index in 0..self.hosts.len() {
            self.hosts[index].take_opening(&mut self.env);
        }
    }

    /// Where things wait that concern a stopped process.
    fn paused_queue(&mut self, what: What) -> Option<&mut Vec<What>> {
        if self.paused.is_empty() {
            return None;
        }
        let node = match what {
            What::Arrive(link, side) => self.env.network.node(link, side)?,
            What::Timer { node, .. } => node,
            _ => return None,
        };
        self.paused.get_mut(&node)
    }

    /// A stopped process goes on. What it was told comes before what it only waited for, mostly.
    pub(crate) fn resume(&mut self, node: Node) {
        let Some(waiting) = self.paused.remove(&node) else { return };
        if let Node::Coordinator(index) = node {
            self.hosts[index].resume(self.env.now);
        }
        self.env.note(format_args!("! {node} goes on"));
        let first_come = self.env.dice.chance(0.3);
        let is_patience =
            |what: &What| matches!(what, What::Timer { timer: Timer::Deadline, .. }) && !first_come;
        let (late, early): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_patience);
        for what in early.into_iter().chain(late) {
            self.env.agenda.note(self.env.now, what);
        }
    }

    fn incarnation(&self, node: Node) -> u64 {
        match node {
            Node::Coordinator(index) => self.hosts[index].incarnation(),
            Node::Actor(index) => self.actors[index].incarnation(),
            Node::Learner(index) => self.learners[index].incarnation(),
            Node::Person => 0,
        }
    }

    fn start(&mut self, node: Node) {
        match node {
            Node::Coordinator(index) => self.hosts[index].start(&mut self.env),
            Node::Actor(index) => self.actors[index].start(&mut self.env),
            Node::Learner(index) => {
                if self.learners[index].start(&mut self.env) {
                    self.published();
                }
            }
            Node::Person => {}
        }
    }

    fn on_timer(&mut self, node: Node, timer: Timer) {
        let env = &mut self.env;
        match node {
            Node::Coordinator(index) => self.hosts[index].on_timer(env, timer),
            Node::Actor(index) => self.actors[index].on_timer(env, timer),
            Node::Learner(index) => {
                if self.learners[index].on_timer(env, timer) {
                    self.published();
                }
            }
            Node::Person => self.person.on_timer(env, timer),
        }
    }

    fn published(&mut self) {
        self.actors.iter_mut().for_each(|actor| actor.on_published(&mut self.env));
    }

    fn arrive(&mut self, link: LinkId, side: Side) {
        let Some(node) = self.env.network.node(link, side) else { return };
        let client = self.env.network.node(link, Side::Client);
        let Some(parcel) = self.env.network.take(self.env.now, link, side) else { return };
        let message: Option<Message> = match parcel {
            Parcel::Message(message) => Some(message),
            Parcel::End => None,
        };
        let env = &mut self.env;
        match node {
            Node::Coordinator(index) => {
                self.hosts[index].receive(env, link, message);
                // There is room in the window of whoever sent it.
                if let Some(Node::Actor(index)) = client
                    && !self.paused.contains_key(&Node::Actor(index))
                {
                    self.actors[index].pump(&mut self.env);
                }
            }
            Node::Actor(index) => self.actors[index].receive(env, link, message),
            Node::Learner(index) => self.learners[index].receive(env, link, message),
            Node::Person => self.person.receive(env, link, message),
        }
    }

    /// Whether every queue is within its bound.
    fn look(&mut self) {
        let hosts = self.hosts.iter().filter_map(Host::sizes);
        let actors = self.actors.iter().flat_map(Actor::sizes);
        let learners = self.learners.iter().map(Learner::sizes);
        let sizes: Vec<Sizes> = hosts.chain(actors).chain(learners).collect();
        self.env.oracle.on_sizes(&sizes);
    }
}
