//! A journal in an object store: S3 and what speaks its language, Google Cloud Storage, Azure.
//!
//! ```text
//! PREFIX/segments/00000000000000000001   one commit each, in order
//! PREFIX/snapshots/POSITION-SEGMENT
//! ```
//!
//! Objects do not grow, so each commit is a segment of its own, put under a name that nobody may have
//! taken (`If-None-Match: *`). The store is the judge between two writers, and no clock is asked.
//!
//! A put whose answer is lost may have happened. It is simply put again; if the name is taken then,
//! the bytes that are there tell our own success from somebody else's: they hold the random number of
//! their writer.

use std::{env, fmt, future::Future, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload,
    path::Path,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};
use url::Url;

use super::{
    SegmentNumber,
    storage::{Appender, Entry, SnapshotName, Storage, StorageError},
};

/// Longest wait for one answer of the store, retries of the client included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Objects that are fetched at once when a journal is read.
const READ_AHEAD: usize = 16;
/// Variables of the environment with these beginnings configure the client.
const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// The storage. Cheap to clone; clones are the same place. Calls must not be made from async code:
/// they block, while a small runtime of their own makes the requests on the calling thread.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    requests: Arc<Requests>,
}

impl Objects {
    /// Uses the place that a URL names: `s3://bucket/path`, `gs://bucket/path`, `az://container/path`.
    /// Credentials and endpoints come from the environment, as the stores' own tools read them.
    ///
    /// # Errors
    /// The URL names no store that this program was built for.
    pub fn open(url: &str) -> Result<Self, StorageError> {
        let refused = |error: &dyn fmt::Display| {
            StorageError::Unavailable(format!("cannot use {url} as an object store: {error}"))
        };
        let parsed = Url::parse(url).map_err(|error| refused(&error))?;
        if parsed.scheme() == "file" {
            return Err(refused(&"give the path of a directory instead, which is synced"));
        }
        let wanted = |name: &str| VARIABLES.iter().any(|beginning| name.starts_with(beginning));
        let variables = env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let variables = variables.filter(|(name, _)| wanted(name));
        let (store, prefix) =
            object_store::parse_url_opts(&parsed, variables).map_err(|error| refused(&error))?;
        Self::new(store.into(), prefix)
    }

    /// Uses a part of a store.
    ///
    /// # Errors
    /// The system has no room for a runtime.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Result<Self, StorageError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            StorageError::Unavailable(format!("cannot start a runtime for the store: {error}"))
        })?;
        Ok(Self { store, prefix, requests: Arc::new(Requests(Some(runtime))) })
    }

    fn segment_path(&self, segment: SegmentNumber) -> Path {
        self.prefix.clone().join("segments").join(format!("{:020}", segment.0))
    }

    fn snapshot_path(&self, name: SnapshotName) -> Path {
        let name = format!("{:020}-{:020}", name.position.0, name.segment.0);
        self.prefix.clone().join("snapshots").join(name)
    }

    /// Waits for an answer about an object.
    fn ask<T>(
        &self,
        path: &Path,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StorageError> {
        self.requests.wait(question).map_err(|error| self.refused(path, error))
    }

    fn refused(&self, path: &Path, error: Option<Error>) -> StorageError {
        let name = format!("{} in {}", path, self.store);
        let problem = match error {
            Some(Error::NotFound { .. }) => return StorageError::Missing(name),
            Some(Error::AlreadyExists { .. }) => return StorageError::Exists(name),
            Some(error) => error.to_string(),
            None => format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
        };
        let remedy = "look after the store, the network and this process's credentials";
        StorageError::Unavailable(format!("cannot use {name}: {problem}; {remedy}"))
    }

    fn put(&self, path: &Path, content: &[u8], mode: PutMode) -> Result<(), StorageError> {
        let payload = PutPayload::from(Bytes::copy_from_slice(content));
        self.ask(path, self.store.put_opts(path, payload, mode.into())).map(|_| ())
    }

    /// Puts an object under a free name. It is no error if these very bytes are there already.
    fn put_once(&self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        let path = self.segment_path(segment);
        match self.put(&path, content, PutMode::Create) {
            Err(StorageError::Exists(name)) => match self.get(&path) {
                Ok(stored) if stored == content => Ok(()),
                Ok(_) => Err(StorageError::Exists(name)),
                // A conflict of two puts of which neither has won yet.
                Err(StorageError::Missing(name)) => Err(StorageError::Unavailable(format!(
                    "{name} is being put by somebody else; trying again"
                ))),
                Err(error) => Err(error),
            },
            other => other,
        }
    }

    fn get(&self, path: &Path) -> Result<Bytes, StorageError> {
        self.ask(path, async { self.store.get(path).await?.bytes().await })
    }

    /// These bytes of an object, or fewer if it ends before.
    async fn get_range(&self, path: &Path, range: Range<u64>) -> Result<Bytes, Error> {
        let range = Some(GetRange::Bounded(range));
        let options = GetOptions { range, ..GetOptions::default() };
        self.store.get_opts(path, options).await?.bytes().await
    }

    /// What is under `folder`, from after this name on.
    fn names(&self, folder: &str, after: Option<Path>) -> Result<Vec<ObjectMeta>, StorageError> {
        let folder = self.prefix.clone().join(folder);
        let listing = match after {
            Some(after) => self.store.list_with_offset(Some(&folder), &after),
            None => self.store.list(Some(&folder)),
        };
        self.ask(&folder, listing.try_collect())
    }
}

impl Storage for Objects {
    fn grows(&self) -> bool {
        false
    }

    fn name(&self, segment: SegmentNumber) -> String {
        format!("{} in {}", self.segment_path(segment), self.store)
    }

    fn list(&self, from: SegmentNumber) -> Result<Vec<Entry>, StorageError> {
        let after = from.0.checked_sub(1).map(|before| self.segment_path(SegmentNumber(before)));
        let entry = |meta: ObjectMeta| {
            let segment = SegmentNumber(meta.location.filename()?.parse().ok()?);
            Some(Entry { segment, bytes: meta.size })
        };
        let mut entries: Vec<_> =
            self.names("segments", after)?.into_iter().filter_map(entry).collect();
        entries.sort_unstable_by_key(|entry| entry.segment);
        Ok(entries)
    }

    fn exists(&self, segment: SegmentNumber) -> Result<bool, StorageError> {
        let path = self.segment_path(segment);
        match self.ask(&path, self.store.head(&path)) {
            Ok(_) => Ok(true),
            Err(StorageError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(
        &self,
        segment: SegmentNumber,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StorageError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let path = self.segment_path(segment);
        let range = offset..offset.saturating_add(buffer.len() as u64);
        match self.ask(&path, self.get_range(&path, range)) {
            Ok(bytes) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            // The stores answer with an error of their own to a range behind the end.
            Err(StorageError::Unavailable(_))
                if self.ask(&path, self.store.head(&path))?.size <= offset =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    fn read_ahead(&self) -> usize {
        READ_AHEAD
    }

    fn read_starts(
        &self,
        segments: &[SegmentNumber],
        bytes: usize,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        let fetch = async |segment: &SegmentNumber| {
            let start = self.get_range(&self.segment_path(*segment), 0..bytes as u64).await?;
            Ok(start.to_vec())
        };
        let first = segments.first().copied().unwrap_or(SegmentNumber(0));
        self.ask(&self.segment_path(first), try_join_all(segments.iter().map(fetch)))
    }

    /// Objects are durable once they are there.
    fn settle(&self, _: SegmentNumber) -> Result<(), StorageError> {
        Ok(())
    }

    fn claim(&self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        self.put_once(segment, content)
    }

    fn appender(&self) -> Box<dyn Appender> {
        Box::new(ObjectAppender(self.clone()))
    }

    fn trim(&self, _: SegmentNumber, _: u64) -> Result<(), StorageError> {
        Ok(())
    }

    fn delete(&self, segments: &[SegmentNumber]) -> Result<(), StorageError> {
        let Some(first) = segments.first() else { return Ok(()) };
        let paths: Vec<_> = segments.iter().map(|one| Ok(self.segment_path(*one))).collect();
        let deleted = self.store.delete_stream(stream::iter(paths).boxed());
        let missing = |answer: &Result<Path, Error>| matches!(answer, Err(Error::NotFound { .. }));
        let deleted = deleted.filter(move |answer| std::future::ready(!missing(answer)));
        self.ask(&self.segment_path(*first), deleted.try_for_each(|_| async { Ok(()) }))
    }

    fn sweep(&self, _: SegmentNumber) {}

    fn snapshots(&self) -> Result<Vec<SnapshotName>, StorageError> {
        let names = self.names("snapshots", None)?;
        let parse = |meta: &ObjectMeta| SnapshotName::parse(meta.location.filename()?);
        let mut names: Vec<_> = names.iter().filter_map(parse).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn read_snapshot(&self, name: SnapshotName) -> Result<Vec<u8>, StorageError> {
        Ok(self.get(&self.snapshot_path(name))?.to_vec())
    }

    fn write_snapshot(&self, name: SnapshotName, content: &[u8]) -> Result<(), StorageError> {
        self.put(&self.snapshot_path(name), content, PutMode::Overwrite)
    }

    fn delete_snapshot(&self, name: SnapshotName) -> Result<(), StorageError> {
        let path = self.snapshot_path(name);
        match self.ask(&path, self.store.delete(&path)) {
            Err(StorageError::Missing(_)) => Ok(()),
            other => other,
        }
    }
}

/// Makes an object of each commit.
#[derive(Debug)]
struct ObjectAppender(Objects);

impl Appender for ObjectAppender {
    fn start(&mut self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        self.0.put_once(segment, content)
    }

    fn room(&self) -> u64 {
        0
    }

    fn write(&mut self, _: &[u8]) -> Result<(), StorageError> {
        Err(StorageError::Fatal("objects do not grow".into()))
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Runs requests to their end. There always is a runtime until it is dropped.
struct Requests(Option<Runtime>);

impl Requests {
    /// The error is `None` if there was no answer in time.
    fn wait<T>(
        &self,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Option<Error>> {
        let runtime = self.0.as_ref().ok_or(None)?;
        // The timer needs the runtime, so it is made inside.
        let answer = async { timeout(ANSWER_TIMEOUT, question).await };
        runtime.block_on(answer).map_err(|_| None)?.map_err(Some)
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Requests")
    }
}

impl Drop for Requests {
    /// Dropped the usual way a runtime waits, which async code must not.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
