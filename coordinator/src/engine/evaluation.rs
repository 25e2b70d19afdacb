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
        let outcomes = vec![Outcome::Pending; wanted.len()];
        (Self { name, serial, version, outcomes }, wanted)
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
        }
    }

    /// (settled, all).
    pub(super) fn progress(&self) -> (u64, u64) {
        let settled = self.outcomes.iter().filter(|one| !matches!(one, Outcome::Pending)).count();
        (settled as u64, self.outcomes.len() as u64)
    }

    pub(super) fn is_done(&self) -> bool {
        let (settled, all) = self.progress();
        settled == all
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
