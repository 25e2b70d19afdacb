//! Entries of the journal to rows of the tables.
//!
//! Pure. What an entry alone does not say is who an actor's stream belongs to: that is kept from one
//! entry to the next ([`Sessions`]), and kept in every file for whoever goes on after it.

use std::collections::BTreeMap;

use ballast_proto::v1::{
    BatchGroup, BatchPlanned, Effect, EpisodeDispatched, JournalEntry, StepFinished, TaskRef,
    Trajectory, TrajectorySummary, effect::Effect as Kind, journal_entry::Event,
};
use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::{
    Table, trajectory,
    value::{Row, Value},
};
use crate::journal::Position;

/// Why a record makes no rows.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Its bytes are not what they should be.
    #[error(transparent)]
    Decode(#[from] prost::DecodeError),
    /// An episode is finished in it, and the trajectory is missing.
    #[error("an episode is finished, but its trajectory is not here")]
    NoTrajectory,
}

/// An incarnation of an actor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Actor {
    pub(super) id: String,
    pub(super) generation: u64,
}

/// Whose each open stream is. Bound: the streams of one leadership that are open at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sessions(BTreeMap<u64, Actor>);

/// The rows of one record.
struct Rows {
    position: Position,
    t_s: f64,
    rows: Vec<(Table, Row)>,
}

impl Rows {
    fn add<const N: usize>(&mut self, table: Table, fields: [Value; N]) {
        let begin = [self.position.0.into(), self.t_s.into()];
        self.rows.push((table, begin.into_iter().chain(fields).collect()));
    }
}

/// The rows of the next record.
pub(super) fn rows(
    sessions: &mut Sessions,
    position: Position,
    head: Bytes,
    payload: Bytes,
) -> Result<Vec<(Table, Row)>, Unreadable> {
    let JournalEntry { t_us, event, session, effects } = JournalEntry::decode(head)?;
    let mut rows = Rows { position, t_s: t_us as f64 / 1e6, rows: Vec::new() };
    let actor = sessions.of(session).cloned();
    if let Some(event) = &event {
        sessions.event(&mut rows, session, event);
    }
    for Effect { effect } in effects {
        match (effect, &event) {
            (Some(Kind::Finished(_)), Some(Event::TrajectoryReported(summary))) => {
                let trajectory = Trajectory::decode(payload.clone())?;
                finished(&mut rows, actor.as_ref(), summary, trajectory);
            }
            (Some(Kind::Finished(_)), _) => return Err(Unreadable::NoTrajectory),
            (Some(Kind::Step(step)), event) => stepped(&mut rows, &step, event.as_ref()),
            (Some(other), _) => followed(&mut rows, other),
            (None, _) => {}
        }
    }
    Ok(rows.rows)
}

impl Sessions {
    fn of(&self, session: Option<u64>) -> Option<&Actor> {
        self.0.get(&session?)
    }

    /// What an event says by itself.
    fn event(&mut self, rows: &mut Rows, session: Option<u64>, event: &Event) {
        match event {
            Event::RunCreated(run) => {
                rows.add(Table::Run, ["created".into(), run.run_id.as_str().into()]);
            }
            Event::CoordinatorStarted(started) => {
                // No stream of an earlier leadership is open any more, and numbers begin again.
                self.0.clear();
                rows.add(Table::Run, ["leadership".into(), started.term.to_string().into()]);
            }
            Event::ActorConnected(hello) => {
                let actor = Actor { id: hello.actor_id.clone(), generation: hello.generation };
                came_or_went(rows, "connected", &actor, Some(hello.slots));
                self.0.extend(session.map(|session| (session, actor)));
            }
            Event::ActorDisconnected(_) => {
                if let Some(actor) = session.and_then(|session| self.0.remove(&session)) {
                    came_or_went(rows, "disconnected", &actor, None);
                }
            }
            Event::LeaseExpired(expired) => {
                let actor = Actor { id: expired.actor_id.clone(), generation: expired.generation };
                came_or_went(rows, "lease_expired", &actor, None);
            }
            Event::TrajectoryInvalid(invalid) => {
                let actor = self.of(session).map(|actor| actor.id.as_str());
                let fault = invalid.fault.as_str().into();
                rows.add(Table::Refusals, [invalid.episode_id.into(), actor.into(), fault]);
            }
            // Nothing, or what it led to says it.
            Event::SlotsFreed(_)
            | Event::TrajectoryReported(_)
            | Event::EpisodeGivenBack(_)
            | Event::LearnerConnected(_)
            | Event::LearnerDisconnected(_)
            | Event::StepCompleted(_)
            | Event::AdminRequested(_)
            | Event::DeadlineReached(_) => {}
        }
    }
}

fn came_or_went(rows: &mut Rows, event: &str, actor: &Actor, slots: Option<u32>) {
    let (id, generation) = (actor.id.as_str().into(), actor.generation.into());
    rows.add(Table::Actors, [event.into(), id, generation, slots.into()]);
}

fn finished(
    rows: &mut Rows,
    actor: Option<&Actor>,
    summary: &TrajectorySummary,
    trajectory: Trajectory,
) {
    let row = trajectory::row(rows.position, rows.t_s, actor, summary, trajectory);
    rows.rows.push((Table::Trajectories, row));
}

fn stepped(rows: &mut Rows, step: &StepFinished, event: Option<&Event>) {
    let mut metrics = BTreeMap::new();
    if let Some(Event::StepCompleted(completed)) = event {
        metrics.extend(completed.actors.iter().map(|(name, value)| (name.as_str(), *value)));
        let learner = completed.request.iter().flat_map(|request| &request.metrics);
        metrics.extend(learner.map(|(name, value)| (name.as_str(), *value)));
    }
    let kind = name_of(step.kind().as_str_name(), "STEP_KIND_");
    let hash = hex(&step.manifest_hash);
    let metrics = Value::map(metrics);
    rows.add(Table::Steps, [step.step.into(), kind, step.skipped.into(), hash, metrics]);
}

/// What the effect says by itself.
fn followed(rows: &mut Rows, effect: Kind) {
    match effect {
        Kind::Dispatched(one) => dispatched(rows, one),
        Kind::Cancelled(one) => {
            let (id, tokens) = (one.episode_id.into(), one.tokens.into());
            rows.add(Table::Drops, [id, "cancelled".into(), one.reason.into(), tokens]);
        }
        Kind::Unused(one) => {
            let id = one.episode_id.into();
            rows.add(Table::Drops, [id, "unused".into(), one.reason.into(), Value::Absent]);
        }
        Kind::Batch(batch) => planned(rows, batch),
        Kind::Decision(one) => {
            rows.add(Table::Decisions, [one.step.into(), one.what.into(), one.reason.into()]);
        }
        Kind::Phase(one) => rows.add(Table::Phases, [one.step.into(), one.phase.into()]),
        Kind::Evaluated(one) => {
            let (episodes, successes) = (one.episodes.into(), one.successes.into());
            let (calls, invalid) = (one.calls_mean.into(), one.invalid_call_rate.into());
            let (name, version) = (one.name.into(), one.policy_version.into());
            let row = [name, version, episodes, successes, calls, invalid];
            rows.add(Table::Evaluations, row);
        }
        Kind::Checkpoint(one) => {
            rows.add(Table::Checkpoints, [one.step.into(), one.path.into()]);
        }
        Kind::Audit(one) => {
            let refusal = Some(one.refusal).filter(|refusal| !refusal.is_empty());
            let row = [one.who.into(), one.what.into(), one.reason.into(), refusal.into()];
            rows.add(Table::Audit, row);
        }
        Kind::Ended(one) => rows.add(Table::Run, ["ended".into(), one.outcome.into()]),
        // With their events.
        Kind::Finished(_) | Kind::Step(_) => {}
    }
}

fn dispatched(rows: &mut Rows, one: EpisodeDispatched) {
    let mode = name_of(one.mode().as_str_name(), "MODE_");
    let [world, split, seed, calls] = task(one.task.unwrap_or_default());
    let (id, group) = (one.episode_id.into(), one.group_id.into());
    let (actor, generation) = (one.actor_id.into(), one.generation.into());
    rows.add(Table::Dispatches, [id, group, actor, generation, world, split, seed, calls, mode]);
}

fn planned(rows: &mut Rows, batch: BatchPlanned) {
    let kind = name_of(batch.kind().as_str_name(), "STEP_KIND_");
    let rate = f64::from_bits(batch.learning_rate_bits).into();
    let mut episodes = episodes_of(&batch.groups);
    episodes.extend(batch.demonstrations);
    rows.add(
        Table::Batches,
        [
            batch.index.into(),
            batch.step.into(),
            kind,
            rate,
            f64::from_bits(batch.sft_weight_bits).into(),
            batch.reset_optimizer.into(),
            episodes.into(),
            ids_of(&batch.groups).into(),
            episodes_of(&batch.replaced).into(),
            ids_of(&batch.replaced).into(),
        ],
    );
}

fn ids_of(groups: &[BatchGroup]) -> Vec<u64> {
    groups.iter().map(|group| group.group_id).collect()
}

fn episodes_of(groups: &[BatchGroup]) -> Vec<u64> {
    groups.iter().flat_map(|group| &group.episodes).copied().collect()
}

/// World, split, seed and calls.
pub(super) fn task(task: TaskRef) -> [Value; 4] {
    [task.world.into(), task.split.into(), Value::bits(task.seed), task.calls.into()]
}

/// The name of a value of a closed set, as people write it.
pub(super) fn name_of(name: &str, prefix: &str) -> Value {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase().into()
}

pub(super) fn hex(bytes: &[u8]) -> Value {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}
