//! Tests that hold for every storage, and what they share.

mod disk;
mod faults;
mod model;
mod objects;
mod races;
mod suite;
mod torn;

use std::{path::Path, sync::Arc};

use object_store::{local::LocalFileSystem, memory::InMemory};
use tempfile::TempDir;

use self::disk::Disk;
use super::*;

/// Small, so that a few records fill a segment.
const SEGMENT_BYTES_SMALL: u64 = 2048;

/// A storage with nothing in it.
struct Place {
    name: &'static str,
    storage: Arc<dyn Storage>,
    _directory: Option<TempDir>,
}

/// In a file system in memory, if there is one: these tests sync all the time, and break what is
/// on the disk themselves.
fn temporary() -> TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(parent).expect("a temporary directory")
}

fn in_directory() -> Place {
    let directory = temporary();
    let storage = Arc::new(small_directory(directory.path()));
    Place { name: "directory", storage, _directory: Some(directory) }
}

fn small_directory(path: &Path) -> Directory {
    Directory::create(path).expect("usable").with_segment_bytes(SEGMENT_BYTES_SMALL)
}

fn in_memory() -> Place {
    let store = Arc::new(InMemory::new());
    let storage = Arc::new(Objects::new(store, "a/run".into()).expect("usable"));
    Place { name: "memory", storage, _directory: None }
}

fn in_files() -> Place {
    let directory = temporary();
    let store = LocalFileSystem::new_with_prefix(directory.path()).expect("usable");
    let storage = Arc::new(Objects::new(Arc::new(store), "run".into()).expect("usable"));
    Place { name: "files", storage, _directory: Some(directory) }
}

fn on_disk() -> Place {
    Place { name: "simulated disk", storage: Arc::new(Disk::default()), _directory: None }
}

/// One of each kind.
fn places() -> [Place; 4] {
    [in_directory(), in_memory(), in_files(), on_disk()]
}

impl Place {
    fn open(&self) -> Opened {
        Journal::open(Arc::clone(&self.storage), None)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn reader(&self) -> Reader {
        Reader::open(Arc::clone(&self.storage))
    }

    /// All records, with their payloads.
    fn records(&self) -> Vec<Record> {
        self.records_from(0)
    }

    fn records_from(&self, position: u64) -> Vec<Record> {
        let mut records = self.reader().records_from(Position(position)).expect(self.name);
        let mut read: Vec<Record> = Vec::new();
        while let Some(next) = records.next_with_payload() {
            let (stored, payload) = next.expect(self.name);
            assert_eq!(stored.position.0, position + read.len() as u64, "{}", self.name);
            assert_eq!(
                self.reader().payload(&stored.payload),
                Ok(payload.clone()),
                "{}",
                self.name
            );
            read.push(Record { head: stored.head, payload });
        }
        read
    }
}

/// A record that no other number gives.
fn record(number: u64) -> Record {
    let payload = vec![number as u8; (number % 7 * 40) as usize];
    Record { head: number.to_string().into(), payload: payload.into() }
}

fn records(numbers: std::ops::Range<u64>) -> Vec<Record> {
    numbers.map(record).collect()
}

fn heads(opened: Opened) -> Vec<Bytes> {
    opened.records.map(|stored| stored.expect("readable").head).collect()
}
