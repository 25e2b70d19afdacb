//! Proves a run's promises from its journal, sharing nothing with the engine that made them: only what
//! events led to is looked at, record by record.
//!
//! J1: every finished episode's trajectory is there, whole and sound. J2: every episode was dispatched
//! once and ended at most once. J3: no sampled trajectory is in two batches. S1: no batch has a token
//! older than the staleness bound. G1: no batch has a group with a sibling in flight. V1: steps are
//! finished one after the other. L1: terms only grow.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ballast_proto::{
    EpisodeId,
    v1::{
        BatchPlanned, Effect, EpisodeDispatched, JournalEntry, Mode, Trajectory, TrajectorySummary,
        effect, journal_entry::Event,
    },
    verify_trajectory,
};
use bytes::Bytes;
use prost::Message as _;
use serde::Serialize;

/// A promise that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Its id, as in ARCHITECTURE.md.
    pub promise: &'static str,
    /// Position of the record that breaks it.
    pub position: u64,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at record {}: {}", self.promise, self.position, self.what)
    }
}

/// What a journal came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Records read.
    pub records: u64,
    /// Leaderships.
    pub terms: u64,
    /// Episodes dispatched.
    pub dispatched: u64,
    /// Of them, those with a trajectory.
    pub finished: u64,
    /// Those that ended without.
    pub cancelled: u64,
    /// Those that have not ended.
    pub in_flight: u64,
    /// Sampled trajectories in batches.
    pub trained: u64,
    /// Batches planned.
    pub batches: u64,
    /// Last finished optimizer step.
    pub step: u64,
    /// Largest staleness at consumption, versions.
    pub staleness_max: u64,
    /// What does not hold.
    pub violations: Vec<Violation>,
}

/// How an episode stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InFlight,
    Finished { oldest_version: Option<u64> },
    Cancelled,
}

#[derive(Debug)]
struct Episode {
    group: Option<u64>,
    state: State,
}

/// The proof as it goes on, record by record.
#[derive(Debug)]
pub struct Check {
    /// S1's bound, in versions; absent: not checked.
    staleness_bound: Option<u64>,
    episodes: BTreeMap<u64, Episode>,
    groups: BTreeMap<u64, Vec<u64>>,
    /// The batch each sampled trajectory is in.
    trained: BTreeMap<u64, u64>,
    term: Option<u64>,
    report: Report,
}

impl Check {
    /// The proof of a run whose batches may be this stale.
    #[must_use]
    pub fn new(staleness_bound: Option<u64>) -> Self {
        Self {
            staleness_bound,
            episodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            trained: BTreeMap::new(),
            term: None,
            report: Report::default(),
        }
    }

    /// Looks at the next record.
    pub fn record(&mut self, position: u64, term: u64, head: Bytes, payload: Bytes) {
        if position != self.report.records {
            let expected = self.report.records;
            self.break_promise("J1", position, format!("record {expected} should be here"));
        }
        self.report.records = position + 1;
        if self.term.is_none_or(|last| term > last) {
            self.report.terms += 1;
        }
        if self.term.is_some_and(|last| term < last) {
            self.break_promise("L1", position, format!("term {term} after {:?}", self.term));
        }
        self.term = Some(term);
        let entry = match JournalEntry::decode(head) {
            Ok(entry) => entry,
            Err(error) => {
                return self.break_promise("J1", position, format!("not an entry: {error}"));
            }
        };
        let summary = match &entry.event {
            Some(Event::TrajectoryReported(summary)) => Some(summary),
            _ => None,
        };
        for Effect { effect } in &entry.effects {
            match effect {
                Some(effect::Effect::Dispatched(one)) => self.dispatched(position, one),
                Some(effect::Effect::Finished(one)) => {
                    self.finished(position, one.episode_id, summary, &payload);
                }
                Some(effect::Effect::Cancelled(one)) => {
                    self.end(position, one.episode_id, State::Cancelled);
                }
                Some(effect::Effect::Batch(batch)) => self.batch(position, batch),
                Some(effect::Effect::Step(step)) => self.step(position, step.step),
                _ => {}
            }
        }
    }

    /// A trajectory that an actor was told is safe: it must be here by now.
    pub fn acknowledged(&mut self, episode: EpisodeId) {
        let state = self.episodes.get(&episode.0).map(|one| one.state);
        if !matches!(state, Some(State::Finished { .. })) {
            let position = self.report.records;
            let what = format!("{episode} was acknowledged, but here it is {state:?}");
            self.break_promise("J1", position, what);
        }
    }

    /// What it came to.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let count = |wanted: fn(&State) -> bool| {
            self.episodes.values().filter(|one| wanted(&one.state)).count() as u64
        };
        let report = &mut self.report;
        report.finished = count(|state| matches!(state, State::Finished { .. }));
        report.cancelled = count(|state| matches!(state, State::Cancelled));
        report.in_flight = count(|state| matches!(state, State::InFlight));
        report.trained = self.trained.len() as u64;
        self.report
    }

    fn break_promise(&mut self, promise: &'static str, position: u64, what: String) {
        /// More of them tell nobody anything.
        const VIOLATIONS_MAX: usize = 100;
        if self.report.violations.len() < VIOLATIONS_MAX {
            self.report.violations.push(Violation { promise, position, what });
        }
    }

    fn dispatched(&mut self, position: u64, one: &EpisodeDispatched) {
        let id = one.episode_id;
        if id != self.report.dispatched {
            let next = self.report.dispatched;
            self.break_promise("J2", position, format!("e{id} is dispatched, and e{next} is next"));
        }
        self.report.dispatched = id + 1;
        let group = one.group_id.filter(|_| one.mode() == Mode::Explore);
        if let Some(group) = group {
            self.groups.entry(group).or_default().push(id);
        }
        let episode = Episode { group, state: State::InFlight };
        if self.episodes.insert(id, episode).is_some() {
            self.break_promise("J2", position, format!("e{id} is dispatched twice"));
        }
    }

    fn finished(
        &mut self,
        position: u64,
        id: u64,
        summary: Option<&TrajectorySummary>,
        payload: &Bytes,
    ) {
        let fault = match Trajectory::decode(payload.clone()) {
            Err(error) => Some(format!("its trajectory cannot be decoded: {error}")),
            Ok(one) if one.episode_id != id => {
                Some(format!("its trajectory is e{}'s", one.episode_id))
            }
            Ok(one) => verify_trajectory(&one).err().map(|error| error.to_string()),
        };
        if let Some(fault) = fault {
            self.break_promise("J1", position, format!("e{id} is finished, but {fault}"));
        }
        let oldest_version = summary.and_then(|summary| summary.oldest_version);
        self.end(position, id, State::Finished { oldest_version });
    }

    fn end(&mut self, position: u64, id: u64, state: State) {
        match self.episodes.get_mut(&id) {
            None => self.break_promise("J2", position, format!("e{id} ends, but never began")),
            Some(episode) if episode.state != State::InFlight => {
                let before = episode.state;
                self.break_promise("J2", position, format!("e{id} ends again; it was {before:?}"));
            }
            Some(episode) => episode.state = state,
        }
    }

    fn batch(&mut self, position: u64, batch: &BatchPlanned) {
        let (index, step) = (batch.index, batch.step);
        if index != self.report.batches {
            let next = self.report.batches;
            self.break_promise("J3", position, format!("batch {index}, and {next} is next"));
        }
        self.report.batches = index + 1;
        for group in &batch.groups {
            for id in &group.episodes {
                if let Some(other) = self.trained.insert(*id, index) {
                    let what = format!("e{id} is in batch {index} and in batch {other}");
                    self.break_promise("J3", position, what);
                }
                self.fresh(position, *id, step);
            }
            self.closed(position, group.group_id, index);
        }
        for id in &batch.demonstrations {
            let state = self.episodes.get(id).map(|one| one.state);
            if !matches!(state, Some(State::Finished { .. })) {
                let what = format!("batch {index} has e{id}, which is {state:?}");
                self.break_promise("J1", position, what);
            }
        }
    }

    /// S1 for one trajectory of step `step`.
    fn fresh(&mut self, position: u64, id: u64, step: u64) {
        let Some(State::Finished { oldest_version }) = self.episodes.get(&id).map(|one| one.state)
        else {
            let what = format!("step {step} trains e{id}, which is not finished");
            return self.break_promise("J1", position, what);
        };
        let Some(oldest) = oldest_version else { return };
        let staleness = step.saturating_sub(1).saturating_sub(oldest);
        self.report.staleness_max = self.report.staleness_max.max(staleness);
        if self.staleness_bound.is_some_and(|bound| staleness > bound) {
            let what = format!("step {step} trains e{id}, {staleness} versions stale");
            self.break_promise("S1", position, what);
        }
    }

    /// G1 for one group of a batch.
    fn closed(&mut self, position: u64, group: u64, index: u64) {
        let members = self.groups.get(&group).cloned().unwrap_or_default();
        let members: BTreeSet<u64> = members.into_iter().collect();
        let open = members.into_iter().find(|id| {
            let episode = self.episodes.get(id);
            episode.is_some_and(|one| one.state == State::InFlight && one.group == Some(group))
        });
        if let Some(id) = open {
            let what = format!("batch {index} has group {group}, and e{id} of it is in flight");
            self.break_promise("G1", position, what);
        }
    }

    fn step(&mut self, position: u64, step: u64) {
        if step != self.report.step + 1 {
            let last = self.report.step;
            self.break_promise("V1", position, format!("step {step} is finished after {last}"));
        }
        self.report.step = step;
    }
}

#[cfg(test)]
#[path = "check_test.rs"]
mod tests;
