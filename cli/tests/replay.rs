//! A run of real processes, trained again from its journal: the same weights, bit for bit.
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

/// Bounds a failure; a run here takes half a minute.
const PATIENCE: Duration = Duration::from_secs(240);
/// Steps of the cold start, and all steps.
const COLD_START: u64 = 6;
const STEPS: u64 = COLD_START + 14;
/// Checkpoints: every five steps and at the end of the cold start.
const CHECKPOINTS: [u64; 5] = [5, 6, 10, 15, 20];

/// `ballast` in the root of the repository, where the quickstart's checkpoint is found.
fn ballast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).args(arguments);
    command
}

/// A run of the quickstart, scaled down, in a directory of its own.
struct Run {
    directory: tempfile::TempDir,
    child: Child,
}

impl Run {
    fn start(overrides: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command =
            ballast(&["up", "--plain", "--config", "examples/market/quickstart.toml"]);
        let place = format!("run.directory={}", directory.path().display());
        let fixed = [
            place.as_str(),
            "run.name=test",
            "coordinator.listen=127.0.0.1:0",
            "schedule.cold_start_steps_max=6",
            "schedule.cold_start_check_every=3",
            "schedule.cold_start_success=1.0",
            "schedule.steps=14",
            "learner.checkpoint_every=5",
            "evaluation.tasks=16",
            "evaluation.check_tasks=8",
            "tasks.demonstrations=32",
            "rl.groups_per_batch=4",
        ];
        for setting in fixed.iter().chain(overrides) {
            command.args(["--set", setting]);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Self { directory, child }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("test")
    }

    /// Kills the learner the hard way once the run has made this many steps.
    fn kill_learner_after(&mut self, step: u64) {
        let started = Instant::now();
        let metrics = self.path().join("metrics.jsonl");
        let last = || {
            let text = fs::read_to_string(&metrics).unwrap_or_default();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.filter_map(|line| line["step"].as_u64()).max().unwrap_or(0)
        };
        while last() < step {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended before step {step}");
            assert!(started.elapsed() < PATIENCE, "no step {step} in time");
            thread::sleep(Duration::from_millis(20));
        }
        let place = self.directory.path().display().to_string();
        let learner = fs::read_dir("/proc").unwrap().find_map(|entry| {
            let pid = entry.ok()?.file_name().into_string().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let program = line.split('\0').next()?;
            (program.ends_with("ballast-learner") && line.contains(&place)).then_some(pid)
        });
        let killed = Command::new("kill").args(["-KILL", &learner.expect("a learner")]).status();
        assert!(killed.unwrap().success());
    }

    /// Waits for the end, and gives back where the run is.
    fn finish(self) -> tempfile::TempDir {
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.directory
    }
}

/// `ballast replay` of the run in a directory, its output in a directory of this name beside it.
fn replay(runs: &Path, out: &str, arguments: &[&str]) -> Output {
    let (run, out) = (runs.join("test"), runs.join(out));
    let mut command = ballast(&["replay", "--json"]);
    command.arg(&run).arg("--out").arg(&out).args(arguments);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A replay from a step on makes the files of the run again, and says so.
fn assert_the_same_again(runs: &Path, from: u64) {
    let out = format!("again/from-{from}");
    let output = replay(runs, "again", &["--from-step", &from.to_string()]);
    assert!(output.status.success(), "from {from}: {}", said(&output));
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["identical"], true, "{verdict}");
    assert_eq!(verdict["steps_compared"], STEPS - from, "{verdict}");
    for step in CHECKPOINTS.into_iter().filter(|step| *step > from) {
        for file in ["model.safetensors", "trainer_state.safetensors", "trainer_state.json"] {
            let read = |run: &str| {
                let path = runs.join(run).join(format!("checkpoints/step-{step}/{file}"));
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            };
            assert!(read("test") == read(&out), "{file} of step {step}, replayed from {from}");
        }
    }
}

#[test]
fn a_serial_run_comes_out_again() {
    // Two threads: what several of them add up must not depend on which is first.
    let run = Run::start(&["rl.pacing=serial", "learner.threads=2"]).finish();
    for from in [0, COLD_START, 15] {
        assert_the_same_again(run.path(), from);
    }
}

#[test]
fn an_async_run_with_a_killed_learner_comes_out_again_and_a_forged_one_does_not() {
    let mut run = Run::start(&["rl.pacing=async", "rl.staleness_max=2"]);
    // Between two checkpoints: steps after the last one are trained twice.
    run.kill_learner_after(8);
    let run = run.finish();
    let run = run.path();
    for from in [0, 10] {
        assert_the_same_again(run, from);
    }

    let wrong = replay(run, "wrong", &["--from-step", "7"]);
    assert!(said(&wrong).contains("one of: 5, 6, 10, 15, 20"), "{}", said(&wrong));
    let taken = replay(run, "again", &[]);
    assert!(said(&taken).contains("holds a replay or a run already"), "{}", said(&taken));
    let far = replay(run, "far", &["--to-step", "21"]);
    assert!(said(&far).contains("the run has finished 20 steps"), "{}", said(&far));
    for refused in [wrong, taken, far] {
        assert_eq!(refused.status.code(), Some(1));
    }

    // One bit of the run's last weights.
    flip(&run.join("test/checkpoints/step-20/model.safetensors"), |contents| contents.len() - 1);
    let forged = replay(run, "forged weights", &["--from-step", "15", "--last-only"]);
    let verdict: Value = serde_json::from_slice(&forged.stdout).unwrap();
    assert_eq!((forged.status.code(), &verdict["identical"]), (Some(1), &false.into()));
    let difference = verdict["checkpoints"][0]["weights"].as_str().unwrap_or_default();
    assert!(difference.starts_with("from model."), "the tensor is named: {verdict}");
    assert_eq!(verdict["checkpoints"][0]["trainer_state"], "identical");

    // One bit in the middle of its journal, where the trajectories are.
    let segments = fs::read_dir(run.join("test/journal/segments")).unwrap();
    let largest = segments.map(|entry| entry.unwrap().path()).max_by_key(written);
    flip(&largest.unwrap(), |contents| end(contents) / 2);
    let damaged = replay(run, "damaged", &[]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(said(&damaged).contains("is damaged at byte"), "{}", said(&damaged));
}

fn flip(path: &Path, at: impl Fn(&[u8]) -> usize) {
    let mut contents = fs::read(path).unwrap();
    let at = at(&contents);
    contents[at] ^= 1;
    fs::write(path, contents).unwrap();
}

/// Where the room begins that a segment has reserved.
fn end(contents: &[u8]) -> usize {
    contents.iter().rposition(|byte| *byte != 0).unwrap_or(0)
}

fn written(segment: &PathBuf) -> usize {
    end(&fs::read(segment).unwrap())
}
