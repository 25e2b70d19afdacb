//! Episodes that are wanted and episodes that are in flight.
//!
//! Promise J2: dispatched = finished + cancelled + in flight, and every episode id ends exactly
//! once. An episode that ends without a usable trajectory is wanted again under a new id; what it
//! was for ([`Purpose`]), its task and its sampling seed stay the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ballast_proto::{
    EpisodeId, GroupId, PolicyVersion,
    v1::{Assignment, EpisodeCounts, EpisodeLimits, Mode, TaskRef, Trajectory},
};

use super::event::SessionId;

/// Times one wanted episode is dispatched before it is given up.
pub const EPISODE_ATTEMPTS_MAX: u32 = 8;

/// What an episode is for: where its trajectory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The demonstration of this index.
    Demonstration { index: usize },
    /// A sibling of an RL group.
    Sibling { group: GroupId, index: usize },
    /// An episode of the evaluation with this serial number.
    Evaluation { serial: u64, index: usize },
}

/// An episode somebody must run.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) purpose: Purpose,
    pub(super) task: TaskRef,
    pub(super) mode: Mode,
    pub(super) sampling_seed: u64,
    /// Softmax temperature; 0 is greedy.
    pub(super) temperature: f32,
    /// Oldest version it may be sampled under; `None` for a demonstration.
    pub(super) min_policy_version: Option<PolicyVersion>,
    /// Times it was dispatched and came to nothing.
    pub(super) attempts: u32,
}

/// A dispatched episode that has not ended.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) session: SessionId,
    pub(super) wanted: Wanted,
    /// Set once the trajectory is here and waits for the journal: from then on the loss of the
    /// actor does not matter.
    pub(super) reported: Option<Arc<Trajectory>>,
}

/// What is known of an episode id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Dispatched over this session, nothing reported.
    Running(SessionId),
    /// Its trajectory waits for the journal.
    Reported,
    Finished,
    Cancelled,
    /// Never dispatched.
    Unknown,
}

/// Dispatch order: what failed goes first, so that no batch waits long for one straggler; then what
/// training waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Again,
    Demonstration,
    Evaluation,
    Explore,
}

/// The queue of wanted episodes and the table of those in flight. The queue is bounded by what the
/// schedule admits: demonstrations, one evaluation, and (staleness_max + 1) batches of groups.
#[derive(Debug)]
pub(super) struct Dispatch {
    limits: EpisodeLimits,
    queue: BTreeMap<(Rank, u64), Wanted>,
    queued: u64,
    in_flight: BTreeMap<EpisodeId, InFlight>,
    next: EpisodeId,
    finished: u64,
    cancelled: BTreeSet<EpisodeId>,
    cancelled_by_reason: BTreeMap<String, u64>,
}

impl Dispatch {
    pub(super) fn new(limits: EpisodeLimits) -> Self {
        Self {
            limits,
            queue: BTreeMap::new(),
            queued: 0,
            in_flight: BTreeMap::new(),
            next: EpisodeId(0),
            finished: 0,
            cancelled: BTreeSet::new(),
            cancelled_by_reason: BTreeMap::new(),
        }
    }

    /// Queues an episode behind its like.
    pub(super) fn want(&mut self, wanted: Wanted) {
        let rank = match wanted.purpose {
            Purpose::Demonstration { .. } => Rank::Demonstration,
            Purpose::Evaluation { .. } => Rank::Evaluation,
            Purpose::Sibling { .. } => Rank::Explore,
        };
        self.enqueue(rank, wanted);
    }

    /// Queues an episode that came to nothing before everything else. Returns it instead when it has
    /// used up its attempts.
    pub(super) fn want_again(&mut self, mut wanted: Wanted) -> Option<Wanted> {
        wanted.attempts += 1;
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

    /// Removes the wanted episodes of a purpose that has ended.
    pub(super) fn forget(&mut self, ended: impl Fn(Purpose) -> bool) {
        self.queue.retain(|_, wanted| !ended(wanted.purpose));
    }

    /// Assigns the next wanted episode to a session.
    pub(super) fn next(&mut self, session: SessionId) -> Option<Assignment> {
        let (_, wanted) = self.queue.pop_first()?;
        let episode = self.next;
        self.next = episode.next();
        let group_id = match wanted.purpose {
            Purpose::Sibling { group, .. } => Some(group.0),
            Purpose::Demonstration { .. } | Purpose::Evaluation { .. } => None,
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
        self.in_flight.insert(episode, InFlight { session, wanted, reported: None });
        Some(assignment)
    }

    pub(super) fn fate(&self, episode: EpisodeId) -> Fate {
        match self.in_flight.get(&episode) {
            Some(InFlight { reported: Some(_), .. }) => Fate::Reported,
            Some(InFlight { session, .. }) => Fate::Running(*session),
            None if episode >= self.next => Fate::Unknown,
            None if self.cancelled.contains(&episode) => Fate::Cancelled,
            None => Fate::Finished,
        }
    }

    pub(super) fn get(&self, episode: EpisodeId) -> Option<&InFlight> {
        self.in_flight.get(&episode)
    }

    /// Keeps a reported trajectory until it is durable.
    pub(super) fn report(&mut self, episode: EpisodeId, trajectory: Arc<Trajectory>) {
        if let Some(in_flight) = self.in_flight.get_mut(&episode) {
            in_flight.reported = Some(trajectory);
        }
    }

    /// Ends an episode whose trajectory is durable.
    pub(super) fn finish(&mut self, episode: EpisodeId) -> Option<InFlight> {
        let in_flight = self.in_flight.remove(&episode)?;
        self.finished += 1;
        Some(in_flight)
    }

    /// Ends an episode that has no trajectory and will not get one.
    pub(super) fn cancel(&mut self, episode: EpisodeId, reason: &str) -> Option<Wanted> {
        let in_flight = self.in_flight.remove(&episode)?;
        self.cancelled.insert(episode);
        *self.cancelled_by_reason.entry(reason.to_owned()).or_default() += 1;
        Some(in_flight.wanted)
    }

    /// Episodes of a session that are lost with it: all that were not reported.
    pub(super) fn running_on(&self, session: SessionId) -> Vec<EpisodeId> {
        let lost =
            |in_flight: &InFlight| in_flight.session == session && in_flight.reported.is_none();
        self.in_flight.iter().filter(|(_, in_flight)| lost(in_flight)).map(|(id, _)| *id).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(super) fn counts(&self) -> EpisodeCounts {
        EpisodeCounts {
            dispatched: self.next.0,
            finished: self.finished,
            cancelled: self.cancelled.len() as u64,
            in_flight: self.in_flight.len() as u64,
            cancelled_by_reason: self.cancelled_by_reason.clone(),
        }
    }
}
