//! Chaos: two coordinators, etcd, a learner and four actors, all real processes, killed and stopped at
//! random. Afterwards the run has advanced, and the checker proves from the journal alone that nothing
//! acknowledged was lost, no episode counted twice, and no trajectory trained twice.
//!
//! Two minutes in CI. Longer:
//! `BALLAST_CHAOS_SECONDS=1260 BALLAST_CHAOS_FAULTS=200 cargo nextest run -p ballast-cli --test chaos`
//! (`BALLAST_CHAOS_SEED` for other faults, `BALLAST_CHAOS_KEEP=DIR` to keep the run,
//! `BALLAST_CHAOS_PROGRAMS=DIR` for other programs than those just built).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    env, fs,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Time between the death of a process and its next start, as a supervisor would take.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// Longest stop of a process: beyond the leader's lease and the actors'.
const STOP_MAX_MS: u64 = 9000;
/// After the last fault the run has this long to advance (A1).
const HEAL_PATIENCE: Duration = Duration::from_secs(90);
/// Steps that count as an advance.
const HEALED_STEPS: u64 = 3;
/// Shares of the faults, in sum 100.
const TARGETS: [(&str, u64); 8] = [
    ("coordinator-0", 20),
    ("coordinator-1", 20),
    ("learner", 15),
    ("actor-0", 9),
    ("actor-1", 9),
    ("actor-2", 9),
    ("actor-3", 9),
    ("etcd", 9),
];

/// A program and the process that runs it.
struct Role {
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    /// When to start it again, or to let it go on.
    due: Option<Instant>,
    stopped: bool,
    restarts: u32,
}

impl Role {
    fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(&self.program)
            .args(&self.args)
            .env("BALLAST_LOG", "info,ballast_actor::session=debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{:?}: {error}", self.program)));
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("started");
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        // One that has just died is reported by `tend`.
        kill_process(pid, signal).ok();
    }

    /// Starts again what is dead, and lets go on what was stopped, when it is time.
    fn tend(&mut self, name: &str, now: Instant) {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
        if let Some(status) = ended {
            assert_ne!(status.code(), Some(78), "{name} gave up: {}", tail(&self.log));
            assert_ne!(status.code(), Some(101), "{name} panicked: {}", tail(&self.log));
            self.child = None;
            self.stopped = false;
            self.due = Some(now + RESTART_PAUSE);
        }
        if self.due.is_some_and(|due| now >= due) {
            self.due = None;
            if std::mem::take(&mut self.stopped) {
                self.signal(Signal::CONT);
            } else if self.child.is_none() {
                self.restarts += 1;
                self.start();
            }
        }
    }
}

/// Everything that runs, and a directory of its own.
struct Cluster {
    directory: PathBuf,
    _owned: Option<tempfile::TempDir>,
    roles: BTreeMap<String, Role>,
}

/// Numbers from a seed: splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

/// The folder of the four programs.
fn programs() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_ballast")).parent().expect("a folder");
    env::var_os("BALLAST_CHAOS_PROGRAMS").map_or_else(|| built.to_owned(), PathBuf::from)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

impl Cluster {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
        env::set_current_dir(&root).unwrap();
        let kept = env::var_os("BALLAST_CHAOS_KEEP").map(PathBuf::from);
        let owned = kept.is_none().then(|| tempfile::tempdir().unwrap());
        let directory = kept.unwrap_or_else(|| owned.as_ref().unwrap().path().to_owned());
        fs::create_dir_all(&directory).unwrap();
        let program = |name: &str| {
            let path = programs().join(name);
            assert!(path.is_file(), "{} is missing: run `cargo build`", path.display());
            path
        };
        let etcd = root.join(".tools/etcd/bin/etcd");
        assert!(etcd.is_file(), "{} is missing: run `cargo xtask setup`", etcd.display());

        let (client, peer) = (free_port(), free_port());
        let coordinators = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let store = format!("coordinator.store.endpoints=[\"127.0.0.1:{client}\"]");
        let common: Vec<String> = [
            "--config",
            "examples/market/quickstart.toml",
            "--set",
            "run.name=chaos",
            "--set",
            &format!("run.directory={}", directory.display()),
            "--set",
            "coordinator.store.kind=etcd",
            "--set",
            &store,
            "--set",
            "coordinator.store.lease_s=3",
            "--set",
            "coordinator.actor_lease_s=5",
            "--set",
            "schedule.cold_start_steps_max=6",
            "--set",
            "schedule.steps=1000000",
            "--set",
            "learner.checkpoint_every=5",
            "--set",
            "evaluation.tasks=16",
            "--set",
            "evaluation.check_tasks=8",
            "--set",
            "tasks.demonstrations=32",
            "--set",
            "rl.groups_per_batch=4",
            "--set",
            "rl.staleness_max=2",
            "--set",
            "actor.slots=16",
        ]
        .iter()
        .map(|arg| (*arg).to_owned())
        .collect();
        let mut cluster = Self { directory, _owned: owned, roles: BTreeMap::new() };
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let etcd_args = [
            "--data-dir".to_owned(),
            cluster.directory.join("etcd").display().to_string(),
            format!("--listen-client-urls={}", url(client)),
            format!("--advertise-client-urls={}", url(client)),
            format!("--listen-peer-urls={}", url(peer)),
            format!("--initial-advertise-peer-urls={}", url(peer)),
            format!("--initial-cluster=default={}", url(peer)),
        ];
        cluster.add("etcd", etcd, etcd_args.to_vec());
        let with = |extra: &[&str]| {
            let mut args = common.clone();
            args.extend(extra.iter().map(|arg| (*arg).to_owned()));
            args
        };
        for (index, address) in coordinators.iter().enumerate() {
            let listen = format!("coordinator.listen={address}");
            let name = format!("coordinator-{index}");
            cluster.add(&name, program("ballast-coordinator"), with(&["--set", &listen]));
        }
        let all = coordinators.join(",");
        cluster.add("learner", program("ballast-learner"), with(&["--coordinator", &all]));
        for index in 0..4 {
            let name = format!("actor-{index}");
            let args = with(&["--coordinator", &all, "--actor-id", &name]);
            cluster.add(&name, program("ballast-actor"), args);
        }
        cluster
    }

    fn add(&mut self, name: &str, program: PathBuf, args: Vec<String>) {
        let log = self.directory.join(format!("{name}.log"));
        let mut role =
            Role { program, args, log, child: None, due: None, stopped: false, restarts: 0 };
        role.start();
        self.roles.insert(name.to_owned(), role);
    }

    fn tend(&mut self) {
        let now = Instant::now();
        self.roles.iter_mut().for_each(|(name, role)| role.tend(name, now));
    }

    /// Kills a running process, or stops it for a while.
    fn fault(&mut self, name: &str, random: &mut Random) -> String {
        let role = self.roles.get_mut(name).expect("a role");
        if role.stopped || role.child.is_none() {
            return format!("{name} is down already");
        }
        if random.next(2) == 0 {
            role.signal(Signal::KILL);
            return format!("kill {name}");
        }
        let pause = Duration::from_millis(200 + random.next(STOP_MAX_MS));
        role.signal(Signal::STOP);
        role.stopped = true;
        role.due = Some(Instant::now() + pause);
        format!("stop {name} for {} ms", pause.as_millis())
    }

    /// Lets everything go on that is stopped.
    fn heal(&mut self) {
        for role in self.roles.values_mut().filter(|role| role.stopped) {
            role.due = Some(Instant::now());
        }
    }

    /// Last optimizer step in metrics.jsonl.
    fn step(&self) -> u64 {
        let text =
            fs::read_to_string(self.directory.join("chaos/metrics.jsonl")).unwrap_or_default();
        let step = |line: &str| serde_json::from_str::<Value>(line).ok()?["step"].as_u64();
        text.lines().rev().find_map(step).unwrap_or(0)
    }

    fn await_step(&mut self, step: u64) {
        let started = Instant::now();
        while self.step() < step {
            self.tend();
            assert!(
                started.elapsed() < HEAL_PATIENCE,
                "A1: no step {step} in time, only {}: {}",
                self.step(),
                self.roles.values().map(|role| tail(&role.log)).collect::<Vec<_>>().join("\n---\n")
            );
            sleep(Duration::from_millis(200));
        }
    }

    /// Ids that actors were told are durable.
    fn acknowledged(&self) -> PathBuf {
        let mut ids = String::new();
        for index in 0..4 {
            let log = fs::read_to_string(self.directory.join(format!("actor-{index}.log")));
            for line in log.unwrap().lines().filter(|line| line.ends_with(" is acknowledged")) {
                let id = line.split_whitespace().rev().nth(2).expect("eN is acknowledged");
                ids.push_str(id);
                ids.push('\n');
            }
        }
        let path = self.directory.join("acknowledged");
        fs::write(&path, ids).unwrap();
        path
    }

    fn check(&self) -> Output {
        Command::new(programs().join("ballast-coordinator"))
            .args(["journal", "check", "--json", "--acknowledged"])
            .arg(self.acknowledged())
            .arg(self.directory.join("chaos"))
            .output()
            .unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for role in self.roles.values_mut() {
            if let Some(child) = &mut role.child {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}

fn target(random: &mut Random) -> &'static str {
    let mut draw = random.next(100);
    for (name, share) in TARGETS {
        if draw < share {
            return name;
        }
        draw -= share;
    }
    unreachable!("the shares are 100 in sum")
}

#[test]
fn two_hundred_deaths_lose_nothing() {
    let seconds = setting("BALLAST_CHAOS_SECONDS", 100);
    let faults = setting("BALLAST_CHAOS_FAULTS", 24);
    let mut random = Random(setting("BALLAST_CHAOS_SEED", 0));
    let mut cluster = Cluster::start();
    cluster.await_step(2);
    let (started, before) = (Instant::now(), cluster.step());
    let pause = Duration::from_secs(seconds) / u32::try_from(faults).unwrap();
    for number in 1..=faults {
        let name = target(&mut random);
        let what = cluster.fault(name, &mut random);
        println!(
            "{:5} s  {number:3}  step {:5}  {what}",
            started.elapsed().as_secs(),
            cluster.step()
        );
        // Half to one and a half times the pause between two faults.
        let share = 0.5 + random.next(1000) as f64 / 1000.0;
        let until = Instant::now() + pause.mul_f64(share);
        while Instant::now() < until {
            cluster.tend();
            sleep(Duration::from_millis(50));
        }
    }
    cluster.heal();
    cluster.tend();
    let healed = cluster.step();
    cluster.await_step(healed + HEALED_STEPS);
    println!("{faults} faults: step {before} -> {}", cluster.step());
    for (name, role) in &cluster.roles {
        println!("{name}: {} restarts", role.restarts);
    }

    // Everything dies at once, the last time.
    cluster.roles.values().filter(|role| role.child.is_some()).for_each(|role| {
        role.signal(Signal::KILL);
    });
    let checked = cluster.check();
    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    println!("{report}");
    assert!(checked.status.success(), "{report}\n{}", String::from_utf8_lossy(&checked.stderr));
    let report: Value = serde_json::from_str(&report).unwrap();
    let number = |key: &str| report[key].as_u64().unwrap();
    assert_eq!(
        number("dispatched"),
        number("finished") + number("cancelled") + number("in_flight")
    );
    assert!(number("terms") >= 2, "the coordinator was replaced");
    assert!(number("step") >= healed + HEALED_STEPS);
}
