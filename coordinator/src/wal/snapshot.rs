//! A state at a place of the journal, so that a start reads only what came after.

use bytes::{Buf as _, BufMut as _, Bytes};
use crc32c::crc32c_append;

use super::{
    Position,
    storage::{SnapshotName, Storage, StorageError},
};

const MAGIC: &[u8; 8] = b"BALLASTS";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Records before this position are in it.
    pub position: Position,
    /// The state; the journal does not know what it means.
    pub bytes: Bytes,
}

impl Snapshot {
    pub(super) fn encode(position: Position, bytes: &[u8]) -> Vec<u8> {
        let mut content = Vec::with_capacity(HEADER_BYTES + bytes.len());
        content.put_slice(MAGIC);
        content.put_u32_le(FORMAT_VERSION);
        content.put_u32_le(crc32c_append(position.0 as u32, bytes));
        content.put_slice(bytes);
        content
    }

    fn parse(position: Position, content: Vec<u8>) -> Option<Self> {
        let mut header = content.get(..HEADER_BYTES)?.strip_prefix(MAGIC)?;
        let (version, checksum) = (header.get_u32_le(), header.get_u32_le());
        let bytes = Bytes::from(content).slice(HEADER_BYTES..);
        let whole =
            version == FORMAT_VERSION && checksum == crc32c_append(position.0 as u32, &bytes);
        whole.then_some(Self { position, bytes })
    }

    /// The newest one that is whole. A damaged one is passed over: the one before, and in the end
    /// the journal itself, hold the same.
    pub(super) fn newest(
        storage: &dyn Storage,
    ) -> Result<Option<(SnapshotName, Self)>, StorageError> {
        for name in storage.snapshots()?.into_iter().rev() {
            let content = match storage.read_snapshot(name) {
                // Deleted since they were listed, because there are newer ones.
                Err(StorageError::Missing(_)) => continue,
                content => content?,
            };
            match Self::parse(name.position, content) {
                Some(snapshot) => return Ok(Some((name, snapshot))),
                None => tracing::warn!(position = name.position.0, "snapshot is damaged; skipped"),
            }
        }
        Ok(None)
    }
}
