//! What a real etcd and real leaders go through: killed, stopped, started again.
//!
//! Each coordinator is an async runtime of its own, so that ending it is what `kill -9` is to etcd:
//! the connection closes, and nobody says goodbye.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod etcd_support;

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use ballast_coordinator::store::{
    Access, Candidate, Change, Cluster, Etcd, Member, MemberChange, MemberWatch, Put, Store,
    StoreError, Term, View, Watch,
};
use ballast_proto::Generation;
use ballast_runtime::config;
use etcd_support::Server;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{runtime::Runtime, time::timeout};

const LEASE_S: u64 = 3;
const TTL: Duration = Duration::from_secs(LEASE_S);
/// The promise: a leader that is gone is replaced within its lease and this.
const FAILOVER_EXTRA: Duration = Duration::from_secs(2);
/// Anything that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a leader acts, and notes that it does.
const ACT_EVERY: Duration = Duration::from_millis(5);

/// What one leadership did: everything between its first act and its last.
#[derive(Clone, Debug)]
struct Reign {
    who: String,
    term: Term,
    first_act: Instant,
    last_act: Instant,
    /// When it learned that it is over.
    lost: Option<Instant>,
}

/// All leaderships of a test, as those who led noted them.
#[derive(Clone, Default)]
struct Annals(Arc<Mutex<Vec<Reign>>>);

impl Annals {
    fn reigns(&self) -> Vec<Reign> {
        self.0.lock().unwrap().clone()
    }

    fn begin(&self, who: &str, term: Term, at: Instant) {
        let (who, first_act) = (who.to_owned(), at);
        let reign = Reign { who, term, first_act, last_act: at, lost: None };
        self.0.lock().unwrap().push(reign);
    }

    fn note(&self, term: Term, note: impl FnOnce(&mut Reign)) {
        note(self.0.lock().unwrap().iter_mut().find(|reign| reign.term == term).unwrap());
    }

    /// Waits for a leadership that `wanted` accepts.
    fn wait(&self, wanted: impl Fn(&Reign) -> bool) -> Reign {
        let started = Instant::now();
        loop {
            if let Some(reign) = self.reigns().into_iter().find(|reign| wanted(reign)) {
                return reign;
            }
            assert!(started.elapsed() < PATIENCE, "nobody of that kind: {:#?}", self.reigns());
            thread::sleep(ACT_EVERY);
        }
    }

    /// L1: no two act in the same interval, and later ones have larger terms.
    fn check(&self) -> Vec<Reign> {
        let mut reigns = self.reigns();
        reigns.sort_by_key(|reign| reign.first_act);
        for pair in reigns.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            assert!(a.last_act < b.first_act && a.term < b.term, "{a:?} and {b:?}");
        }
        reigns
    }
}

/// A coordinator that leads whenever it can.
struct Coordinator {
    name: String,
    runtime: Option<Runtime>,
}

impl Coordinator {
    fn start(server: &Server, annals: &Annals, name: &str) -> Self {
        Self::start_on(server.config(LEASE_S), annals, name)
    }

    fn start_on(config: config::Store, annals: &Annals, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (annals, who) = (annals.clone(), name.to_owned());
        runtime.spawn(async move {
            let cluster = loop {
                if let Ok(cluster) = Cluster::open(&config, "run", Term(0)).await {
                    break cluster;
                }
            };
            let candidate = Candidate { id: who.clone(), address: format!("{who}:1") };
            loop {
                let leadership = cluster.campaign(&candidate).await.unwrap();
                let term = leadership.term();
                annals.begin(&who, term, Instant::now());
                let lost = leadership.lost();
                let watcher = tokio::spawn({
                    let annals = annals.clone();
                    async move {
                        lost.cancelled().await;
                        annals.note(term, |reign| reign.lost = Some(Instant::now()));
                    }
                });
                loop {
                    // An act happens not later than the clock was looked at before the check.
                    let now = Instant::now();
                    if !leadership.is_held() {
                        break;
                    }
                    annals.note(term, |reign| reign.last_act = now);
                    tokio::time::sleep(ACT_EVERY).await;
                }
                watcher.await.unwrap();
            }
        });
        Self { name: name.to_owned(), runtime: Some(runtime) }
    }

    /// Ends it without a word to anybody.
    fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// `count` coordinators, one of which leads.
fn several(server: &Server, annals: &Annals, count: usize) -> Vec<Coordinator> {
    let start = |index| Coordinator::start(server, annals, &format!("c{index}"));
    let coordinators = (0..count).map(start).collect();
    annals.wait(|_| true);
    coordinators
}

fn newest(annals: &Annals) -> Reign {
    annals.reigns().into_iter().max_by_key(|reign| reign.term).unwrap()
}

/// Kills the one that leads; returns it, and what is left of the others.
fn kill_leader(coordinators: &mut Vec<Coordinator>, annals: &Annals) -> (String, Instant) {
    let leader = newest(annals).who;
    let index = coordinators.iter().position(|one| one.name == leader).unwrap();
    coordinators.swap_remove(index).kill();
    (leader, Instant::now())
}

/// `BALLAST_FAILOVERS=20 cargo test -p ballast-coordinator --test etcd_faults killed -- --nocapture`
/// measures.
#[test]
fn a_killed_leader_is_replaced_within_its_lease_and_two_seconds() {
    let rounds = env::var("BALLAST_FAILOVERS").map_or(2, |rounds| rounds.parse().unwrap());
    let server = Server::start();
    let annals = Annals::default();
    let mut coordinators = several(&server, &annals, 2);
    let mut rng = StdRng::seed_from_u64(1);
    let mut times = Vec::new();
    for round in 0..rounds {
        // Anywhere between two keep-alives.
        thread::sleep(Duration::from_millis(rng.random_range(300..1300)));
        let (killed, at) = kill_leader(&mut coordinators, &annals);
        let next = annals.wait(|reign| reign.first_act > at);
        let took = next.first_act - at;
        println!("round {round}: {killed} killed, {} leads after {took:.3?}", next.who);
        assert!(took <= TTL + FAILOVER_EXTRA, "{took:?}");
        times.push(took);
        coordinators.push(Coordinator::start(&server, &annals, &killed));
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    println!(
        "failover with a lease of {LEASE_S} s, {rounds} rounds: min {:.2?}, median {:.2?}, p90 {:.2?}, max {:.2?}",
        at(0.0),
        at(0.5),
        at(0.9),
        at(1.0),
    );
    annals.check();
}

#[test]
fn while_etcd_is_stopped_the_leader_steps_down_before_another_can_lead() {
    let server = Server::start();
    let annals = Annals::default();
    let _coordinators = several(&server, &annals, 3);
    let first = newest(&annals);
    // Until a keep-alive was answered at least once.
    thread::sleep(TTL / 2);
    server.freeze();
    let frozen = Instant::now();
    let stepped_down = annals.wait(|reign| reign.term == first.term && reign.lost.is_some());
    let stepped_down = stepped_down.lost.unwrap();
    assert!(stepped_down < frozen + TTL, "{:?} after the stop", stepped_down - frozen);
    // Longer than the lease.
    thread::sleep((frozen + 2 * TTL).saturating_duration_since(Instant::now()));
    assert_eq!(newest(&annals).term, first.term);
    server.thaw();
    let thawed = Instant::now();
    let next = annals.wait(|reign| reign.term > first.term);
    println!(
        "etcd stopped at 0; {} stepped down at {:.3?}; etcd went on at {:.3?}; {} led at {:.3?}",
        first.who,
        stepped_down - frozen,
        thawed - frozen,
        next.who,
        next.first_act - frozen,
    );
    assert!(stepped_down < next.first_act);
    assert!(next.first_act - thawed <= TTL + FAILOVER_EXTRA, "{:?}", next.first_act - thawed);
    annals.check();
}

/// Stopped for less than a lease, nothing needs to happen, and nothing may go wrong.
#[test]
fn a_short_stop_of_etcd_goes_by() {
    let server = Server::start();
    let annals = Annals::default();
    let _coordinators = several(&server, &annals, 2);
    for _ in 0..3 {
        server.freeze();
        thread::sleep(TTL / 3);
        server.thaw();
        thread::sleep(TTL / 2);
    }
    let reigns = annals.check();
    let newest = reigns.last().unwrap();
    assert!(newest.lost.is_none(), "{reigns:#?}");
}

#[test]
fn after_a_crash_of_etcd_somebody_leads_again() {
    let mut server = Server::start();
    let annals = Annals::default();
    let _coordinators = several(&server, &annals, 2);
    for pause in [Duration::ZERO, 2 * TTL] {
        let before = newest(&annals);
        server.kill();
        thread::sleep(pause);
        server.restart();
        let restarted = Instant::now();
        // The same one, whose lease was kept on disk, or the next.
        let leads = |reign: &Reign| {
            reign.lost.is_none() && reign.last_act > restarted + Duration::from_millis(200)
        };
        let after = annals.wait(leads);
        assert!(after.term >= before.term);
        println!("{:?} down: {} then {} lead", pause, before.term, after.term);
    }
    annals.check();
}

/// Longer with `BALLAST_FAULT_SECONDS`.
#[test]
fn two_never_lead_at_once_whatever_is_killed() {
    let seconds = env::var("BALLAST_FAULT_SECONDS").map_or(20, |text| text.parse().unwrap());
    let seed = env::var("BALLAST_FAULT_SEED").map_or(1, |text| text.parse().unwrap());
    println!("BALLAST_FAULT_SEED={seed}");
    let mut server = Server::start();
    let annals = Annals::default();
    let mut coordinators = several(&server, &annals, 3);
    let mut rng = StdRng::seed_from_u64(seed);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut faults = [0; 4];
    while Instant::now() < until {
        let fault = rng.random_range(0..4);
        faults[fault] += 1;
        let pause = Duration::from_millis(rng.random_range(0..6000));
        match fault {
            0 => {
                let (killed, _) = kill_leader(&mut coordinators, &annals);
                coordinators.push(Coordinator::start(&server, &annals, &killed));
            }
            1 => {
                let one = coordinators.swap_remove(rng.random_range(0..coordinators.len()));
                let name = one.name.clone();
                one.kill();
                coordinators.push(Coordinator::start(&server, &annals, &name));
            }
            2 => {
                server.freeze();
                thread::sleep(pause);
                server.thaw();
            }
            _ => {
                server.kill();
                thread::sleep(pause / 2);
                server.restart();
            }
        }
        thread::sleep(Duration::from_millis(rng.random_range(0..3000)));
    }
    let healed = Instant::now();
    annals.wait(|reign| reign.last_act > healed);
    let reigns = annals.check();
    println!(
        "{} leaderships; leaders killed {}, any killed {}, etcd stopped {}, etcd killed {}",
        reigns.len(),
        faults[0],
        faults[1],
        faults[2],
        faults[3],
    );
    assert!(reigns.len() > 1, "nothing happened");
}

/// With three members of etcd, any one of them may go.
#[test]
fn somebody_leads_while_one_of_three_members_is_gone() {
    let mut servers = Server::start_cluster::<3>();
    let endpoints = servers.iter().map(Server::address).collect();
    let config = config::Store { endpoints, ..servers[0].config(5) };
    let annals = Annals::default();
    let start = |name: &str| Coordinator::start_on(config.clone(), &annals, name);
    let _coordinators = [start("c0"), start("c1")];
    annals.wait(|_| true);
    for (index, is_killed) in [(0, false), (1, false), (2, false), (0, true)] {
        let server = &mut servers[index];
        if is_killed {
            server.kill()
        } else {
            server.freeze()
        }
        // Longer than the lease.
        thread::sleep(Duration::from_secs(6));
        let now = Instant::now();
        annals.wait(|reign| reign.last_act > now);
        if is_killed {
            server.restart()
        } else {
            server.thaw()
        }
        // It catches up.
        thread::sleep(Duration::from_secs(2));
    }
    for reign in annals.check() {
        println!("{} in {}, lost: {}", reign.who, reign.term, reign.lost.is_some());
    }
}

/// Tells the process below which etcd it is to lead on; without it, it is no test of anything.
const CHILD_ENDPOINT: &str = "BALLAST_TEST_CHILD_ENDPOINT";

/// Leads, and goes on writing as the leader until that is refused, without ever asking whether it
/// still leads. Tells of each attempt whether it held the leadership when the attempt began.
#[tokio::test]
async fn child_that_leads_in_a_process_of_its_own() {
    let Ok(endpoint) = env::var(CHILD_ENDPOINT) else { return };
    let store = Etcd::new(&[endpoint], &Access::default()).unwrap();
    let cluster = Cluster::over(Arc::new(store), "run", TTL).unwrap();
    let candidate = Candidate { id: "child".into(), address: "child:1".into() };
    let leadership = cluster.campaign(&candidate).await.unwrap();
    println!("\nleads {}", leadership.term().0);
    loop {
        let held = leadership.is_held();
        let based_on = cluster.document("live").await.unwrap().revision;
        match cluster.write_document(&leadership, "live", b"child".to_vec(), based_on).await {
            Ok(revision) => println!("wrote {held} {}", revision.0),
            Err(StoreError::Fenced { .. }) => return println!("fenced {held} 0"),
            Err(error) => println!("failed {held} 0 {error}"),
        }
        tokio::time::sleep(ACT_EVERY).await;
    }
}

/// The next line of the child that is one of ours: what it did, whether it led, and a revision.
fn told(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> (String, bool, u64) {
    loop {
        let line = lines.next().expect("the child goes on").unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["leads", term] => return ("leads".into(), true, term.parse().unwrap()),
            [what @ ("wrote" | "fenced" | "failed"), held, revision, ..] => {
                return (what.into(), held == "true", revision.parse().unwrap());
            }
            _ => {}
        }
    }
}

#[test]
fn a_leader_that_was_stopped_beyond_its_lease_writes_nothing_when_it_goes_on() {
    let server = Server::start();
    let this = "child_that_leads_in_a_process_of_its_own";
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", this, "--nocapture"])
        .env(CHILD_ENDPOINT, server.address())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (_, _, first_term) = told(&mut lines);
    for _ in 0..10 {
        assert_eq!(told(&mut lines).0, "wrote");
    }
    etcd_support::freeze(&child);
    let annals = Annals::default();
    let _standby = Coordinator::start(&server, &annals, "standby");
    let next = annals.wait(|_| true);
    assert!(next.term > Term(first_term));
    etcd_support::thaw(&child);
    // What was on its way when the child was stopped was done before the next term began.
    let mut went_on = false;
    loop {
        let (what, held, revision) = told(&mut lines);
        assert!(what != "wrote" || revision < next.term.0, "wrote {revision} in {}", next.term);
        // Each attempt that began afterwards knew better.
        assert!(!(went_on && held), "{what}: it thought it led");
        if what == "fenced" {
            break;
        }
        went_on |= what == "failed";
    }
    assert!(child.wait().unwrap().success());
}

/// Through an outage longer than its lease a member stays what it is; one that dies is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_registered_again_after_an_outage_and_gone_after_its_death() {
    let mut server = Server::start();
    let member = |id: &str| Member {
        role: "learner".into(),
        id: id.into(),
        generation: Generation(1),
        address: format!("{id}:1"),
    };
    let (doomed, config) = (Runtime::new().unwrap(), server.config(LEASE_S));
    let cluster = Cluster::open(&config, "run", Term(0)).await.unwrap();
    let mut watch = cluster.watch_members();
    let stays = cluster.register(member("stays")).await.unwrap();
    let dies = doomed.spawn(async move {
        let cluster = Cluster::open(&config, "run", Term(0)).await.unwrap();
        let _registration = cluster.register(member("dies")).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut there = BTreeSet::new();
    let both = BTreeSet::from(["dies".to_owned(), "stays".to_owned()]);
    timeout(PATIENCE, until(&mut watch, &mut there, &both)).await.unwrap();
    server.freeze();
    tokio::time::sleep(2 * TTL).await;
    server.thaw();
    server.kill();
    tokio::time::sleep(2 * TTL).await;
    dies.abort();
    doomed.shutdown_background();
    // etcd gives every lease its full time after a restart.
    server.restart();
    timeout(PATIENCE, until(&mut watch, &mut there, &BTreeSet::from(["stays".into()])))
        .await
        .unwrap();
    assert!(!stays.lost().is_cancelled());
    // It is registered, or is about to be.
    while cluster.members().await.unwrap().len() != 1 {
        tokio::time::sleep(ACT_EVERY).await;
    }
}

/// Follows the members until those are there.
async fn until(watch: &mut MemberWatch, there: &mut BTreeSet<String>, wanted: &BTreeSet<String>) {
    while there != wanted {
        for change in watch.next().await.unwrap().unwrap() {
            match change {
                MemberChange::Registered(member) => there.insert(member.id),
                MemberChange::Left { id, .. } => there.remove(&id),
            };
        }
    }
}

/// What a follower of a watch has.
async fn follow(watch: &mut Watch, view: &mut Vec<String>, until: &str) {
    loop {
        let news = watch.next().await.unwrap().unwrap();
        for Change { key, entry, .. } in news.changes {
            view.retain(|known| *known != key);
            if entry.is_some() {
                view.push(key);
            }
        }
        if view.iter().any(|key| key == until) {
            return;
        }
    }
}

/// While the watcher was cut off, keys came and went, and etcd forgot how.
#[tokio::test]
async fn a_watcher_hears_of_every_deletion_after_a_crash_and_a_compaction() {
    let mut server = Server::start();
    let etcd = |server: &Server| Etcd::new(&[server.address()], &Access::default()).unwrap();
    let store = etcd(&server);
    let put = |key: String| Put::new(key, "x").unwrap();
    for index in 0..20 {
        store.put(put(format!("/w/{index}")), &[]).await.unwrap();
    }
    let watched: Arc<dyn Store> = Arc::new(etcd(&server));
    let mut watch = Watch::start(watched, "/w/".into(), PATIENCE, 1);
    let mut view = Vec::new();
    timeout(PATIENCE, follow(&mut watch, &mut view, "/w/19")).await.unwrap();
    assert_eq!(view.len(), 20);
    server.kill();
    let port = server.restart_elsewhere();
    let writer = etcd(&server);
    let lease = writer.grant(TTL).await.unwrap().lease;
    for index in (0..20).step_by(2) {
        server.ctl(&["del", &format!("/w/{index}")]);
    }
    writer.put(put("/w/short".into()).under(lease), &[]).await.unwrap();
    writer.revoke(lease).await.unwrap();
    writer.put(put("/w/last".into()), &[]).await.unwrap();
    server.compact();
    server.kill();
    server.restart_at(port);
    timeout(PATIENCE, follow(&mut watch, &mut view, "/w/last")).await.unwrap();
    let mut expected = View::default();
    expected.resync(store.read("/w/").await.unwrap());
    view.sort();
    assert_eq!(view, expected.entries().keys().cloned().collect::<Vec<_>>());
    assert_eq!(view.len(), 11);
}
