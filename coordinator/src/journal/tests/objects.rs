//! Object stores whose answers get lost.

use std::{fmt, sync::Mutex};

use futures::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, path::Path,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Fails every other request or so; a failed put has happened or not.
#[derive(Debug)]
struct Flaky {
    inner: InMemory,
    rng: Mutex<ChaCha8Rng>,
}

impl fmt::Display for Flaky {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Flaky")
    }
}

impl Flaky {
    fn fails(&self) -> bool {
        self.rng.lock().expect("no panic").random_ratio(1, 3)
    }
}

fn lost() -> Error {
    Error::Generic { store: "Flaky", source: "the answer was lost".into() }
}

type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

impl ObjectStore for Flaky {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            if self.fails() {
                return Err(lost());
            }
            let put = self.inner.put_opts(location, payload, options).await?;
            if self.fails() { Err(lost()) } else { Ok(put) }
        }
        .boxed()
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: PutMultipartOptions,
    ) -> Answer<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.put_multipart_opts(location, options)
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.get_opts(location, options)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path, Error>>,
    ) -> BoxStream<'static, Result<Path, Error>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta, Error>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'c, 'd>(
        &'a self,
        from: &'b Path,
        to: &'c Path,
        options: CopyOptions,
    ) -> Answer<'d, ()>
    where
        'a: 'd,
        'b: 'd,
        'c: 'd,
    {
        self.inner.copy_opts(from, to, options)
    }
}

/// Appends until it is known what became of it.
fn append(journal: &mut Journal, group: &[Record]) -> Result<usize, AppendError> {
    let mut failures = 0;
    loop {
        match journal.append(group) {
            Ok(_) => return Ok(failures),
            Err(AppendError::Unavailable(_)) => failures += 1,
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn a_lost_answer_is_found_out_by_asking_again() {
    let (mut failures, mut fenced) = (0, 0);
    for seed in 0..200 {
        let inner = InMemory::new();
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        let flaky = Arc::new(Flaky { inner: inner.clone(), rng });
        let flaky = Arc::new(Objects::new(flaky, "run".into()).expect("usable"));
        let storage = Arc::new(Objects::new(Arc::new(inner), "run".into()).expect("usable"));
        let place = Place { name: "flaky", storage, _directory: None };
        let mut journal = loop {
            match Journal::open(flaky.clone(), None) {
                Ok(opened) => break opened.journal,
                Err(OpenError::Storage(StorageError::Unavailable(_))) => {}
                Err(error) => panic!("{error}"),
            }
        };
        for number in 0..5 {
            failures += append(&mut journal, &[record(number)]).expect("the only writer");
        }
        // While the fate of a group is open, somebody else takes over.
        let result = journal.append(&[record(5)]);
        let mut next = place.open().journal;
        let taken = next.next_position().0;
        next.append(&[record(6)]).expect("the leader");
        let mut expected = records(0..5);
        match result {
            Ok(_) => assert_eq!(taken, 6),
            // Its put has happened or not, and asking again tells which; after the answer it is
            // deposed in any case.
            Err(_) => match append(&mut journal, &[record(5)]) {
                Ok(_) => assert_eq!(taken, 6),
                Err(error) => {
                    assert!(matches!(error, AppendError::Fenced { .. }), "{error}");
                    assert_eq!(taken, 5);
                    fenced += 1;
                }
            },
        }
        expected.extend((5..taken).chain([6]).map(record));
        assert_eq!(place.records(), expected, "seed {seed}");
        assert!(matches!(append(&mut journal, &[record(7)]), Err(AppendError::Fenced { .. })));
    }
    assert!(failures > 200 && fenced > 10, "{failures} lost answers, {fenced} lost races");
}

#[test]
fn other_records_are_refused_while_the_fate_of_the_last_ones_is_open() {
    let refused = (0..50).any(|seed| {
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        let flaky = Arc::new(Flaky { inner: InMemory::new(), rng });
        let storage = Arc::new(Objects::new(flaky, "run".into()).expect("usable"));
        let Ok(mut opened) = Journal::open(storage, None) else { return false };
        if opened.journal.append(&[record(1)]).is_ok() {
            return false;
        }
        matches!(opened.journal.append(&[record(2)]), Err(AppendError::Fatal(_)))
    });
    assert!(refused);
}

#[test]
fn a_url_that_names_no_store_of_ours_is_refused_with_the_reason() {
    for (url, why) in [
        ("no url", "relative URL"),
        ("file:///tmp/run", "path of a directory"),
        ("ftp://host/run", "cannot use ftp://host/run"),
    ] {
        let error = Objects::open(url).expect_err("not a store").to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(Objects::open("memory:///run").is_ok());
}

#[tokio::test]
async fn it_may_be_dropped_where_waiting_is_not_allowed() {
    let storage = Objects::new(Arc::new(InMemory::new()), "run".into()).expect("usable");
    drop(storage);
}

#[test]
fn many_objects_are_read_and_deleted() {
    let place = in_memory();
    let mut journal = place.open().journal;
    for number in 0..1100 {
        journal.append(&records(number..number + 1)).expect("room");
    }
    assert_eq!(heads(place.open()).len(), 1100);
    journal = place.open().journal;
    for position in [1000, 1050] {
        journal.put_snapshot(Position(position), b"").expect("room");
    }
    journal.append(&records(1100..1101)).expect("room");
    for position in [1060, 1101] {
        journal.put_snapshot(Position(position), b"").expect("room");
    }
    journal.forget_before(Position(1101)).expect("there");
    assert_eq!(place.records_from(1100), records(1100..1101));
    let segments = place.storage.list(SegmentNumber(0)).expect("there");
    assert!(segments.len() < 1105, "{}", segments.len());
}
