//! What becomes of a trajectory: journal, acknowledgement, use.
//!
//! Promise J1: an acknowledgement leaves here only after the trajectory is durable. Promise G1: an
//! infrastructure failure is never a reward of 0; its episode is run anew.

use std::sync::Arc;

use ballast_proto::{
    EpisodeId,
    v1::{Acknowledged, Mode, StopReason, Trajectory, coordinator_message::Message},
};

use super::{
    Command, Engine, SessionId,
    dispatch::{Fate, Purpose, Wanted},
    ledger::Provenance,
    statistics,
};

/// Whether a durable trajectory can be used for what it was wanted for.
enum Use {
    Yes,
    /// Not yet: the step that made its policy version is not reported.
    Later,
    /// Never; the reason is a metric label.
    No(&'static str),
}

impl Engine {
    pub(super) fn on_trajectory_reported(
        &mut self,
        session: SessionId,
        trajectory: Arc<Trajectory>,
    ) {
        let episode = EpisodeId(trajectory.episode_id);
        match self.dispatch.fate(episode) {
            Fate::Running(holder) if holder == session => {
                if self.is_as_assigned(episode, &trajectory) {
                    self.dispatch.report(episode, Arc::clone(&trajectory));
                    self.push(Command::AppendTrajectory(trajectory));
                } else {
                    let fault = "it is not the episode that was assigned";
                    self.on_trajectory_invalid(session, episode, fault);
                }
            }
            // Delivered twice: the first copy is on its way to the journal, or there.
            Fate::Reported => {}
            Fate::Finished => self.acknowledge(session, episode),
            Fate::Running(_) | Fate::Cancelled | Fate::Unknown => {
                self.push(Command::Warn(format!(
                    "the trajectory of {episode} is ignored: it is not in flight on that actor"
                )));
            }
        }
    }

    pub(super) fn on_trajectory_invalid(
        &mut self,
        session: SessionId,
        episode: EpisodeId,
        fault: &str,
    ) {
        self.push(Command::Warn(format!("the trajectory of {episode} is rejected: {fault}")));
        if self.dispatch.fate(episode) == Fate::Running(session) {
            self.cancel(episode, "invalid");
        }
    }

    pub(super) fn on_trajectory_durable(&mut self, episode: EpisodeId) {
        let Some(in_flight) = self.dispatch.finish(episode) else { return };
        self.acknowledge(in_flight.session, episode);
        let Some(trajectory) = in_flight.reported else { return };
        if in_flight.wanted.mode != Mode::Demonstrate {
            self.meter.rollout.tokens += statistics::sampled_tokens(&trajectory);
        }
        self.settle(in_flight.wanted, trajectory);
    }

    /// Looks again at trajectories that came before their policy version was reported.
    pub(super) fn settle_early(&mut self) {
        for (wanted, trajectory) in std::mem::take(&mut self.early) {
            self.settle(wanted, trajectory);
        }
    }

    /// Cancels an episode and queues what it was for again.
    pub(super) fn cancel(&mut self, episode: EpisodeId, reason: &str) {
        if let Some(wanted) = self.dispatch.cancel(episode, reason) {
            self.want_again(wanted);
        }
    }

    fn is_as_assigned(&self, episode: EpisodeId, trajectory: &Trajectory) -> bool {
        let Some(in_flight) = self.dispatch.get(episode) else { return false };
        let wanted = &in_flight.wanted;
        let group_id = match wanted.purpose {
            Purpose::Sibling { group, .. } => Some(group.0),
            Purpose::Demonstration { .. } | Purpose::Evaluation { .. } => None,
        };
        trajectory.task.as_ref() == Some(&wanted.task)
            && trajectory.mode() == wanted.mode
            && trajectory.group_id == group_id
            && trajectory.sampling_seed == wanted.sampling_seed
    }

    fn acknowledge(&mut self, session: SessionId, episode: EpisodeId) {
        if self.members.get(session).is_some() {
            let message = Message::Acknowledged(Acknowledged { episode_id: episode.0 });
            self.push(Command::Send { session, message });
        }
    }

    fn settle(&mut self, wanted: Wanted, trajectory: Arc<Trajectory>) {
        match self.judge(&wanted, &trajectory) {
            Use::Yes => self.deliver(wanted.purpose, trajectory),
            Use::Later => self.early.push((wanted, trajectory)),
            Use::No(reason) => {
                *self.unused_by_reason.entry(reason.to_owned()).or_default() += 1;
                let episode = EpisodeId(trajectory.episode_id);
                self.push(Command::Warn(format!("{episode} is not used ({reason}), run anew")));
                self.want_again(wanted);
            }
        }
    }

    fn judge(&self, wanted: &Wanted, trajectory: &Trajectory) -> Use {
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
        let oldest = statistics::oldest_version(trajectory);
        let bound = wanted.min_policy_version.map(|version| version.0);
        if oldest.is_some_and(|oldest| Some(oldest) < bound) {
            return Use::No("stale");
        }
        match self.ledger.provenance(trajectory, self.batches.unconfirmed()) {
            Provenance::Known => Use::Yes,
            Provenance::Early => Use::Later,
            Provenance::Unknown => Use::No("unknown_weights"),
        }
    }

    fn deliver(&mut self, purpose: Purpose, trajectory: Arc<Trajectory>) {
        match purpose {
            Purpose::Demonstration { index } => self.demonstrations.record(index, trajectory),
            Purpose::Sibling { group, index } => self.groups.finish(group, index, trajectory),
            Purpose::Evaluation { serial, index } => {
                if let Some(evaluation) = self.evaluation.as_mut().filter(|one| one.is(serial)) {
                    evaluation.record(index, &trajectory);
                }
            }
        }
    }

    fn want_again(&mut self, wanted: Wanted) {
        let Some(given_up) = self.dispatch.want_again(wanted) else { return };
        let Wanted { purpose, attempts, .. } = given_up;
        self.push(Command::Warn(format!("{purpose:?} is given up after {attempts} attempts")));
        match purpose {
            Purpose::Demonstration { index } => self.demonstrations.give_up(index),
            Purpose::Sibling { group, index } => self.groups.drop_sibling(group, index),
            Purpose::Evaluation { serial, index } => {
                if let Some(evaluation) = self.evaluation.as_mut().filter(|one| one.is(serial)) {
                    evaluation.give_up(index);
                }
            }
        }
    }
}
