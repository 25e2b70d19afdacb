//! Finding the process that leads, among the addresses where it may be.
//!
//! Owns: which address is tried next, and when. Does not know: what is said once a connection stands.
//! Invariants: an address is tried once in a round, and every round but the first begins with a pause,
//! so nothing that a peer answers makes this process hurry; names are resolved at every try.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tonic::{Status, transport::Channel};

use crate::{
    backoff::Backoff,
    net::{self, ConnectError},
};

/// Metadata of an UNAVAILABLE answer: HOST:PORT of the process that leads, as far as the one that
/// answers knows.
pub const LEADER_METADATA: &str = "ballast-leader";

const RETRY_INITIAL: Duration = Duration::from_millis(200);
/// After a failover, this is what a process loses at most by having waited long.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Leaders that are tried in one round because another process named them: two that name each other
/// must not keep this one busy.
const NAMED_PER_ROUND_MAX: u32 = 3;
/// A waiting process says so in the first round and then every this many rounds.
const ROUNDS_PER_REPORT: u64 = 5;

/// Addresses to try, and in which order: the last that worked, then the configured ones; before them
/// what a standby names. Pure.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// At least one, each once.
    configured: Vec<String>,
    worked: Option<String>,
    /// Left to try in this round.
    round: VecDeque<String>,
    /// Taken in this round from what others named.
    named: u32,
}

/// One address to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// HOST:PORT.
    pub address: String,
    /// Whether everything was tried since the last time this was true.
    pub begins_round: bool,
}

impl Candidates {
    /// Reads `HOST:PORT[,HOST:PORT...]`.
    ///
    /// # Errors
    /// One of them is no address, or none that can be connected to.
    pub fn parse(list: &str) -> Result<Self, ConnectError> {
        let mut configured: Vec<String> = Vec::new();
        for address in list.split(',').map(str::trim) {
            net::check_connectable(address)?;
            if !configured.iter().any(|known| known == address) {
                configured.push(address.to_owned());
            }
        }
        Ok(Self { configured, worked: None, round: VecDeque::new(), named: 0 })
    }

    /// The address to try now.
    pub fn next_turn(&mut self) -> Turn {
        let begins_round = self.round.is_empty();
        if begins_round {
            self.named = 0;
            self.round.extend(self.worked.iter().cloned());
            let worked = self.worked.as_ref();
            let others = self.configured.iter().filter(|address| Some(*address) != worked);
            self.round.extend(others.cloned());
        }
        let address = self.round.pop_front().expect("there is at least one configured address");
        Turn { address, begins_round }
    }

    /// The leader was found at `address`; it is the first to try when it is lost.
    pub fn on_worked(&mut self, address: &str) {
        self.worked = Some(address.to_owned());
        self.round.clear();
    }

    /// The process at `by` says who leads: that is the next to try. Returns whether it is taken for
    /// true.
    pub fn on_named(&mut self, by: &str, leader: &str) -> bool {
        let follow = leader != by
            && self.named < NAMED_PER_ROUND_MAX
            && net::check_connectable(leader).is_ok();
        if follow {
            self.named += 1;
            self.round.retain(|address| address != leader);
            self.round.push_front(leader.to_owned());
        }
        follow
    }
}

/// The search for one process, from its first try to the end of this process.
#[derive(Debug)]
pub struct Search {
    /// For people: "the coordinator".
    what: &'static str,
    candidates: Candidates,
    backoff: Backoff,
    /// Where the last try went.
    address: String,
    /// Rounds begun since the leader was last found; `None` before the first.
    rounds: Option<u64>,
    /// Whether the process at `address` has welcomed this one.
    welcomed: bool,
}

impl Search {
    /// A search for `what` ("the coordinator") among `HOST:PORT[,HOST:PORT...]`.
    ///
    /// # Errors
    /// As [`Candidates::parse`].
    pub fn new(candidates: &str, what: &'static str) -> Result<Self, ConnectError> {
        Ok(Self {
            what,
            candidates: Candidates::parse(candidates)?,
            backoff: Backoff::new(RETRY_INITIAL, RETRY_MAX, jitter_seed()),
            address: String::new(),
            rounds: None,
            welcomed: false,
        })
    }

    /// Where the last try went.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connects to the next address that answers, for as long as it takes. Cancel-safe. What becomes
    /// of the connection is to be told: [`Self::welcomed`], [`Self::failed`].
    pub async fn connect(&mut self) -> Channel {
        loop {
            let turn = self.candidates.next_turn();
            self.address = turn.address;
            if turn.begins_round {
                self.begin_round().await;
            }
            let connected = match net::endpoint(&self.address) {
                Ok(endpoint) => endpoint.connect().await.map_err(|error| net::root_cause(&error)),
                Err(error) => Err(error.to_string()),
            };
            match connected {
                Ok(channel) => return channel,
                Err(cause) => self.report(&cause),
            }
        }
    }

    /// The process found last is the one that was searched for.
    pub fn welcomed(&mut self) {
        self.candidates.on_worked(&self.address);
        self.backoff.reset();
        self.welcomed = true;
        self.rounds = Some(0);
    }

    /// The process found last does not serve this one, or does so no longer.
    pub fn failed(&mut self, status: &Status) {
        let leader = status.metadata().get(LEADER_METADATA).and_then(|leader| leader.to_str().ok());
        let lost = std::mem::take(&mut self.welcomed);
        let (what, address, cause) = (self.what, &self.address, describe(status));
        if lost {
            tracing::warn!("lost {what} at {address}: {cause}");
        }
        match leader {
            Some(leader) if self.candidates.on_named(address, leader) => {
                tracing::info!("{address} names {leader} as {what}");
            }
            _ if lost => {}
            _ => self.report(cause),
        }
    }

    async fn begin_round(&mut self) {
        let Some(rounds) = self.rounds else {
            self.rounds = Some(0);
            return;
        };
        self.rounds = Some(rounds.saturating_add(1));
        tokio::time::sleep(self.backoff.next_delay()).await;
    }

    fn report(&self, cause: &str) {
        if self.rounds.is_some_and(|rounds| rounds.is_multiple_of(ROUNDS_PER_REPORT)) {
            tracing::warn!("waiting for {} at {}: {cause}", self.what, self.address);
        }
    }
}

/// Different in every process of a fleet: in containers they share their process ids.
fn jitter_seed() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since_epoch.subsec_nanos()) << 32 | u64::from(std::process::id())
}

/// What a status says, for people.
fn describe(status: &Status) -> &str {
    if status.message().is_empty() { status.code().description() } else { status.message() }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn turns(candidates: &mut Candidates, count: usize) -> Vec<(String, bool)> {
        let turn = |turn: Turn| (turn.address, turn.begins_round);
        (0..count).map(|_| turn(candidates.next_turn())).collect()
    }

    fn owned<const N: usize>(turns: [(&str, bool); N]) -> Vec<(String, bool)> {
        turns.map(|(address, begins_round)| (address.to_owned(), begins_round)).to_vec()
    }

    #[test]
    fn the_candidates_take_turns_in_their_order() {
        let mut candidates = Candidates::parse("a:1, b:2,a:1").expect("addresses");
        let expected = owned([("a:1", true), ("b:2", false), ("a:1", true), ("b:2", false)]);
        assert_eq!(turns(&mut candidates, 4), expected);
    }

    #[test]
    fn the_last_that_worked_is_tried_first() {
        let mut candidates = Candidates::parse("a:1,b:2,c:3").expect("addresses");
        assert_eq!(turns(&mut candidates, 2), owned([("a:1", true), ("b:2", false)]));
        candidates.on_worked("b:2");
        let expected = owned([("b:2", true), ("a:1", false), ("c:3", false), ("b:2", true)]);
        assert_eq!(turns(&mut candidates, 4), expected);
    }

    #[test]
    fn a_named_leader_is_next_and_no_new_round() {
        let mut candidates = Candidates::parse("a:1,b:2,c:3").expect("addresses");
        assert_eq!(turns(&mut candidates, 1), owned([("a:1", true)]));
        assert!(candidates.on_named("a:1", "c:3"));
        assert_eq!(turns(&mut candidates, 2), owned([("c:3", false), ("b:2", false)]));
        // One that nobody configured is remembered when it worked.
        assert!(candidates.on_named("b:2", "pod-7:9"));
        assert_eq!(turns(&mut candidates, 1), owned([("pod-7:9", false)]));
        candidates.on_worked("pod-7:9");
        assert_eq!(turns(&mut candidates, 2), owned([("pod-7:9", true), ("a:1", false)]));
    }

    #[test]
    fn standbys_that_name_each_other_do_not_hold_it_for_ever() {
        let mut candidates = Candidates::parse("a:1,b:2").expect("addresses");
        let mut rounds = 0;
        for _ in 0..100 {
            let turn = candidates.next_turn();
            rounds += u32::from(turn.begins_round);
            let other = if turn.address == "a:1" { "b:2" } else { "a:1" };
            candidates.on_named(&turn.address, other);
        }
        assert!(rounds >= 100 / (2 + NAMED_PER_ROUND_MAX), "{rounds}");
    }

    #[test]
    fn nonsense_is_not_followed() {
        let mut candidates = Candidates::parse("a:1").expect("an address");
        candidates.next_turn();
        for leader in ["", "nobody", "a:1", "b:0", "x y:3"] {
            assert!(!candidates.on_named("a:1", leader), "{leader}");
        }
    }

    #[test]
    fn a_list_with_a_fault_is_refused_by_its_name() {
        for (list, named) in [("", "``"), ("a:1,", "``"), ("a:1,b", "`b`"), ("a:1,b:0", "`b:0`")] {
            let error = Candidates::parse(list).expect_err(list).to_string();
            assert!(error.contains(named), "{list}: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_round_but_the_first_begins_with_a_pause() {
        let mut search = Search::new("a:1", "the coordinator").expect("an address");
        let started = Instant::now();
        search.begin_round().await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        for _ in 0..20 {
            search.begin_round().await;
        }
        assert!(started.elapsed() > 10 * RETRY_MAX, "{:?}", started.elapsed());
        // It lives again: the next pause is short.
        search.welcomed();
        let lost = Instant::now();
        search.begin_round().await;
        assert!(lost.elapsed() >= RETRY_INITIAL / 2 && lost.elapsed() <= RETRY_INITIAL * 2);
    }

    #[tokio::test]
    async fn a_named_leader_is_found_at_once() {
        let (_standby, standby) = net::bind("127.0.0.1:0").await.expect("a free port");
        let (_leader, leader) = net::bind("127.0.0.1:0").await.expect("a free port");
        let mut search = Search::new(&standby.to_string(), "the coordinator").expect("an address");
        let _channel = search.connect().await;
        assert_eq!(search.address(), standby.to_string());
        let mut status = Status::unavailable("a standby");
        let named = leader.to_string().parse().expect("ASCII");
        status.metadata_mut().insert(LEADER_METADATA, named);
        search.failed(&status);
        let _channel = search.connect().await;
        assert_eq!(search.address(), leader.to_string());
    }

    #[tokio::test]
    async fn a_late_server_is_found() {
        let (held, address) = net::bind("127.0.0.1:0").await.expect("a free port");
        drop(held);
        let target = address.to_string();
        let mut search = Search::new(&target, "the coordinator").expect("an address");
        let server = async {
            tokio::task::yield_now().await;
            let (listener, _) = net::bind(&target).await.expect("the same port");
            listener.accept().await.expect("a connection").0
        };
        // The client's handshake completes against the raw socket: HTTP/2 starts lazily.
        let (_channel, _connection) = tokio::join!(search.connect(), server);
        assert_eq!(search.address(), target);
    }
}
