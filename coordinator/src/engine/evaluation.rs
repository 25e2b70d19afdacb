//! One held-out evaluation: a fixed set of tasks, run by the newest policy while training waits.

use ballast_proto::{
    PolicyVersion,
    v1::{EvaluationResult, Mode, TaskRef, TrajectorySummary},
};
use ballast_runtime::config::Config;
use serde::{Deserialize, Serialize};

use super::{
    dispatch::{Purpose, Wanted},
    seeds::{self, Domain},
    statistics,
};

/// Which evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum EvaluationName {
    /// Decides whether the cold start ends.
    ColdStartCheck,
    /// The starting point of the main part.
    AfterColdStart,
    /// The end of the run, on the same tasks as [`EvaluationName::AfterColdStart`].
    Final,
    /// Asked for by a person.
    Requested,
}

impl EvaluationName {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ColdStartCheck => "cold_start_check",
            Self::AfterColdStart => "after_cold_start",
            Self::Final => "final",
            Self::Requested => "requested",
        }
    }

    /// (split, number of tasks). The validation split decides, the test split is only reported.
    fn tasks(self, config: &Config) -> (&'static str, u32) {
        match self {
            Self::ColdStartCheck => ("validation", config.evaluation.check_tasks),
            Self::AfterColdStart | Self::Final | Self::Requested => {
                ("test", config.evaluation.tasks)
            }
        }
    }
}

/// Outcome of one task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Outcome {
    Pending,
    Scored {
        success: bool,
        calls: usize,
        messages: usize,
        invalid: usize,
    },
    /// Could not be run; not part of the result.
    GivenUp,
}

/// An evaluation under way.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Evaluation {
    pub(super) name: EvaluationName,
    serial: u64,
    version: PolicyVersion,
    outcomes: Vec<Outcome>,
    /// How many of them are pending.
    pending: usize,
}

impl Evaluation {
    /// Starts an evaluation. Returns it and the episodes it needs: seeds from 0, numbers of calls in
    /// turn, so that every evaluation of a split sees the same tasks in the same proportions.
    pub(super) fn start(
        config: &Config,
        name: EvaluationName,
        serial: u64,
        version: PolicyVersion,
    ) -> (Self, Vec<Wanted>) {
        let (split, count) = name.tasks(config);
        let calls = config.evaluation.calls.iter().copied().cycle();
        let wanted = |(index, calls): (u32, u32)| Wanted {
            purpose: Purpose::Evaluation { serial, index: index as usize },
            task: TaskRef {
                world: config.tasks.world.clone(),
                split: split.into(),
                seed: index.into(),
                calls,
            },
            mode: Mode::Evaluate,
            sampling_seed: seeds::seed(config.run.seed, Domain::Evaluation, index.into(), 0),
            temperature: config.evaluation.temperature,
            min_policy_version: Some(version),
            attempts: 0,
        };
        let wanted: Vec<Wanted> = (0..count).zip(calls).map(wanted).collect();
        let pending = wanted.len();
        let outcomes = vec![Outcome::Pending; pending];
        (Self { name, serial, version, outcomes, pending }, wanted)
    }

    /// Whether this evaluation is the one an episode was wanted for.
    pub(super) fn is(&self, serial: u64) -> bool {
        self.serial == serial
    }

    pub(super) fn record(&mut self, index: usize, trajectory: &TrajectorySummary) {
        let outcome = Outcome::Scored {
            success: trajectory.success == Some(true),
            calls: trajectory.calls as usize,
            messages: trajectory.messages as usize,
            invalid: trajectory.messages_invalid as usize,
        };
        self.settle(index, outcome);
    }

    pub(super) fn give_up(&mut self, index: usize) {
        self.settle(index, Outcome::GivenUp);
    }

    fn settle(&mut self, index: usize, outcome: Outcome) {
        if let Some(place @ Outcome::Pending) = self.outcomes.get_mut(index) {
            *place = outcome;
            self.pending -= 1;
        }
    }

    /// (settled, all).
    pub(super) fn progress(&self) -> (u64, u64) {
        let all = self.outcomes.len();
        ((all - self.pending) as u64, all as u64)
    }

    pub(super) fn is_done(&self) -> bool {
        self.pending == 0
    }

    /// The result over everything that was scored.
    pub(super) fn result(&self) -> EvaluationResult {
        let mut result = EvaluationResult {
            name: self.name.as_str().into(),
            policy_version: self.version.0,
            ..Default::default()
        };
        let (mut calls_all, mut messages_all, mut invalid_all) = (0, 0, 0);
        for outcome in &self.outcomes {
            if let Outcome::Scored { success, calls, messages, invalid } = *outcome {
                result.episodes += 1;
                result.successes += u32::from(success);
                calls_all += calls;
                messages_all += messages;
                invalid_all += invalid;
            }
        }
        result.calls_mean = statistics::share(calls_all, result.episodes as usize);
        result.invalid_call_rate = statistics::share(invalid_all, messages_all);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trajectory(success: bool) -> TrajectorySummary {
        let success = Some(success);
        TrajectorySummary {
            success,
            calls: 2,
            messages: 4,
            messages_invalid: 1,
            ..Default::default()
        }
    }

    fn evaluation() -> Evaluation {
        let config = Config::default();
        Evaluation::start(&config, EvaluationName::Requested, 7, PolicyVersion(3)).0
    }

    /// A task in one of its states; then what happens to it.
    #[test]
    fn a_task_is_settled_once() {
        let scored = |success| Outcome::Scored { success, calls: 2, messages: 4, invalid: 1 };
        let events: [fn(&mut Evaluation); 4] = [
            |one| one.record(0, &trajectory(true)),
            |one| one.record(0, &trajectory(false)),
            |one| one.give_up(0),
            |one| one.record(usize::MAX, &trajectory(true)),
        ];
        let good = scored(true);
        let table = [
            (Outcome::Pending, [good, scored(false), Outcome::GivenUp, Outcome::Pending]),
            (good, [good; 4]),
            (Outcome::GivenUp, [Outcome::GivenUp; 4]),
        ];
        for (state, row) in table {
            for (event, expected) in events.into_iter().zip(row) {
                let mut one = evaluation();
                if state != Outcome::Pending {
                    one.settle(0, state);
                }
                event(&mut one);
                assert_eq!(one.outcomes[0], expected);
                let settled = u64::from(expected != Outcome::Pending);
                assert_eq!(one.progress().0, settled, "{state:?} to {expected:?}");
            }
        }
    }

    #[test]
    fn it_is_done_when_every_task_is_settled_and_counts_what_was_scored() {
        let mut one = evaluation();
        let (_, all) = one.progress();
        for index in 0..all as usize {
            assert!(!one.is_done());
            match index % 2 {
                0 => one.record(index, &trajectory(index == 0)),
                _ => one.give_up(index),
            }
        }
        assert!(one.is_done() && one.is(7) && !one.is(6));
        let result = one.result();
        assert_eq!((result.policy_version, u64::from(result.episodes)), (3, all / 2));
        assert_eq!((result.successes, result.calls_mean), (1, 2.0));
        assert_eq!(result.invalid_call_rate, 0.25);
    }
}
