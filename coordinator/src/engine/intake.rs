//! What becomes of a trajectory: acknowledgement and use.
//!
//! Promise J1: an acknowledgement is a command of the event that holds the trajectory, so it leaves
//! the process only when both are in the journal. Promise G1: an infrastructure failure is never a
//! reward of 0; its episode is run anew.

use std::sync::Arc;

use ballast_proto::{
    EpisodeId,
    v1::{
        EpisodeCancelled, EpisodeFinished, EpisodeUnused, Mode, StopReason, TrajectorySummary,
        effect,
    },
};

use serde::{Deserialize, Serialize};

use super::{
    Command, Engine, SessionId,
    dispatch::{Cause, Fate, InFlight, Purpose, Wanted},
    ledger::Provenance,
};

/// A finished trajectory, as long as nobody knows whether it can be used.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Open {
    ended: InFlight,
    trajectory: Arc<TrajectorySummary>,
}

/// Whether a trajectory can be used for what it was wanted for.
enum Use {
    Yes,
    /// Not yet: the step that made its policy version is not reported.
    Later,
    /// Never; the reason is a metric label.
    No(&'static str),
    /// Never, and it is kept for people to look at: the reason, and how it was made.
    Broken(&'static str, String),
}

impl Engine {
    pub(super) fn on_trajectory_reported(
        &mut self,
        session: SessionId,
        trajectory: Arc<TrajectorySummary>,
    ) {
        let Some(actor) = self.members.actor(session) else { return };
        let episode = EpisodeId(trajectory.episode_id);
        match self.dispatch.fate(episode) {
            Fate::Running(holder) if holder == actor => {
                if let Some(fault) = self.fault(episode, &trajectory) {
                    self.on_trajectory_invalid(session, episode, &fault);
                } else {
                    self.finish_episode(session, trajectory);
                }
            }
            // Delivered twice.
            Fate::Finished => self.acknowledge(session, episode),
            Fate::Running(_) | Fate::Cancelled | Fate::Unknown => {
                self.ignore(session, episode);
            }
        }
    }

    /// Nobody waits for this trajectory.
    fn ignore(&mut self, session: SessionId, episode: EpisodeId) {
        let text = "is ignored: it is not in flight on that actor";
        self.push(Command::Warn(format!("the trajectory of {episode} {text}")));
        self.discard(session, episode);
    }

    /// A trajectory that breaks a promise: kept in the journal, listed, never used. One that nobody
    /// waits for is not kept, so that no actor can fill the disk.
    pub(super) fn on_trajectory_invalid(
        &mut self,
        session: SessionId,
        episode: EpisodeId,
        fault: &str,
    ) {
        let Some(actor) = self.members.actor(session).cloned() else { return };
        if self.dispatch.fate(episode) != Fate::Running(&actor) {
            self.ignore(session, episode);
            return;
        }
        self.push(Command::Warn(format!("the trajectory of {episode} is rejected: {fault}")));
        self.records.quarantine(self.now, episode, &actor, fault);
        self.discard(session, episode);
        self.cancel(episode, Cause::Invalid, None);
    }

    fn finish_episode(&mut self, session: SessionId, trajectory: Arc<TrajectorySummary>) {
        let episode = EpisodeId(trajectory.episode_id);
        let Some(ended) = self.dispatch.finish(episode) else { return };
        self.effect(effect::Effect::Finished(EpisodeFinished { episode_id: episode.0 }));
        self.acknowledge(session, episode);
        self.records.finish(&trajectory);
        if ended.wanted.mode != Mode::Demonstrate {
            self.meter.rollout.tokens += u64::from(trajectory.tokens_sampled);
        }
        self.settle(Open { ended, trajectory });
    }

    /// Looks again at trajectories that came before their policy version was reported.
    pub(super) fn settle_early(&mut self) {
        for open in std::mem::take(&mut self.early) {
            self.settle(open);
        }
    }

    /// Cancels an episode and queues what it was for again. `tokens`: its length, if it is known.
    pub(super) fn cancel(&mut self, episode: EpisodeId, cause: Cause, tokens: Option<u32>) {
        let Some(wanted) = self.dispatch.cancel(episode, cause) else { return };
        let reason = cause.as_str();
        self.effect(effect::Effect::Cancelled(EpisodeCancelled {
            episode_id: episode.0,
            reason: reason.into(),
            tokens,
        }));
        if wanted.mode == Mode::Explore {
            self.lengths.drop_one(reason, tokens);
        }
        self.want_again(wanted);
    }

    /// What is wrong with the trajectory of an episode in flight, seen from here.
    fn fault(&self, episode: EpisodeId, trajectory: &TrajectorySummary) -> Option<String> {
        let wanted = &self.dispatch.get(episode)?.wanted;
        let group_id = match wanted.purpose {
            Purpose::Sibling { group, .. } => Some(group.0),
            Purpose::Demonstration { .. }
            | Purpose::Correction { .. }
            | Purpose::Evaluation { .. } => None,
        };
        let is_as_assigned = trajectory.task.as_ref() == Some(&wanted.task)
            && trajectory.mode() == wanted.mode
            && trajectory.group_id == group_id
            && trajectory.sampling_seed == wanted.sampling_seed;
        if !is_as_assigned {
            return Some("it is not the episode that was assigned".into());
        }
        if trajectory.reward.is_some_and(|reward| !reward.is_finite()) {
            return Some("its reward is not a number".into());
        }
        let vocabulary = self.vocabulary.filter(|size| trajectory.token_id_max >= *size)?;
        let largest = trajectory.token_id_max;
        Some(format!("token id {largest} is outside the vocabulary of {vocabulary}"))
    }

    fn settle(&mut self, open: Open) {
        let Open { ended: InFlight { actor, wanted }, trajectory } = &open;
        match self.judge(wanted, trajectory) {
            Use::Yes => {
                if wanted.mode == Mode::Explore {
                    self.lengths.sample(trajectory.tokens);
                }
                self.deliver(wanted.purpose, open.trajectory);
            }
            Use::Later => self.early.push(open),
            Use::No(reason) => self.leave_out(reason, open),
            Use::Broken(reason, what) => {
                let episode = EpisodeId(trajectory.episode_id);
                self.push(Command::Warn(format!("actor {actor} ran {episode}: it was {what}")));
                self.records.quarantine(self.now, episode, actor, &what);
                self.leave_out(reason, open);
            }
        }
    }

    /// Runs anew what a trajectory that cannot be used was for.
    fn leave_out(&mut self, reason: &'static str, open: Open) {
        let Open { ended: InFlight { mut wanted, .. }, trajectory } = open;
        let episode = EpisodeId(trajectory.episode_id);
        *self.unused_by_reason.entry(reason.to_owned()).or_default() += 1;
        let unused = EpisodeUnused { episode_id: episode.0, reason: reason.into() };
        self.effect(effect::Effect::Unused(unused));
        if wanted.mode == Mode::Explore {
            self.lengths.drop_one(reason, Some(trajectory.tokens));
        }
        self.release([episode]);
        self.push(Command::Warn(format!("{episode} is not used ({reason}), run anew")));
        wanted.attempts += 1;
        self.want_again(wanted);
    }

    fn judge(&self, wanted: &Wanted, trajectory: &TrajectorySummary) -> Use {
        if trajectory.stop_reason() == StopReason::Infrastructure {
            return Use::No("infrastructure");
        }
        match wanted.mode {
            Mode::Demonstrate if trajectory.success != Some(true) => {
                return Use::No("failed_demonstration");
            }
            Mode::Demonstrate => return Use::Yes,
            Mode::Explore if trajectory.reward.is_none() => return Use::No("unscored"),
            Mode::Evaluate if trajectory.success.is_none() => return Use::No("unscored"),
            Mode::Explore | Mode::Evaluate | Mode::Unspecified => {}
        }
        // Actors keep S1's side of the bargain; this makes sure.
        if let (Some(oldest), Some(asked)) = (trajectory.oldest_version, wanted.min_policy_version)
            && oldest < asked.0
        {
            return Use::Broken(
                "stale",
                format!("sampled under v{oldest}, but {asked} was asked for"),
            );
        }
        match self.ledger.provenance(trajectory, self.batches.unconfirmed()) {
            Provenance::Known => Use::Yes,
            Provenance::Early => Use::Later,
            Provenance::Unknown(version) => Use::Broken(
                "unknown_weights",
                format!("sampled under a {version} that was never published with that hash"),
            ),
        }
    }

    fn deliver(&mut self, purpose: Purpose, trajectory: Arc<TrajectorySummary>) {
        match purpose {
            Purpose::Demonstration { index } => self.demonstrations.record(index, trajectory),
            Purpose::Correction { index } => {
                let late = self.corrections.record(index, trajectory);
                self.release(late);
            }
            Purpose::Sibling { group, index } => self.groups.finish(group, index, trajectory),
            Purpose::Evaluation { serial, index } => {
                if let Some(evaluation) = self.evaluation.as_mut().filter(|one| one.is(serial)) {
                    evaluation.record(index, &trajectory);
                }
                self.release([EpisodeId(trajectory.episode_id)]);
            }
        }
    }

    fn want_again(&mut self, wanted: Wanted) {
        let Some(given_up) = self.dispatch.want_again(wanted) else { return };
        let Wanted { purpose, attempts, .. } = given_up;
        self.push(Command::Warn(format!("{purpose:?} is given up after {attempts} attempts")));
        match purpose {
            Purpose::Demonstration { index } => self.demonstrations.give_up(index),
            Purpose::Correction { index } => self.corrections.give_up(index),
            Purpose::Sibling { group, index } => self.groups.drop_sibling(group, index),
            Purpose::Evaluation { serial, index } => {
                if let Some(evaluation) = self.evaluation.as_mut().filter(|one| one.is(serial)) {
                    evaluation.give_up(index);
                }
            }
        }
    }
}
