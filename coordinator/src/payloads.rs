//! The trajectories behind the engine's summaries: in memory while they are new, in the journal
//! always.
//!
//! Bound: [`CACHE_BYTES_MAX`] of tokens; beyond it the oldest are read from the journal when they are
//! served. Of the others only the place in the journal is kept, until the engine releases it.

use std::collections::{BTreeMap, VecDeque};

use ballast_proto::EpisodeId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::journal::Location;

/// Bytes of the trajectories kept in memory.
pub const CACHE_BYTES_MAX: usize = 256 << 20;

/// Where to take a trajectory from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From memory, encoded.
    Loaded(Bytes),
    /// From the journal.
    Stored(Location),
}

/// All trajectories that may still be asked for.
#[derive(Debug, Default)]
pub struct Payloads {
    locations: BTreeMap<EpisodeId, Location>,
    loaded: BTreeMap<EpisodeId, Bytes>,
    /// Ids in `loaded`, oldest first; some may be gone.
    order: VecDeque<EpisodeId>,
    bytes: usize,
}

/// Places in the journal, as a snapshot keeps them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Locations(Vec<(EpisodeId, Location)>);

impl Payloads {
    /// After a rebuild: all of them are in the journal alone.
    #[must_use]
    pub fn stored(locations: BTreeMap<EpisodeId, Location>) -> Self {
        Self { locations, ..Self::default() }
    }

    /// Keeps an encoded trajectory that is on its way to the journal.
    pub fn load(&mut self, episode: EpisodeId, bytes: Bytes) {
        self.bytes += bytes.len();
        match self.loaded.insert(episode, bytes) {
            Some(old) => self.bytes -= old.len(),
            None => self.order.push_back(episode),
        }
    }

    /// A trajectory is durable, here.
    pub fn store(&mut self, episode: EpisodeId, location: Location) {
        self.locations.insert(episode, location);
        self.shrink();
    }

    /// Forgets trajectories that nobody will ask for.
    pub fn release(&mut self, episodes: &[EpisodeId]) {
        for episode in episodes {
            self.locations.remove(episode);
            self.unload(*episode);
        }
        // What is gone must not make the order grow without end.
        if self.order.len() > 2 * self.loaded.len() + 64 {
            let loaded = &self.loaded;
            self.order.retain(|episode| loaded.contains_key(episode));
        }
    }

    /// Where to take a trajectory from; `None` if it was released or never here.
    #[must_use]
    pub fn source(&self, episode: EpisodeId) -> Option<Source> {
        if let Some(bytes) = self.loaded.get(&episode) {
            return Some(Source::Loaded(bytes.clone()));
        }
        self.locations.get(&episode).map(|location| Source::Stored(*location))
    }

    /// Places of everything durable, for a snapshot.
    #[must_use]
    pub fn locations(&self) -> Locations {
        Locations(self.locations.iter().map(|(id, at)| (*id, *at)).collect())
    }

    /// Unloads the oldest durable ones beyond the bound. What is not durable yet is bounded by the
    /// intake.
    fn shrink(&mut self) {
        while self.bytes > CACHE_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            if self.loaded.contains_key(&oldest) && !self.locations.contains_key(&oldest) {
                self.order.push_front(oldest);
                return;
            }
            self.unload(oldest);
        }
    }

    fn unload(&mut self, episode: EpisodeId) {
        if let Some(bytes) = self.loaded.remove(&episode) {
            self.bytes -= bytes.len();
        }
    }
}

impl From<Locations> for BTreeMap<EpisodeId, Location> {
    fn from(Locations(all): Locations) -> Self {
        all.into_iter().collect()
    }
}
