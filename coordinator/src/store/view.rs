//! What somebody who watches a prefix knows of it. Pure.

use std::collections::BTreeMap;

use super::entry::{Change, Entry, Revision, Snapshot};

/// The entries of a prefix, as of a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
}

impl View {
    /// Everything up to here is in it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// By key.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Takes over what was read anew, and returns how it differs: first what is gone, then what is
    /// there in the order in which it was put. A key that was deleted and put again is in both, so
    /// that a deletion is never missed.
    pub fn resync(&mut self, snapshot: Snapshot) -> Vec<Change> {
        let Snapshot { revision, entries } = snapshot;
        let stays = |(key, old): &(&String, &Entry)| {
            entries.get(*key).is_some_and(|new| new.created == old.created)
        };
        let gone = self.entries.iter().filter(|entry| !stays(entry));
        let mut changes: Vec<Change> =
            gone.map(|(key, _)| Change { key: key.clone(), at: revision, entry: None }).collect();
        let is_new = |(key, new): &(&String, &Entry)| {
            self.entries.get(*key).is_none_or(|old| old.modified != new.modified)
        };
        let mut put: Vec<Change> = entries
            .iter()
            .filter(is_new)
            .map(|(key, new)| Change {
                key: key.clone(),
                at: new.modified,
                entry: Some(new.clone()),
            })
            .collect();
        put.sort_by_key(|change| change.at);
        changes.extend(put);
        *self = Self { revision, entries };
        changes
    }

    /// Takes over what a feed told, and returns what of it was news: a feed may repeat what was
    /// read. One revision is never spread over two calls.
    pub fn apply(&mut self, changes: Vec<Change>) -> Vec<Change> {
        let known = self.revision;
        let mut news = Vec::new();
        for change in changes.into_iter().filter(|change| change.at > known) {
            self.revision = self.revision.max(change.at);
            let is_news = match &change.entry {
                Some(entry) => {
                    self.entries.insert(change.key.clone(), entry.clone());
                    true
                }
                None => self.entries.remove(&change.key).is_some(),
            };
            if is_news {
                news.push(change);
            }
        }
        news
    }
}

#[cfg(test)]
#[path = "view_test.rs"]
mod tests;
