//! What the tables must say of a run, worked out on its own from the entries.

use std::collections::BTreeMap;

use ballast_coordinator::compaction::Table;
use ballast_proto::v1::{
    BatchGroup, CallStatus, JournalEntry, Mode, Role, Span, StepKind, StopReason, StructuralState,
    TaskRef, Trajectory, TrajectorySummary, effect::Effect as Kind, journal_entry::Event,
};
use serde_json::{Map, Value as Json, json};

use crate::sample::Sampled;

/// Rows of each table.
pub(crate) type Tables = BTreeMap<Table, Vec<Json>>;

/// The tables of these records.
pub(crate) fn tables(records: &[Sampled]) -> Tables {
    let mut book = Book {
        tables: Table::ALL.map(|table| (table, Vec::new())).into(),
        streams: BTreeMap::new(),
    };
    for (position, Sampled { entry, trajectory }) in records.iter().enumerate() {
        book.record(position, entry, trajectory.as_ref());
    }
    book.tables
}

struct Book {
    tables: Tables,
    streams: BTreeMap<u64, (String, u64)>,
}

impl Book {
    #[allow(clippy::too_many_lines, reason = "one arm for each kind of record")]
    fn record(&mut self, position: usize, entry: &JournalEntry, trajectory: Option<&Trajectory>) {
        let t_s = entry.t_us as f64 / 1e6;
        let actor = entry.session.and_then(|session| self.streams.get(&session)).cloned();
        let mut add = |table: Table, mut row: Json| {
            row["position"] = position.into();
            row["t_s"] = t_s.into();
            self.tables.get_mut(&table).unwrap().push(row);
        };
        match entry.event.as_ref().unwrap() {
            Event::RunCreated(one) => {
                add(Table::Run, json!({"event": "created", "detail": one.run_id}))
            }
            Event::CoordinatorStarted(one) => {
                self.streams.clear();
                add(Table::Run, json!({"event": "leadership", "detail": one.term.to_string()}));
            }
            Event::ActorConnected(one) => {
                let (id, generation) = (&one.actor_id, one.generation);
                self.streams.insert(entry.session.unwrap(), (id.clone(), generation));
                add(
                    Table::Actors,
                    json!({"event": "connected", "actor_id": id, "generation": generation, "slots": one.slots}),
                );
            }
            Event::ActorDisconnected(_) => {
                self.streams.remove(&entry.session.unwrap());
                let (id, generation) = actor.as_ref().unwrap();
                add(
                    Table::Actors,
                    json!({"event": "disconnected", "actor_id": id, "generation": generation, "slots": null}),
                );
            }
            Event::LeaseExpired(one) => {
                add(
                    Table::Actors,
                    json!({"event": "lease_expired", "actor_id": one.actor_id, "generation": one.generation, "slots": null}),
                );
            }
            Event::TrajectoryInvalid(one) => {
                let actor = actor.as_ref().map(|(id, _)| id);
                add(
                    Table::Refusals,
                    json!({"episode_id": one.episode_id, "actor_id": actor, "fault": one.fault}),
                );
            }
            _ => {}
        }
        for effect in &entry.effects {
            let (table, row) = match effect.effect.as_ref().unwrap() {
                Kind::Finished(_) => {
                    let Some(Event::TrajectoryReported(summary)) = &entry.event else {
                        panic!("{entry:?}")
                    };
                    (
                        Table::Trajectories,
                        trajectory_row(actor.as_ref(), summary, trajectory.unwrap()),
                    )
                }
                Kind::Dispatched(one) => {
                    let mut row = json!({"episode_id": one.episode_id, "group_id": one.group_id, "actor_id": one.actor_id, "generation": one.generation, "mode": mode(one.mode())});
                    add_task(&mut row, one.task.as_ref().unwrap());
                    (Table::Dispatches, row)
                }
                Kind::Cancelled(one) => (
                    Table::Drops,
                    json!({"episode_id": one.episode_id, "fate": "cancelled", "reason": one.reason, "tokens": one.tokens}),
                ),
                Kind::Unused(one) => (
                    Table::Drops,
                    json!({"episode_id": one.episode_id, "fate": "unused", "reason": one.reason, "tokens": null}),
                ),
                Kind::Batch(one) => {
                    let mut trained = episodes(&one.groups);
                    trained.extend(&one.demonstrations);
                    (
                        Table::Batches,
                        json!({
                            "batch": one.index, "step": one.step, "kind": kind(one.kind()),
                            "learning_rate": f64::from_bits(one.learning_rate_bits),
                            "sft_weight": f64::from_bits(one.sft_weight_bits),
                            "reset_optimizer": one.reset_optimizer,
                            "episode_ids": trained, "group_ids": ids(&one.groups),
                            "replaced_episode_ids": episodes(&one.replaced), "replaced_group_ids": ids(&one.replaced),
                        }),
                    )
                }
                Kind::Step(one) => {
                    let Some(Event::StepCompleted(completed)) = &entry.event else {
                        panic!("{entry:?}")
                    };
                    let mut metrics: Map<String, Json> = Map::new();
                    let learner = &completed.request.as_ref().unwrap().metrics;
                    metrics.extend(
                        completed
                            .actors
                            .iter()
                            .chain(learner)
                            .map(|(name, value)| (name.clone(), (*value).into())),
                    );
                    (
                        Table::Steps,
                        json!({"step": one.step, "kind": kind(one.kind()), "skipped": one.skipped, "manifest_hash": hex(&one.manifest_hash), "metrics": metrics}),
                    )
                }
                Kind::Decision(one) => (
                    Table::Decisions,
                    json!({"step": one.step, "what": one.what, "reason": one.reason}),
                ),
                Kind::Phase(one) => (Table::Phases, json!({"step": one.step, "phase": one.phase})),
                Kind::Evaluated(one) => (
                    Table::Evaluations,
                    json!({
                        "name": one.name, "policy_version": one.policy_version, "episodes": one.episodes,
                        "successes": one.successes, "calls_mean": one.calls_mean, "invalid_call_rate": one.invalid_call_rate,
                    }),
                ),
                Kind::Checkpoint(one) => {
                    (Table::Checkpoints, json!({"step": one.step, "path": one.path}))
                }
                Kind::Audit(one) => {
                    let refusal = if one.refusal.is_empty() {
                        Json::Null
                    } else {
                        one.refusal.clone().into()
                    };
                    (
                        Table::Audit,
                        json!({"who": one.who, "what": one.what, "reason": one.reason, "refusal": refusal}),
                    )
                }
                Kind::Ended(one) => (Table::Run, json!({"event": "ended", "detail": one.outcome})),
            };
            add(table, row);
        }
    }
}

fn trajectory_row(
    actor: Option<&(String, u64)>,
    summary: &TrajectorySummary,
    one: &Trajectory,
) -> Json {
    let stop_reason = match one.stop_reason() {
        StopReason::Unspecified => "unspecified",
        StopReason::Done => "done",
        StopReason::TurnLimit => "turn_limit",
        StopReason::TokenLimit => "token_limit",
        StopReason::Infrastructure => "infrastructure",
        StopReason::TimeLimit => "time_limit",
    };
    let versions: Vec<_> = one.sampled_versions.iter()
        .map(|one| json!({"policy_version": one.policy_version, "manifest_hash": hex(&one.manifest_hash)}))
        .collect();
    let newest = one.sampled_versions.iter().map(|one| one.policy_version).max();
    let mut row = json!({
        "episode_id": one.episode_id, "group_id": one.group_id,
        "actor_id": actor.map(|(id, _)| id), "generation": actor.map(|(_, generation)| generation),
        "mode": mode(one.mode()), "sampling_seed": one.sampling_seed, "stop_reason": stop_reason,
        "reward": one.reward, "success": one.success, "answer": one.answer,
        "tokens": summary.tokens, "tokens_sampled": summary.tokens_sampled,
        "messages": summary.messages, "messages_invalid": summary.messages_invalid,
        "messages_polluted": summary.messages_polluted, "calls": summary.calls,
        "control_token_mass": one.control_token_mass,
        "oldest_version": summary.oldest_version, "newest_version": newest,
        "duration_ms": one.duration_ms, "sampled_versions": versions,
        "spans": one.spans.iter().map(span).collect::<Vec<_>>(),
        "token_ids": one.token_ids, "loss_mask": one.loss_mask,
        "behavior_logprobs": one.behavior_logprobs, "policy_versions": one.policy_versions,
    });
    add_task(&mut row, one.task.as_ref().unwrap());
    row
}

fn span(span: &Span) -> Json {
    let role = match span.role() {
        Role::Unspecified => "unspecified",
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let state = match span.state() {
        StructuralState::HealthyCall => Some("healthy_call"),
        StructuralState::HealthyResponse => Some("healthy_response"),
        StructuralState::Polluted => Some("polluted"),
        StructuralState::Collapsed => Some("collapsed"),
        StructuralState::Unspecified => None,
    };
    let status = |status| match status {
        CallStatus::Unspecified => "unspecified",
        CallStatus::Ok => "ok",
        CallStatus::Malformed => "malformed",
        CallStatus::UnknownTool => "unknown_tool",
        CallStatus::BadArguments => "bad_arguments",
        CallStatus::ToolError => "tool_error",
    };
    let calls: Vec<_> = span.calls.iter()
        .map(|one| json!({"name": one.name, "arguments_json": one.arguments_json, "status": status(one.status()), "raw": one.raw}))
        .collect();
    json!({"role": role, "token_start": span.start, "token_end": span.end, "state": state, "calls": calls})
}

fn add_task(row: &mut Json, task: &TaskRef) {
    row["world"] = task.world.clone().into();
    row["split"] = task.split.clone().into();
    row["task_seed"] = task.seed.into();
    row["task_calls"] = task.calls.into();
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Unspecified => "unspecified",
        Mode::Explore => "explore",
        Mode::Demonstrate => "demonstrate",
        Mode::Evaluate => "evaluate",
    }
}

fn kind(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Unspecified => "unspecified",
        StepKind::Rl => "rl",
        StepKind::Sft => "sft",
        StepKind::Checkpoint => "checkpoint",
        StepKind::Finish => "finish",
        StepKind::Joint => "joint",
    }
}

fn ids(groups: &[BatchGroup]) -> Vec<u64> {
    groups.iter().map(|group| group.group_id).collect()
}

fn episodes(groups: &[BatchGroup]) -> Vec<u64> {
    groups.iter().flat_map(|group| group.episodes.clone()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
