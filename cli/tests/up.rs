//! `ballast up` over real processes: shell scripts in place of the three programs.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Any step of these tests takes well under a second; this only bounds a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes an address nobody listens on, then lives until `$RUN/end` exists and exits with the code
/// in it.
const COORDINATOR: &str = r#"
echo 127.0.0.1:1 > $RUN/address.tmp; mv $RUN/address.tmp $RUN/coordinator.address
trap 'echo 0 > $RUN/end' TERM
while [ ! -e $RUN/end ]; do sleep 0.05; done
exit $(cat $RUN/end)"#;

/// Lives until the coordinator ends, as a member does that is drained.
const MEMBER: &str = "while [ ! -e $RUN/end ]; do sleep 0.05; done";

/// Lives until it is told to end.
const STUBBORN_MEMBER: &str = "trap 'exit 0' TERM\nwhile :; do sleep 0.05; done";

/// A working directory with programs made of shell scripts.
struct Scene(tempfile::TempDir);

impl Scene {
    fn new(coordinator: &str, learner: &str, actor: &str) -> Self {
        let scene = Self(tempfile::tempdir().expect("a temporary directory"));
        for (name, body) in [("coordinator", coordinator), ("learner", learner), ("actor", actor)] {
            let path = scene.path(&format!("ballast-{name}"));
            let run = scene.run("").display().to_string();
            let script = format!(
                "#!/bin/sh\nRUN={run}\necho \"$@\" >> $RUN/{name}.args\necho $$ >> $RUN/{name}.pid\n{body}\n"
            );
            fs::write(&path, script).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable");
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, name: &str) -> PathBuf {
        self.path("runs/test").join(name)
    }

    fn up(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command
            .current_dir(self.0.path())
            .args(["up", "--plain", "--set", "run.name=test", "--set", "actor.count=2"])
            .arg("--programs")
            .arg(self.0.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn end(&self, code: u8) {
        fs::write(self.run("end.tmp"), code.to_string()).expect("a writable run");
        fs::rename(self.run("end.tmp"), self.run("end")).expect("a writable run");
    }

    fn await_lines(&self, name: &str, count: usize) -> Vec<String> {
        let path = self.run(name);
        await_that(name, || fs::read_to_string(&path).unwrap_or_default().lines().count() >= count);
        fs::read_to_string(path).expect("lines").lines().map(str::to_owned).collect()
    }
}

fn await_that(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "PID (name) STATE ...": a zombie has ended.
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("a report")).expect("JSON")
}

#[test]
fn a_run_starts_in_order_and_ends_with_its_coordinator() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let actors = scene.await_lines("actor.args", 2);
    let learner = scene.await_lines("learner.args", 1);
    scene.end(0);
    let output = up.wait_with_output().expect("an end");
    assert!(output.status.success(), "{}", text(&output));
    let flags = "--set run.name=test --set actor.count=2";
    assert_eq!(scene.await_lines("coordinator.args", 1), [flags]);
    assert_eq!(learner, [format!("{flags} --coordinator 127.0.0.1:1")]);
    let mut ids: Vec<&str> = actors.iter().filter_map(|args| args.rsplit(' ').next()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["actor-0", "actor-1"]);
    let report = json(&scene.run("cluster.json"));
    assert_eq!(report["restarts"], 0);
    assert_eq!(report["processes"].as_object().map(serde_json::Map::len), Some(5));
    assert!(
        report["peak_rss_bytes"].as_u64()
            > report["processes"]["learner"]["peak_rss_bytes"].as_u64()
    );
    assert!(report["wall_s"].as_f64() > Some(0.0));
    let pids = scene.await_lines("actor.pid", 2);
    assert!(!pids.iter().any(|pid| is_alive(pid)), "an actor outlived the run");
}

#[test]
fn a_dead_actor_and_a_dead_learner_are_started_again() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let victims = [
        scene.await_lines("actor.pid", 2)[0].clone(),
        scene.await_lines("learner.pid", 1)[0].clone(),
    ];
    let killed = Command::new("kill").arg("-9").args(&victims).status().expect("kill");
    assert!(killed.success());
    scene.await_lines("actor.pid", 3);
    scene.await_lines("learner.pid", 2);
    scene.end(0);
    let output = up.wait_with_output().expect("an end");
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("learner died (signal: 9"), "{}", text(&output));
    assert!(text(&output).contains("restart 1 of 5"), "{}", text(&output));
    let report = json(&scene.run("cluster.json"));
    assert_eq!(report["restarts"], 2);
    assert_eq!(report["processes"]["learner"]["restarts"], 1);
}

#[test]
fn a_coordinator_that_cannot_start_is_quoted() {
    let refuse = "echo 'error: 127.0.0.1:7711 is taken' >&2; exit 1";
    let scene = Scene::new(refuse, MEMBER, MEMBER);
    let output = scene.up().output().expect("ballast");
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("the coordinator died (exit status: 1)"), "{text}");
    assert!(text.contains("| error: 127.0.0.1:7711 is taken"), "{text}");
    assert!(!scene.run("learner.args").exists());
}

#[test]
fn a_learner_that_would_fail_again_ends_the_run_at_once() {
    let refuse = "echo 'error: x/config.json: No such file' >&2; exit 78";
    let scene = Scene::new(COORDINATOR, refuse, MEMBER);
    let output = scene.up().output().expect("ballast");
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(
        text.contains("learner died (exit status: 78); another start would not help"),
        "{text}"
    );
    assert!(text.contains("| error: x/config.json: No such file"), "{text}");
    assert_eq!(scene.await_lines("learner.args", 1).len(), 1, "it was started again");
}

#[test]
fn a_coordinator_that_dies_mid_run_ends_the_run_with_an_error() {
    let scene = Scene::new(COORDINATOR, STUBBORN_MEMBER, STUBBORN_MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let pids = scene.await_lines("actor.pid", 2);
    scene.end(3);
    let output = up.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("the coordinator died (exit status: 3)"), "{}", text(&output));
    assert!(!pids.iter().any(|pid| is_alive(pid)), "an actor outlived the run");
    assert_eq!(json(&scene.run("cluster.json"))["restarts"], 0);
}

#[test]
fn a_signal_stops_the_run_in_order() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let pids = scene.await_lines("actor.pid", 2);
    Command::new("kill").arg("-INT").arg(up.id().to_string()).status().expect("kill");
    let output = up.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("stopping:"), "{}", text(&output));
    assert!(!pids.iter().any(|pid| is_alive(pid)), "an actor outlived the run");
    assert!(scene.run("cluster.json").exists());
}

#[test]
fn a_second_signal_ends_everything_at_once() {
    let deaf = COORDINATOR.replace("'echo 0 > $RUN/end'", "'echo heard >> $RUN/heard'");
    let scene = Scene::new(&deaf, MEMBER, MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let mut pids = scene.await_lines("actor.pid", 2);
    pids.extend(scene.await_lines("coordinator.pid", 1));
    let interrupt = || {
        Command::new("kill").arg("-INT").arg(up.id().to_string()).status().expect("kill");
    };
    interrupt();
    scene.await_lines("heard", 1);
    interrupt();
    let output = up.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    await_that("the children's end", || !pids.iter().any(|pid| is_alive(pid)));
}

#[test]
fn no_process_outlives_a_killed_ballast() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let mut up = scene.up().spawn().expect("ballast");
    let mut pids = scene.await_lines("actor.pid", 2);
    pids.extend(scene.await_lines("learner.pid", 1));
    pids.extend(scene.await_lines("coordinator.pid", 1));
    up.kill().expect("a living ballast");
    assert_eq!(up.wait().expect("an end").signal(), Some(9));
    await_that("the children's end", || !pids.iter().any(|pid| is_alive(pid)));
}

#[test]
fn a_run_that_exists_is_refused_and_left_alone() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    fs::create_dir_all(scene.run("")).expect("a run directory");
    fs::write(scene.run("coordinator.address"), "127.0.0.1:7711").expect("an address");
    let output = scene.up().output().expect("ballast");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("--set run.name=NAME"), "{}", text(&output));
    assert!(!scene.run("coordinator.args").exists());
}

#[test]
fn faults_in_the_flags_are_shown_and_a_dry_run_starts_nothing() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let faulty = scene.up().args(["--set", "rl.group_size=1"]).output().expect("ballast");
    assert!(text(&faulty).contains("rl.group_size: is 1; allowed: 2 to 1024"), "{}", text(&faulty));
    let dry = scene.up().arg("--dry-run").output().expect("ballast");
    assert!(dry.status.success() && text(&dry).contains("name = \"test\""), "{}", text(&dry));
    assert!(!scene.run("").exists());
}
