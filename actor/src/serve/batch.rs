//! Continuous batching: sequences join and leave between two decode steps.
//!
//! Owns: the decoder and which sequence is in which of its slots.
//! Does not know: who waits for a sequence, queues, threads, HTTP.
//! Invariant: a slot is open in the decoder exactly while a sequence is in it.

use ballast_chat::Tokenizer;

use super::sequence::{Plan, Sequence, Update};
use crate::{
    decoder::{DecodeError, Decoder, DecoderWork},
    weights::StagedPolicy,
};

/// Sequences under way over one decoder.
#[expect(missing_debug_implementations, reason = "it holds a backend that has none")]
pub struct Batch {
    decoder: Box<dyn Decoder>,
    tokenizer: Option<Tokenizer>,
    slots: Vec<Option<Sequence>>,
}

impl Batch {
    /// An empty batch over a decoder of `slots` slots.
    #[must_use]
    pub fn new(decoder: Box<dyn Decoder>, slots: usize, tokenizer: Option<Tokenizer>) -> Self {
        let slots = std::iter::repeat_with(|| None).take(slots).collect();
        Self { decoder, tokenizer, slots }
    }

    /// Slots without a sequence.
    #[must_use]
    pub fn free(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_none()).count()
    }

    /// Sequences under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.slots.len() - self.free()
    }

    /// Puts a sequence into a free slot and says which; `None` when all are taken.
    pub fn admit(&mut self, plan: &Plan) -> Option<usize> {
        let slot = self.slots.iter().position(Option::is_none)?;
        self.decoder.open(slot, plan.sampling.clone());
        self.decoder.feed(slot, &plan.prompt);
        self.slots[slot] = Some(Sequence::new(plan, self.tokenizer.clone()));
        Some(slot)
    }

    /// Ends a sequence before it is finished.
    pub fn cancel(&mut self, slot: usize) {
        if self.slots[slot].take().is_some() {
            self.decoder.close(slot);
        }
    }

    /// Samples one token for every sequence there is memory for; a finished one leaves its slot.
    ///
    /// # Errors
    /// The backend failed; no sequence is left.
    pub fn step(&mut self) -> Result<Vec<(usize, Update)>, DecodeError> {
        let taken = |slot: &usize| self.slots[*slot].is_some();
        let want: Vec<usize> = (0..self.slots.len()).filter(taken).collect();
        if want.is_empty() {
            return Ok(Vec::new());
        }
        match self.decoder.step(&want) {
            Ok(sampled) => {
                let accept = |sampled| self.accept(&sampled);
                Ok(sampled.into_iter().filter_map(accept).collect())
            }
            Err(error) => {
                (0..self.slots.len()).for_each(|slot| self.cancel(slot));
                Err(error)
            }
        }
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// They do not fit; the old ones stay.
    pub fn swap(&mut self, staged: &StagedPolicy) -> Result<(), DecodeError> {
        self.decoder.load(staged)
    }

    /// What the decoder did so far.
    #[must_use]
    pub fn work(&self) -> DecoderWork {
        self.decoder.work()
    }

    fn accept(&mut self, sampled: &crate::decoder::Sampled) -> Option<(usize, Update)> {
        let slot = sampled.slot;
        let update = self.slots.get_mut(slot)?.as_mut()?.accept(sampled);
        if update.finish.is_some() {
            self.cancel(slot);
        }
        Some((slot, update))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decoder::{DecoderFactory as _, Sampling},
        serve::sequence::Finish,
        testing::{Script, TableFactory, plays, staged, tokenizer},
    };

    fn batch(script: Script, failing_from: usize, slots: usize) -> Batch {
        let mut factory = TableFactory { failing_from, ..TableFactory::new(script) };
        let decoder = factory.build(&staged(0), slots, 64);
        Batch::new(decoder.expect("a decoder"), slots, Some(tokenizer().clone()))
    }

    fn plan(tokens_max: usize) -> Plan {
        Plan {
            prompt: [1, 2].into(),
            sampling: Sampling::new(7, 1.0),
            tokens_max,
            stop_tokens: [tokenizer().control().im_end].into(),
            stop_strings: Vec::new(),
        }
    }

    #[test]
    fn sequences_join_and_leave_between_steps() {
        let mut batch = batch(plays(&["lamp"]), usize::MAX, 2);
        assert_eq!((batch.admit(&plan(1)), batch.admit(&plan(9))), (Some(0), Some(1)));
        assert_eq!(batch.admit(&plan(1)), None);
        let updates = batch.step().expect("a step");
        assert_eq!(updates.len(), 2);
        assert_eq!(updates[0].1.finish, Some(Finish::Length));
        assert_eq!((batch.running(), batch.free()), (1, 1));
        assert_eq!(batch.admit(&plan(3)), Some(0), "the freed slot is used again");
        batch.cancel(1);
        let updates = batch.step().expect("a step");
        assert_eq!(updates.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_failing_backend_leaves_an_empty_batch() {
        let mut batch = batch(plays(&["lamp"]), 1, 2);
        batch.admit(&plan(9));
        batch.step().expect("the first step");
        assert!(batch.step().is_err());
        assert_eq!((batch.running(), batch.step()), (0, Ok(Vec::new())));
        // The table asserts that no slot is opened twice: it was closed.
        assert_eq!(batch.admit(&plan(9)), Some(0));
    }
}
