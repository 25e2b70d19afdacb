//! J2: every episode is dispatched once, to one actor, and ends at most once; what an actor still has
//! and says so is not taken from it.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::v1::{Assignment, EpisodeDispatched};

use super::Checked;

#[derive(Debug)]
struct Episode {
    actor: String,
    generation: u64,
    ended: bool,
    /// Whether its actor has it.
    held: bool,
}

/// Every episode.
#[derive(Debug, Default)]
pub(super) struct Episodes {
    all: BTreeMap<u64, Episode>,
    assigned: BTreeSet<u64>,
}

impl Episodes {
    pub(super) fn on_dispatched(&mut self, one: &EpisodeDispatched) -> Checked {
        let (id, next) = (one.episode_id, self.all.len() as u64);
        if id != next {
            return Err(format!("e{id} is dispatched, and e{next} is next"));
        }
        let (actor, generation) = (one.actor_id.clone(), one.generation);
        self.all.insert(id, Episode { actor, generation, ended: false, held: false });
        Ok(())
    }

    pub(super) fn on_ended(&mut self, id: u64) -> Checked {
        match self.all.get_mut(&id) {
            None => Err(format!("e{id} ends, and never began")),
            Some(episode) if episode.ended => Err(format!("e{id} ends twice")),
            Some(episode) => {
                episode.ended = true;
                Ok(())
            }
        }
    }

    pub(super) fn on_cancelled(&mut self, id: u64, reason: &str) -> Checked {
        self.on_ended(id)?;
        let held = self.all.get(&id).is_some_and(|episode| episode.held);
        if held && reason == "unclaimed" {
            return Err(format!("e{id} is cancelled as unclaimed, and its actor has it"));
        }
        Ok(())
    }

    pub(super) fn on_assigned(&mut self, actor: (&str, u64), assignment: &Assignment) -> Checked {
        let id = assignment.episode_id;
        if !self.assigned.insert(id) {
            return Err(format!("e{id} is assigned twice"));
        }
        match self.all.get_mut(&id) {
            None => Err(format!("e{id} is assigned, and its dispatch is not in the journal")),
            Some(episode) if (episode.actor.as_str(), episode.generation) != actor => {
                Err(format!("e{id} was dispatched to {}, and {} has it", episode.actor, actor.0))
            }
            Some(episode) => {
                episode.held = true;
                Ok(())
            }
        }
    }

    /// Its actor has nothing of it any more.
    pub(super) fn on_forgotten(&mut self, id: u64) {
        if let Some(episode) = self.all.get_mut(&id) {
            episode.held = false;
        }
    }

    pub(super) fn on_actor_gone(&mut self, actor: (&str, u64)) {
        for episode in self.all.values_mut().filter(|episode| episode.held) {
            episode.held = (episode.actor.as_str(), episode.generation) != actor;
        }
    }

    pub(super) fn is_in_flight(&self, id: u64) -> bool {
        self.all.get(&id).is_some_and(|episode| !episode.ended)
    }
}
