//! Which sequences have a row of the KV cache, and what the rows lend to each other.
//!
//! Owns: the token ids of all open sequences, who holds which row, and the order in which a step
//! fills rows. It decides, and computes nothing: [`Rows::plan`] says what to do.
//! Does not know: tensors, weights, sampling.
//! Invariants: a row has at most one owner; what is listed as lendable was computed under the weights
//! in use, or will be by an earlier part of the same plan; nobody overtakes: memory goes to the
//! sequences opened first, and a sequence that this step wants keeps its row.
//!
//! Sequences that begin alike (siblings of a group, one conversation sent again) are found by their
//! token ids: in the sorted set of lendable prefixes, the one that shares most with a sequence is
//! a neighbour of it.

use std::collections::BTreeSet;

use super::{DecodeError, DecoderWork};

/// Shorter common prefixes are computed again: copying them costs as much.
const SHARED_TOKENS_MIN: usize = 8;
/// Waves of one plan: a lender that is itself filled in the plan goes one wave before its borrowers.
const WAVES_MAX: usize = 4;

/// What one decode step does to the cache: first the waves in order, then one token for each of the
/// batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Rows to fill. Within a wave all copies come first, in order, then everything is computed.
    pub(crate) waves: Vec<Vec<Fill>>,
    /// Sequences to sample for, ascending by row; each has exactly one token left to run.
    pub(crate) batch: Vec<Entry>,
}

/// How a row comes to hold all of its sequence but the last token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    /// The row.
    pub(crate) row: usize,
    /// Tokens it holds already and keeps; what comes after them is dropped.
    pub(crate) kept: usize,
    /// Copied from another row, which holds the same tokens so far.
    pub(crate) copied: Option<Loan>,
    /// Tokens to run through the network then.
    pub(crate) computed: Vec<u32>,
}

/// Keys and values taken from another row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loan {
    /// The lender.
    pub(crate) from: usize,
    /// The borrower holds this many tokens afterwards.
    pub(crate) until: usize,
}

/// One sequence of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its row.
    pub(crate) row: usize,
    /// Its slot.
    pub(crate) slot: usize,
    /// The token to run.
    pub(crate) token: u32,
}

/// The rows of one cache and the sequences that share them.
#[derive(Debug)]
pub(crate) struct Rows {
    /// By slot.
    sequences: Vec<Option<Sequence>>,
    rows: Vec<Row>,
    /// Prefixes that can be copied, each with the row that holds it.
    lendable: BTreeSet<(Vec<u32>, usize)>,
    opened: u64,
    steps: u64,
    work: DecoderWork,
}

#[derive(Debug)]
struct Sequence {
    /// Sequences get memory in the order of their tickets.
    ticket: u64,
    /// All of it: fed and sampled.
    tokens: Vec<u32>,
    place: Option<Place>,
    /// Whether the last token is a sample that was never run.
    fresh_sample: bool,
}

/// A sequence in its row.
#[derive(Clone, Copy, Debug)]
struct Place {
    row: usize,
    /// Tokens the row holds.
    held: usize,
}

#[derive(Clone, Debug, Default)]
struct Row {
    /// Slot of the sequence in it.
    owner: Option<usize>,
    /// What it is listed under in `lendable`: a prefix of what it holds. Of a row without an owner,
    /// all of it.
    listed: Option<Vec<u32>>,
    /// Older weights computed part of it.
    stale: bool,
    /// Last step that used it.
    used_at: u64,
}

/// A row that lends, as the plan sees it.
#[derive(Clone, Copy, Debug)]
struct Lender {
    row: usize,
    tokens: usize,
}

/// Rows that this plan fills: what each can lend, and when.
#[derive(Debug, Default)]
struct Filling {
    waves: Vec<Vec<Fill>>,
    /// Row, its wave, and the tokens it holds before that wave computes.
    admitted: Vec<(usize, usize, usize)>,
}

impl Rows {
    /// Empty slots and rows.
    pub(crate) fn new(slots: usize, rows: usize) -> Self {
        Self {
            sequences: std::iter::repeat_with(|| None).take(slots).collect(),
            rows: vec![Row::default(); rows],
            lendable: BTreeSet::new(),
            opened: 0,
            steps: 0,
            work: DecoderWork::default(),
        }
    }

    /// What was computed, saved and evicted so far.
    pub(crate) fn work(&self) -> DecoderWork {
        self.work
    }

    /// Starts an empty sequence; the one that was there is closed.
    pub(crate) fn open(&mut self, slot: usize) {
        self.close(slot);
        let (ticket, tokens) = (self.opened, Vec::new());
        self.sequences[slot] = Some(Sequence { ticket, tokens, place: None, fresh_sample: false });
        self.opened += 1;
    }

    /// Appends forced tokens.
    pub(crate) fn feed(&mut self, slot: usize, tokens: &[u32]) {
        if let Some(sequence) = &mut self.sequences[slot] {
            sequence.tokens.extend_from_slice(tokens);
        }
    }

    /// Appends the token that was sampled for a sequence of the last plan.
    pub(crate) fn sampled(&mut self, slot: usize, token: u32) {
        if let Some(sequence) = &mut self.sequences[slot] {
            sequence.tokens.push(token);
            sequence.fresh_sample = true;
        }
    }

    /// Ends a sequence. Its row goes on lending what it holds until another sequence needs it.
    pub(crate) fn close(&mut self, slot: usize) {
        self.vacate(slot);
        self.sequences[slot] = None;
    }

    /// New weights: nothing computed so far is lent any more. With `recompute` nothing of it is used
    /// any more either: every sequence is run again, under the new weights, when it is next wanted.
    pub(crate) fn swapped(&mut self, recompute: bool) {
        self.lendable.clear();
        for row in &mut self.rows {
            row.listed = None;
            row.stale = row.owner.is_some();
        }
        if recompute {
            (0..self.sequences.len()).for_each(|slot| self.vacate(slot));
        }
    }

    /// Plans a step that samples for `want`, as far as there are rows, and takes it as done: call
    /// [`Rows::swapped`] with `recompute` if it fails half way.
    pub(crate) fn plan(&mut self, want: &[usize]) -> Result<Plan, DecodeError> {
        self.steps += 1;
        let mut waiting = Vec::new();
        let mut filling = Filling::default();
        for slot in want {
            let sequence = self.sequences.get(*slot).and_then(Option::as_ref);
            let Some(sequence) = sequence.filter(|sequence| sequence.is_due()) else {
                let fault = "a slot without a fed sequence was asked for a token";
                return Err(DecodeError(fault.into()));
            };
            match sequence.place {
                Some(place) => filling.go_on(place, &sequence.tokens),
                None => waiting.push((sequence.ticket, *slot)),
            }
        }
        waiting.sort_unstable();
        for (_, slot) in waiting {
            if !self.admit(slot, want, &mut filling) {
                break;
            }
        }
        let mut batch: Vec<Entry> = want.iter().filter_map(|slot| self.enter(*slot)).collect();
        batch.sort_unstable_by_key(|entry| entry.row);
        Ok(Plan { waves: filling.waves, batch })
    }

    /// Gives a waiting sequence a row; false when every row is wanted by its owner.
    fn admit(&mut self, slot: usize, want: &[usize], filling: &mut Filling) -> bool {
        let Some(tokens) = self.sequences[slot].as_ref().map(|sequence| sequence.tokens.clone())
        else {
            return false;
        };
        let lender = self.lender(&tokens);
        let Some(row) = self.free_row(lender, want) else { return false };
        let saved = match lender {
            Some(lender) => {
                self.rows[lender.row].used_at = self.steps;
                filling.borrow(row, lender, &tokens)
            }
            None => filling.begin(row, &tokens),
        };
        self.work.prefill_saved += saved as u64;
        self.unlist(row);
        self.rows[row] = Row { owner: Some(slot), used_at: self.steps, ..Row::default() };
        // The last token is run after all waves, so it is not lent in this step.
        self.list(row, tokens[..tokens.len() - 1].to_vec());
        if let Some(sequence) = &mut self.sequences[slot] {
            sequence.place = Some(Place { row, held: saved });
        }
        true
    }

    /// The row that shares most with a sequence, and how many tokens. At least one token is left to
    /// run, because its logits are what the step is for.
    fn lender(&self, tokens: &[u32]) -> Option<Lender> {
        let probe = (tokens.to_vec(), 0);
        let below = self.lendable.range(..&probe).next_back();
        let above = self.lendable.range(&probe..).next();
        let shared = |(prefix, row): &(Vec<u32>, usize)| {
            let same = prefix.iter().zip(tokens).take_while(|(one, other)| one == other).count();
            Lender { row: *row, tokens: same.min(tokens.len() - 1) }
        };
        let best = below.into_iter().chain(above).map(shared).max_by_key(|lender| lender.tokens);
        best.filter(|lender| lender.tokens >= SHARED_TOKENS_MIN)
    }

    /// A row to fill: the lender itself if nobody owns it, else the free one that was not used for
    /// longest, else one whose owner waits for something other than a token.
    fn free_row(&mut self, lender: Option<Lender>, want: &[usize]) -> Option<usize> {
        if let Some(lender) = lender.filter(|lender| self.rows[lender.row].owner.is_none()) {
            return Some(lender.row);
        }
        let wanted =
            |owner: Option<usize>| owner.is_some_and(|slot| want.binary_search(&slot).is_ok());
        let row = (0..self.rows.len())
            .filter(|row| !wanted(self.rows[*row].owner))
            .min_by_key(|row| (self.rows[*row].owner.is_some(), self.rows[*row].used_at))?;
        if let Some(owner) = self.rows[row].owner {
            self.vacate(owner);
            self.work.evictions += 1;
        }
        Some(row)
    }

    /// The batch entry of a wanted sequence that has a row. From here on the row holds all of it.
    fn enter(&mut self, slot: usize) -> Option<Entry> {
        let sequence = self.sequences[slot].as_mut()?;
        let place = sequence.place.as_mut()?;
        let run = sequence.tokens.len() - place.held;
        self.work.prefill_computed += (run - usize::from(sequence.fresh_sample)) as u64;
        sequence.fresh_sample = false;
        place.held = sequence.tokens.len();
        self.rows[place.row].used_at = self.steps;
        let token = *sequence.tokens.last()?;
        Some(Entry { row: place.row, slot, token })
    }

    /// Takes a sequence out of its row, which keeps lending what it holds.
    fn vacate(&mut self, slot: usize) {
        let Some(sequence) = &mut self.sequences[slot] else { return };
        let Some(Place { row, held }) = sequence.place.take() else { return };
        let held = sequence.tokens[..held].to_vec();
        self.unlist(row);
        self.rows[row].owner = None;
        if !self.rows[row].stale {
            self.list(row, held);
        }
    }

    fn list(&mut self, row: usize, tokens: Vec<u32>) {
        if tokens.is_empty() {
            return;
        }
        self.lendable.insert((tokens.clone(), row));
        self.rows[row].listed = Some(tokens);
    }

    fn unlist(&mut self, row: usize) {
        if let Some(tokens) = self.rows[row].listed.take() {
            self.lendable.remove(&(tokens, row));
        }
    }
}

impl Sequence {
    /// Whether there is a token to run.
    fn is_due(&self) -> bool {
        self.place.map_or(0, |place| place.held) < self.tokens.len()
    }
}

impl Filling {
    /// A sequence in its row was fed: what is new, but for the last token, is run.
    fn go_on(&mut self, place: Place, tokens: &[u32]) {
        let new = &tokens[place.held..tokens.len() - 1];
        if !new.is_empty() {
            let computed = new.to_vec();
            self.push(0, Fill { row: place.row, kept: place.held, copied: None, computed });
        }
    }

    /// Fills a row with no help; returns the tokens that need no computation.
    fn begin(&mut self, row: usize, tokens: &[u32]) -> usize {
        let computed = tokens[..tokens.len() - 1].to_vec();
        self.admitted.push((row, 0, 0));
        self.push(0, Fill { row, kept: 0, copied: None, computed });
        0
    }

    /// Fills a row from a lender, which may be the row itself; returns the tokens that need no
    /// computation.
    fn borrow(&mut self, row: usize, lender: Lender, tokens: &[u32]) -> usize {
        let mut until = lender.tokens;
        let known = self.admitted.iter().find(|(row, ..)| *row == lender.row);
        let wave = match known {
            // Copies of one wave run in the order of admission, after those of the lender.
            Some((_, wave, ready)) if until <= *ready || wave + 1 == WAVES_MAX => {
                until = until.min(*ready);
                *wave
            }
            Some((_, wave, _)) => wave + 1,
            None => 0,
        };
        let in_place = lender.row == row;
        let copied = (!in_place && until > 0).then_some(Loan { from: lender.row, until });
        let kept = if in_place { until } else { 0 };
        let computed = tokens[until..tokens.len() - 1].to_vec();
        self.admitted.push((row, wave, until));
        self.push(wave, Fill { row, kept, copied, computed });
        until
    }

    fn push(&mut self, wave: usize, fill: Fill) {
        while self.waves.len() <= wave {
            self.waves.push(Vec::new());
        }
        self.waves[wave].push(fill);
    }
}

#[cfg(test)]
mod tests;
