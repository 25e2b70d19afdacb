//! Recovery: the engine as it was, from the newest snapshot and the records after it.
//!
//! Every event is handled again and what it leads to is compared with what the journal says it led
//! to. A difference means that this program decides otherwise than the one that wrote the journal;
//! going on would fork the run, so it is refused.

use std::{collections::BTreeMap, time::Duration};

use ballast_proto::{
    EpisodeId,
    v1::{Effect, JournalEntry, RunCreated, effect},
};
use ballast_runtime::config_file;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Command, Engine},
    entry::{self, Entry, Unreadable},
    journal::{Location, Position, ReadError, Snapshot, Stored},
    metrics::MetricsLine,
    payloads::Locations,
};

/// Layout of [`EngineSnapshot`] and meaning of the engine's state. Raised whenever either changes;
/// a snapshot of another number is not used.
const SNAPSHOT_FORMAT: u32 = 1;

/// Why a run cannot be taken up again.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is not an entry.
    #[error("record {0} of the journal cannot be decoded: {1}")]
    Decode(Position, prost::DecodeError),
    /// An entry is not complete.
    #[error("record {0} of the journal: {1}")]
    Unreadable(Position, Unreadable),
    /// The first record does not say which run this is.
    #[error("the journal does not begin with the creation of a run; it is not a run's journal")]
    NotARun,
    /// The configuration in the journal cannot be read.
    #[error("the configuration in the journal cannot be read: {0}")]
    Config(toml::de::Error),
    /// This program decides otherwise.
    #[error(
        "record {position} of the journal says that its event led to {recorded}, but this version of \
         the program comes to {rebuilt}; go on with the version that wrote the journal"
    )]
    Diverged {
        /// The record.
        position: Position,
        /// What it says.
        recorded: String,
        /// What came out now.
        rebuilt: String,
    },
    /// A snapshot cannot be made.
    #[error("the state of the run cannot be written down: {0}")]
    Snapshot(String),
}

/// A run as it was when its last record was written.
#[derive(Debug)]
pub struct Rebuilt {
    /// The engine.
    pub engine: Engine,
    /// Which run this is.
    pub created: RunCreated,
    /// Where its trajectories are, as far as they may still be asked for.
    pub locations: BTreeMap<EpisodeId, Location>,
    /// Lines of metrics of the records that were read again.
    pub lines: Vec<MetricsLine>,
    /// Records that were read again.
    pub records: u64,
}

/// What a snapshot holds.
#[derive(Serialize, Deserialize)]
struct EngineSnapshot<E> {
    format: u32,
    /// The first record, encoded.
    created: Vec<u8>,
    engine: E,
    locations: Locations,
}

/// The bytes of a snapshot.
///
/// # Errors
/// The state cannot be encoded.
pub fn to_snapshot(
    engine: &Engine,
    created: &RunCreated,
    locations: Locations,
) -> Result<Vec<u8>, RebuildError> {
    let created = created.encode_to_vec();
    let snapshot = EngineSnapshot { format: SNAPSHOT_FORMAT, created, engine, locations };
    let mut bytes = Vec::new();
    ciborium::into_writer(&snapshot, &mut bytes)
        .map_err(|error| RebuildError::Snapshot(error.to_string()))?;
    Ok(bytes)
}

/// The run a snapshot holds, unless another version of the program made it.
#[must_use]
pub fn from_snapshot(snapshot: &Snapshot) -> Option<Rebuilt> {
    let read: EngineSnapshot<Engine> = ciborium::from_reader(snapshot.bytes.as_ref()).ok()?;
    let EngineSnapshot { format, created, engine, locations } = read;
    let created = RunCreated::decode(created.as_slice()).ok()?;
    (format == SNAPSHOT_FORMAT).then(|| Rebuilt {
        engine,
        created,
        locations: locations.into(),
        lines: Vec::new(),
        records: 0,
    })
}

/// The run the first record of a journal creates.
///
/// # Errors
/// See [`RebuildError`].
pub fn from_first(first: &Stored) -> Result<Rebuilt, RebuildError> {
    let Entry::Created(created) = read(first)? else { return Err(RebuildError::NotARun) };
    from_created(created)
}

/// A run at its beginning.
///
/// # Errors
/// Its configuration cannot be read.
pub fn from_created(created: RunCreated) -> Result<Rebuilt, RebuildError> {
    let config = config_file::from_toml(&created.config_toml).map_err(RebuildError::Config)?;
    let engine = Engine::new(config, created.run_id.clone());
    let (locations, lines) = (BTreeMap::new(), Vec::new());
    Ok(Rebuilt { engine, created, locations, lines, records: 1 })
}

impl Rebuilt {
    /// Handles the event of one more record.
    ///
    /// # Errors
    /// See [`RebuildError`].
    pub fn replay(&mut self, stored: &Stored) -> Result<(), RebuildError> {
        let position = stored.position;
        let (now, event, recorded) = match read(stored)? {
            Entry::Handled { now, event, effects } => (now, event, effects),
            Entry::Created(_) => return Err(RebuildError::NotARun),
        };
        self.engine.handle(now, event);
        let rebuilt = self.engine.take_effects();
        if let Some((recorded, rebuilt)) = first_difference(&recorded, &rebuilt) {
            return Err(RebuildError::Diverged { position, recorded, rebuilt });
        }
        for effect in &recorded {
            if let Some(effect::Effect::Finished(finished)) = &effect.effect {
                self.locations.insert(EpisodeId(finished.episode_id), stored.payload);
            }
        }
        while let Some(command) = self.engine.next_command() {
            match command {
                Command::WriteMetrics(line) => self.lines.push(line),
                Command::Release(episodes) => {
                    for episode in episodes {
                        self.locations.remove(&episode);
                    }
                }
                // Either it was done, or those it was for ask again.
                _ => {}
            }
        }
        self.records += 1;
        Ok(())
    }

    /// Time of the last event.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.engine.now()
    }
}

fn read(stored: &Stored) -> Result<Entry, RebuildError> {
    let position = stored.position;
    let entry = JournalEntry::decode(stored.head.clone())
        .map_err(|error| RebuildError::Decode(position, error))?;
    entry::read(entry).map_err(|error| RebuildError::Unreadable(position, error))
}

fn first_difference(recorded: &[Effect], rebuilt: &[Effect]) -> Option<(String, String)> {
    let say =
        |effect: Option<&Effect>| effect.map_or("nothing".to_owned(), |one| format!("{one:?}"));
    let length = recorded.len().max(rebuilt.len());
    let differs = |index: &usize| recorded.get(*index) != rebuilt.get(*index);
    let index = (0..length).find(differs)?;
    Some((say(recorded.get(index)), say(rebuilt.get(index))))
}
