//! One trajectory out of the whole journal.

use ballast_proto::{
    EpisodeId,
    v1::{JournalEntry, Trajectory},
};
use prost::Message as _;

use crate::{
    entry,
    journal::{Location, Position, Reader},
    payloads::Source,
    serving::{self, AssemblyError},
};

/// The trajectory of an episode: from where it is known to be, else from a search of the journal.
///
/// # Errors
/// The journal cannot be read.
pub fn trajectory(
    reader: &Reader,
    episode: EpisodeId,
    known: Option<Source>,
) -> Result<Option<Trajectory>, AssemblyError> {
    let source = match known {
        Some(source) => Some(source),
        None => search(reader, episode)?.map(Source::Stored),
    };
    source.map(|source| serving::take(episode, &source, reader)).transpose()
}

fn search(reader: &Reader, episode: EpisodeId) -> Result<Option<Location>, AssemblyError> {
    for stored in reader.records_from(Position(0))? {
        let stored = stored?;
        let entry = JournalEntry::decode(stored.head.clone())
            .map_err(|error| AssemblyError::Decode(episode, error))?;
        if entry::finished_episode(&entry.effects) == Some(episode) {
            return Ok(Some(stored.payload));
        }
    }
    Ok(None)
}
