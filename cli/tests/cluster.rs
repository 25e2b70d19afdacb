//! The whole system: real processes, real gRPC, real training of the base model on a CPU.
//!
//! Needs the programs of the other roles beside `ballast`, which `cargo build` puts there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Bounds a failure; each run here takes a minute or two.
const PATIENCE: Duration = Duration::from_secs(240);

/// A cluster in a directory of its own.
struct Cluster {
    directory: tempfile::TempDir,
    overrides: Vec<String>,
    child: Option<Child>,
}

impl Cluster {
    /// Starts `ballast up` with the quickstart's configuration and these overrides.
    fn start(overrides: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for role in ["actor", "learner", "coordinator"] {
            let program =
                Path::new(env!("CARGO_BIN_EXE_ballast")).with_file_name(format!("ballast-{role}"));
            assert!(program.is_file(), "{} is missing: run `cargo build`", program.display());
        }
        let fixed = [
            "run.name=test".to_owned(),
            format!("run.directory={}", directory.path().join("runs").display()),
            "coordinator.listen=127.0.0.1:0".to_owned(),
        ];
        let given = overrides.iter().map(|&given| given.to_owned());
        let overrides = fixed.into_iter().chain(given).collect();
        let mut cluster = Self { directory, overrides, child: None };
        cluster.up();
        cluster
    }

    /// Starts `ballast up`, with the same flags each time.
    fn up(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        command.args(["up", "--plain", "--config", "examples/market/quickstart.toml"]);
        command.args(self.overrides.iter().flat_map(|setting| ["--set", setting.as_str()]));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        self.child = Some(child.expect("ballast starts"));
    }

    /// Kills `ballast up`, and with it everything it started.
    fn kill_all(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().expect("a living ballast");
        child.wait().expect("its end");
        for role in ["ballast-coordinator", "ballast-learner", "ballast-actor"] {
            let started = Instant::now();
            while self.find(role).is_some() {
                assert!(started.elapsed() < PATIENCE, "a {role} outlived ballast");
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn run(&self, name: &str) -> PathBuf {
        self.directory.path().join("runs/test").join(name)
    }

    /// Lines of metrics.jsonl so far.
    fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.run("metrics.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn result(&self) -> Value {
        let text = fs::read_to_string(self.run("result.json")).expect("the run left a result");
        serde_json::from_str(&text).expect("it is JSON")
    }

    fn last_step(&self) -> u64 {
        self.metrics().iter().filter_map(|line| line["step"].as_u64()).max().unwrap_or(0)
    }

    fn await_step(&mut self, step: u64) {
        let started = Instant::now();
        while self.last_step() < step {
            let child = self.child.as_mut().expect("running");
            let ended = child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "the cluster ended before step {step}: {}", self.logs());
            assert!(started.elapsed() < PATIENCE, "no step {step} in time: {}", self.logs());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the newest process of a role the hard way.
    fn kill(&self, role: &str) {
        signal(self.newest(role), "-KILL");
    }

    /// Kills an actor in the middle of episodes: it is stopped, looked at, and let go on until it has
    /// some.
    fn kill_at_work(&self, role: &str) {
        let (started, pid) = (Instant::now(), self.newest(role));
        loop {
            signal(pid, "-STOP");
            // Reports that were under way arrive.
            thread::sleep(Duration::from_millis(200));
            if number(&self.status()["episodes"], "in_flight") > 0.0 {
                return signal(pid, "-KILL");
            }
            signal(pid, "-CONT");
            assert!(started.elapsed() < PATIENCE, "no episode in time: {}", self.logs());
            thread::sleep(Duration::from_millis(30));
        }
    }

    fn status(&self) -> Value {
        let status = self.ballast(&["status", "--json"]);
        serde_json::from_slice(&status.stdout).expect("status is JSON")
    }

    /// Process id.
    fn newest(&self, role: &str) -> i32 {
        self.find(role).unwrap_or_else(|| panic!("no {role} is running"))
    }

    fn find(&self, role: &str) -> Option<i32> {
        let runs = self.directory.path().display().to_string();
        let process = fs::read_dir("/proc").expect("a proc file system").filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let program = line.split('\0').next()?.to_owned();
            (program.ends_with(role) && line.contains(&runs)).then_some(pid)
        });
        process.max()
    }

    fn ballast(&self, arguments: &[&str]) -> Output {
        let address = fs::read_to_string(self.run("coordinator.address")).expect("an address");
        Command::new(env!("CARGO_BIN_EXE_ballast"))
            .args(arguments)
            .args(["--coordinator", address.trim()])
            .env("USER", "ada")
            .output()
            .expect("ballast runs")
    }

    /// Waits for the end of the run; all that `ballast up` said.
    fn wait(&mut self) -> String {
        let output = self.child.take().expect("running").wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{}", self.logs());
        text
    }

    /// Steps of metrics.jsonl, without its evaluations.
    fn steps(&self) -> Vec<u64> {
        let metrics = self.metrics();
        let steps = metrics.iter().filter(|line| line["kind"] != "evaluation");
        steps.filter_map(|line| line["step"].as_u64()).collect()
    }

    fn logs(&self) -> String {
        let read = |role: &str| {
            let text =
                fs::read_to_string(self.run(&format!("logs/{role}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(10).collect();
            format!("--- {role}\n{}\n", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        ["coordinator", "learner", "actor-0"].map(read).concat()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // The roles die with it.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn signal(pid: i32, name: &str) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// J2, and that nothing was left over.
fn assert_every_episode_is_accounted_for(result: &Value) {
    let episodes = &result["episodes"];
    let count = |key: &str| number(episodes, key);
    assert_eq!(count("dispatched"), count("finished") + count("cancelled") + count("in_flight"));
    assert_eq!(count("in_flight"), 0.0);
    assert_eq!(result["outcome"], "finished");
}

#[test]
fn a_killed_actor_and_a_killed_learner_lose_nothing() {
    let mut cluster = Cluster::start(&[
        "schedule.cold_start_steps_max=6",
        "schedule.cold_start_check_every=3",
        "schedule.cold_start_success=1.0",
        "schedule.steps=20",
        "learner.checkpoint_every=5",
        "evaluation.tasks=16",
        "evaluation.check_tasks=8",
        "tasks.demonstrations=32",
        "rl.groups_per_batch=4",
        "rl.staleness_max=2",
    ]);
    cluster.await_step(9);
    cluster.kill_at_work("ballast-actor");
    cluster.await_step(13);
    // Between two checkpoints: steps since the last one are trained again from the recorded batches.
    cluster.kill("ballast-learner");
    let status = cluster.status();
    assert!(number(&status, "step") >= 13.0, "{status}");
    cluster.wait();

    let result = cluster.result();
    assert_every_episode_is_accounted_for(&result);
    let lost = &result["episodes"]["cancelled_by_reason"]["actor_lost"];
    assert!(lost.as_u64().is_some_and(|lost| lost > 0), "{result}");
    let mut steps = cluster.steps();
    steps.dedup();
    assert_eq!(steps, (1..=26).collect::<Vec<u64>>(), "every step once and in order");
    let restarts = fs::read_to_string(cluster.run("cluster.json")).expect("cluster.json");
    let restarts: Value = serde_json::from_str(&restarts).expect("it is JSON");
    assert!(number(&restarts, "restarts") >= 2.0, "{restarts}");
}

#[test]
fn a_killed_coordinator_and_a_killed_cluster_go_on_where_they_were() {
    let mut cluster = Cluster::start(&[
        "schedule.cold_start_steps_max=6",
        "schedule.cold_start_check_every=6",
        "schedule.cold_start_success=1.0",
        "schedule.steps=24",
        "learner.checkpoint_every=5",
        "evaluation.tasks=16",
        "evaluation.check_tasks=8",
        "tasks.demonstrations=32",
        "rl.groups_per_batch=4",
        "rl.staleness_max=2",
    ]);
    cluster.await_step(8);
    let others = ["ballast-actor", "ballast-learner"].map(|role| cluster.newest(role));
    cluster.kill("ballast-coordinator");
    cluster.await_step(12);
    let alive = ["ballast-actor", "ballast-learner"].map(|role| cluster.newest(role));
    assert_eq!(alive, others, "the coordinator took others with it");
    let reason = "structure slips";
    let change = cluster.ballast(&["schedule", "set", "kind=adaptive", "--reason", reason]);
    assert!(change.status.success(), "{}", String::from_utf8_lossy(&change.stderr));
    cluster.await_step(16);
    cluster.kill_all();
    cluster.up();
    cluster.await_step(24);
    let answer = |command: &[&str]| -> Value {
        let output = cluster.ballast(&[command, &["--json"]].concat());
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    };
    assert_eq!(answer(&["schedule"])["kind"], "adaptive");
    let audit = &answer(&["audit"])["entries"][0];
    assert_eq!(
        (&audit["what"], &audit["reason"]),
        (&"set schedule.kind=adaptive".into(), &reason.into())
    );
    assert!(audit["who"].as_str().is_some_and(|who| who.starts_with("ada")), "{audit}");
    let said = cluster.wait();
    assert!(said.contains("run test goes on at step "), "{said}");

    assert_every_episode_is_accounted_for(&cluster.result());
    assert_eq!(cluster.steps(), (1..=30).collect::<Vec<u64>>(), "every step once and in order");
    let program = Path::new(env!("CARGO_BIN_EXE_ballast")).with_file_name("ballast-coordinator");
    let check = Command::new(program).args(["journal", "check"]).arg(cluster.run("")).output();
    let check = check.expect("the checker runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn success_rises_and_actor_and_learner_agree_on_every_logprob() {
    let mut cluster = Cluster::start(&[
        "run.seed=7",
        // Tasks longer than any demonstration: what RL has to learn here.
        "tasks.calls=[4, 5]",
        "evaluation.calls=[4, 5]",
        "schedule.cold_start_steps_max=16",
        "schedule.cold_start_check_every=16",
        "schedule.steps=54",
        "evaluation.tasks=400",
        // Serial: every token of a batch is sampled by the weights it trains.
        "rl.staleness_max=0",
    ]);
    cluster.wait();
    assert_every_episode_is_accounted_for(&cluster.result());

    let metrics = cluster.metrics();
    let gaps: Vec<f64> =
        metrics.iter().filter_map(|line| line["train/logprob_gap_max"].as_f64()).collect();
    assert!(gaps.len() >= 20, "only {} RL steps measured the gap", gaps.len());
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    assert!(worst < 1e-4, "actor and learner differ by {worst} in a log-probability");

    let success = |name: &str| {
        let line = metrics.iter().find(|line| line["name"] == name);
        number(line.unwrap_or_else(|| panic!("no evaluation {name}")), "success")
    };
    let (before, after) = (success("after_cold_start"), success("final"));
    // The same seed gives about +0.1; without learning the two differ by less than 0.03.
    assert!(after >= before + 0.05, "held-out success went from {before} to {after}");
}
