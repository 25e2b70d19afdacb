//! Two writers at once: one is stopped at every single step of what it does, the other acts.

use std::{sync::Mutex, thread};

use super::{
    faults::{Fate, Faulty},
    *,
};

/// What came of all appends.
#[derive(Default)]
struct Told {
    acknowledged: Vec<Vec<u64>>,
    /// Groups whose writers were told that they failed.
    failed: Vec<Vec<u64>>,
}

impl Told {
    /// Appends a record for each number.
    fn append(&mut self, journal: &mut Journal, numbers: &[u64]) {
        let group: Vec<_> = numbers.iter().map(|number| record(*number)).collect();
        match journal.append(&group) {
            Ok(_) => self.acknowledged.push(numbers.to_vec()),
            Err(AppendError::Fenced { .. }) => self.failed.push(numbers.to_vec()),
            Err(error) => panic!("{error}"),
        }
    }

    /// What was acknowledged is in the journal in that order and once; the rest whole or not at all.
    fn check(&self, place: &Place, what: &str) {
        let read = place.records();
        let mut rest: Vec<u64> = read
            .iter()
            .map(|read| {
                let number = std::str::from_utf8(&read.head).expect("a number");
                number.parse().expect("a number")
            })
            .collect();
        let all = rest.clone();
        let mut acknowledged = self.acknowledged.iter().peekable();
        let mut failed = self.failed.clone();
        while !rest.is_empty() {
            if let Some(group) = acknowledged.next_if(|group| rest.starts_with(group)) {
                rest.drain(..group.len());
            } else {
                let found = failed.iter().position(|group| rest.starts_with(group));
                let found =
                    found.unwrap_or_else(|| panic!("{what}: {all:?} has what nobody wrote"));
                rest.drain(..failed.remove(found).len());
            }
        }
        assert!(acknowledged.next().is_none(), "{what}: {all:?} lacks what was acknowledged");
    }
}

/// A storage that runs `interruption` before step number `step`, counted from when it is armed.
fn interrupted(
    place: &Place,
    step: usize,
    interruption: impl FnOnce() + Send + 'static,
) -> (Arc<dyn Storage>, Arc<Mutex<Option<usize>>>) {
    let armed = Arc::new(Mutex::new(None));
    let (left, mut interruption) = (Arc::clone(&armed), Some(interruption));
    let storage = Faulty::over(&place.storage, move |_| {
        let mut left = left.lock().expect("no panic");
        if let Some(steps) = &mut *left {
            if *steps == step
                && let Some(interruption) = interruption.take()
            {
                interruption();
            }
            *steps += 1;
        }
        Fate::Done
    });
    (storage, armed)
}

/// Records that are there before the race: none, some, or so many that the next group starts a
/// segment.
const BEFORE: [u64; 4] = [0, 1, 5, 12];

#[test]
fn a_takeover_at_any_step_of_an_append() {
    for before in BEFORE {
        for kind in 0..places().len() {
            for step in 0.. {
                let place = places().into_iter().nth(kind).expect("a place");
                let told = Arc::new(Mutex::new(Told::default()));
                let (inner, shared) = (Arc::clone(&place.storage), Arc::clone(&told));
                let (storage, armed) = interrupted(&place, step, move || {
                    let mut journal = Journal::open(inner, None).expect("free").journal;
                    shared.lock().expect("no panic").append(&mut journal, &[200, 201]);
                });
                let mut old = Journal::open(storage, None).expect("free").journal;
                for number in 0..before {
                    told.lock().expect("no panic").append(&mut old, &[number]);
                }
                *armed.lock().expect("no panic") = Some(0);
                let result = old.append(&[record(100), record(101), record(102)]);
                let steps = armed.lock().expect("no panic").take().expect("armed");
                let mut told = told.lock().expect("no panic");
                match result {
                    // Before the others, because the takeover found it.
                    Ok(_) => told.acknowledged.insert(before as usize, vec![100, 101, 102]),
                    Err(_) => told.failed.push(vec![100, 101, 102]),
                }
                let what = format!("{}, {before} records, step {step}", place.name);
                told.check(&place, &what);
                if steps <= step {
                    assert!(step > 0, "{what}: no step was interrupted");
                    break;
                }
                told.append(&mut old, &[150]);
                assert!(told.failed.contains(&vec![150]), "{what}: it was deposed");
                told.check(&place, &what);
            }
        }
    }
}

#[test]
fn an_append_or_another_takeover_at_any_step_of_a_takeover() {
    for (before, opens) in BEFORE.into_iter().flat_map(|before| [(before, false), (before, true)]) {
        for kind in 0..places().len() {
            for step in 0.. {
                let place = places().into_iter().nth(kind).expect("a place");
                let told = Arc::new(Mutex::new(Told::default()));
                let old = Arc::new(Mutex::new(place.open().journal));
                for number in 0..before {
                    let mut old = old.lock().expect("no panic");
                    told.lock().expect("no panic").append(&mut old, &[number]);
                }
                let (inner, shared) = (Arc::clone(&place.storage), Arc::clone(&told));
                let other = Arc::clone(&old);
                let (storage, armed) = interrupted(&place, step, move || {
                    let mut other = other.lock().expect("no panic");
                    if opens {
                        *other = Journal::open(inner, None).expect("free").journal;
                    }
                    shared.lock().expect("no panic").append(&mut other, &[100, 101, 102]);
                });
                *armed.lock().expect("no panic") = Some(0);
                let new = Journal::open(storage, None);
                let steps = armed.lock().expect("no panic").take().expect("armed");
                let mut told = told.lock().expect("no panic");
                let what = format!("{}, {before} records, {opens}, step {step}", place.name);
                let mut new = new.unwrap_or_else(|error| panic!("{what}: {error}")).journal;
                let mut old = old.lock().expect("no panic");
                // In both orders something is acknowledged, and never on both sides.
                if step % 2 == 0 {
                    told.append(&mut old, &[300]);
                    told.append(&mut new, &[200, 201]);
                } else {
                    told.append(&mut new, &[200, 201]);
                    told.append(&mut old, &[300]);
                }
                let sides = [vec![300], vec![200, 201]];
                let sides = sides.iter().filter(|side| told.acknowledged.contains(side));
                assert_eq!(sides.count(), 1, "{what}");
                told.check(&place, &what);
                if steps <= step {
                    assert!(step > 0, "{what}: no step was interrupted");
                    break;
                }
            }
        }
    }
}

#[test]
fn threads_that_take_over_from_each_other_all_the_time_lose_nothing() {
    const WRITERS: u64 = 3;
    const TAKEOVERS: u64 = 20;
    for place in places() {
        let write = |writer: u64| {
            let mut acknowledged = Vec::new();
            for takeover in 0..TAKEOVERS {
                let mut journal = match Journal::open(Arc::clone(&place.storage), None) {
                    Ok(opened) => opened.journal,
                    Err(OpenError::Contended) => continue,
                    Err(error) => panic!("{}: {error}", place.name),
                };
                for append in 0..50 {
                    let number = (writer * TAKEOVERS + takeover) * 1000 + append;
                    match journal.append(&[record(number)]) {
                        Ok(locations) => acknowledged.push((locations[0].position, number)),
                        Err(AppendError::Fenced { .. }) => break,
                        Err(error) => panic!("{}: {error}", place.name),
                    }
                }
            }
            acknowledged
        };
        let acknowledged: Vec<_> = thread::scope(|scope| {
            let writers: Vec<_> =
                (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
            writers.into_iter().flat_map(|writer| writer.join().expect("no panic")).collect()
        });
        let read = place.records();
        assert!(!acknowledged.is_empty(), "{}", place.name);
        for (position, number) in acknowledged {
            assert_eq!(read[position.0 as usize], record(number), "{}", place.name);
        }
        let mut heads: Vec<_> = read.iter().map(|read| &read.head).collect();
        heads.sort_unstable();
        assert!(heads.windows(2).all(|pair| pair[0] != pair[1]), "{}", place.name);
    }
}
