//! `ballast up` over real processes: shell scripts in place of the three programs.

mod fake;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
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

/// What a coordinator does before all else when it is started again.
fn again(script: &str) -> String {
    format!("if [ $(wc -l < $RUN/coordinator.pid) -gt 1 ]; then {script}; fi\n{COORDINATOR}")
}

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

    /// Leaves what a coordinator of an earlier start leaves.
    fn began_earlier(&self) {
        fs::create_dir_all(self.run("logs")).expect("a run directory");
        fs::write(self.run("coordinator.address"), "127.0.0.1:1\n").expect("an address");
        fs::write(self.run("logs/coordinator.log"), "a line of old\n").expect("a log");
    }

    /// Kills the newest process of a role the hard way.
    fn kill(&self, role: &str) {
        let pids = fs::read_to_string(self.run(&format!("{role}.pid"))).expect("a process");
        signal("-KILL", pids.lines().last().expect("a process"));
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

fn signal(name: &str, pid: &str) {
    assert!(Command::new("kill").args([name, pid]).status().expect("kill").success());
}

/// Reads what it says until a line contains this; the rest stays to be read.
fn await_said(up: &mut Child, expected: &str) {
    let mut lines = BufReader::new(up.stdout.as_mut().expect("piped")).lines();
    let said = lines.find(|line| line.as_ref().expect("UTF-8").contains(expected));
    assert!(said.is_some(), "it ended without {expected}");
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
fn a_dead_coordinator_is_started_again_where_it_was_while_the_others_live_on() {
    for (listen, kept) in
        [("127.0.0.1:0", " --set coordinator.listen=127.0.0.1:1"), ("[::1]:9", "")]
    {
        let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
        let listen = format!("coordinator.listen={listen}");
        let up = scene.up().args(["--set", &listen]).spawn().expect("ballast");
        let mut others = scene.await_lines("actor.pid", 2);
        others.extend(scene.await_lines("learner.pid", 1));
        scene.kill("coordinator");
        let starts = scene.await_lines("coordinator.args", 2);
        assert_eq!(starts[1], format!("{}{kept}", starts[0]));
        assert!(others.iter().all(|pid| is_alive(pid)), "a member died with the coordinator");
        scene.end(0);
        let output = up.wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("coordinator died (signal: 9"), "{}", text(&output));
        let report = json(&scene.run("cluster.json"));
        assert_eq!(report["processes"]["coordinator"]["restarts"], 1);
        assert_eq!(report["restarts"], 1);
    }
}

#[test]
fn a_coordinator_that_would_fail_again_ends_the_run_with_its_own_last_words() {
    let refuse = again("echo 'error: started with other settings' >&2; exit 78");
    let scene = Scene::new(&format!("echo a line of the first\n{refuse}"), STUBBORN_MEMBER, MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let pids = scene.await_lines("actor.pid", 2);
    scene.kill("coordinator");
    let output = up.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("coordinator died (exit status: 78); another start"), "{text}");
    assert!(text.contains("| error: started with other settings"), "{text}");
    assert_eq!(text.matches("| a line of the first").count(), 1, "{text}");
    assert!(text.contains("the same command goes on with it"), "{text}");
    assert!(!pids.iter().any(|pid| is_alive(pid)), "an actor outlived the run");
}

#[test]
fn a_coordinator_that_dies_behind_the_end_of_its_run_is_not_missed() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let up = scene.up().spawn().expect("ballast");
    scene.await_lines("actor.pid", 2);
    fs::write(scene.run("result.json"), "{}").expect("a writable run");
    scene.end(3);
    let output = up.wait_with_output().expect("an end");
    assert!(
        output.status.success() && text(&output).contains("ended in order"),
        "{}",
        text(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_began_earlier_goes_on_and_says_where() {
    let address = fake::Fake::default().serve().await;
    let scene = Scene::new(&COORDINATOR.replace("127.0.0.1:1", &address), MEMBER, MEMBER);
    scene.began_earlier();
    let mut up = scene.up().spawn().expect("ballast");
    // The address of the earlier start is not taken for the new one's.
    assert!(scene.await_lines("learner.args", 1)[0].ends_with(&address));
    await_said(&mut up, "run demo goes on at step ");
    scene.kill("coordinator");
    await_said(&mut up, "run demo goes on at step ");
    scene.end(0);
    assert!(up.wait().expect("an end").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_at_work_is_left_alone() {
    let fake = fake::Fake::default();
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let run = scene.path("runs/demo");
    fs::create_dir_all(&run).expect("a run directory");
    fs::write(run.join("coordinator.address"), fake.serve().await).expect("an address");
    let output = scene.up().args(["--set", "run.name=demo"]).output().expect("ballast");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("run demo is at work already"), "{}", text(&output));
    assert!(!run.join("logs").exists());
    assert_eq!(fake.call().name, "status");
}

#[test]
fn a_run_that_is_over_is_refused_by_its_coordinator_and_left_as_it_is() {
    let refuse = "echo 'error: runs/test holds a run that is over' >&2; exit 78";
    let scene = Scene::new(refuse, MEMBER, MEMBER);
    scene.began_earlier();
    for file in ["result.json", "cluster.json"] {
        fs::write(scene.run(file), "{}").expect("a file");
    }
    let output = scene.up().output().expect("ballast");
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("| error: runs/test holds a run that is over"), "{text}");
    assert!(!text.contains("a line of old") && !text.contains("goes on"), "{text}");
    assert!(!scene.run("learner.args").exists());
    assert_eq!(fs::read_to_string(scene.run("cluster.json")).expect("a report"), "{}");
}

#[test]
fn a_run_that_fails_is_not_told_to_stop() {
    let refuse = "while [ ! -e $RUN/fail ]; do sleep 0.05; done; exit 78";
    let scene = Scene::new(COORDINATOR, refuse, STUBBORN_MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let mut pids = scene.await_lines("actor.pid", 2);
    pids.extend(scene.await_lines("coordinator.pid", 1));
    fs::write(scene.run("fail"), "").expect("a writable run");
    let output = up.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("the same command goes on with it"), "{}", text(&output));
    assert!(!pids.iter().any(|pid| is_alive(pid)), "a process outlived the run");
    assert!(!scene.run("end").exists(), "the coordinator ended the run for good");
}

#[test]
fn a_signal_without_a_coordinator_ends_the_others_at_once() {
    let scene = Scene::new(&again("exit 1"), MEMBER, MEMBER);
    let up = scene.up().spawn().expect("ballast");
    let pids = scene.await_lines("actor.pid", 2);
    scene.kill("coordinator");
    // The third start fails too, and the fourth is at least a second away.
    scene.await_lines("coordinator.pid", 3);
    let third = scene.await_lines("coordinator.pid", 3)[2].clone();
    await_that("the third end", || !is_alive(&third));
    thread::sleep(Duration::from_millis(200));
    signal("-INT", &up.id().to_string());
    let output = up.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("interrupted: "), "{}", text(&output));
    assert!(!pids.iter().any(|pid| is_alive(pid)), "an actor outlived the run");
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
fn faults_in_the_flags_are_shown_and_a_dry_run_starts_nothing() {
    let scene = Scene::new(COORDINATOR, MEMBER, MEMBER);
    let faulty = scene.up().args(["--set", "rl.group_size=1"]).output().expect("ballast");
    assert!(text(&faulty).contains("rl.group_size: is 1; allowed: 2 to 1024"), "{}", text(&faulty));
    let dry = scene.up().arg("--dry-run").output().expect("ballast");
    assert!(dry.status.success() && text(&dry).contains("name = \"test\""), "{}", text(&dry));
    assert!(!scene.run("").exists());
}
