//! The tables and their columns; `docs/dataset.md` says what each means.

use std::fmt;

use parquet::schema::{parser::parse_message_type, types::TypePtr};

/// A folder of Parquet files with the same columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Finished episodes, tokens and all.
    Trajectories,
    /// Episodes that actors were told to run.
    Dispatches,
    /// Episodes that ended without being of use.
    Drops,
    /// Trajectories that were refused.
    Refusals,
    /// What the learner was told to do.
    Batches,
    /// Finished optimizer steps.
    Steps,
    /// What the schedule decided.
    Decisions,
    /// Phases of the schedule.
    Phases,
    /// Results of evaluations.
    Evaluations,
    /// Checkpoints.
    Checkpoints,
    /// Who asked for what.
    Audit,
    /// Actors that came and went.
    Actors,
    /// Beginning, leaderships and end of the run.
    Run,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Trajectories,
        Self::Dispatches,
        Self::Drops,
        Self::Refusals,
        Self::Batches,
        Self::Steps,
        Self::Decisions,
        Self::Phases,
        Self::Evaluations,
        Self::Checkpoints,
        Self::Audit,
        Self::Actors,
        Self::Run,
    ];

    /// Its folder in the directory of a run.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Trajectories => "trajectories",
            Self::Dispatches => "events/dispatches",
            Self::Drops => "events/drops",
            Self::Refusals => "events/refusals",
            Self::Batches => "events/batches",
            Self::Steps => "events/steps",
            Self::Decisions => "events/decisions",
            Self::Phases => "events/phases",
            Self::Evaluations => "events/evaluations",
            Self::Checkpoints => "events/checkpoints",
            Self::Audit => "events/audit",
            Self::Actors => "events/actors",
            Self::Run => "events/run",
        }
    }

    /// Its columns, in order.
    #[must_use]
    pub fn schema(self) -> TypePtr {
        let parsed = parse_message_type(self.columns());
        parsed.expect("the text is a constant, and a test parses each").into()
    }

    fn columns(self) -> &'static str {
        match self {
            Self::Trajectories => TRAJECTORIES,
            Self::Dispatches => DISPATCHES,
            Self::Drops => DROPS,
            Self::Refusals => REFUSALS,
            Self::Batches => BATCHES,
            Self::Steps => STEPS,
            Self::Decisions => DECISIONS,
            Self::Phases => PHASES,
            Self::Evaluations => EVALUATIONS,
            Self::Checkpoints => CHECKPOINTS,
            Self::Audit => AUDIT,
            Self::Actors => ACTORS,
            Self::Run => RUN,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.folder().fmt(formatter)
    }
}

const TRAJECTORIES: &str = "
message trajectories {
    required int64 position;
    required double t_s;
    required int64 episode_id;
    optional int64 group_id;
    optional binary actor_id (STRING);
    optional int64 generation;
    required binary world (STRING);
    required binary split (STRING);
    required int64 task_seed (INTEGER(64, false));
    required int64 task_calls;
    required binary mode (STRING);
    required int64 sampling_seed (INTEGER(64, false));
    required binary stop_reason (STRING);
    optional float reward;
    optional boolean success;
    optional binary answer (STRING);
    required int64 tokens;
    required int64 tokens_sampled;
    required int64 messages;
    required int64 messages_invalid;
    required int64 messages_polluted;
    required int64 calls;
    optional float control_token_mass;
    optional int64 oldest_version;
    optional int64 newest_version;
    required int64 duration_ms;
    required group sampled_versions (LIST) {
        repeated group list {
            required group element {
                required int64 policy_version;
                required binary manifest_hash (STRING);
            }
        }
    }
    required group spans (LIST) {
        repeated group list {
            required group element {
                required binary role (STRING);
                required int64 token_start;
                required int64 token_end;
                optional binary state (STRING);
                required group calls (LIST) {
                    repeated group list {
                        required group element {
                            required binary name (STRING);
                            required binary arguments_json (STRING);
                            required binary status (STRING);
                            required binary raw (STRING);
                        }
                    }
                }
            }
        }
    }
    required group token_ids (LIST) {
        repeated group list { required int32 element (INTEGER(32, false)); }
    }
    required group loss_mask (LIST) {
        repeated group list { required int32 element (INTEGER(8, false)); }
    }
    required group behavior_logprobs (LIST) {
        repeated group list { required float element; }
    }
    required group policy_versions (LIST) {
        repeated group list { required int64 element; }
    }
}";

const DISPATCHES: &str = "
message dispatches {
    required int64 position;
    required double t_s;
    required int64 episode_id;
    optional int64 group_id;
    required binary actor_id (STRING);
    required int64 generation;
    required binary world (STRING);
    required binary split (STRING);
    required int64 task_seed (INTEGER(64, false));
    required int64 task_calls;
    required binary mode (STRING);
}";

const DROPS: &str = "
message drops {
    required int64 position;
    required double t_s;
    required int64 episode_id;
    required binary fate (STRING);
    required binary reason (STRING);
    optional int64 tokens;
}";

const REFUSALS: &str = "
message refusals {
    required int64 position;
    required double t_s;
    required int64 episode_id;
    optional binary actor_id (STRING);
    required binary fault (STRING);
}";

const BATCHES: &str = "
message batches {
    required int64 position;
    required double t_s;
    required int64 batch;
    required int64 step;
    required binary kind (STRING);
    required double learning_rate;
    required double sft_weight;
    required boolean reset_optimizer;
    required group episode_ids (LIST) { repeated group list { required int64 element; } }
    required group group_ids (LIST) { repeated group list { required int64 element; } }
    required group replaced_episode_ids (LIST) { repeated group list { required int64 element; } }
    required group replaced_group_ids (LIST) { repeated group list { required int64 element; } }
}";

const STEPS: &str = "
message steps {
    required int64 position;
    required double t_s;
    required int64 step;
    required binary kind (STRING);
    required boolean skipped;
    required binary manifest_hash (STRING);
    required group metrics (MAP) {
        repeated group key_value {
            required binary key (STRING);
            required double value;
        }
    }
}";

const DECISIONS: &str = "
message decisions {
    required int64 position;
    required double t_s;
    required int64 step;
    required binary what (STRING);
    required binary reason (STRING);
}";

const PHASES: &str = "
message phases {
    required int64 position;
    required double t_s;
    required int64 step;
    required binary phase (STRING);
}";

const EVALUATIONS: &str = "
message evaluations {
    required int64 position;
    required double t_s;
    required binary name (STRING);
    required int64 policy_version;
    required int64 episodes;
    required int64 successes;
    required double calls_mean;
    required double invalid_call_rate;
}";

const CHECKPOINTS: &str = "
message checkpoints {
    required int64 position;
    required double t_s;
    required int64 step;
    required binary path (STRING);
}";

const AUDIT: &str = "
message audit {
    required int64 position;
    required double t_s;
    required binary who (STRING);
    required binary what (STRING);
    required binary reason (STRING);
    optional binary refusal (STRING);
}";

const ACTORS: &str = "
message actors {
    required int64 position;
    required double t_s;
    required binary event (STRING);
    required binary actor_id (STRING);
    required int64 generation;
    optional int64 slots;
}";

const RUN: &str = "
message run {
    required int64 position;
    required double t_s;
    required binary event (STRING);
    required binary detail (STRING);
}";
