//! What every storage has to give.

use std::mem;

use super::{faults::Faulty, *};

#[test]
fn what_was_appended_is_read_back_by_anybody() {
    for place in places() {
        let Opened { mut journal, snapshot, records: none } = place.open();
        assert!(snapshot.is_none() && none.count() == 0, "{}", place.name);
        assert_eq!(journal.append(&[]), Ok(Vec::new()), "{}", place.name);
        let first = journal.append(&records(0..3)).expect(place.name);
        let second = journal.append(&records(3..40)).expect(place.name);
        assert_eq!(journal.next_position(), Position(40));
        assert_eq!(place.records(), records(0..40), "{}", place.name);
        assert_eq!(place.records_from(17), records(17..40), "{}", place.name);
        assert_eq!(place.records_from(40), [], "{}", place.name);
        for (location, number) in first.iter().chain(&second).zip(0..) {
            assert_eq!(location.position, Position(number));
            let payload = journal.reader().payload(location);
            assert_eq!(payload, Ok(record(number).payload), "{}", place.name);
        }
    }
}

#[test]
fn a_journal_is_there_after_its_writer_died_or_ended_and_the_next_term_goes_on() {
    for place in places() {
        for round in 0..6 {
            let opened = place.open();
            assert_eq!(opened.journal.term(), Term(round + 1), "{}", place.name);
            assert_eq!(opened.journal.next_position(), Position(round * 20), "{}", place.name);
            let Opened { mut journal, records: found, .. } = opened;
            let terms: Vec<_> = found.map(|one| one.expect(place.name).term.0).collect();
            let expected: Vec<_> = (0..round * 20).map(|record| record / 20 + 1).collect();
            assert_eq!(terms, expected, "{}", place.name);
            journal.append(&records(round * 20..round * 20 + 13)).expect(place.name);
            journal.append(&records(round * 20 + 13..(round + 1) * 20)).expect(place.name);
            match round % 3 {
                0 => journal.close().expect(place.name),
                1 => drop(journal),
                _ => mem::forget(journal),
            }
        }
        assert_eq!(place.records(), records(0..120), "{}", place.name);
    }
}

#[test]
fn restarts_without_a_record_leave_the_journal_as_it_is() {
    for place in places() {
        drop(place.open());
        place.open().journal.append(&records(0..5)).expect(place.name);
        for _ in 0..30 {
            assert_eq!(heads(place.open()).len(), 5, "{}", place.name);
        }
        place.open().journal.append(&records(5..6)).expect(place.name);
        assert_eq!(place.records(), records(0..6), "{}", place.name);
    }
}

#[test]
fn who_was_deposed_appends_nothing_and_learns_by_whom() {
    for place in places() {
        let mut old = place.open().journal;
        old.append(&records(0..2)).expect(place.name);
        let mut new = place.open().journal;
        let fenced = Err(AppendError::Fenced { term: Term(1), newest: Term(2) });
        assert_eq!(old.append(&records(90..91)), fenced, "{}", place.name);
        new.append(&records(2..4)).expect(place.name);
        assert_eq!(old.append(&records(91..92)), fenced, "{}", place.name);
        assert_eq!(old.put_snapshot(Position(1), b"old"), fenced.clone().map(drop));
        assert_eq!(old.close(), fenced.map(drop), "{}", place.name);
        new.append(&records(4..5)).expect(place.name);
        assert_eq!(place.records(), records(0..5), "{}", place.name);
    }
}

#[test]
fn who_was_deposed_before_its_first_record_appends_nothing() {
    for place in places() {
        let mut old = place.open().journal;
        let mut new = place.open().journal;
        assert!(matches!(old.append(&records(9..10)), Err(AppendError::Fenced { .. })));
        new.append(&records(0..1)).expect(place.name);
        assert_eq!(place.records(), records(0..1), "{}", place.name);
    }
}

#[test]
fn only_a_newer_term_takes_over() {
    for place in places() {
        let open = |term| Journal::open(Arc::clone(&place.storage), Some(Term(term)));
        let mut journal = open(7).expect(place.name).journal;
        journal.append(&records(0..1)).expect(place.name);
        for asked in [6, 7] {
            let error = open(asked).expect_err("an old term");
            let deposed = OpenError::Deposed { asked: Term(asked), newest: Term(7) };
            assert_eq!(error, deposed, "{}", place.name);
        }
        // Whoever was refused has changed nothing.
        journal.append(&records(1..2)).expect(place.name);
        assert_eq!(open(9).expect(place.name).journal.term(), Term(9));
        assert_eq!(place.open().journal.term(), Term(10), "{}", place.name);
    }
}

#[test]
fn a_start_goes_on_after_the_newest_snapshot() {
    for place in places() {
        let mut journal = place.open().journal;
        for number in 0..60 {
            journal.append(&records(number..number + 1)).expect(place.name);
            if number % 10 == 5 {
                let state = format!("state {number}");
                journal.put_snapshot(Position(number), state.as_bytes()).expect(place.name);
            }
        }
        let Opened { snapshot, records: rest, mut journal } = place.open();
        let expected = Snapshot { position: Position(55), bytes: "state 55".into() };
        assert_eq!(snapshot.as_ref(), Some(&expected), "{}", place.name);
        assert_eq!(place.reader().snapshot(), Ok(snapshot), "{}", place.name);
        let positions: Vec<_> = rest.map(|one| one.expect(place.name).position.0).collect();
        assert_eq!(positions, [55, 56, 57, 58, 59], "{}", place.name);
        let ahead = journal.put_snapshot(Position(61), b"");
        assert!(matches!(ahead, Err(AppendError::Fatal(_))), "{ahead:?}");
        journal.put_snapshot(Position(60), b"all of it").expect(place.name);
        assert_eq!(heads(place.open()).len(), 0, "{}", place.name);
        assert_eq!(place.records(), records(0..60), "nothing was forgotten");
    }
}

#[test]
fn a_damaged_snapshot_is_passed_over() {
    for place in places() {
        let mut journal = place.open().journal;
        journal.append(&records(0..9)).expect(place.name);
        journal.put_snapshot(Position(3), b"three").expect(place.name);
        journal.put_snapshot(Position(6), b"six").expect(place.name);
        let newest = *place.storage.snapshots().expect(place.name).last().expect("two");
        let mut content = place.storage.read_snapshot(newest).expect(place.name);
        *content.last_mut().expect("bytes") ^= 1;
        place.storage.write_snapshot(newest, &content).expect(place.name);
        let opened = place.open();
        let position = opened.snapshot.as_ref().map(|snapshot| snapshot.position);
        assert_eq!(position, Some(Position(3)), "{}", place.name);
        assert_eq!(heads(opened).len(), 6, "{}", place.name);
    }
}

#[test]
fn a_snapshot_of_a_longer_journal_is_an_error() {
    for place in places() {
        let mut journal = place.open().journal;
        journal.append(&records(0..9)).expect(place.name);
        let name = SnapshotName { position: Position(10), segment: SegmentNumber(1) };
        let content = Snapshot::encode(Position(10), b"");
        place.storage.write_snapshot(name, &content).expect(place.name);
        let error = Journal::open(Arc::clone(&place.storage), None).expect_err("impossible");
        let expected = OpenError::TailMissing { snapshot: Position(10), end: Position(9) };
        assert_eq!(error, expected, "{}", place.name);
    }
}

#[test]
fn what_is_forgotten_is_what_nobody_needs() {
    for place in places() {
        let mut deposed = place.open().journal;
        let mut journal = place.open().journal;
        for number in 0..90 {
            journal.append(&records(number..number + 1)).expect(place.name);
        }
        let sizes = |place: &Place| place.storage.list(SegmentNumber(0)).expect(place.name);
        let before = sizes(&place);
        journal.forget_before(Position(80)).expect(place.name);
        assert_eq!(sizes(&place), before, "{}: without a snapshot all is needed", place.name);
        for position in [40, 50, 60] {
            journal.put_snapshot(Position(position), b"state").expect(place.name);
        }
        journal.forget_before(Position(80)).expect(place.name);
        let after = sizes(&place);
        assert!(after.len() < before.len(), "{}", place.name);
        assert_eq!(after[..2], before[..2], "{}: claims stay", place.name);
        let Err(ReadError::Forgotten { asked, oldest }) = place.reader().records_from(Position(0))
        else {
            panic!("{}: the first record is still there", place.name);
        };
        assert!(asked == Position(0) && oldest > Position(0) && oldest <= Position(50));
        // The older of the two snapshots is still good for a start.
        assert_eq!(place.records_from(50), records(50..90), "{}", place.name);
        assert_eq!(heads(place.open()).len(), 30, "{}", place.name);
        // The segment that fences the first term is long gone, its claim is not.
        let fenced = deposed.append(&records(99..100));
        assert!(matches!(fenced, Err(AppendError::Fenced { .. })), "{}", place.name);
    }
}

#[test]
fn a_claim_with_a_stale_view_is_not_enough() {
    for place in places() {
        let mut journal = place.open().journal;
        for number in 0..90 {
            journal.append(&records(number..number + 1)).expect(place.name);
        }
        journal.put_snapshot(Position(88), b"").expect(place.name);
        journal.forget_before(Position(88)).expect(place.name);
        // The first list shows the journal as it was before segment 2 was full, and after it.
        let stale = Faulty::with_stale_view(&place.storage, SegmentNumber(2));
        let opened = Journal::open(stale, None).expect(place.name);
        assert_eq!(opened.journal.next_position(), Position(90), "{}", place.name);
        drop(opened);
        assert_eq!(place.records_from(88), records(88..90), "{}", place.name);
    }
}

#[test]
fn a_reader_follows_the_writer_over_segments_and_terms() {
    for place in places() {
        let mut journal = place.open().journal;
        let mut read = place.reader().records_from(Position(0)).expect(place.name);
        assert!(read.next().is_none(), "{}", place.name);
        journal.append(&records(0..1)).expect(place.name);
        let mut read = place.reader().records_from(Position(0)).expect(place.name);
        for number in 0..200 {
            if number % 37 == 36 {
                journal = place.open().journal;
            }
            let stored = read.next().expect("the record just appended").expect(place.name);
            assert_eq!(stored.head, record(number).head, "{}", place.name);
            assert!(read.next().is_none(), "{}", place.name);
            journal.append(&records(number + 1..number + 2)).expect(place.name);
        }
    }
}

#[test]
fn a_group_may_be_larger_than_a_segment_but_not_than_a_reader_takes() {
    for place in places() {
        let mut journal = place.open().journal;
        let large = Record { head: "large".into(), payload: vec![7; 100_000].into() };
        journal.append(&records(0..3)).expect(place.name);
        journal.append(std::slice::from_ref(&large)).expect(place.name);
        journal.append(&records(3..4)).expect(place.name);
        let mut expected = records(0..3);
        expected.extend([large, record(3)]);
        let too_large = Record { head: vec![0; format::HEAD_BYTES_MAX + 1].into(), ..record(1) };
        let refused = journal.append(&[too_large]);
        assert!(matches!(refused, Err(AppendError::TooLarge { .. })), "{refused:?}");
        journal.append(&records(4..5)).expect("the journal took no harm");
        expected.push(record(4));
        assert_eq!(place.records(), expected, "{}", place.name);
    }
}

#[test]
fn places_that_hold_nothing_of_the_kind_are_errors_and_no_panics() {
    for place in places() {
        let mut journal = place.open().journal;
        let [location, ..] = journal.append(&records(0..9)).expect(place.name)[..] else {
            panic!("no location");
        };
        for wrong in [
            Location { position: Position(1), ..location },
            Location { offset: location.offset + 1, ..location },
            Location { offset: u64::MAX >> 1, ..location },
            Location { payload_bytes: u32::MAX, ..location },
            Location { head_bytes: location.head_bytes + 1, ..location },
            Location { segment: SegmentNumber(9), ..location },
        ] {
            let error = place.reader().payload(&wrong).expect_err("nothing is there");
            assert!(!error.to_string().is_empty(), "{}: {wrong:?}", place.name);
        }
    }
}
