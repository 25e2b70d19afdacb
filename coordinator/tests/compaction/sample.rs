//! A run in the making: entries as a coordinator would write them, from a seed. Two thirds of the way
//! the policy collapses: calls no longer parse, success falls, and the schedule answers.

use std::collections::BTreeMap;

use ballast_coordinator::{
    engine::summarize,
    journal::{Directory, Journal, Opened, Position, Reader, Record, Term},
};
use ballast_proto::v1::{
    ActorConnected, ActorDisconnected, AuditEntry, BatchGroup, BatchPlanned, CallStatus,
    CheckpointWritten, CompleteStepRequest, CoordinatorStarted, DeadlineReached, Effect,
    EpisodeCancelled, EpisodeDispatched, EpisodeFinished, EpisodeUnused, EvaluationResult,
    JournalEntry, LeaseExpired, Mode, PhaseBegan, Role, RunCreated, RunEnded, SampledVersion,
    ScheduleDecision, SlotsFreed, Span, StepCompleted, StepFinished, StepKind, StopReason,
    StructuralState, TaskRef, ToolCall, Trajectory, TrajectoryInvalid, effect::Effect as Kind,
    journal_entry::Event,
};
use prost::Message as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::{path::Path, sync::Arc};

/// Siblings of a group.
pub(crate) const GROUP_SIZE: u64 = 4;
const GROUPS: u64 = 2;
/// Malformed calls, the first ones most often.
const MALFORMED: [&str; 3] =
    ["{\"name\": \"look", "{\"name\": \"buy\", \"arg", "<tool_call><tool_call>"];

/// An entry, and the trajectory that came with it.
#[derive(Clone, Debug)]
pub(crate) struct Sampled {
    pub(crate) entry: JournalEntry,
    pub(crate) trajectory: Option<Trajectory>,
}

/// A whole run of so many steps.
pub(crate) fn run(seed: u64, steps: u64) -> Vec<Sampled> {
    let mut run = Run::new(seed, steps);
    run.begin();
    for step in 1..=steps {
        run.step(step);
    }
    run.entry(Event::DeadlineReached(DeadlineReached {}), None, [ended()]);
    run.records
}

/// A record and nothing but a decision, this many times.
pub(crate) fn decisions(count: u64) -> Vec<Sampled> {
    let mut run = Run::new(0, count);
    for step in 0..count {
        let decision = Kind::Decision(run.decision(step, StepKind::Rl));
        run.entry(Event::DeadlineReached(DeadlineReached {}), None, [decision]);
    }
    run.records
}

/// Writes a run's records to its journal. Every `group`, the records so far become durable.
pub(crate) fn write(run: &Path, records: &[Sampled], group: usize) -> Reader {
    // Small segments, so that a run has some.
    let storage = Directory::create(&run.join("journal")).unwrap().with_segment_bytes(1 << 18);
    let Opened { mut journal, .. } = Journal::open(Arc::new(storage), None).unwrap();
    assert_eq!((journal.next_position(), journal.term()), (Position(0), Term(1)));
    for group in records.chunks(group) {
        journal.append(&group.iter().map(Sampled::record).collect::<Vec<_>>()).unwrap();
    }
    journal.reader()
}

impl Sampled {
    pub(crate) fn record(&self) -> Record {
        let payload = self.trajectory.as_ref().map(|one| one.encode_to_vec());
        Record {
            head: self.entry.encode_to_vec().into(),
            payload: payload.unwrap_or_default().into(),
        }
    }
}

struct Run {
    rng: ChaCha8Rng,
    steps: u64,
    t_us: u64,
    episodes: u64,
    groups: u64,
    batches: u64,
    /// Stream and generation of each actor.
    actors: Vec<(u64, u64)>,
    streams: u64,
    demonstrations: Vec<u64>,
    records: Vec<Sampled>,
}

fn ended() -> Kind {
    Kind::Ended(RunEnded { outcome: "finished".into() })
}

fn actor_name(actor: usize) -> String {
    format!("actor-{actor}")
}

impl Run {
    fn new(seed: u64, steps: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let (actors, demonstrations, records) = (vec![(0, 0); 2], Vec::new(), Vec::new());
        let (t_us, episodes, groups, batches, streams) = (0, 0, 0, 0, 0);
        Self {
            rng,
            steps,
            t_us,
            episodes,
            groups,
            batches,
            actors,
            streams,
            demonstrations,
            records,
        }
    }

    fn entry(
        &mut self,
        event: Event,
        session: Option<u64>,
        effects: impl IntoIterator<Item = Kind>,
    ) -> &mut Sampled {
        self.t_us += self.rng.random_range(1..200_000);
        let effects = effects.into_iter().map(|effect| Effect { effect: Some(effect) }).collect();
        let entry = JournalEntry { t_us: self.t_us, event: Some(event), session, effects };
        self.records.push(Sampled { entry, trajectory: None });
        self.records.last_mut().unwrap()
    }

    fn begin(&mut self) {
        let created = RunCreated { run_id: "00ff".into(), ..RunCreated::default() };
        self.entry(Event::RunCreated(created), None, []);
        self.lead(1);
        let phase = PhaseBegan { phase: "demonstrations".into(), step: 0 };
        self.entry(Event::DeadlineReached(DeadlineReached {}), None, [Kind::Phase(phase)]);
        for _ in 0..6 {
            let id = self.dispatch(Mode::Demonstrate, None, 3);
            self.finish(id, Mode::Demonstrate, None, 0);
            self.demonstrations.push(id);
        }
    }

    /// A coordinator starts, and all actors come to it.
    fn lead(&mut self, term: u64) {
        self.entry(Event::CoordinatorStarted(CoordinatorStarted { term }), None, []);
        self.streams = 0;
        (0..self.actors.len()).for_each(|actor| self.connect(actor));
    }

    fn connect(&mut self, actor: usize) {
        let (session, generation) = (self.streams, self.actors[actor].1 + 1);
        self.streams += 1;
        self.actors[actor] = (session, generation);
        let actor_id = actor_name(actor);
        let hello = ActorConnected { actor_id, generation, slots: 8, claims: Vec::new() };
        self.entry(Event::ActorConnected(hello), Some(session), []);
    }

    fn dispatch(&mut self, mode: Mode, group_id: Option<u64>, calls: u32) -> u64 {
        let episode_id = self.episodes;
        self.episodes += 1;
        let actor = episode_id as usize % self.actors.len();
        let (session, generation) = self.actors[actor];
        let split = if mode == Mode::Evaluate { "test" } else { "train" };
        let seed = self.rng.random();
        let task = TaskRef { world: "market".into(), split: split.into(), seed, calls };
        let (actor_id, mode) = (actor_name(actor), mode.into());
        let dispatched = EpisodeDispatched {
            episode_id,
            group_id,
            task: Some(task),
            mode,
            actor_id,
            generation,
        };
        let freed = Event::SlotsFreed(SlotsFreed { slots: 1 });
        self.entry(freed, Some(session), [Kind::Dispatched(dispatched)]);
        episode_id
    }

    fn session(&self, episode: u64) -> u64 {
        self.actors[episode as usize % self.actors.len()].0
    }

    fn task(&self, episode: u64) -> TaskRef {
        let dispatched = self.records.iter().rev().flat_map(|one| &one.entry.effects);
        let mut tasks = dispatched.filter_map(|effect| match &effect.effect {
            Some(Kind::Dispatched(one)) if one.episode_id == episode => one.task.clone(),
            _ => None,
        });
        tasks.next().unwrap()
    }

    fn finish(&mut self, id: u64, mode: Mode, group: Option<u64>, version: u64) -> Trajectory {
        let trajectory = self.trajectory(id, mode, group, version);
        let event = Event::TrajectoryReported(summarize(&trajectory));
        let session = self.session(id);
        let mut effects = vec![Kind::Finished(EpisodeFinished { episode_id: id })];
        if trajectory.stop_reason() == StopReason::Infrastructure {
            let reason = "infrastructure".into();
            effects.push(Kind::Unused(EpisodeUnused { episode_id: id, reason }));
        }
        self.entry(event, Some(session), effects).trajectory = Some(trajectory.clone());
        trajectory
    }

    /// How far the collapse has come, 0 to 1.
    fn collapse(&self, version: u64) -> f64 {
        let begin = self.steps * 2 / 3;
        (version.saturating_sub(begin) as f64 / 3.0).min(1.0)
    }

    fn trajectory(&mut self, id: u64, mode: Mode, group: Option<u64>, version: u64) -> Trajectory {
        let task = self.task(id);
        let (sampled, collapse) = (mode != Mode::Demonstrate, self.collapse(version));
        let malformed = sampled && self.rng.random_bool(0.9 * collapse);
        let fails = self.rng.random_bool(0.05 * f64::from(task.calls));
        let is_infrastructure = sampled && self.rng.random_bool(0.05);
        let success = !sampled || !malformed && !fails;
        let mut one = Trajectory {
            episode_id: id,
            group_id: group,
            mode: mode.into(),
            stop_reason: if is_infrastructure {
                StopReason::Infrastructure
            } else {
                StopReason::Done
            }
            .into(),
            reward: (!is_infrastructure).then_some(if success { 1.0 } else { 0.25 }),
            success: (!is_infrastructure).then_some(success),
            answer: success.then(|| "3 \u{fc}berm\u{fc}tige \u{1f600}".into()),
            sampling_seed: self.rng.random(),
            duration_ms: self.rng.random_range(0..5000),
            control_token_mass: sampled.then_some(1e-4 + collapse as f32 / 10.0),
            ..Trajectory::default()
        };
        // Some see new weights between two messages.
        let older = (sampled && version > 0 && self.rng.random_bool(0.3)).then(|| version - 1);
        let versions = older.into_iter().chain(sampled.then_some(version));
        one.sampled_versions = versions
            .map(|policy_version| SampledVersion {
                policy_version,
                manifest_hash: vec![policy_version as u8; 32],
            })
            .collect();
        self.message(&mut one, Role::System, 5, Vec::new());
        self.message(&mut one, Role::User, 7, Vec::new());
        for turn in 0..task.calls {
            // Now and then two calls in one message.
            let calls = 1 + u32::from(turn == 0 && self.rng.random_bool(0.2));
            let calls = (0..calls).map(|_| self.call(sampled, malformed)).collect();
            let tokens = self.rng.random_range(8..40);
            self.message(&mut one, Role::Assistant, tokens, calls);
            self.message(&mut one, Role::Tool, 4, Vec::new());
        }
        self.message(&mut one, Role::Assistant, 6, Vec::new());
        one.task = Some(task);
        one
    }

    fn call(&mut self, sampled: bool, malformed: bool) -> ToolCall {
        if malformed {
            let which = self.rng.random_range(0..6_usize).saturating_sub(3);
            let (status, raw) = (CallStatus::Malformed.into(), MALFORMED[which].into());
            return ToolCall { status, raw, ..ToolCall::default() };
        }
        let fails = sampled && self.rng.random_bool(0.1);
        let failure = [CallStatus::BadArguments, CallStatus::UnknownTool, CallStatus::ToolError];
        let failure = failure[self.rng.random_range(0..3)];
        ToolCall {
            name: "look".into(),
            arguments_json: r#"{"stall":3}"#.into(),
            status: if fails { failure } else { CallStatus::Ok }.into(),
            raw: r#"{"name": "look", "arguments": {"stall": 3}}"#.into(),
        }
    }

    /// Adds a message. The policy's tokens are the assistant's, all but the first.
    fn message(&mut self, one: &mut Trajectory, role: Role, tokens: u32, calls: Vec<ToolCall>) {
        let is_first = one.spans.iter().all(|span| span.role() != Role::Assistant);
        let versions = &one.sampled_versions;
        let version = if is_first { versions.first() } else { versions.last() };
        let version = version.map_or(0, |sampled| sampled.policy_version);
        let start = one.token_ids.len() as u32;
        for token in 0..tokens {
            let acts = role == Role::Assistant && token > 0;
            let sampled = acts && one.mode() != Mode::Demonstrate;
            one.token_ids.push(self.rng.random_range(0..50_000));
            one.loss_mask.push(acts.into());
            one.behavior_logprobs.push(if sampled { -self.rng.random::<f32>() } else { 0.0 });
            one.policy_versions.push(if sampled { version } else { 0 });
        }
        let is_malformed = calls.iter().any(|call| call.status() == CallStatus::Malformed);
        let state = match role {
            Role::Assistant if is_malformed => StructuralState::Polluted,
            Role::Assistant if calls.is_empty() => StructuralState::HealthyResponse,
            Role::Assistant => StructuralState::HealthyCall,
            _ => StructuralState::Unspecified,
        };
        let end = start + tokens;
        one.spans.push(Span { role: role.into(), start, end, state: state.into(), calls });
    }

    fn step(&mut self, step: u64) {
        if self.rng.random_bool(0.1) {
            self.lead(1 + step);
        }
        let kind = if step.is_multiple_of(3) { StepKind::Sft } else { StepKind::Rl };
        let (mut groups, mut replaced) = (Vec::new(), Vec::new());
        while kind == StepKind::Rl && (groups.len() as u64) < GROUPS {
            let group = self.group(step);
            if self.rng.random_bool(0.1) { &mut replaced } else { &mut groups }.push(group);
        }
        let demonstrations = match kind {
            StepKind::Sft => self.demonstrations[..4].to_vec(),
            _ => Vec::new(),
        };
        let index = self.batches;
        self.batches += 1;
        let planned = BatchPlanned {
            index,
            step,
            kind: kind.into(),
            learning_rate_bits: (1e-3 / step as f64).to_bits(),
            groups,
            demonstrations,
            replaced,
            sft_weight_bits: (step as f64 / 8.0).to_bits(),
            reset_optimizer: step.is_multiple_of(3),
        };
        let decision = self.decision(step, kind);
        let planned = [Kind::Decision(decision), Kind::Batch(planned)];
        self.entry(Event::DeadlineReached(DeadlineReached {}), None, planned);
        self.complete(step, kind);
        if step.is_multiple_of(5) {
            self.look(step);
        }
        if self.rng.random_bool(0.1) {
            self.lose_an_actor();
        }
    }

    fn decision(&mut self, step: u64, kind: StepKind) -> ScheduleDecision {
        let what = match kind {
            StepKind::Sft => "sft step",
            _ => "rl step",
        };
        let strain = self.collapse(step);
        let reason = format!("strain {strain:.2} of 1");
        ScheduleDecision { step, what: what.into(), reason, t: self.t_us as f64 / 1e6 }
    }

    /// Siblings: some are lost or refused on the way, and run again.
    fn group(&mut self, step: u64) -> BatchGroup {
        let (group_id, calls) = (self.groups, self.rng.random_range(2..6));
        self.groups += 1;
        let version = (step - 1).saturating_sub(self.rng.random_range(0..3));
        let mut episodes = Vec::new();
        while (episodes.len() as u64) < GROUP_SIZE {
            let id = self.dispatch(Mode::Explore, Some(group_id), calls);
            let session = self.session(id);
            if self.rng.random_bool(0.05) {
                let fault = format!("episode {id}: reward holds an impossible number");
                let refused = Event::TrajectoryInvalid(TrajectoryInvalid { episode_id: id, fault });
                let payload = self.trajectory(id, Mode::Explore, Some(group_id), version);
                let reason = "invalid".into();
                let cancelled = EpisodeCancelled { episode_id: id, reason, tokens: None };
                let entry = self.entry(refused, Some(session), [Kind::Cancelled(cancelled)]);
                entry.trajectory = Some(payload);
                continue;
            }
            let one = self.finish(id, Mode::Explore, Some(group_id), version);
            if one.stop_reason() == StopReason::Done {
                episodes.push(id);
            }
        }
        BatchGroup { group_id, episodes }
    }

    fn complete(&mut self, step: u64, kind: StepKind) {
        let hash = vec![step as u8; 32];
        let loss = (
            format!(
                "loss/{}",
                if kind == StepKind::Rl { "policy_gradient" } else { "cross_entropy" }
            ),
            1.0 / step as f64,
        );
        let request = CompleteStepRequest {
            learner_id: "learner".into(),
            generation: 1,
            step,
            kind: kind.into(),
            manifest_hash: hash.clone(),
            skipped: step.is_multiple_of(7),
            metrics: [loss, ("train/entropy".into(), 0.5)].into(),
            checkpoint: None,
        };
        let actors = BTreeMap::from([("actor/idle_share".to_owned(), 0.25)]);
        let completed = StepCompleted { request: Some(request), actors };
        let skipped = step.is_multiple_of(7);
        let finished = StepFinished { step, kind: kind.into(), manifest_hash: hash, skipped };
        self.entry(Event::StepCompleted(completed), None, [Kind::Step(finished)]);
    }

    /// An evaluation, a checkpoint and a change by hand.
    fn look(&mut self, step: u64) {
        let id = self.dispatch(Mode::Evaluate, None, 2);
        let one = self.finish(id, Mode::Evaluate, None, step);
        let result = EvaluationResult {
            name: "requested".into(),
            policy_version: step,
            episodes: 1,
            successes: u32::from(one.success == Some(true)),
            calls_mean: 2.0,
            invalid_call_rate: 0.0,
        };
        let written = CheckpointWritten { step, path: format!("step-{step}") };
        let audit = AuditEntry {
            t: self.t_us as f64 / 1e6,
            who: "anna".into(),
            what: "set schedule.sft_steps=2".into(),
            reason: "it forgets".into(),
            refusal: if step.is_multiple_of(10) { "too late".into() } else { String::new() },
        };
        let phase = PhaseBegan { phase: "rl".into(), step };
        let effects = [
            Kind::Evaluated(result),
            Kind::Checkpoint(written),
            Kind::Audit(audit),
            Kind::Phase(phase),
        ];
        self.entry(Event::DeadlineReached(DeadlineReached {}), None, effects);
    }

    /// An actor dies with an episode, or only loses its stream; then it is back.
    fn lose_an_actor(&mut self) {
        let id = self.dispatch(Mode::Explore, Some(self.groups), 2);
        let actor = id as usize % self.actors.len();
        let (session, generation) = self.actors[actor];
        let reason = "actor_lost".into();
        let cancelled = EpisodeCancelled { episode_id: id, reason, tokens: Some(17) };
        let cancelled = [Kind::Cancelled(cancelled)];
        if self.rng.random() {
            let gone = Event::ActorDisconnected(ActorDisconnected {});
            self.entry(gone, Some(session), cancelled);
        } else {
            let actor_id = actor_name(actor);
            let expired = Event::LeaseExpired(LeaseExpired { actor_id, generation });
            self.entry(expired, None, cancelled);
        }
        self.connect(actor);
    }
}
