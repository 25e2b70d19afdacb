//! Random histories of several writers over one storage, with faults, compared with a list.

use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{
    disk::Disk,
    faults::{Fate, Faulty},
    *,
};

const WRITERS: usize = 3;

#[derive(Clone, Debug)]
enum Act {
    /// A writer takes the journal over.
    Open(usize),
    /// A writer appends so many records at once.
    Append(usize, u64),
    /// A writer is killed.
    Kill(usize),
    /// A writer ends in order.
    Close(usize),
    /// The writer dies after so many steps of its next deeds.
    Fuse(usize, u64),
    /// A writer keeps a snapshot of all but so many records.
    Snapshot(usize, u64),
    /// A writer forgets all but so many records.
    Forget(usize, u64),
    /// Every writer dies; a disk that can, tears what was not synced.
    LosePower,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let writer = || 0..WRITERS;
    let act = prop_oneof![
        3 => writer().prop_map(Act::Open),
        12 => (writer(), 1..6_u64).prop_map(|(writer, count)| Act::Append(writer, count)),
        1 => writer().prop_map(Act::Kill),
        1 => writer().prop_map(Act::Close),
        2 => (writer(), 0..12_u64).prop_map(|(writer, steps)| Act::Fuse(writer, steps)),
        1 => (writer(), 0..9_u64).prop_map(|(writer, back)| Act::Snapshot(writer, back)),
        1 => (writer(), 0..9_u64).prop_map(|(writer, back)| Act::Forget(writer, back)),
        1 => Just(Act::LosePower),
    ];
    prop::collection::vec(act, 1..60)
}

/// Steps until a writer dies, shared with the storage it writes to.
type Fuse = Arc<std::sync::Mutex<Option<u64>>>;

struct World {
    place: Place,
    disk: Option<Disk>,
    rng: ChaCha8Rng,
    writers: [Option<(Journal, Fuse)>; WRITERS],
    /// Who may append, unless `contested`.
    leader: Option<usize>,
    /// Somebody died while taking over: the leader may be fenced or not.
    contested: bool,
    /// Numbers of the records that are in the journal for sure.
    certain: Vec<u64>,
    /// At most one of these groups may follow: nobody was told about it.
    candidates: Vec<Vec<u64>>,
    /// Number of the next record.
    fresh: u64,
    /// Records before this one may be forgotten.
    floor: u64,
    snapshots: Vec<u64>,
}

impl World {
    fn new(place: Place, disk: Option<Disk>, seed: u64) -> Self {
        Self {
            place,
            disk,
            rng: ChaCha8Rng::seed_from_u64(seed),
            writers: [None, None, None],
            leader: None,
            contested: false,
            certain: Vec::new(),
            candidates: Vec::new(),
            fresh: 0,
            floor: 0,
            snapshots: Vec::new(),
        }
    }

    fn run(mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Open(writer) => self.open(writer),
                Act::Append(writer, count) => self.append(writer, count),
                Act::Kill(writer) => self.kill(writer),
                Act::Close(writer) => self.close(writer),
                Act::Fuse(writer, steps) => self.set_fuse(writer, steps),
                Act::Snapshot(writer, back) => self.snapshot(writer, back),
                Act::Forget(writer, back) => self.forget(writer, back),
                Act::LosePower => self.lose_power(),
            }
            self.check();
        }
    }

    /// The storage as a writer sees it: some steps fail for now, and one may be the last.
    fn storage(&mut self, fuse: &Fuse) -> Arc<dyn Storage> {
        let fuse = Arc::clone(fuse);
        let mut rng = ChaCha8Rng::from_rng(&mut self.rng);
        Faulty::over(&self.place.storage, move |step| {
            let mut fuse = fuse.lock().expect("no panic");
            match &mut *fuse {
                Some(0) => return Fate::Dead,
                Some(steps) => *steps -= 1,
                None => {}
            }
            match step {
                "start" if rng.random_ratio(1, 8) => Fate::DoneUnknown,
                "start" | "write" if rng.random_ratio(1, 8) => Fate::NotDone,
                _ => Fate::Done,
            }
        })
    }

    fn open(&mut self, writer: usize) {
        let fuse = self.writers[writer].take().map_or_else(Fuse::default, |(_, fuse)| fuse);
        let storage = self.storage(&fuse);
        if self.leader == Some(writer) {
            self.leader = None;
        }
        let opened = match Journal::open(storage, None) {
            Ok(opened) => opened,
            Err(OpenError::Storage(StorageError::Fatal(_)))
            | Err(OpenError::Read(ReadError::Storage(StorageError::Fatal(_)))) => {
                self.contested = true;
                return;
            }
            Err(error) => panic!("{}: {error}", self.place.name),
        };
        let Opened { journal, snapshot, records } = opened;
        let next = journal.next_position().0 as usize;
        let extra = next - self.certain.len();
        if extra > 0 {
            let read = self.read(self.certain.len() as u64);
            let found = self.candidates.iter().find(|candidate| read.starts_with(candidate));
            let found = found.expect("only what somebody appended is found").clone();
            assert_eq!(found.len(), extra, "{}: all of a group or nothing", self.place.name);
            self.certain.extend(found);
        }
        self.candidates.clear();
        (self.leader, self.contested) = (Some(writer), false);
        let from = snapshot.map_or(0, |snapshot| snapshot.position.0);
        assert_eq!(from, self.snapshots.last().copied().unwrap_or(0), "{}", self.place.name);
        let heads: Result<Vec<_>, _> = records.map(|one| Ok(number(&one?.head))).collect();
        match heads {
            Ok(heads) => assert_eq!(heads, self.certain[from as usize..], "{}", self.place.name),
            Err(ReadError::Storage(StorageError::Fatal(_))) => {}
            Err(error) => panic!("{}: {error}", self.place.name),
        }
        self.writers[writer] = Some((journal, fuse));
    }

    fn append(&mut self, writer: usize, count: u64) {
        let Some((journal, _)) = &mut self.writers[writer] else { return };
        let numbers: Vec<_> = (self.fresh..self.fresh + count).collect();
        self.fresh += count;
        let group = records(numbers[0]..numbers[0] + count);
        let at_end = journal.next_position().0 == self.certain.len() as u64;
        let result = loop {
            match journal.append(&group) {
                Err(AppendError::Unavailable(_)) => {}
                result => break result,
            }
        };
        let leads = self.leader == Some(writer);
        match result {
            Ok(locations) => {
                assert!(leads, "{}: a deposed leader was acknowledged", self.place.name);
                assert_eq!(locations[0].position.0, self.certain.len() as u64);
                self.certain.extend(numbers);
                // What a deposed leader left at the end is cut off.
                self.candidates.clear();
                return;
            }
            Err(AppendError::Fenced { .. }) => {
                assert!(!leads || self.contested, "{}: the leader is fenced", self.place.name);
            }
            Err(AppendError::Fatal(text)) => assert!(text.contains("dead"), "{text}"),
            Err(error) => panic!("{}: {error}", self.place.name),
        }
        if at_end {
            self.candidates.push(numbers);
        }
        self.kill(writer);
    }

    fn kill(&mut self, writer: usize) {
        self.writers[writer] = None;
        if self.leader == Some(writer) {
            self.leader = None;
        }
    }

    fn close(&mut self, writer: usize) {
        if let Some((journal, _)) = self.writers[writer].take() {
            drop(journal.close());
        }
        self.kill(writer);
    }

    fn set_fuse(&mut self, writer: usize, steps: u64) {
        if let Some((_, fuse)) = &self.writers[writer] {
            *fuse.lock().expect("no panic") = Some(steps);
        }
    }

    fn snapshot(&mut self, writer: usize, back: u64) {
        let end = self.certain.len() as u64;
        let position = end.saturating_sub(back).max(self.floor);
        let Some((journal, _)) = self.leading(writer) else { return };
        // Whether it was kept, and which are kept beside it, the storage says.
        drop(journal.put_snapshot(Position(position), b"state"));
        let names = self.place.storage.snapshots().expect("readable");
        self.snapshots = names.iter().map(|name| name.position.0).collect();
    }

    fn forget(&mut self, writer: usize, back: u64) {
        let end = self.certain.len() as u64;
        let Some((journal, _)) = self.leading(writer) else { return };
        let before = end.saturating_sub(back);
        // Even a failure may have forgotten something.
        drop(journal.forget_before(Position(before)));
        if let Some(kept) = self.snapshots.first() {
            self.floor = self.floor.max(before.min(*kept));
        }
    }

    /// A writer that is the leader, as far as it can know.
    fn leading(&mut self, writer: usize) -> Option<&mut (Journal, Fuse)> {
        let leads = self.leader == Some(writer);
        self.writers[writer].as_mut().filter(|_| leads)
    }

    fn lose_power(&mut self) {
        (0..WRITERS).for_each(|writer| self.kill(writer));
        if let Some(disk) = &self.disk {
            disk.lose_power(&mut self.rng);
        }
    }

    fn read(&self, from: u64) -> Vec<u64> {
        let records = self.place.records_from(from);
        records
            .iter()
            .map(|read| {
                let number = number(&read.head);
                assert_eq!(*read, record(number), "{}", self.place.name);
                number
            })
            .collect()
    }

    fn check(&self) {
        let read = self.read(self.floor);
        let certain = &self.certain[self.floor as usize..];
        let rest = read.strip_prefix(certain);
        let rest = rest.unwrap_or_else(|| panic!("{}: {read:?}, not {certain:?}", self.place.name));
        let expected = rest.is_empty() || self.candidates.iter().any(|one| one == rest);
        assert!(expected, "{}: {rest:?} was never appended here", self.place.name);
    }
}

fn number(head: &[u8]) -> u64 {
    std::str::from_utf8(head).expect("a number").parse().expect("a number")
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn a_disk_that_loses_power_keeps_what_was_acknowledged(acts in acts(), seed: u64) {
        let disk = Disk::default();
        let storage = Arc::new(disk.clone());
        let place = Place { name: "simulated disk", storage, _directory: None };
        World::new(place, Some(disk), seed).run(acts);
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn an_object_store_keeps_what_was_acknowledged(acts in acts(), seed: u64) {
        World::new(in_memory(), None, seed).run(acts);
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn a_directory_keeps_what_was_acknowledged(acts in acts(), seed: u64) {
        World::new(in_directory(), None, seed).run(acts);
    }
}
