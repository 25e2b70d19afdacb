use ballast_proto::Generation;

use super::*;
use crate::store::entry::Revision;

const LEASE: LeaseId = LeaseId(7);
const OTHERS_LEASE: LeaseId = LeaseId(8);

fn entry(lease: LeaseId, generation: u64, address: &str) -> Entry {
    let record = Record { generation, address: address.into() };
    let value = serde_json::to_vec(&record).expect("plain");
    Entry { value, created: Revision(3), modified: Revision(4), lease: Some(lease) }
}

fn judged(own: Option<LeaseId>, found: Option<&Entry>) -> Verdict {
    let member = Member {
        role: "actor".into(),
        id: "a".into(),
        generation: Generation(5),
        address: "host:1".into(),
    };
    judge(&member, own, found)
}

#[test]
fn who_has_a_name_is_decided_by_generation() {
    let replace = Verdict::Register(Expect::Modified(Revision(4)));
    let by =
        |registered, address: &str| Verdict::Superseded { registered, address: address.into() };
    let garbage = Entry { value: b"{".to_vec(), ..entry(OTHERS_LEASE, 9, "") };
    for (what, own, found, expected) in [
        ("nobody", None, None, Verdict::Register(Expect::Absent)),
        ("nobody, after our lease ran out", Some(LEASE), None, Verdict::Register(Expect::Absent)),
        ("older", None, Some(entry(OTHERS_LEASE, 4, "host:2")), replace.clone()),
        ("older, same place", None, Some(entry(OTHERS_LEASE, 4, "host:1")), replace.clone()),
        ("we ourselves", Some(LEASE), Some(entry(LEASE, 5, "host:1")), Verdict::Registered),
        (
            "we, of a lease before",
            Some(LEASE),
            Some(entry(OTHERS_LEASE, 5, "host:1")),
            replace.clone(),
        ),
        ("we, never told", None, Some(entry(OTHERS_LEASE, 5, "host:1")), replace.clone()),
        ("a twin", None, Some(entry(OTHERS_LEASE, 5, "host:2")), by(5, "host:2")),
        ("newer", None, Some(entry(OTHERS_LEASE, 6, "host:1")), by(6, "host:1")),
        ("newer, after us", Some(LEASE), Some(entry(OTHERS_LEASE, 6, "host:2")), by(6, "host:2")),
        ("garbage", None, Some(garbage), replace.clone()),
    ] {
        assert_eq!(judged(own, found.as_ref()), expected, "{what}");
    }
}
