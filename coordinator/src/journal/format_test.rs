use proptest::prelude::*;

use super::*;

fn header() -> Header {
    let previous = Some(Link { segment: SegmentNumber(6), end: 4096 });
    let (segment, term, first) = (SegmentNumber(7), Term(3), Position(99));
    Header { segment, term, writer: 0x0123_4567_89ab_cdef, first, previous }
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let record = (bytes(), bytes())
        .prop_map(|(head, payload)| Record { head: head.into(), payload: payload.into() });
    prop::collection::vec(record, 0..5)
}

/// Reads a group back, if it is whole.
fn parse(bytes: &[u8], salt: u32) -> Option<(Position, Vec<Record>)> {
    let header = GroupHeader::parse(bytes, salt)?;
    let body = bytes.get(GROUP_HEADER_BYTES..)?.get(..header.bytes as usize)?;
    let record = |frame: Frame| Record {
        head: body[frame.head()].to_vec().into(),
        payload: body[frame.payload()].to_vec().into(),
    };
    Some((header.first, parse_frames(&header, body)?.into_iter().map(record).collect()))
}

fn group(salt: u32, first: Position, records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_group(&mut bytes, salt, first, records);
    bytes
}

#[test]
fn the_bytes_are_these_for_ever() {
    let record = Record { head: "head".into(), payload: "payload".into() };
    let mut bytes = header().encode();
    encode_group(&mut bytes, header().salt(), Position(99), &[record]);
    let text: Vec<_> = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        .collect();
    assert_eq!(text, GOLDEN);
}

const GOLDEN: [&str; 7] = [
    "42414c4c4153544a0200000007000000",
    "000000000300000000000000efcdab89",
    "67452301630000000000000006000000",
    "00000000001000000000000070a4bb7a",
    "424c4752010000006300000000000000",
    "1700000019db93e1f658161e04000000",
    "07000000686561647061796c6f6164",
];

#[test]
fn a_header_is_read_back_and_any_flipped_bit_is_noticed() {
    for previous in [None, header().previous] {
        let header = Header { previous, ..header() };
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(Header::parse(&bytes), Ok(header));
        assert_eq!(Header::parse(&bytes[..HEADER_BYTES - 1]), Err(HeaderError::Foreign));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&flipped).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn a_frame_is_good_at_its_own_position_only() {
    let record = Record { head: "head".into(), ..Record::default() };
    let bytes = group(1, Position(5), &[record]);
    let frame = |position| Frame::parse(&bytes, GROUP_HEADER_BYTES, Position(position));
    assert!(frame(5).is_some());
    assert!(frame(4).is_none() && frame(6).is_none() && frame(5 + (1 << 32)).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_parser_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), salt: u32, magic: bool) {
        if magic && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&GROUP_MAGIC);
        }
        prop_assert_eq!(parse(&bytes, salt), None);
        prop_assert!(Header::parse(&bytes).is_err());
        for offset in [0, 1, bytes.len(), usize::MAX] {
            prop_assert!(Frame::parse(&bytes, offset, Position(u64::from(salt))).is_none());
        }
    }

    #[test]
    fn a_group_is_read_back_and_torn_or_changed_it_is_nothing(
        records in records(),
        salt: u32,
        first in 0..u64::MAX - 10,
        cut: prop::sample::Index,
        bit: prop::sample::Index,
    ) {
        let bytes = group(salt, Position(first), &records);
        prop_assert_eq!(parse(&bytes, salt), Some((Position(first), records)));
        prop_assert_eq!(parse(&bytes[..cut.index(bytes.len())], salt), None);
        prop_assert_eq!(parse(&bytes, !salt), None);
        let mut flipped = bytes.clone();
        let bit = bit.index(bytes.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(parse(&flipped, salt), None);
    }

    #[test]
    fn a_torn_group_with_a_whole_one_of_another_segment_in_it_is_nothing(
        records in records(),
        salt: u32,
        other: u32,
    ) {
        prop_assume!(salt != other);
        let inner = group(other, Position(1), &records);
        let outer = group(salt, Position(0), &[Record { payload: inner.into(), ..Record::default() }]);
        for start in 1..outer.len() {
            prop_assert_eq!(GroupHeader::parse(&outer[start..], salt), None);
        }
    }
}
