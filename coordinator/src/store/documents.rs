//! Small documents that the leader writes and the next leader finds.

use tokio::sync::watch;

use super::{
    Cluster, Leadership, StoreError, Term,
    entry::{Entry, Expect, Guard, Outcome, Put, Revision},
};

/// A small document and its version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// What a change is based on; 0: there is no document yet.
    pub revision: Revision,
    /// Its content.
    pub value: Vec<u8>,
}

impl Cluster {
    /// A document; one that was never written is empty and at revision 0.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn document(&self, name: &str) -> Result<Document, StoreError> {
        let key = self.keys.document(name)?;
        let mut snapshot = self.store.read(&key).await?;
        Ok(document(snapshot.entries.remove(&key)))
    }

    /// A document as it changes; the first one is empty until it is read.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn watch_document(&self, name: &str) -> Result<watch::Receiver<Document>, StoreError> {
        Ok(self.watch_entry(self.keys.document(name)?, |_key, entry| document(entry)))
    }

    /// Writes a document as the leader, if it is still the one that the change was based on.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]: this is not the leader any more. [`StoreError::Stale`]: the document
    /// has changed. [`StoreError::TooLarge`]. Else the store does not answer, and the document may
    /// have been written: read it.
    pub async fn write_document(
        &self,
        leadership: &Leadership,
        name: &str,
        value: Vec<u8>,
        based_on: Revision,
    ) -> Result<Revision, StoreError> {
        let put = Put::new(self.keys.document(name)?, value)?;
        let expect = match based_on {
            Revision(0) => Expect::Absent,
            revision => Expect::Modified(revision),
        };
        let found = match self.put_as_leader(leadership, put, expect).await? {
            Ok(revision) => return Ok(revision),
            Err(found) => found.map_or(Revision(0), |entry| entry.modified),
        };
        Err(StoreError::Stale { name: name.to_owned(), expected: based_on, found })
    }

    /// Puts a value in one step with two checks: the term is still the leader's, and `expect` holds
    /// for the key. Where only the latter does not, returns what stands there.
    async fn put_as_leader(
        &self,
        leadership: &Leadership,
        put: Put,
        expect: Expect,
    ) -> Result<Result<Revision, Option<Entry>>, StoreError> {
        let term = leadership.term();
        let leads = Expect::Created(Revision(term.0));
        let guards = [
            Guard { key: self.keys.leader(), expect: leads },
            Guard { key: put.key().to_owned(), expect },
        ];
        let found = match self.store.put(put, &guards).await? {
            Outcome::Done(revision) => return Ok(Ok(revision)),
            Outcome::Refused { found, .. } => found,
        };
        let mut found = found.into_iter();
        let leader = found.next().flatten();
        if !leads.holds(leader.as_ref()) {
            let leader = leader.map(|entry| Term(entry.created.0));
            return Err(StoreError::Fenced { term, leader });
        }
        Ok(Err(found.next().flatten()))
    }
}

fn document(entry: Option<Entry>) -> Document {
    entry.map_or_else(Document::default, |entry| Document {
        revision: entry.modified,
        value: entry.value,
    })
}
