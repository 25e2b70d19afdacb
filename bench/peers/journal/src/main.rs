//! What else keeps records on a disk, measured as `journal_bench` of the coordinator measures ours.
//!
//! Prints the same keys, and every record is synced before it counts here too. One writer commits
//! `--batch` records at a time; redis has clients instead, each with a connection of its own, that
//! wait for an answer before they bring the next record.

mod redis;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use redb::{Durability, ReadableDatabase as _, TableDefinition};
use rusqlite::Connection;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    peer: Peer,
    /// Where to write; the disk that is measured.
    #[arg(long)]
    directory: PathBuf,
    /// Bytes of a record.
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// Records in all.
    #[arg(long, default_value_t = 200_000)]
    records: usize,
    /// Records of one commit.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Clients of redis.
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// Folder with redis-server and redis-benchmark; otherwise they are looked for on the PATH.
    #[arg(long)]
    redis: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Peer {
    /// A file: append, fdatasync.
    Raw,
    Fjall,
    Redb,
    /// Write-ahead log, synchronous = FULL.
    Sqlite,
    /// Streams, appendfsync = always.
    Redis,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let directory = options.directory.join(format!("peer-{}", std::process::id()));
    fs::create_dir_all(&directory).with_context(|| format!("{}", directory.display()))?;
    let result = measure(&options, &directory);
    fs::remove_dir_all(&directory)?;
    println!("{}", result?);
    Ok(())
}

fn measure(options: &Options, directory: &Path) -> anyhow::Result<Value> {
    match options.peer {
        Peer::Raw => raw(options, directory),
        Peer::Fjall => fjall(options, directory),
        Peer::Redb => redb(options, directory),
        Peer::Sqlite => sqlite(options, directory),
        Peer::Redis => redis::measure(options, directory),
    }
}

/// Commits all batches and says how long that took.
fn batches(
    options: &Options,
    mut commit: impl FnMut(std::ops::Range<u64>) -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let (wall, processor) = (Instant::now(), processor_seconds());
    let mut latencies = Vec::new();
    for batch in 0..(options.records / options.batch) as u64 {
        let start = Instant::now();
        let size = options.batch as u64;
        commit(batch * size..(batch + 1) * size)?;
        latencies.push(start.elapsed());
    }
    let records = (latencies.len() * options.batch) as f64;
    let wall = wall.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let quantile = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index).map_or(0.0, Duration::as_secs_f64) * 1e3
    };
    Ok(json!({
        "records_per_s": records / wall,
        "records_per_cpu_s": records / (processor_seconds() - processor),
        "megabytes_per_s": records * options.bytes as f64 / 1e6 / wall,
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
    }))
}

/// Random bytes, so that nothing can be compressed.
fn payload(options: &Options) -> Vec<u8> {
    let mut payload = vec![0; options.bytes];
    StdRng::seed_from_u64(0).fill_bytes(&mut payload);
    payload
}

fn raw(options: &Options, directory: &Path) -> anyhow::Result<Value> {
    let mut file = File::options().append(true).create(true).open(directory.join("raw"))?;
    let batch = payload(options).repeat(options.batch);
    batches(options, |_| {
        file.write_all(&batch)?;
        Ok(file.sync_data()?)
    })
}

fn fjall(options: &Options, directory: &Path) -> anyhow::Result<Value> {
    let database = Database::builder(directory).open()?;
    let records = database.keyspace("records", KeyspaceCreateOptions::default)?;
    let payload = payload(options);
    batches(options, |keys| {
        let mut batch = database.batch().durability(Some(PersistMode::SyncData));
        for key in keys {
            batch.insert(&records, key.to_be_bytes(), payload.as_slice());
        }
        Ok(batch.commit()?)
    })
}

fn redb(options: &Options, directory: &Path) -> anyhow::Result<Value> {
    const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
    let database = redb::Database::create(directory.join("redb"))?;
    let payload = payload(options);
    batches(options, |keys| {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for key in keys {
                records.insert(key, payload.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    })
}

fn sqlite(options: &Options, directory: &Path) -> anyhow::Result<Value> {
    let mut database = Connection::open(directory.join("sqlite"))?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    database.execute("CREATE TABLE records (key INTEGER PRIMARY KEY, value BLOB)", ())?;
    let payload = payload(options);
    batches(options, |keys| {
        let transaction = database.transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO records VALUES (?, ?)")?;
            for key in keys {
                insert.execute((key as i64, &payload))?;
            }
        }
        Ok(transaction.commit()?)
    })
}

fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
