//! Files that a crash tore, or that changed afterwards; and disks that are full.

use std::{fs, path::PathBuf};

use super::*;

/// A directory with three groups in its only data segment, and the segment's file.
struct Written {
    directory: TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
    /// Where the groups begin, and where the last one ends.
    groups: [usize; 4],
}

fn written() -> Written {
    let directory = temporary();
    let storage = Arc::new(small_directory(directory.path()));
    let mut journal = Journal::open(storage.clone(), None).expect("free").journal;
    let mut starts = vec![format::HEADER_BYTES];
    for group in [0..2, 2..3, 3..6] {
        let last = *journal.append(&records(group)).expect("room").last().expect("a record");
        let frame = format::FRAME_HEADER_BYTES as u32 + last.head_bytes + last.payload_bytes;
        starts.push(last.offset as usize + frame as usize);
    }
    let path = directory.path().join("segments").join(format!("{:020}", 2));
    let bytes = fs::read(&path).expect("readable");
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES_SMALL, "preallocated");
    Written { directory, path, bytes, groups: starts.try_into().expect("three groups") }
}

impl Written {
    fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(small_directory(self.directory.path()))
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(&self.path, bytes).expect("writable");
    }

    /// Records that the next leader finds. Its claim is taken away again.
    fn found(&self) -> Result<usize, OpenError> {
        let opened = Journal::open(self.storage(), None);
        let claim = self.directory.path().join("segments").join(format!("{:020}", 3));
        // There is none if the newest header cannot be read.
        fs::remove_file(claim).ok();
        let records = opened?.records.collect::<Result<Vec<_>, _>>()?;
        for (stored, number) in records.iter().zip(0..) {
            assert_eq!(stored.head, record(number).head);
        }
        Ok(records.len())
    }
}

#[test]
fn a_group_torn_at_any_byte_is_cut_off_as_a_whole_and_the_journal_goes_on() {
    let written = written();
    let [.., start, end] = written.groups;
    for kept in start..end {
        let mut zeros = written.bytes.clone();
        zeros[kept..end].fill(0);
        let mut stale = zeros.clone();
        stale[kept] = 0x5a;
        let mut hole = written.bytes.clone();
        hole[start..=kept].fill(0);
        for torn in [&written.bytes[..kept], &zeros, &stale, &hole] {
            written.put(torn);
            assert_eq!(written.found(), Ok(3), "torn at byte {kept}");
        }
    }
    written.put(&written.bytes[..end - 1]);
    let mut journal = Journal::open(written.storage(), None).expect("cut").journal;
    journal.append(&records(3..9)).expect("room");
    let read = Reader::open(written.storage()).records_from(Position(0)).expect("readable");
    let read: Vec<_> = read.map(|one| one.expect("whole").head).collect();
    assert_eq!(read, records(0..9).into_iter().map(|one| one.head).collect::<Vec<_>>());
}

#[test]
fn a_bit_flipped_in_the_last_group_of_a_dead_writer_cuts_it_off() {
    let written = written();
    let [.., start, end] = written.groups;
    for byte in start..end {
        for bit in 0..8 {
            let mut flipped = written.bytes.clone();
            flipped[byte] ^= 1 << bit;
            written.put(&flipped);
            assert_eq!(written.found(), Ok(3), "bit {bit} of byte {byte}");
        }
    }
}

#[test]
fn a_bit_flipped_before_that_is_damage_that_names_file_and_offset() {
    let written = written();
    let [first, second, third, _] = written.groups;
    for byte in 0..third {
        let mut flipped = written.bytes.clone();
        flipped[byte] ^= 1 << (byte % 8);
        written.put(&flipped);
        let error = written.found().expect_err("damage");
        let offset = match byte {
            byte if byte < first => 0,
            byte if byte < second => first,
            _ => second,
        };
        let OpenError::Read(ReadError::Damaged { name, offset: found, .. }) = &error else {
            panic!("byte {byte}: {error}");
        };
        assert_eq!((name, *found), (&written.path.display().to_string(), offset as u64));
    }
}

#[test]
fn after_an_orderly_end_or_a_takeover_every_flipped_bit_is_damage() {
    for closed in [true, false] {
        let written = written();
        let mut next = Journal::open(written.storage(), None).expect("whole").journal;
        next.append(&records(6..8)).expect("room");
        let last = if closed {
            next.close().expect("room");
            4
        } else {
            // Only the segment that is not the last one any more.
            2
        };
        let path = written.path.with_file_name(format!("{last:020}"));
        let bytes = fs::read(&path).expect("readable");
        let whole = if closed { bytes.len() - format::GROUP_HEADER_BYTES } else { bytes.len() };
        for byte in 0..whole {
            let mut flipped = bytes.clone();
            flipped[byte] ^= 0x10;
            fs::write(&path, &flipped).expect("writable");
            let records = Reader::open(written.storage()).records_from(Position(0));
            let result = records.and_then(|records| records.collect::<Result<Vec<_>, _>>());
            assert!(matches!(result, Err(ReadError::Damaged { .. })), "byte {byte}: {result:?}");
        }
    }
}

#[test]
fn bytes_behind_a_seal_are_seen_by_nobody() {
    let written = written();
    let mut next = Journal::open(written.storage(), None).expect("whole").journal;
    next.append(&records(6..8)).expect("room");
    // What a deposed leader, held up in the middle of a write, still does to its file.
    let mut late = fs::read(&written.path).expect("readable");
    let header = format::Header::parse(&late).expect("a header");
    format::encode_group(&mut late, header.salt(), Position(6), &records(90..95));
    written.put(&late);
    let read = Reader::open(written.storage()).records_from(Position(0)).expect("readable");
    let read: Vec<_> = read.map(|one| one.expect("whole").head).collect();
    assert_eq!(read, records(0..8).into_iter().map(|one| one.head).collect::<Vec<_>>());
}

#[test]
fn a_missing_segment_is_an_error_that_names_it() {
    let place = in_directory();
    let mut journal = place.open().journal;
    for number in 0..60 {
        journal.append(&records(number..number + 1)).expect("room");
    }
    place.storage.delete(&[SegmentNumber(3)]).expect("there");
    let records = place.reader().records_from(Position(0)).expect("the first one is there");
    let error = records.last().expect("an error").expect_err("a gap");
    assert_eq!(error, ReadError::Gap { name: place.storage.name(SegmentNumber(3)) });
}

#[test]
fn a_file_of_something_else_is_refused_by_name() {
    let written = written();
    let mut newer = written.bytes.clone();
    newer[8] = 9;
    for (bytes, why) in [(&newer[..], "version 9"), (&[1; 200], "does not begin like")] {
        written.put(bytes);
        let error = written.found().expect_err("not ours").to_string();
        assert!(error.contains(why) && error.contains("segments"), "{error}");
    }
}

#[test]
fn what_dead_writers_left_is_swept_away() {
    let written = written();
    let left = written.directory.path().join("new").join(format!("{:020}-0123456789abcdef", 3));
    fs::write(&left, [0; 9]).expect("writable");
    drop(Journal::open(written.storage(), None).expect("free"));
    assert!(!left.exists());
}

#[test]
fn room_that_is_not_needed_is_given_back() {
    let written = written();
    Journal::open(written.storage(), None)
        .expect("free")
        .journal
        .append(&records(6..7))
        .expect("room");
    let size = fs::metadata(&written.path).expect("there").len();
    assert_eq!(size, written.groups[3] as u64);
}

/// A file system in memory, which knows at once that it has no room for a petabyte.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_refuses_with_the_remedy_and_nothing_is_lost_once_there_is_room() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a file system in memory");
    let storage = |bytes| {
        let storage = Directory::create(directory.path()).expect("usable");
        Arc::new(storage.with_segment_bytes(bytes))
    };
    let mut journal = Journal::open(storage(1 << 50), None).expect("claims are small").journal;
    for _ in 0..2 {
        let error = journal.append(&records(0..4)).expect_err("no room");
        let AppendError::Unavailable(text) = &error else { panic!("{error}") };
        assert!(text.contains("free space on its disk"), "{text}");
    }
    assert_eq!(journal.next_position(), Position(0));
    let mut journal = Journal::open(storage(4096), None).expect("free").journal;
    journal.append(&records(0..4)).expect("room");
    let left = fs::read_dir(directory.path().join("new")).expect("there").count();
    assert_eq!(left, 0, "files without room are removed");
}
