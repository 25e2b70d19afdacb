//! The rollout engine: up to `slots` episodes at once over one decoder (continuous batching).
//!
//! Owns: slots, the adopted policy, the worlds of running episodes.
//! Does not know: the coordinator, where weights come from, which backend decodes. It has no thread
//! and no clock of its own: `thread` drives it.
//! Invariants: an accepted assignment ends in exactly one report, unless it is abandoned; weights
//! change only between two decode steps, and every token carries the version that sampled it.

mod mailbox;
mod run;
mod thread;

use std::{sync::Arc, time::Duration};

use ballast_chat::TemplateFiles;
use ballast_proto::{
    EpisodeId, ManifestHash, PolicyVersion,
    v1::{Mode, Trajectory},
    verify_trajectory,
};
use bytes::Bytes;

use self::run::{Broken, Run};
pub use self::{
    mailbox::{Mailbox, MailboxFull},
    thread::{EngineHandle, spawn},
};
use crate::{
    assignment::Assignment,
    counters::Counters,
    decoder::{DecodeError, Decoder, DecoderFactory, MakeReady, ReadyWeights, Sampled},
    episode::{Event, TokenSample},
    language::{Language, LanguageError},
    weights::StagedPolicy,
};

/// Which of the runs this actor has worked for, counted by the actor. Episode ids are unique within
/// one run only, so a report says to which it belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunIndex(pub u64);

/// What became of an assignment.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Run it belongs to.
    pub run: RunIndex,
    /// The outcome.
    pub outcome: Outcome,
}

/// Outcome of an assignment.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The episode finished; its trajectory passed M1.
    Finished(Box<Trajectory>),
    /// The episode is given back without a trajectory.
    Returned {
        /// Its id.
        episode_id: EpisodeId,
        /// Why, for people.
        reason: String,
        /// Tokens its trajectory had by then.
        tokens: usize,
    },
}

/// Why a staged policy was not adopted. The one in use stays in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// Its tokenizer or configuration cannot be used.
    #[error(transparent)]
    Language(#[from] LanguageError),
    /// It is not a version of the model this actor runs.
    #[error(
        "it has another config.json, tokenizer.json or chat template than the policy in use; \
         restart the actor"
    )]
    AnotherModel,
    /// The backend refused it.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Every slot holds an episode already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free slot")]
pub struct NoFreeSlot;

/// Many episodes over one decoder.
#[expect(missing_debug_implementations, reason = "it holds a backend that has none")]
pub struct Engine {
    factory: Box<dyn DecoderFactory>,
    clock: Box<dyn Fn() -> Duration + Send>,
    trajectory_tokens_max: usize,
    slots: Vec<Option<Slot>>,
    adopted: Option<Adopted>,
    counters: Arc<Counters>,
}

/// One assignment in work.
struct Slot {
    run_index: RunIndex,
    assignment: Assignment,
    assigned_at: Duration,
    /// Absent while the episode waits for its policy version.
    run: Option<Run>,
}

/// The policy in use.
struct Adopted {
    policy_version: PolicyVersion,
    manifest_hash: ManifestHash,
    config_json: Bytes,
    tokenizer_json: Bytes,
    template_files: TemplateFiles,
    language: Language,
    decoder: Box<dyn Decoder>,
}

/// A policy on its way to be adopted: what is left to be done for it, on any thread.
#[expect(missing_debug_implementations, reason = "it holds a function")]
pub struct Adoption {
    policy_version: PolicyVersion,
    manifest_hash: ManifestHash,
    make_ready: MakeReady,
}

/// A policy whose weights are ready to be swapped in.
#[derive(Debug)]
pub struct ReadyPolicy {
    policy_version: PolicyVersion,
    manifest_hash: ManifestHash,
    weights: ReadyWeights,
}

impl Adoption {
    /// Makes the weights ready; it takes as long as loading them.
    ///
    /// # Errors
    /// The backend refuses them.
    pub fn complete(self) -> Result<ReadyPolicy, AdoptError> {
        let Self { policy_version, manifest_hash, make_ready } = self;
        Ok(ReadyPolicy { policy_version, manifest_hash, weights: make_ready()? })
    }
}

impl Engine {
    /// An engine without a policy. `clock` tells the time since some fixed moment.
    #[must_use]
    pub fn new(
        factory: Box<dyn DecoderFactory>,
        slots: usize,
        trajectory_tokens_max: usize,
        clock: Box<dyn Fn() -> Duration + Send>,
    ) -> Self {
        let counters = Arc::default();
        let slots = std::iter::repeat_with(|| None).take(slots).collect();
        Self { factory, clock, trajectory_tokens_max, slots, adopted: None, counters }
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// What the engine counts; the session reports it.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Whether [`Engine::step`] has anything to do at present.
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        self.slots.iter().flatten().any(|slot| slot.run.is_some() || self.can_start(slot))
    }

    /// Takes an assignment into a free slot.
    ///
    /// # Errors
    /// All slots are taken: the coordinator used more credits than it had.
    pub fn assign(&mut self, run: RunIndex, assignment: Assignment) -> Result<(), NoFreeSlot> {
        let free = self.slots.iter_mut().find(|slot| slot.is_none()).ok_or(NoFreeSlot)?;
        let assigned_at = (self.clock)();
        *free = Some(Slot { run_index: run, assignment, assigned_at, run: None });
        self.count_episodes();
        Ok(())
    }

    /// Takes up a staged policy. The first is adopted at once; another one is to be completed, on any
    /// thread, and then handed to [`Self::adopt_ready`].
    ///
    /// # Errors
    /// The policy cannot be used; the one in use stays.
    pub fn begin_adoption(
        &mut self,
        staged: &StagedPolicy,
    ) -> Result<Option<Adoption>, AdoptError> {
        if let Some(adopted) = &self.adopted {
            return adopted.begin_adoption(staged).map(Some);
        }
        let language = Language::of(staged)?;
        let (slots, tokens_max) = (self.slots.len(), self.trajectory_tokens_max);
        let decoder = self.factory.build(staged, slots, tokens_max)?;
        self.adopted = Some(Adopted::new(staged, language, decoder));
        self.counters.set_policy_version(staged.policy_version.0);
        Ok(None)
    }

    /// Switches to a policy that is ready. Running episodes go on under it; whether their keys and
    /// values stay as the older weights computed them is the decoder's setting.
    ///
    /// # Errors
    /// The backend refuses it; the one in use stays.
    pub fn adopt_ready(&mut self, ready: ReadyPolicy) -> Result<(), AdoptError> {
        let ReadyPolicy { policy_version, manifest_hash, weights } = ready;
        if let Some(adopted) = &mut self.adopted {
            adopted.decoder.swap(weights)?;
            (adopted.policy_version, adopted.manifest_hash) = (policy_version, manifest_hash);
            self.counters.set_policy_version(policy_version.0);
        }
        Ok(())
    }

    /// Both at once, on this thread.
    ///
    /// # Errors
    /// As the two.
    pub fn adopt(&mut self, staged: &StagedPolicy) -> Result<(), AdoptError> {
        match self.begin_adoption(staged)? {
            Some(adoption) => self.adopt_ready(adoption.complete()?),
            None => Ok(()),
        }
    }

    /// Drops every episode without a report: the run they belong to is over.
    pub fn abandon(&mut self) {
        for index in 0..self.slots.len() {
            self.release(index);
        }
        self.count_episodes();
    }

    /// Gives up one episode, started or not; the report says so. `None` if it is not here.
    pub fn cancel(&mut self, episode: EpisodeId) -> Option<Report> {
        let held = |slot: &Option<Slot>| {
            slot.as_ref().is_some_and(|slot| slot.assignment.episode_id == episode)
        };
        let index = self.slots.iter().position(held)?;
        let report = self.release(index).map(|slot| slot.returned("cancelled", slot.tokens()));
        self.count_episodes();
        report
    }

    /// Gives back every episode that has not started.
    pub fn return_waiting(&mut self, reason: &str) -> Vec<Report> {
        let waiting = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.run.is_none());
        let mut reports = Vec::new();
        for index in 0..self.slots.len() {
            if waiting(&self.slots[index]) {
                reports.extend(self.release(index).map(|slot| slot.returned(reason, 0)));
            }
        }
        self.count_episodes();
        reports
    }

    /// Starts what can start, ends what is out of time, samples one token for every episode that
    /// wants one, as far as the decoder has memory, and runs what follows from it.
    pub fn step(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        for index in 0..self.slots.len() {
            reports.extend(self.start(index));
            reports.extend(self.expire(index));
        }
        reports.extend(self.decode());
        self.count_episodes();
        reports
    }

    fn can_start(&self, slot: &Slot) -> bool {
        let Some(adopted) = &self.adopted else { return false };
        slot.assignment.min_policy_version.is_none_or(|version| version <= adopted.policy_version)
    }

    fn start(&mut self, index: usize) -> Option<Report> {
        let slot = self.slots[index].as_ref()?;
        if slot.run.is_some() || !self.can_start(slot) {
            return None;
        }
        let language = self.adopted.as_ref()?.language.clone();
        let tokens_max = self.trajectory_tokens_max;
        let slot = self.slots[index].as_mut()?;
        let (mut run, event) = Run::open(&slot.assignment, slot.assigned_at, language, tokens_max);
        run.start_clock((self.clock)(), slot.assignment.limits.duration_max);
        slot.run = Some(run);
        if slot.assignment.mode != Mode::Demonstrate {
            let sampling = slot.assignment.sampling.clone();
            self.adopted.as_mut()?.decoder.open(index, sampling);
        }
        self.drive(index, event)
    }

    fn expire(&mut self, index: usize) -> Option<Report> {
        let now = (self.clock)();
        let expired = self.slots[index].as_ref()?.run.as_ref()?.deadline() <= now;
        if expired { self.drive(index, Event::DeadlineReached) } else { None }
    }

    fn decode(&mut self) -> Vec<Report> {
        let want = self.indices_where(Run::wants_token);
        let Some(adopted) = self.adopted.as_mut().filter(|_| !want.is_empty()) else {
            return Vec::new();
        };
        let answered = adopted.decoder.step(&want).and_then(|sampled| check_answer(&want, sampled));
        self.counters.set_decoder_work(adopted.decoder.work());
        let (policy_version, manifest_hash) = (adopted.policy_version, adopted.manifest_hash);
        match answered {
            Ok(sampled) => {
                self.counters.add_sampled(sampled.len());
                let drive = |Sampled { slot, token, logprob, control_probs, .. }| {
                    let sample = TokenSample {
                        token,
                        logprob,
                        control_probs,
                        policy_version,
                        manifest_hash,
                    };
                    self.drive(slot, Event::TokenSampled(sample))
                };
                sampled.into_iter().filter_map(drive).collect()
            }
            Err(error) => {
                tracing::error!("decoding failed, {} episodes are lost: {error}", want.len());
                let fail = |index| self.drive(index, Event::InfrastructureFailed(error.0.clone()));
                want.into_iter().filter_map(fail).collect()
            }
        }
    }

    /// Hands one event to the episode in a slot; frees the slot and reports when that ends it.
    fn drive(&mut self, index: usize, event: Event) -> Option<Report> {
        let now = (self.clock)();
        let decoder = self.adopted.as_mut()?.decoder.as_mut();
        let slot = self.slots[index].as_mut()?;
        let finished = slot.run.as_mut()?.drive(now, event, |tokens| {
            decoder.feed(index, tokens);
            self.counters.add_processed(tokens.len());
        });
        let (fault, tokens) = match finished {
            Ok(None) => return None,
            Ok(Some(trajectory)) => match verify_trajectory(&trajectory) {
                Ok(()) => {
                    let run = self.release(index)?.run_index;
                    return Some(Report { run, outcome: Outcome::Finished(trajectory) });
                }
                Err(invalid) => (invalid.to_string(), trajectory.token_ids.len()),
            },
            Err(Broken(illegal)) => (illegal.to_string(), slot.tokens()),
        };
        tracing::error!("a bug in the actor: {fault}; the episode is given back");
        self.release(index).map(|slot| slot.returned(&fault, tokens))
    }

    fn release(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots[index].take()?;
        let sampled = slot.run.is_some() && slot.assignment.mode != Mode::Demonstrate;
        if let Some(adopted) = self.adopted.as_mut().filter(|_| sampled) {
            adopted.decoder.close(index);
        }
        Some(slot)
    }

    fn indices_where(&self, condition: impl Fn(&Run) -> bool) -> Vec<usize> {
        let holds = |slot: &Slot| slot.run.as_ref().is_some_and(&condition);
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.as_ref().is_some_and(holds)).map(|(index, _)| index).collect()
    }

    fn count_episodes(&self) {
        self.counters.set_episodes_running(self.slots.iter().flatten().count());
    }
}

/// A decoder may leave slots out for want of memory, but not all of them, and it adds none.
fn check_answer(want: &[usize], sampled: Vec<Sampled>) -> Result<Vec<Sampled>, DecodeError> {
    let slots = || sampled.iter().map(|sampled| sampled.slot);
    let sound = !sampled.is_empty()
        && slots().is_sorted_by(|one, next| one < next)
        && slots().all(|slot| want.binary_search(&slot).is_ok());
    if sound {
        return Ok(sampled);
    }
    Err(DecodeError("the decoder answered for other slots than it was asked".into()))
}

impl Slot {
    fn returned(&self, reason: &str, tokens: usize) -> Report {
        let episode_id = self.assignment.episode_id;
        let outcome = Outcome::Returned { episode_id, reason: reason.to_owned(), tokens };
        Report { run: self.run_index, outcome }
    }

    /// Tokens of its trajectory so far.
    fn tokens(&self) -> usize {
        self.run.as_ref().map_or(0, Run::tokens)
    }
}

impl Adopted {
    fn new(staged: &StagedPolicy, language: Language, decoder: Box<dyn Decoder>) -> Self {
        Self {
            policy_version: staged.policy_version,
            manifest_hash: staged.manifest_hash,
            config_json: staged.config_json.clone(),
            tokenizer_json: staged.tokenizer_json.clone(),
            template_files: staged.template_files.clone(),
            language,
            decoder,
        }
    }

    fn begin_adoption(&self, staged: &StagedPolicy) -> Result<Adoption, AdoptError> {
        let same_model = staged.config_json == self.config_json
            && staged.tokenizer_json == self.tokenizer_json
            && staged.template_files == self.template_files;
        if !same_model {
            return Err(AdoptError::AnotherModel);
        }
        Ok(Adoption {
            policy_version: staged.policy_version,
            manifest_hash: staged.manifest_hash,
            make_ready: self.decoder.make_ready(staged),
        })
    }
}

#[cfg(test)]
mod tests;
#[cfg(all(test, feature = "torch"))]
mod torch_tests;
