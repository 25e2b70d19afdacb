use proptest::prelude::*;

use super::*;

fn entry(value: &str, created: u64, modified: u64) -> Entry {
    Entry {
        value: value.into(),
        created: Revision(created),
        modified: Revision(modified),
        lease: None,
    }
}

fn snapshot(revision: u64, entries: &[(&str, Entry)]) -> Snapshot {
    let entries = entries.iter().map(|(key, entry)| ((*key).to_owned(), entry.clone())).collect();
    Snapshot { revision: Revision(revision), entries }
}

fn put(key: &str, entry: Entry) -> Change {
    Change { key: key.into(), at: entry.modified, entry: Some(entry) }
}

fn gone(key: &str, at: u64) -> Change {
    Change { key: key.into(), at: Revision(at), entry: None }
}

#[test]
fn the_first_reading_tells_everything_in_the_order_it_was_put() {
    let mut view = View::default();
    let read = snapshot(9, &[("a", entry("new", 7, 8)), ("b", entry("old", 2, 2))]);
    let expected = [put("b", entry("old", 2, 2)), put("a", entry("new", 7, 8))];
    assert_eq!(view.resync(read), expected);
    assert_eq!(view.revision(), Revision(9));
}

#[test]
fn a_reading_tells_each_difference_and_no_more() {
    let before = [
        ("changed", entry("1", 1, 1)),
        ("gone", entry("1", 2, 2)),
        ("recreated", entry("1", 3, 3)),
        ("same", entry("1", 4, 4)),
    ];
    let after = [
        ("changed", entry("2", 1, 9)),
        ("new", entry("1", 8, 8)),
        ("recreated", entry("1", 7, 7)),
        ("same", entry("1", 4, 4)),
    ];
    let mut view = View::default();
    view.resync(snapshot(5, &before));
    let expected = [
        gone("gone", 10),
        gone("recreated", 10),
        put("recreated", entry("1", 7, 7)),
        put("new", entry("1", 8, 8)),
        put("changed", entry("2", 1, 9)),
    ];
    assert_eq!(view.resync(snapshot(10, &after)), expected);
    assert_eq!(view.resync(snapshot(11, &after)), []);
}

#[test]
fn a_feed_that_repeats_what_was_read_tells_nothing() {
    let mut view = View::default();
    view.resync(snapshot(5, &[("a", entry("1", 3, 3))]));
    let repeated = vec![put("a", entry("1", 3, 3)), gone("b", 4), put("c", entry("1", 5, 5))];
    assert_eq!(view.apply(repeated), []);
    assert_eq!(view.revision(), Revision(5));
}

#[test]
fn changes_of_one_revision_are_all_taken() {
    let mut view = View::default();
    view.resync(snapshot(5, &[("a", entry("1", 3, 3)), ("b", entry("1", 4, 4))]));
    let lease_ran_out = vec![gone("a", 6), gone("b", 6)];
    assert_eq!(view.apply(lease_ran_out.clone()), lease_ran_out);
    assert!(view.entries().is_empty());
}

#[test]
fn a_deletion_of_what_was_not_there_is_no_news() {
    let mut view = View::default();
    assert_eq!(view.apply(vec![gone("a", 6)]), []);
    assert_eq!(view.revision(), Revision(6));
}

/// What happens to one of a few keys, and whether it is heard before the next reading.
fn history() -> impl Strategy<Value = Vec<(u8, bool, bool)>> {
    proptest::collection::vec((0..4u8, any::<bool>(), any::<bool>()), 0..60)
}

proptest! {
    /// Whoever applies the changes that a view tells has what the store has after each reading, and
    /// has heard an end of every entry that ended.
    #[test]
    fn whoever_follows_the_changes_has_what_the_store_has(history in history()) {
        let mut store = Snapshot::default();
        let mut view = View::default();
        let mut follower: BTreeMap<String, Entry> = BTreeMap::new();
        for (key, is_put, is_heard) in history {
            let at = Revision(store.revision.0 + 1);
            let key = format!("key-{key}");
            let change = if is_put {
                let created = store.entries.get(&key).map_or(at, |entry| entry.created);
                let entry = Entry { value: vec![], created, modified: at, lease: None };
                store.entries.insert(key.clone(), entry.clone());
                Change { key, at, entry: Some(entry) }
            } else {
                store.entries.remove(&key);
                Change { key, at, entry: None }
            };
            store.revision = at;
            let changes = if is_heard && view.revision().0 + 1 == at.0 {
                view.apply(vec![change])
            } else {
                view.resync(store.clone())
            };
            for Change { key, entry, .. } in changes {
                let before = match &entry {
                    Some(entry) => follower.insert(key, entry.clone()),
                    None => follower.remove(&key),
                };
                // No entry is replaced by a later one of the same key without having ended.
                if let (Some(before), Some(entry)) = (before, entry) {
                    prop_assert_eq!(before.created, entry.created);
                }
            }
            prop_assert_eq!(&follower, &store.entries);
            prop_assert_eq!(view.entries(), &store.entries);
        }
    }
}
