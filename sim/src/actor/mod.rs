//! An actor, scripted: it keeps the contract of `rollout.proto`, runs episodes that take time, follows
//! the learner's weights, dies, and now and then does badly.
//!
//! - `ledger`: which episodes it answers for
//! - `trajectory`: what an episode comes to
//! - `stream`: what it says and hears
//! - this file: its life, its episodes and its weights

mod ledger;
mod stream;
mod trajectory;

use std::{collections::BTreeMap, time::Duration};

use ballast_proto::v1::{Assignment, Mode};

use self::{ledger::Ledger, stream::Stream};
use crate::{
    agenda::{Timer, What},
    dice::{Dice, Part},
    env::{Env, Held},
    invariants::Sizes,
    network::{Exit, Side},
    node::Node,
    plant::Plant,
};

/// How long an episode takes, milliseconds.
const EPISODE_MS: [u64; 2] = [300, 8_000];
const EPISODE_LONG_MS: [u64; 2] = [20_000, 90_000];
/// How long it takes to fetch weights, milliseconds.
const FETCH_MS: [u64; 2] = [50, 3_000];
/// Time episodes get to end when the actor is to leave.
const DRAIN_GRACE: Duration = Duration::from_secs(8);

/// An episode that runs.
#[derive(Debug)]
struct Episode {
    assignment: Assignment,
    /// Versions it was sampled under so far, with their weights; none before it has begun.
    versions: Vec<Held>,
}

impl Episode {
    fn oldest(&self) -> u64 {
        self.assignment.min_policy_version.unwrap_or(0)
    }
}

/// An actor.
#[derive(Debug)]
pub(crate) struct Actor {
    index: usize,
    name: String,
    slots: u32,
    /// Of the process here.
    incarnation: u64,
    /// Of the actor of this name, as it says itself.
    generation: u64,
    up: bool,
    /// Gone for good: a newer one has its name, or nobody wants as many.
    gone: bool,
    ledger: Ledger,
    episodes: BTreeMap<u64, Episode>,
    stream: Stream,
    /// Where weights are, as the coordinator says.
    source: Option<String>,
    /// What it samples with.
    policy: Option<Held>,
    dice: Dice,
}

impl Actor {
    pub(crate) fn new(env: &Env, index: usize, name: String) -> Self {
        let slots = env.scenario.slots;
        let mut dice = Dice::new(env.seed, Part::Actors, index);
        Self {
            index,
            name,
            slots,
            incarnation: 0,
            generation: 0,
            up: false,
            gone: false,
            ledger: Ledger::new(slots),
            episodes: BTreeMap::new(),
            stream: Stream::new(dice.index(2)),
            source: None,
            policy: None,
            dice,
        }
    }

    fn node(&self) -> Node {
        Node::Actor(self.index)
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn timer(&self, env: &mut Env, after: Duration, timer: Timer) {
        env.timer(self.node(), self.incarnation, env.now + after, timer);
    }

    /// Somebody starts it: it has nothing of what it had before.
    pub(crate) fn start(&mut self, env: &mut Env) {
        if self.up || self.gone || env.finished {
            return;
        }
        self.up = true;
        self.incarnation += 1;
        // Unix time in milliseconds: later is larger, and no two are equal.
        self.generation = env.now.as_millis() as u64 * 16 + self.index as u64 + 1;
        self.ledger = Ledger::new(self.slots);
        self.episodes.clear();
        self.stream = Stream::new(self.dice.index(2));
        (self.source, self.policy) = (None, None);
        env.note(format_args!("{} starts as {} ({})", self.node(), self.name, self.generation));
        self.timer(env, Duration::ZERO, Timer::Connect);
    }

    /// The process is gone.
    pub(crate) fn die(&mut self, env: &mut Env, exit: Exit) {
        if !self.up {
            return;
        }
        env.note(format_args!("{} dies", self.node()));
        self.go_down(env, exit);
    }

    /// Nobody starts it again.
    pub(crate) fn is_not_wanted(&mut self) {
        self.gone = true;
    }

    fn go_down(&mut self, env: &mut Env, exit: Exit) {
        self.up = false;
        self.incarnation += 1;
        env.oracle.on_actor_gone((&self.name, self.generation));
        env.network.leave((env.now, &mut env.agenda), self.node(), exit);
    }

    /// Another actor of the same name, for a place of its own.
    pub(crate) fn twin(&self, env: &Env, index: usize) -> Option<Self> {
        /// More of them prove nothing.
        const ACTORS_MAX: usize = 8;
        let room = index < ACTORS_MAX && !self.gone;
        room.then(|| Self::new(env, index, self.name.clone()))
    }

    pub(crate) fn on_timer(&mut self, env: &mut Env, timer: Timer) {
        match timer {
            Timer::Connect => self.connect(env),
            Timer::Unanswered(link) => self.on_unanswered(env, link),
            Timer::Beat(link) => self.beat(env, link),
            Timer::Fetched => self.fetched(env),
            Timer::Episode(episode) => self.end_episode(env, episode),
            Timer::Drained => self.on_drain_over(env),
            _ => {}
        }
    }

    // === episodes ===

    fn run_episode(&mut self, env: &mut Env, assignment: Assignment) {
        let id = assignment.episode_id;
        self.episodes.insert(id, Episode { assignment, versions: Vec::new() });
        self.begin_episodes(env);
    }

    /// Begins what waited for the weights at hand.
    fn begin_episodes(&mut self, env: &mut Env) {
        let policy = self.policy;
        let mut begun = Vec::new();
        for (id, episode) in &mut self.episodes {
            let with = match (episode.assignment.mode(), policy) {
                (Mode::Demonstrate, _) => policy.or(Some((0, [0; 32]))),
                (_, policy) => policy.filter(|(version, _)| *version >= episode.oldest()),
            };
            if let (true, Some(with)) = (episode.versions.is_empty(), with) {
                episode.versions.push(with);
                begun.push(*id);
            }
        }
        for id in begun {
            let long = self.dice.chance(env.scenario.mishaps.long);
            let range = if long { EPISODE_LONG_MS } else { EPISODE_MS };
            let takes = self.dice.millis(range[0], range[1]);
            self.timer(env, takes, Timer::Episode(id));
        }
    }

    fn end_episode(&mut self, env: &mut Env, id: u64) {
        let Some(episode) = self.episodes.remove(&id) else { return };
        let mishaps = env.scenario.mishaps;
        let given_back = !env.healed && self.dice.chance(mishaps.returned);
        if !self.ledger.runs(id) || given_back {
            self.ledger.on_returned(id, "it cannot be run here".into(), 3);
        } else {
            let Episode { assignment, versions } = &episode;
            let (trajectory, blemish) = trajectory::make(env, &mut self.dice, assignment, versions);
            env.note(format_args!("{} has made e{id} {blemish:?}", self.node()));
            env.oracle.on_made(&trajectory, blemish);
            self.ledger.on_finished(id, Box::new(trajectory.clone()));
            self.say_too_much(env, trajectory);
        }
        // What waited for a slot, or for the others to end, may go on.
        self.fetched(env);
        self.pump(env);
        self.leave_if_drained(env);
    }

    // === weights ===

    /// The learner publishes: it takes a while until this actor has it.
    pub(crate) fn on_published(&mut self, env: &mut Env) {
        if self.up {
            let takes = self.dice.millis(FETCH_MS[0], FETCH_MS[1]);
            self.timer(env, takes, Timer::Fetched);
        }
    }

    /// Adopts what the learner offers. A learner that went back to a checkpoint offers less than it
    /// did; then what runs under a promise of more ends first.
    fn fetched(&mut self, env: &mut Env) {
        let source = self.source.as_ref();
        let offered = source.and_then(|source| env.weights.offered.get(source)).copied();
        let Some(offered) = offered else { return };
        if self.policy == Some(offered) {
            return;
        }
        let is_held =
            |episode: &Episode| !episode.versions.is_empty() && episode.oldest() > offered.0;
        if self.episodes.values().any(is_held) && !env.has(Plant::AdoptOlder) {
            return;
        }
        self.policy = Some(offered);
        for episode in self.episodes.values_mut() {
            if !episode.versions.is_empty() && episode.assignment.mode() != Mode::Demonstrate {
                episode.versions.push(offered);
            }
        }
        self.begin_episodes(env);
    }

    // === leaving ===

    fn on_drain(&mut self, env: &mut Env) {
        if !self.ledger.is_draining() {
            self.ledger.drain();
            self.timer(env, DRAIN_GRACE, Timer::Drained);
        }
        self.leave_if_drained(env);
    }

    /// What still runs is given back.
    fn on_drain_over(&mut self, env: &mut Env) {
        for episode in self.ledger.running() {
            self.episodes.remove(&episode);
            self.ledger.on_returned(episode, "the actor drains".into(), 1);
        }
        self.pump(env);
        if self.stream.link().is_none() {
            return self.leave(env);
        }
        self.leave_if_drained(env);
    }

    fn leave_if_drained(&mut self, env: &mut Env) {
        if self.up && self.ledger.is_draining() && self.ledger.outstanding() == 0 {
            self.leave(env);
        }
    }

    /// Ends in order. Whoever looks after actors starts another one.
    fn leave(&mut self, env: &mut Env) {
        env.note(format_args!("{} leaves", self.node()));
        if let Some(link) = self.stream.take() {
            env.close(link, Side::Client);
        }
        self.go_down(env, Exit::Told);
        let at = env.now + self.dice.millis(1_000, 15_000);
        env.agenda.note(at, What::Start(self.node()));
    }

    // === for the observers ===

    pub(crate) fn sizes(&self) -> [Sizes; 2] {
        let slots = self.slots as usize;
        let running =
            Sizes { what: "episodes run on an actor", size: self.ledger.in_engine(), bound: slots };
        let waiting = Sizes {
            what: "trajectories wait on an actor",
            size: self.ledger.unacknowledged(),
            bound: slots * ledger::UNACKNOWLEDGED_PER_SLOT as usize,
        };
        [running, waiting]
    }
}
