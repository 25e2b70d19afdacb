//! What a seed stands for: a configuration, a cluster, a disk, and the faults that strike it.

use std::time::Duration;

use ballast_runtime::{
    config::{Config, Pacing},
    config_file,
};

use crate::{
    agenda::Time,
    dice::{Dice, Part},
    disk::Kind,
    faults::FaultKind,
};

/// Token ids of the simulated model are below this.
pub(crate) const VOCABULARY: u32 = 1000;

/// How often actors do badly.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mishaps {
    /// Share of episodes in which the world fails.
    pub(crate) infrastructure: f64,
    /// Share that is given back.
    pub(crate) returned: f64,
    /// Share whose trajectory has something wrong with it.
    pub(crate) blemished: f64,
    /// Share that takes long.
    pub(crate) long: f64,
}

/// Everything about a run that is fixed before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) config: Config,
    pub(crate) storage: Kind,
    /// Two coordinators with an election, or one that its supervisor starts again.
    pub(crate) elected: bool,
    pub(crate) actors: usize,
    pub(crate) slots: u32,
    /// Whether a step that is trained again comes out the same.
    pub(crate) learner_repeats: bool,
    /// Whether the learner says how large its vocabulary is.
    pub(crate) says_vocabulary: bool,
    /// Records between two snapshots.
    pub(crate) snapshot_records: u64,
    /// Share of messages that take long.
    pub(crate) slow_share: f64,
    pub(crate) mishaps: Mishaps,
    /// Kinds of faults, and the mean time between two of a kind.
    pub(crate) faults: Vec<(FaultKind, Duration)>,
    /// When the last fault is over.
    pub(crate) heal_at: Time,
    /// Whether some snapshots are of another version of the program.
    pub(crate) foreign_snapshots: bool,
    /// Whether people stop the run early.
    pub(crate) stopped: bool,
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Self {
        let dice = &mut Dice::new(seed, Part::Scenario, 0);
        let storage = match dice.chance(0.7) {
            true => Kind::Directory { segment_bytes: dice.pick(&[2 << 10, 8 << 10, 32 << 10]) },
            false => Kind::Objects,
        };
        let wild = dice.pick(&[0.0, 1.0, 1.0, 3.0]);
        let mut share = |most: f64| most * wild * dice.between(0, 100) as f64 / 100.0;
        let mishaps = Mishaps {
            infrastructure: share(0.1),
            returned: share(0.05),
            blemished: share(0.1),
            long: share(0.05),
        };
        Self {
            config: config(seed, dice),
            storage,
            elected: dice.chance(0.5),
            actors: dice.between(1, 5) as usize,
            slots: dice.between(1, 4) as u32,
            learner_repeats: dice.chance(0.8),
            says_vocabulary: dice.chance(0.8),
            snapshot_records: dice.pick(&[15, 40, 100, 20_000]),
            slow_share: dice.pick(&[0.0, 0.01, 0.1]),
            mishaps,
            faults: faults(dice, storage),
            heal_at: Duration::from_secs(dice.between(40, 400)),
            foreign_snapshots: dice.chance(0.1),
            stopped: dice.chance(0.05),
        }
    }

    /// Versions that the learner may be ahead of the oldest token it trains on.
    pub(crate) fn staleness_bound(&self) -> u64 {
        match self.config.rl.pacing {
            Pacing::Serial => 0,
            Pacing::OneStep => 1,
            Pacing::Async => self.config.rl.staleness_max,
        }
    }
}

fn config(seed: u64, dice: &mut Dice) -> Config {
    let mut set = vec![format!("run.seed={}", seed >> 1)];
    let mut put = |key: &str, value: String| set.push(format!("{key}={value}"));
    let kinds =
        ["rl_only", "sft_then_rl", "interleave", "interleave", "adaptive", "joint", "sft_only"];
    put("schedule.kind", dice.pick(&kinds).into());
    put("schedule.steps", dice.between(4, 20).to_string());
    put("schedule.rl_steps", dice.between(1, 3).to_string());
    put("schedule.sft_steps", dice.between(1, 2).to_string());
    put("schedule.cold_start_steps_max", dice.between(0, 4).to_string());
    put("schedule.cold_start_check_every", dice.between(1, 3).to_string());
    put("schedule.cold_start_success", dice.pick(&["0.0", "0.5", "1.0"]).into());
    put("rl.pacing", dice.pick(&["serial", "one_step", "async", "async"]).into());
    put("rl.staleness_max", dice.between(0, 3).to_string());
    put("rl.group_size", dice.between(2, 3).to_string());
    put("rl.groups_per_batch", dice.between(1, 3).to_string());
    put("rl.replaced_max", dice.pick(&[0, 0, 1, 2]).to_string());
    put("tasks.demonstrations", dice.between(3, 6).to_string());
    put("sft.batch", dice.between(1, 3).to_string());
    put("sft.source", dice.pick(&["demonstrations", "demonstrations", "failed"]).into());
    put("sft.failed.criterion", dice.pick(&["all_fail", "any_fail"]).into());
    put("sft.failed.window", dice.between(1, 4).to_string());
    put("evaluation.tasks", dice.between(1, 4).to_string());
    put("evaluation.check_tasks", dice.between(1, 3).to_string());
    put("learner.checkpoint_every", dice.between(1, 5).to_string());
    put("coordinator.actor_lease_s", dice.pick(&["4.0", "8.0", "15.0"]).into());
    config_file::load(&[], &set).expect("every value is one that a person may choose")
}

/// About half of the kinds, so that rare combinations get their turn.
fn faults(dice: &mut Dice, storage: Kind) -> Vec<(FaultKind, Duration)> {
    let mut faults = Vec::new();
    for (kind, seconds) in FaultKind::ALL {
        let chosen = dice.chance(0.5);
        let scale = dice.between(30, 300);
        let exists = !kind.needs_file_system() || storage != Kind::Objects;
        if chosen && exists {
            faults.push((*kind, Duration::from_millis(*seconds * scale * 10)));
        }
    }
    faults
}
