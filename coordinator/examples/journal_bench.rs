//! How fast the journal is on this machine's disk. `cargo xtask bench coordinator` runs it beside its
//! peers (`bench/peers/journal`), which print the same keys:
//!
//! - `clients`: each waits until its record is durable before it brings the next one;
//! - `batches`: one writer commits so many records at once;
//! - `stream`: as many records on their way as the intake takes;
//! - `recovery`: a start with an empty cache: heads decoded, payloads verified.
//!
//! Every record is durable before it counts. Files are deleted afterwards; objects are not.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fs::{self, File},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use ballast_coordinator::journal::{
    self, Directory, Intake, Journal, Objects, Opened, Outcome, Position, Record, Request, Storage,
    Writer,
};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use prost::Message as _;
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rustix::{
    fs::Advice,
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};

#[derive(Parser)]
struct Options {
    /// What to measure.
    case: Case,
    /// Where to write: a folder on the disk that is measured, or the URL of an object store.
    #[arg(long)]
    place: String,
    /// Bytes of a record's payload.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// Records in all.
    #[arg(long, default_value_t = 200_000)]
    records: usize,
    /// Clients, in `clients`.
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// Records of one commit, in `batches`.
    #[arg(long, default_value_t = 64)]
    batch: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Case {
    Clients,
    Batches,
    Stream,
    Recovery,
}

/// Stands for what the coordinator writes of an event.
#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(uint64, tag = "1")]
    millis: u64,
    #[prost(uint64, tag = "2")]
    episode: u64,
    #[prost(string, tag = "3")]
    task: String,
    #[prost(uint64, repeated, tag = "4")]
    effects: Vec<u64>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let place = Place::new(&options.place)?;
    let result = measure(&options, &place);
    place.remove()?;
    println!("{}", result?);
    Ok(())
}

fn measure(options: &Options, place: &Place) -> anyhow::Result<Value> {
    let journal = place.open()?.journal;
    match options.case {
        Case::Clients => alone(clients(options, journal, options.clients)),
        Case::Stream => alone(clients(options, journal, journal::INTAKE_RECORDS_MAX)),
        Case::Batches => batches(options, journal),
        Case::Recovery => recovery(options, journal, place),
    }
}

/// Where the journal is, and nothing else.
enum Place {
    Folder(PathBuf),
    Url(String),
}

impl Place {
    fn new(place: &str) -> anyhow::Result<Self> {
        let name = format!("journal-{}", std::process::id());
        if place.contains("://") {
            return Ok(Self::Url(format!("{place}/{name}")));
        }
        let folder = Path::new(place).join(name);
        fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        Ok(Self::Folder(folder))
    }

    fn open(&self) -> anyhow::Result<Opened> {
        let storage: Arc<dyn Storage> = match self {
            Self::Folder(folder) => Arc::new(Directory::create(folder)?),
            Self::Url(url) => Arc::new(Objects::open(url)?),
        };
        Ok(Journal::open(storage, None)?)
    }

    /// Takes the files out of the page cache.
    fn forget_pages(&self) -> anyhow::Result<()> {
        let Self::Folder(folder) = self else { return Ok(()) };
        for entry in fs::read_dir(folder.join("segments"))? {
            let file = File::open(entry?.path())?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    fn remove(&self) -> anyhow::Result<()> {
        match self {
            Self::Folder(folder) => Ok(fs::remove_dir_all(folder)?),
            Self::Url(_) => Ok(()),
        }
    }
}

/// Runs the clients on this thread; the journal has its own.
fn alone(clients: impl Future<Output = anyhow::Result<Value>>) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, clients)
}

/// Who waits for a record, in the order of the records.
type Waiting = Rc<RefCell<VecDeque<oneshot::Sender<()>>>>;

async fn clients(options: &Options, journal: Journal, count: usize) -> anyhow::Result<Value> {
    let Writer { requests, mut outcomes, thread } = journal::spawn(journal)?;
    let (waiting, intake, left) =
        (Waiting::default(), Intake::default(), Rc::new(RefCell::new(options.records)));
    let meter = Meter::start();
    let mut running = Vec::new();
    for number in 0..count {
        let client = Client {
            records: Records::new(options.bytes, number as u64),
            requests: requests.clone(),
            waiting: Rc::clone(&waiting),
            intake: intake.clone(),
            left: Rc::clone(&left),
        };
        running.push(tokio::task::spawn_local(client.run()));
    }
    drop(requests);
    while let Some(outcome) = outcomes.recv().await {
        let Outcome::Durable { locations, .. } = outcome else { bail!("{outcome:?}") };
        for client in waiting.borrow_mut().drain(..locations.len()) {
            // A client never stops waiting.
            client.send(()).ok();
        }
    }
    let mut latencies = Vec::new();
    for client in running {
        latencies.extend(client.await??);
    }
    let answer = meter.answer(options.records, options.bytes, latencies);
    if thread.join().is_err() {
        bail!("the journal's thread panicked");
    }
    Ok(answer)
}

struct Client {
    records: Records,
    requests: mpsc::Sender<Request>,
    waiting: Waiting,
    intake: Intake,
    /// Records that nobody has brought yet.
    left: Rc<RefCell<usize>>,
}

impl Client {
    async fn run(mut self) -> anyhow::Result<Vec<Duration>> {
        let mut latencies = Vec::new();
        loop {
            match &mut *self.left.borrow_mut() {
                0 => return Ok(latencies),
                left => *left -= 1,
            }
            let record = self.records.next_record();
            let start = Instant::now();
            let permit = self.intake.reserve(record.payload.len()).await;
            let (done, durable) = oneshot::channel();
            self.waiting.borrow_mut().push_back(done);
            self.requests.try_send(Request::Append { record, permit })?;
            durable.await?;
            latencies.push(start.elapsed());
        }
    }
}

fn batches(options: &Options, mut journal: Journal) -> anyhow::Result<Value> {
    let mut records = Records::new(options.bytes, 0);
    let meter = Meter::start();
    let mut latencies = Vec::new();
    for _ in 0..options.records / options.batch {
        let batch: Vec<_> = (0..options.batch).map(|_| records.next_record()).collect();
        let start = Instant::now();
        journal.append(&batch)?;
        latencies.push(start.elapsed());
    }
    let answer = meter.answer(latencies.len() * options.batch, options.bytes, latencies);
    journal.close()?;
    Ok(answer)
}

fn recovery(options: &Options, mut journal: Journal, place: &Place) -> anyhow::Result<Value> {
    let mut records = Records::new(options.bytes, 0);
    let batch = ((4 << 20) / (options.bytes + 1)).max(1);
    let mut left = options.records;
    while left > 0 {
        let batch: Vec<_> = (0..batch.min(left)).map(|_| records.next_record()).collect();
        left -= batch.len();
        journal.append(&batch)?;
    }
    // As after kill -9: nothing is closed in order.
    drop(journal);
    place.forget_pages()?;
    let meter = Meter::start();
    let opened = place.open()?;
    let (mut effects, mut bytes) = (0, 0);
    for stored in opened.records {
        let stored = stored?;
        bytes += stored.head.len() + stored.payload.payload_bytes as usize;
        effects += Head::decode(stored.head)?.effects.len();
    }
    anyhow::ensure!(opened.journal.next_position() == Position(options.records as u64));
    anyhow::ensure!(effects == 2 * options.records);
    let (wall, processor) = meter.read();
    Ok(json!({
        "seconds": wall,
        "cpu_seconds": processor,
        "bytes": bytes,
        "records": options.records,
        "megabytes_per_s": bytes as f64 / 1e6 / wall,
    }))
}

/// Records of equal size. The bytes are random, so that nothing can be compressed.
struct Records {
    payload: Bytes,
    count: u64,
}

impl Records {
    fn new(bytes: usize, seed: u64) -> Self {
        let mut payload = vec![0; bytes];
        ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut payload);
        Self { payload: payload.into(), count: 0 }
    }

    fn next_record(&mut self) -> Record {
        self.count += 1;
        let task = format!("task-{}", self.count % 1000);
        let (millis, episode) = (self.count * 7, self.count);
        let head = Head { millis, episode, task, effects: vec![self.count, self.count + 1] };
        Record { head: head.encode_to_vec().into(), payload: self.payload.clone() }
    }
}

struct Meter {
    wall: Instant,
    processor: f64,
}

impl Meter {
    fn start() -> Self {
        Self { wall: Instant::now(), processor: processor_seconds() }
    }

    /// Seconds since the start, on the wall and on the processor.
    fn read(&self) -> (f64, f64) {
        (self.wall.elapsed().as_secs_f64(), processor_seconds() - self.processor)
    }

    fn answer(&self, records: usize, bytes: usize, mut latencies: Vec<Duration>) -> Value {
        let (wall, processor) = self.read();
        latencies.sort_unstable();
        let quantile = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        json!({
            "records_per_s": records as f64 / wall,
            "records_per_cpu_s": records as f64 / processor,
            "megabytes_per_s": (records * bytes) as f64 / 1e6 / wall,
            "p50_ms": quantile(0.5),
            "p99_ms": quantile(0.99),
        })
    }
}

fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
