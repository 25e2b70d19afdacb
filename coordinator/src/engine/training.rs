//! The learner's side: planning batches, serving them, taking finished steps.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ballast_proto::{
    EpisodeId, Generation, ManifestHash, PolicyVersion,
    v1::{
        CheckpointWritten, CompleteStepRequest, NextBatchRequest, StepFinished, StepKind,
        TrajectorySummary, effect,
    },
};
use ballast_runtime::config::SftSource;

use super::{
    Batch, CallId, Command, Engine, SERVED_AHEAD_MAX, StreamId,
    batches::Completion,
    ending::EndEvent,
    evaluation::{Evaluation, EvaluationName},
    groups::Taken,
    schedule::{Action, Phase, Step, kind_name},
    statistics,
};
use crate::{
    metrics::{MetricsLine, name},
    result::CheckpointResult,
};

/// Names of metrics that are shown; a learner that makes up more is not followed.
pub(super) const METRICS_MAX: usize = 1024;
/// Checkpoints people are shown, the newest ones; all of them are in the journal.
pub(super) const CHECKPOINTS_MAX: usize = 1024;
/// Evaluations people are shown, likewise.
pub(super) const EVALUATIONS_MAX: usize = 1024;

impl Engine {
    pub(super) fn on_learner_connected(
        &mut self,
        now: Duration,
        stream: StreamId,
        request: &NextBatchRequest,
    ) {
        let admitted = self.admit_learner(stream, request);
        let (hash, implied) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                let learner = &request.learner_id;
                self.push(Command::Warn(format!("learner {learner} is refused: {reason}")));
                self.push(Command::RefuseLearner { stream, reason });
                return;
            }
        };
        self.learner_awaited = None;
        self.push(Command::AcceptLearner { stream });
        self.push(Command::Inform(format!(
            "learner {} is here at step {}, weights at {}",
            request.learner_id, request.last_step, request.weights_address
        )));
        self.bind(request.last_step, hash);
        self.vocabulary = (request.vocabulary > 0).then_some(request.vocabulary);
        for batch in implied {
            let (step, kind) = (batch.step, batch.kind.into());
            let answer = CompleteStepRequest { step, kind, ..CompleteStepRequest::default() };
            self.finish_batch(now, &batch, answer, BTreeMap::new());
        }
        self.settle_early();
        self.announce_weights(&request.weights_address);
    }

    /// Lets a learner in, or says why not. Returns the hash of its weights, and the batches it must
    /// have finished without being heard.
    fn admit_learner(
        &mut self,
        stream: StreamId,
        request: &NextBatchRequest,
    ) -> Result<(ManifestHash, Vec<Arc<Batch>>), String> {
        let hash = ManifestHash::from_wire(&request.manifest_hash)
            .ok_or("manifest_hash must have 32 bytes")?;
        let (theirs, ours) = (&request.run_id, &self.run_id);
        if !theirs.is_empty() && theirs != ours {
            return Err(format!(
                "its checkpoint belongs to run {theirs}, and this is run {ours}; start it without \
                 --resume, or from a checkpoint of this run"
            ));
        }
        // One that was away when the finish was served is let in to hear of it.
        if !self.ending.is_running() && !self.is_finish_due() {
            return Err("the run is over".into());
        }
        let implied = self.batches.connect(stream, request).map_err(|why| why.to_string())?;
        Ok((hash, implied))
    }

    pub(super) fn on_learner_disconnected(&mut self, stream: StreamId) {
        if self.batches.disconnect(stream) {
            self.meter.learner_gone();
            self.push(Command::Inform("the learner left; its batches wait for it".into()));
        }
    }

    pub(super) fn on_step_completed(
        &mut self,
        now: Duration,
        call: CallId,
        request: CompleteStepRequest,
        actors: BTreeMap<String, f64>,
    ) {
        let answer = self.complete_step(now, request, actors);
        if let Err(reason) = &answer {
            self.push(Command::Warn(format!("a finished step is refused: {reason}")));
        }
        self.push(Command::AnswerStep { call, answer });
    }

    fn complete_step(
        &mut self,
        now: Duration,
        request: CompleteStepRequest,
        actors: BTreeMap<String, f64>,
    ) -> Result<(), String> {
        let (step, kind) = (request.step, request.kind());
        let hash = match kind {
            StepKind::Unspecified => return Err("kind is missing".into()),
            StepKind::Rl | StepKind::Sft | StepKind::Joint => Some(
                ManifestHash::from_wire(&request.manifest_hash)
                    .ok_or("manifest_hash must have 32 bytes")?,
            ),
            StepKind::Checkpoint => None,
            // The finish asks for no answer; a polite learner may give one after its stream ended.
            StepKind::Finish => return Ok(()),
        };
        let generation = Generation(request.generation);
        let completion = self
            .batches
            .complete(&request.learner_id, generation, step, kind)
            .map_err(|refusal| refusal.to_string())?;
        if let (Some(hash), Completion::First(_) | Completion::Again) = (hash, &completion) {
            self.bind(step, hash);
        }
        match completion {
            Completion::First(batch) => {
                if request.skipped {
                    let text = format!("step {step} was skipped: a loss or gradient not finite");
                    self.push(Command::Warn(text));
                }
                self.finish_batch(now, &batch, request, actors);
            }
            Completion::Again => {
                self.meter.learner_answered(self.batches.outstanding() > 0);
                self.push(Command::Inform(format!("step {step} was trained again")));
            }
            Completion::Duplicate => {}
        }
        self.settle_early();
        Ok(())
    }

    /// Binds a version to the hash of its weights, and forgets those that nobody can name any more:
    /// what is not planned yet is sampled under `version - staleness_max` or newer, and a learner
    /// that crashed makes the steps after its checkpoint again.
    fn bind(&mut self, step: u64, hash: ManifestHash) {
        let sampled = self.version.0.saturating_sub(self.staleness_max());
        self.ledger.forget(PolicyVersion(sampled).min(self.batches.kept()));
        if self.ledger.record(PolicyVersion(step), hash) {
            self.push(Command::Warn(format!(
                "step {step} came out differently when it was trained again ({hash}); both sets of \
                 weights stay known"
            )));
        }
    }

    /// A batch is finished for the first time.
    fn finish_batch(
        &mut self,
        now: Duration,
        batch: &Batch,
        answer: CompleteStepRequest,
        actors: BTreeMap<String, f64>,
    ) {
        let took = self.meter.learner_answered(self.batches.outstanding() > 0);
        match batch.kind {
            StepKind::Rl | StepKind::Sft | StepKind::Joint => {
                self.version = PolicyVersion(batch.step);
                self.effect(effect::Effect::Step(StepFinished {
                    step: batch.step,
                    kind: batch.kind.into(),
                    manifest_hash: answer.manifest_hash,
                    skipped: answer.skipped,
                }));
                self.measure_step(now, batch, took, actors, answer.metrics);
            }
            StepKind::Checkpoint => self.checkpoint_written(batch.step, answer.checkpoint),
            StepKind::Finish | StepKind::Unspecified => {}
        }
    }

    fn checkpoint_written(&mut self, step: u64, path: Option<String>) {
        let released = self.batches.take_released();
        self.release(released);
        let retired = self.corrections.take_retired(&self.batches.demonstrations());
        self.release(retired);
        let Some(path) = path else { return };
        self.push(Command::Inform(format!("checkpoint of step {step}: {path}")));
        let written = CheckpointWritten { step, path: path.clone() };
        self.effect(effect::Effect::Checkpoint(written));
        keep_newest(&mut self.checkpoints, CheckpointResult { step, path }, CHECKPOINTS_MAX);
    }

    fn measure_step(
        &mut self,
        now: Duration,
        batch: &Batch,
        took: Duration,
        actors: BTreeMap<String, f64>,
        learner_metrics: BTreeMap<String, f64>,
    ) {
        let tokens: usize = batch.trajectories().map(|one| one.tokens as usize).sum();
        // The learner leaves out groups that teach nothing, so it knows better what it worked on.
        let processed = learner_metrics.get(name::TRAIN_TOKENS).copied().unwrap_or(tokens as f64);
        // A float becomes an integer by saturation: nonsense from the wire stays in bounds.
        self.meter.train.tokens = self.meter.train.tokens.saturating_add(processed as u64);
        self.meter.train.busy += took;
        let mut values = statistics::of_batch(batch);
        let mut put = |name: &str, value: f64| values.insert(name.to_owned(), value);
        put(name::TRAIN_TOKENS, tokens as f64);
        put(name::TRAIN_SECONDS, took.as_secs_f64());
        if !took.is_zero() {
            put(name::TRAIN_TOKENS_PER_S, tokens as f64 / took.as_secs_f64());
        }
        if let Some(rate) = self.meter.rollout_rate() {
            put(name::ROLLOUT_TOKENS_PER_S, rate);
        }
        put(name::DROPPED_SIBLINGS, self.groups.dropped() as f64);
        put(name::UNUSED, self.unused_by_reason.values().sum::<u64>() as f64);
        values.extend(actors);
        // The learner measured its own step, so where both speak it is right.
        values.extend(learner_metrics);
        self.schedule.observe(batch.step, &values);
        if let Some((share, strain)) = self.schedule.control() {
            values.insert(name::SFT_SHARE.into(), share);
            values.extend(strain.map(|strain| (name::STRAIN.to_owned(), strain)));
        }
        self.show(&values);
        self.push(Command::WriteMetrics(MetricsLine {
            t: now.as_secs_f64(),
            step: batch.step,
            kind: kind_name(batch.kind),
            phase: batch.phase.as_str(),
            name: None,
            values,
        }));
    }

    /// Keeps the newest value of each metric for people; one that is no number has none.
    fn show(&mut self, values: &BTreeMap<String, f64>) {
        for (name, value) in values {
            if !value.is_finite() {
                self.metrics.remove(name);
            } else if let Some(shown) = self.metrics.get_mut(name) {
                *shown = *value;
            } else if self.metrics.len() < METRICS_MAX {
                self.metrics.insert(name.clone(), *value);
            }
        }
    }

    /// Plans what the schedule says comes next, as far ahead as allowed.
    pub(super) fn plan(&mut self, now: Duration) {
        while self.is_admitting() && self.batches.unfinished() < SERVED_AHEAD_MAX {
            let planned = match self.schedule.next() {
                Action::Train(step) => self.train_batch(step),
                Action::Checkpoint { step } => Some(self.bare_batch(step, StepKind::Checkpoint)),
                Action::Evaluate(name) => {
                    if self.evaluate(now, name) {
                        continue;
                    }
                    None
                }
                Action::Finish { step } => self.finish(step),
            };
            let Some(batch) = planned else { return };
            self.schedule.advance();
            for group in &batch.groups {
                group.trajectories.iter().for_each(|one| self.lengths.train(one.tokens));
            }
            self.correct(&batch);
            for one in batch.replaced.iter().flat_map(|group| &group.trajectories) {
                self.lengths.drop_one("replaced", Some(one.tokens));
                self.release([EpisodeId(one.episode_id)]);
            }
            let batch = Arc::new(batch);
            let index = self.batches.record(Arc::clone(&batch));
            self.effect(effect::Effect::Batch(batch.to_record(index)));
        }
    }

    fn train_batch(&mut self, step: Step) -> Option<Batch> {
        let demonstrations = match step.kind {
            StepKind::Rl => Vec::new(),
            _ => self.demonstrations_for(&step)?,
        };
        let Taken { groups, replaced } = match step.kind {
            StepKind::Sft => Taken { groups: Vec::new(), replaced: Vec::new() },
            _ => self.groups.take_batch()?,
        };
        let Step { step, kind, learning_rate, sft_weight, reset_optimizer, phase, .. } = step;
        Some(Batch {
            step,
            kind,
            learning_rate,
            phase,
            groups,
            demonstrations,
            replaced,
            sft_weight,
            reset_optimizer,
        })
    }

    /// What an SFT or joint step imitates; `None` while some of it is still being recorded.
    fn demonstrations_for(&self, step: &Step) -> Option<Vec<Arc<TrajectorySummary>>> {
        let index = step.sft_index;
        let wants_failed = self.config.sft.source == SftSource::Failed;
        if step.phase == Phase::ColdStart || !wants_failed || self.corrections.is_empty() {
            return self.demonstrations.batch(index);
        }
        self.corrections.batch(index)
    }

    pub(super) fn bare_batch(&self, step: u64, kind: StepKind) -> Batch {
        Batch {
            step,
            kind,
            learning_rate: 0.0,
            phase: self.schedule.phase(),
            groups: Vec::new(),
            demonstrations: Vec::new(),
            replaced: Vec::new(),
            sft_weight: 0.0,
            reset_optimizer: false,
        }
    }

    /// Asks an expert for the tasks of a batch that the policy failed, if SFT is to imitate those.
    fn correct(&mut self, batch: &Batch) {
        if self.config.sft.source != SftSource::Failed || batch.kind == StepKind::Sft {
            return;
        }
        let wanted = self.corrections.select(batch, &self.config.sft.failed);
        wanted.into_iter().for_each(|one| self.dispatch.want(one));
    }

    /// Starts an evaluation once everything planned is finished, and concludes it once it is done.
    /// Returns whether it was concluded.
    fn evaluate(&mut self, now: Duration, name: EvaluationName) -> bool {
        let Some(evaluation) = &self.evaluation else {
            if self.batches.unfinished() == 0 {
                let serial = self.evaluations_started;
                self.evaluations_started += 1;
                let (evaluation, wanted) =
                    Evaluation::start(&self.config, name, serial, self.version);
                wanted.into_iter().for_each(|one| self.dispatch.want(one));
                self.evaluation = Some(evaluation);
            }
            return self.evaluation.as_ref().is_some_and(Evaluation::is_done) && self.conclude(now);
        };
        evaluation.is_done() && self.conclude(now)
    }

    fn conclude(&mut self, now: Duration) -> bool {
        let Some(evaluation) = self.evaluation.take() else { return false };
        let result = evaluation.result();
        let success = statistics::share(result.successes as usize, result.episodes as usize);
        self.schedule.conclude(success);
        self.push(Command::Inform(format!(
            "{} at step {}: {} of {} episodes succeed",
            result.name, self.version.0, result.successes, result.episodes
        )));
        let values = [
            ("policy_version", result.policy_version as f64),
            ("episodes", result.episodes.into()),
            ("successes", result.successes.into()),
            ("success", success),
            ("calls_mean", result.calls_mean),
            ("invalid_call_rate", result.invalid_call_rate),
        ];
        self.push(Command::WriteMetrics(MetricsLine {
            t: now.as_secs_f64(),
            step: self.version.0,
            kind: "evaluation",
            phase: Phase::Evaluation.as_str(),
            name: Some(result.name.clone()),
            values: values.map(|(name, value)| (name.to_owned(), value)).into(),
        }));
        self.effect(effect::Effect::Evaluated(result.clone()));
        keep_newest(&mut self.evaluations, result, EVALUATIONS_MAX);
        true
    }

    /// Serves what is ready.
    pub(super) fn serve(&mut self) {
        if self.paused {
            return;
        }
        while let Some((stream, batch)) = self.batches.serve() {
            self.meter.learner_busy();
            if batch.kind == StepKind::Finish {
                self.move_end(EndEvent::FinishServed);
            }
            self.push(Command::ServeBatch { stream, batch });
        }
    }
}

fn keep_newest<T>(all: &mut Vec<T>, one: T, max: usize) {
    if all.len() == max {
        all.remove(0);
    }
    all.push(one);
}
