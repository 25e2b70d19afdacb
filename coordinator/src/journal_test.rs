use super::*;

fn records() -> Vec<Record> {
    let trajectory = Trajectory { episode_id: 7, token_ids: vec![1, 2, 3], ..Default::default() };
    let batch = BatchRecord {
        step: 1,
        kind: 1,
        learning_rate_bits: 1e-4_f64.to_bits(),
        episodes: vec![7, 8],
    };
    vec![
        Record::Trajectory(Arc::new(trajectory)),
        Record::Batch(batch),
        Record::Note(r#"{"event":"phase"}"#.into()),
    ]
}

/// A journal with `records()` in it, and its bytes.
fn written() -> (tempfile::TempDir, Vec<u8>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut journal = Journal::open(directory.path()).expect("open");
    journal.append(&records()).expect("append");
    let bytes = fs::read(journal.path()).expect("readable");
    (directory, bytes)
}

#[test]
fn what_was_appended_is_read_back() {
    let (directory, _) = written();
    assert_eq!(read_all(directory.path()).expect("readable"), records());
    let mut journal = Journal::open(directory.path()).expect("open again");
    assert_eq!(journal.records_found(), 3);
    journal.append(&records()[..1]).expect("append");
    assert_eq!(read_all(directory.path()).expect("readable").len(), 4);
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_writing_goes_on() {
    let (directory, bytes) = written();
    let path = directory.path().join(SEGMENT);
    let mut last = Vec::new();
    records()[2].encode_into(&mut last);
    for kept in bytes.len() - last.len()..bytes.len() {
        fs::write(&path, &bytes[..kept]).expect("write");
        let mut journal = Journal::open(directory.path()).expect("open");
        assert_eq!(journal.records_found(), 2, "{kept} of {} bytes", bytes.len());
        journal.append(&records()[2..]).expect("append");
        assert_eq!(read_all(directory.path()).expect("readable"), records());
    }
}

#[test]
fn a_torn_header_is_written_again() {
    let (directory, bytes) = written();
    for kept in 0..HEADER_BYTES as usize {
        fs::write(directory.path().join(SEGMENT), &bytes[..kept]).expect("write");
        let mut journal = Journal::open(directory.path()).expect("open");
        assert_eq!(journal.records_found(), 0);
        journal.append(&records()).expect("append");
        assert_eq!(read_all(directory.path()).expect("readable"), records());
    }
}

#[test]
fn a_flipped_bit_in_the_last_record_is_a_torn_tail_and_before_it_is_damage() {
    let (directory, bytes) = written();
    let path = directory.path().join(SEGMENT);
    let mut torn = bytes.clone();
    *torn.last_mut().expect("bytes") ^= 1;
    fs::write(&path, &torn).expect("write");
    assert_eq!(Journal::open(directory.path()).expect("open").records_found(), 2);

    let mut damaged = bytes;
    damaged[HEADER_BYTES as usize + FRAME_BYTES] ^= 1;
    fs::write(&path, &damaged).expect("write");
    let error = Journal::open(directory.path()).expect_err("damaged").to_string();
    assert!(error.contains("damaged at byte 12"), "{error}");
}

#[test]
fn after_a_failed_append_the_next_one_starts_at_the_last_whole_record() {
    let (directory, _) = written();
    let mut journal = Journal::open(directory.path()).expect("open");
    // What a full disk leaves behind: part of a record after the last whole one.
    journal.file.write_all(&[9; 21]).expect("write");
    journal.dirty = true;
    journal.append(&records()[..1]).expect("append");
    assert_eq!(read_all(directory.path()).expect("readable").len(), 4);
}
