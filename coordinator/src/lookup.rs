//! One trajectory out of the whole journal.

use ballast_proto::{
    EpisodeId,
    v1::{JournalEntry, Trajectory},
};
use prost::Message as _;

use crate::{
    entry,
    journal::{Position, Reader},
    payloads::Source,
    serving::AssemblyError,
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
    let location = match known {
        Some(Source::Loaded(trajectory)) => return Ok(Some(trajectory.as_ref().clone())),
        Some(Source::Stored(location)) => Some(location),
        None => search(reader, episode)?,
    };
    let Some(location) = location else { return Ok(None) };
    let bytes = reader.payload(&location)?;
    let trajectory = Trajectory::decode(bytes);
    trajectory.map(Some).map_err(|error| AssemblyError::Decode(episode, error))
}

fn search(
    reader: &Reader,
    episode: EpisodeId,
) -> Result<Option<crate::journal::Location>, AssemblyError> {
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
