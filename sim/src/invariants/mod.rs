//! The promises, checked at every event from what everybody outside the coordinators saw and from the
//! records that are durable; nothing here asks an engine. One file for each, named by its id.
//!
//! What the outside saw is never more than what the journal holds (ADR 0007), so most checks compare
//! something an actor, the learner or a person was told with the [`Log`].

mod a1_progress;
mod b1_bounds;
mod g1_groups;
mod j1_acknowledged;
mod j2_episodes;
mod j3_trained_once;
mod j4_rebuilt;
mod l1_leader;
mod log;
mod s1_staleness;
mod v1_versions;

use std::fmt;

use ballast_coordinator::{
    check::Check,
    engine::Engine,
    journal::{Location, Position, Reader, Record},
};
use ballast_proto::v1::{
    Assignment, Effect, JournalEntry, TrainBatch, Trajectory, effect::Effect as Kind,
};
use bytes::Bytes;
use prost::Message as _;

pub(crate) use self::{
    a1_progress::BOUND as PROGRESS_BOUND, b1_bounds::Sizes, j1_acknowledged::Blemish,
};
use self::{
    b1_bounds::Bounds, g1_groups::Groups, j1_acknowledged::Trajectories, j2_episodes::Episodes,
    j3_trained_once::Trained, j4_rebuilt::Remembered, l1_leader::Leaders, log::Log,
    s1_staleness::Staleness, v1_versions::Versions,
};
use crate::scenario::Scenario;

/// A promise that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its id, as in ARCHITECTURE.md.
    pub promise: &'static str,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.what)
    }
}

/// What a check comes to: how the promise is broken.
pub(crate) type Checked = Result<(), String>;

/// All invariants, and what they know.
#[derive(Debug)]
pub(crate) struct Oracle {
    log: Log,
    leaders: Leaders,
    trajectories: Trajectories,
    episodes: Episodes,
    trained: Trained,
    staleness: Staleness,
    versions: Versions,
    groups: Groups,
    bounds: Bounds,
    remembered: Remembered,
    staleness_bound: u64,
    first: Option<Violation>,
}

impl Oracle {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let staleness_bound = scenario.staleness_bound();
        Self {
            log: Log::default(),
            leaders: Leaders::default(),
            trajectories: Trajectories::new(scenario.learner_repeats),
            episodes: Episodes::default(),
            trained: Trained::default(),
            staleness: Staleness::new(staleness_bound),
            versions: Versions::default(),
            groups: Groups::new(scenario.config.rl.group_size),
            bounds: Bounds::new(scenario),
            remembered: Remembered::default(),
            staleness_bound,
            first: None,
        }
    }

    /// The first promise that was broken, if any was.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.first.as_ref()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.first.is_some()
    }

    /// A promise was seen broken outside of these checks.
    pub(crate) fn broken(&mut self, promise: &'static str, what: String) {
        self.first.get_or_insert(Violation { promise, what });
    }

    fn expect(&mut self, promise: &'static str, checked: Checked) {
        if let Err(what) = checked {
            self.broken(promise, what);
        }
    }

    // === what the disk has ===

    /// A leader was told that its records are durable. `worst` reads the disk as a power cut might
    /// leave it now.
    pub(crate) fn on_appended(
        &mut self,
        term: u64,
        records: &[Record],
        locations: &[Location],
        worst: &Reader,
    ) {
        for (record, location) in records.iter().zip(locations) {
            let kept = worst.payload(location);
            if kept.as_ref() != Ok(&record.payload) {
                let what = format!("record {} counts as durable, and is not", location.position);
                return self.broken("J1", what);
            }
            let position = location.position.0;
            let checked = self.leaders.on_appended(&self.log, term, position, record);
            self.expect("L1", checked);
            if position == self.log.len() {
                self.commit(term, &record.head, &record.payload);
            }
        }
    }

    /// A leader took the journal over and found this many records.
    pub(crate) fn on_taken_over(&mut self, term: u64, next: Position, worst: &Reader) {
        let checked = self.leaders.on_taken_over(term);
        self.expect("L1", checked);
        self.read_again(Some(next), worst);
    }

    /// Something happened after which what was durable has to be there still.
    pub(crate) fn on_shock(&mut self, worst: &Reader) {
        self.read_again(None, worst);
    }

    /// Reads the journal from its first record; those up to `next` count from now on.
    fn read_again(&mut self, next: Option<Position>, reader: &Reader) {
        let wanted = next.map_or(self.log.len(), |next| next.0);
        if wanted < self.log.len() {
            let (all, what) = (self.log.len(), "records are gone");
            return self.broken("J1", format!("{what}: {all} were durable, {wanted} are there"));
        }
        let mut records = match reader.records_from(Position(0)) {
            Ok(records) => records,
            Err(_) if wanted == 0 => return,
            Err(error) => return self.broken("J1", error.to_string()),
        };
        for position in 0..wanted {
            let (stored, payload) = match records.next_with_payload() {
                Some(Ok(next)) => next,
                Some(Err(error)) => return self.broken("J1", error.to_string()),
                None => return self.broken("J1", format!("record {position} is gone")),
            };
            if position < self.log.len() {
                let checked = self.log.compare(position, stored.term.0, &stored.head, &payload);
                self.expect("J1", checked);
            } else {
                self.commit(stored.term.0, &stored.head, &payload);
            }
        }
    }

    /// The journal has one more record that will never go away.
    fn commit(&mut self, term: u64, head: &Bytes, payload: &Bytes) {
        let checked = self.leaders.on_committed(term);
        self.expect("L1", checked);
        let position = self.log.push(term, head, payload);
        match JournalEntry::decode(head.clone()) {
            Ok(entry) => {
                for Effect { effect } in &entry.effects {
                    if let Some(effect) = effect {
                        self.on_effect(effect, payload);
                    }
                }
            }
            Err(error) => self.broken("J1", format!("record {position}: {error}")),
        }
    }

    fn on_effect(&mut self, effect: &Kind, payload: &Bytes) {
        match effect {
            Kind::Dispatched(one) => {
                let checked = self.episodes.on_dispatched(one);
                self.expect("J2", checked);
                self.groups.on_dispatched(one);
                let checked = self.bounds.on_dispatched(one);
                self.expect("B1", checked);
            }
            Kind::Finished(one) => {
                let checked = self.episodes.on_ended(one.episode_id);
                self.expect("J2", checked);
                self.bounds.on_ended(one.episode_id);
                let checked = self.trajectories.on_finished(one.episode_id, payload);
                self.expect("J1", checked);
            }
            Kind::Cancelled(one) => {
                let checked = self.episodes.on_cancelled(one.episode_id, &one.reason);
                self.expect("J2", checked);
                self.bounds.on_ended(one.episode_id);
                let checked = self.trajectories.on_cancelled(one.episode_id, &one.reason);
                self.expect("M1", checked);
            }
            Kind::Unused(one) => {
                let checked = self.trajectories.on_unused(one.episode_id, &one.reason);
                self.expect("S1", checked);
            }
            Kind::Batch(batch) => {
                let checked = self.trained.on_planned(batch);
                self.expect("J3", checked);
                self.bounds.on_planned(batch);
            }
            Kind::Step(step) => {
                let checked = self.versions.on_finished(step.step);
                self.expect("V1", checked);
            }
            Kind::Audit(entry) => self.log.on_audit(entry),
            Kind::Ended(_) => self.log.on_ended(),
            Kind::Decision(_) | Kind::Phase(_) | Kind::Evaluated(_) | Kind::Checkpoint(_) => {}
        }
    }

    // === what actors see ===

    /// An actor got an episode to run.
    pub(crate) fn on_assigned(
        &mut self,
        actor: (&str, u64),
        assignment: &Assignment,
        slots: Sizes,
    ) {
        let checked = self.episodes.on_assigned(actor, assignment);
        self.expect("J2", checked);
        let checked = b1_bounds::slots(slots);
        self.expect("B1", checked);
    }

    /// An actor is told that a trajectory is durable.
    pub(crate) fn on_acknowledged(&mut self, episode: u64) {
        let checked = self.trajectories.on_acknowledged(episode);
        self.expect("J1", checked);
        self.episodes.on_forgotten(episode);
    }

    /// An actor has nothing of this episode any more.
    pub(crate) fn on_forgotten(&mut self, episode: u64) {
        self.episodes.on_forgotten(episode);
    }

    /// An actor is gone, and all it had.
    pub(crate) fn on_actor_gone(&mut self, actor: (&str, u64)) {
        self.episodes.on_actor_gone(actor);
    }

    /// An actor made a trajectory.
    pub(crate) fn on_made(&mut self, trajectory: &Trajectory, blemish: Option<Blemish>) {
        self.trajectories.on_made(trajectory, blemish);
    }

    // === what the learner sees ===

    /// The learner got a batch.
    pub(crate) fn on_batch(&mut self, batch: &TrainBatch, vocabulary: u32) {
        let checked = j1_acknowledged::fit_together(batch);
        self.expect("M1", checked);
        let checked = self.trajectories.on_served(batch, vocabulary);
        self.expect("M2", checked);
        let checked = self.groups.on_served(batch, |episode| self.episodes.is_in_flight(episode));
        self.expect("G1", checked);
        let checked = self.trained.on_served(batch);
        self.expect("J3", checked);
        let checked = self.staleness.on_served(batch);
        self.expect("S1", checked);
    }

    /// A learner makes an optimizer step of a batch, its weights being of version `held`.
    pub(crate) fn on_applied(&mut self, learner: usize, batch: &TrainBatch, held: u64) {
        let checked = self.versions.on_applied(batch.step, held);
        self.expect("V1", checked);
        let checked = self.trained.on_applied(learner, batch);
        self.expect("J3", checked);
    }

    /// A learner saved its weights as the newest checkpoint.
    pub(crate) fn on_saved(&mut self, learner: usize) {
        self.trained.on_saved(learner);
    }

    /// A learner took up the weights of the newest checkpoint.
    pub(crate) fn on_restored(&mut self, learner: usize) {
        self.trained.on_restored(learner);
    }

    /// The learner is told that its answer is known.
    pub(crate) fn on_confirmed(&mut self, step: u64) {
        let checked = self.versions.on_confirmed(step);
        self.expect("V1", checked);
    }

    // === what people see ===

    /// Somebody was told that a change, which has this reason, was made.
    pub(crate) fn on_changed(&mut self, reason: &str) {
        if !self.log.has_audit(reason) {
            self.broken("J1", format!("{reason} was answered, and is not in the journal"));
        }
    }

    /// A coordinator left with the run's result.
    pub(crate) fn on_exit(&mut self) {
        if !self.log.has_ended() {
            self.broken("J1", "the run is over, and the journal does not say so".into());
        }
    }

    // === what is inside ===

    /// Sizes of queues.
    pub(crate) fn on_sizes(&mut self, sizes: &[Sizes]) {
        for size in sizes {
            self.expect("B1", b1_bounds::within(*size));
        }
    }

    /// A coordinator that had nothing undone dies; `next` is the position after its last record.
    pub(crate) fn remember(&mut self, next: Position, engine: Engine) {
        self.remembered.keep(next, engine);
    }

    /// A run was rebuilt from this many records.
    pub(crate) fn on_rebuilt(&mut self, next: Position, engine: &Engine) {
        let checked = self.remembered.compare(next, engine);
        self.expect("J4", checked);
    }

    // === at the end ===

    /// Reads the journal once more, and has the checker look at it.
    pub(crate) fn on_end(&mut self, reader: &Reader) {
        self.read_again(None, reader);
        let mut check = Check::new(Some(self.staleness_bound));
        let mut records = match reader.records_from(Position(0)) {
            Ok(records) => records,
            Err(error) => return self.broken("J1", error.to_string()),
        };
        while let Some(next) = records.next_with_payload() {
            match next {
                Ok((stored, payload)) => {
                    check.record(stored.position.0, stored.term.0, stored.head, payload);
                }
                Err(error) => return self.broken("J1", error.to_string()),
            }
        }
        self.trajectories.acknowledged().for_each(|episode| check.acknowledged(episode));
        if let Some(violation) = check.finish().violations.into_iter().next() {
            self.broken(violation.promise, format!("the checker says: {violation}"));
        }
    }
}
