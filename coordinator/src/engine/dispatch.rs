//! Episodes that are wanted and episodes that are in flight.
//!
//! Promise J2: dispatched = finished + cancelled + in flight, and every episode id ends exactly
//! once. An episode that ends without a usable trajectory is wanted again under a new id; what it
//! was for ([`Purpose`]), its task and its sampling seed stay the same.
//!
//! An episode belongs to an actor, not to a stream: it stays in flight while its actor is away.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::{
    ActorId, EpisodeId, GroupId, PolicyVersion,
    v1::{Assignment, EpisodeCounts, EpisodeLimits, Mode, TaskRef},
};
use serde::{Deserialize, Serialize};

/// Cancelled episodes that are told apart from finished ones when an actor asks for one again. Far
/// more than all actors can hold: what is older is simply discarded.
const CANCELLED_KEPT_MAX: usize = 1 << 16;

/// Times one wanted episode is run before it is given up.
pub const EPISODE_ATTEMPTS_MAX: u32 = 8;

/// Why an episode ends without a trajectory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its actor's lease ended, or a newer incarnation took the actor's place.
    ActorLost,
    /// Its actor came back without it: the assignment never arrived.
    Unclaimed,
    /// Its actor gave it back.
    Returned,
    /// Its trajectory breaks a promise.
    Invalid,
    /// The run ended while it ran.
    RunOver,
}

impl Cause {
    /// Name in the journal and in counts.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ActorLost => "actor_lost",
            Self::Unclaimed => "unclaimed",
            Self::Returned => "returned",
            Self::Invalid => "invalid",
            Self::RunOver => "run_over",
        }
    }
}

/// What an episode is for: where its trajectory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// The demonstration of this index.
    Demonstration { index: usize },
    /// A demonstration of a task that the policy failed.
    Correction { index: usize },
    /// A sibling of an RL group.
    Sibling { group: GroupId, index: usize },
    /// An episode of the evaluation with this serial number.
    Evaluation { serial: u64, index: usize },
}

/// An episode somebody must run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) purpose: Purpose,
    pub(super) task: TaskRef,
    pub(super) mode: Mode,
    pub(super) sampling_seed: u64,
    /// Softmax temperature; 0 is greedy.
    pub(super) temperature: f32,
    /// Oldest version it may be sampled under; `None` for a demonstration.
    pub(super) min_policy_version: Option<PolicyVersion>,
    /// Times it was run and came to nothing.
    pub(super) attempts: u32,
}

/// A dispatched episode that has not ended.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct InFlight {
    pub(super) actor: ActorId,
    pub(super) wanted: Wanted,
}

/// What is known of an episode id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate<'a> {
    /// In flight on this actor.
    Running(&'a ActorId),
    Finished,
    Cancelled,
    /// Never dispatched, or so long ago that nobody knows.
    Unknown,
}

/// Dispatch order: what failed goes first, so that no batch waits long for one straggler; then what
/// training waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Rank {
    Again,
    Demonstration,
    Evaluation,
    Explore,
}

/// The queue of wanted episodes and the table of those in flight. The queue is bounded by what the
/// schedule admits: demonstrations, one evaluation, and (staleness_max + 1) batches of groups.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Dispatch {
    limits: EpisodeLimits,
    queue: BTreeMap<(Rank, u64), Wanted>,
    queued: u64,
    in_flight: BTreeMap<EpisodeId, InFlight>,
    /// Episodes in flight, by actor; no actor without one.
    held: BTreeMap<ActorId, BTreeSet<EpisodeId>>,
    next: EpisodeId,
    finished: u64,
    /// The newest cancelled ones.
    cancelled: BTreeSet<EpisodeId>,
    /// What is not in flight and below this is not known any more.
    known_from: EpisodeId,
    cancelled_by_reason: BTreeMap<String, u64>,
}

impl Dispatch {
    pub(super) fn new(limits: EpisodeLimits) -> Self {
        Self {
            limits,
            queue: BTreeMap::new(),
            queued: 0,
            in_flight: BTreeMap::new(),
            held: BTreeMap::new(),
            next: EpisodeId(0),
            finished: 0,
            cancelled: BTreeSet::new(),
            known_from: EpisodeId(0),
            cancelled_by_reason: BTreeMap::new(),
        }
    }

    /// Queues an episode behind its like.
    pub(super) fn want(&mut self, wanted: Wanted) {
        let rank = match wanted.purpose {
            Purpose::Demonstration { .. } | Purpose::Correction { .. } => Rank::Demonstration,
            Purpose::Evaluation { .. } => Rank::Evaluation,
            Purpose::Sibling { .. } => Rank::Explore,
        };
        self.enqueue(rank, wanted);
    }

    /// Queues an episode that came to nothing before everything else. Returns it instead when it has
    /// used up its attempts.
    pub(super) fn want_again(&mut self, wanted: Wanted) -> Option<Wanted> {
        if wanted.attempts >= EPISODE_ATTEMPTS_MAX {
            return Some(wanted);
        }
        self.enqueue(Rank::Again, wanted);
        None
    }

    fn enqueue(&mut self, rank: Rank, wanted: Wanted) {
        self.queue.insert((rank, self.queued), wanted);
        self.queued += 1;
    }

    /// Whether an episode waits for an actor.
    pub(super) fn is_wanting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Removes the wanted episodes of a purpose that has ended.
    pub(super) fn forget(&mut self, ended: impl Fn(Purpose) -> bool) {
        self.queue.retain(|_, wanted| !ended(wanted.purpose));
    }

    /// Assigns the next wanted episode to an actor.
    pub(super) fn next(&mut self, actor: &ActorId) -> Option<Assignment> {
        let (_, wanted) = self.queue.pop_first()?;
        let episode = self.next;
        self.next = episode.next();
        let group_id = match wanted.purpose {
            Purpose::Sibling { group, .. } => Some(group.0),
            Purpose::Demonstration { .. }
            | Purpose::Correction { .. }
            | Purpose::Evaluation { .. } => None,
        };
        let assignment = Assignment {
            episode_id: episode.0,
            group_id,
            task: Some(wanted.task.clone()),
            mode: wanted.mode.into(),
            min_policy_version: wanted.min_policy_version.map(|version| version.0),
            sampling_seed: wanted.sampling_seed,
            temperature: wanted.temperature,
            limits: Some(self.limits),
        };
        self.held.entry(actor.clone()).or_default().insert(episode);
        self.in_flight.insert(episode, InFlight { actor: actor.clone(), wanted });
        Some(assignment)
    }

    pub(super) fn fate(&self, episode: EpisodeId) -> Fate<'_> {
        match self.in_flight.get(&episode) {
            Some(InFlight { actor, .. }) => Fate::Running(actor),
            None if episode >= self.next || episode < self.known_from => Fate::Unknown,
            None if self.cancelled.contains(&episode) => Fate::Cancelled,
            None => Fate::Finished,
        }
    }

    pub(super) fn get(&self, episode: EpisodeId) -> Option<&InFlight> {
        self.in_flight.get(&episode)
    }

    /// Ends an episode whose trajectory is here. Returns who ran it, and what for.
    pub(super) fn finish(&mut self, episode: EpisodeId) -> Option<InFlight> {
        let ended = self.remove(episode)?;
        self.finished += 1;
        Some(ended)
    }

    /// Ends an episode that has no trajectory and will not get one. Returns what it was for.
    pub(super) fn cancel(&mut self, episode: EpisodeId, cause: Cause) -> Option<Wanted> {
        let InFlight { mut wanted, .. } = self.remove(episode)?;
        // What never arrived was not tried: a coordinator that fails over often costs no attempts.
        wanted.attempts += u32::from(cause != Cause::Unclaimed);
        self.cancelled.insert(episode);
        while self.cancelled.len() > CANCELLED_KEPT_MAX {
            if let Some(oldest) = self.cancelled.pop_first() {
                self.known_from = oldest.next();
            }
        }
        *self.cancelled_by_reason.entry(cause.as_str().to_owned()).or_default() += 1;
        Some(wanted)
    }

    fn remove(&mut self, episode: EpisodeId) -> Option<InFlight> {
        let ended = self.in_flight.remove(&episode)?;
        if let Some(held) = self.held.get_mut(&ended.actor) {
            held.remove(&episode);
            if held.is_empty() {
                self.held.remove(&ended.actor);
            }
        }
        Some(ended)
    }

    /// Episodes in flight on an actor, in order.
    pub(super) fn held_by(&self, actor: &ActorId) -> Vec<EpisodeId> {
        self.held.get(actor).into_iter().flatten().copied().collect()
    }

    /// Everything in flight, in order, with its actor.
    pub(super) fn all_in_flight(&self) -> Vec<(EpisodeId, ActorId)> {
        self.in_flight.iter().map(|(id, one)| (*id, one.actor.clone())).collect()
    }

    /// How many episodes an actor has in flight.
    pub(super) fn held_count(&self, actor: &ActorId) -> usize {
        self.held.get(actor).map_or(0, BTreeSet::len)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Promise J2, on the numbers alone.
    pub(super) fn is_balanced(&self) -> bool {
        let cancelled: u64 = self.cancelled_by_reason.values().sum();
        self.next.0 == self.finished + cancelled + self.in_flight.len() as u64
    }

    pub(super) fn counts(&self) -> EpisodeCounts {
        EpisodeCounts {
            dispatched: self.next.0,
            finished: self.finished,
            cancelled: self.cancelled_by_reason.values().sum(),
            in_flight: self.in_flight.len() as u64,
            cancelled_by_reason: self.cancelled_by_reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(index: usize) -> Wanted {
        Wanted {
            purpose: Purpose::Demonstration { index },
            task: TaskRef::default(),
            mode: Mode::Demonstrate,
            sampling_seed: 0,
            temperature: 0.0,
            min_policy_version: None,
            attempts: 0,
        }
    }

    fn actor() -> ActorId {
        ActorId("a".into())
    }

    /// Episode 0 in one of its states.
    fn episode(state: &str) -> Dispatch {
        let mut dispatch = Dispatch::new(EpisodeLimits::default());
        dispatch.want(wanted(0));
        if state == "unknown" {
            return dispatch;
        }
        dispatch.next(&actor()).expect("wanted");
        match state {
            "finished" => drop(dispatch.finish(EpisodeId(0))),
            "cancelled" => drop(dispatch.cancel(EpisodeId(0), Cause::ActorLost)),
            _ => {}
        }
        dispatch
    }

    #[test]
    fn every_fate_answers_every_end() {
        let (running, actor) = (Fate::Running(&actor()), actor());
        assert_eq!(episode("running").fate(EpisodeId(0)), running);
        // (state, what ending it gives back, fate afterwards)
        let table = [
            ("unknown", [false, false], [Fate::Unknown, Fate::Unknown]),
            ("running", [true, true], [Fate::Finished, Fate::Cancelled]),
            ("finished", [false, false], [Fate::Finished, Fate::Finished]),
            ("cancelled", [false, false], [Fate::Cancelled, Fate::Cancelled]),
        ];
        for (state, ends, fates) in table {
            let mut one = episode(state);
            assert_eq!(one.finish(EpisodeId(0)).is_some(), ends[0], "{state}");
            assert_eq!(one.fate(EpisodeId(0)), fates[0], "{state}");
            assert!(one.is_balanced());
            let mut one = episode(state);
            assert_eq!(one.cancel(EpisodeId(0), Cause::Invalid).is_some(), ends[1], "{state}");
            assert_eq!(one.fate(EpisodeId(0)), fates[1], "{state}");
            assert!(one.is_balanced());
            assert_eq!(one.held_count(&actor), 0);
        }
    }

    #[test]
    fn only_what_was_run_counts_as_an_attempt() {
        for (cause, attempts) in [
            (Cause::ActorLost, 1),
            (Cause::Returned, 1),
            (Cause::Invalid, 1),
            (Cause::Unclaimed, 0),
        ] {
            let wanted = episode("running").cancel(EpisodeId(0), cause).expect("it ran");
            assert_eq!(wanted.attempts, attempts, "{cause:?}");
        }
    }

    #[test]
    fn what_came_to_nothing_is_next_and_given_up_in_the_end() {
        let mut dispatch = episode("running");
        (1..4).for_each(|index| dispatch.want(wanted(index)));
        for attempt in 1..EPISODE_ATTEMPTS_MAX {
            let newest = EpisodeId(u64::from(attempt) - 1);
            let lost = dispatch.cancel(newest, Cause::ActorLost).expect("it runs");
            assert_eq!((lost.purpose, lost.attempts), (wanted(0).purpose, attempt));
            assert_eq!(dispatch.want_again(lost), None);
            dispatch.next(&actor());
        }
        let newest = EpisodeId(u64::from(EPISODE_ATTEMPTS_MAX) - 1);
        let lost = dispatch.cancel(newest, Cause::ActorLost).expect("it runs");
        assert!(dispatch.want_again(lost).is_some());
    }

    #[test]
    fn old_cancelled_episodes_are_forgotten_and_never_taken_for_finished() {
        let mut dispatch = Dispatch::new(EpisodeLimits::default());
        let count = CANCELLED_KEPT_MAX as u64 + 10;
        for index in 0..count {
            dispatch.want(wanted(index as usize));
            dispatch.next(&actor());
            dispatch.cancel(EpisodeId(index), Cause::ActorLost);
        }
        assert_eq!(dispatch.cancelled.len(), CANCELLED_KEPT_MAX);
        let fates = (0..count).map(|index| dispatch.fate(EpisodeId(index)));
        assert_eq!(fates.filter(|fate| *fate == Fate::Unknown).count(), 10);
        assert_eq!(dispatch.fate(EpisodeId(count - 1)), Fate::Cancelled);
        assert!(dispatch.is_balanced());
    }
}
