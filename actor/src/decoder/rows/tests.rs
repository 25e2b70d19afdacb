use super::*;

/// What the rows of a real cache would hold: it runs plans token by token and checks every step.
struct Cache {
    rows: Vec<Vec<u32>>,
    computed: usize,
}

impl Cache {
    fn new(rows: usize) -> Self {
        Self { rows: vec![Vec::new(); rows], computed: 0 }
    }

    fn run(&mut self, plan: &Plan) {
        for wave in &plan.waves {
            for fill in wave {
                self.rows[fill.row].truncate(fill.kept);
                assert_eq!(
                    self.rows[fill.row].len(),
                    fill.kept,
                    "{fill:?} keeps what is not there"
                );
                if let Some(Loan { from, until }) = fill.copied {
                    assert_ne!(from, fill.row);
                    assert!(self.rows[from].len() >= until, "{fill:?}: row {from} is not so far");
                    self.rows[fill.row] = self.rows[from][..until].to_vec();
                }
            }
            for fill in wave {
                self.rows[fill.row].extend(&fill.computed);
                self.computed += fill.computed.len();
            }
        }
        for entry in &plan.batch {
            self.rows[entry.row].push(entry.token);
            self.computed += 1;
        }
        assert!(plan.batch.is_sorted_by(|one, next| one.row < next.row), "{plan:?}");
    }

    /// Runs a step; checks that each row of the batch holds exactly its sequence. The slots answered.
    fn step(&mut self, rows: &mut Rows, want: &[usize]) -> Vec<usize> {
        let plan = rows.plan(want).expect("fed sequences");
        self.run(&plan);
        let mut slots: Vec<usize> = plan.batch.iter().map(|entry| entry.slot).collect();
        for entry in &plan.batch {
            let sequence = rows.sequences[entry.slot].as_ref().expect("an open sequence");
            assert_eq!(self.rows[entry.row], sequence.tokens, "slot {}", entry.slot);
        }
        slots.sort_unstable();
        slots
    }
}

fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| seed * 1000 + at).collect()
}

/// Opens `slots` on the given tokens.
fn open(rows: &mut Rows, slots: impl IntoIterator<Item = usize>, tokens: &[u32]) {
    for slot in slots {
        rows.open(slot);
        rows.feed(slot, tokens);
    }
}

#[test]
fn a_group_of_eight_computes_its_opening_once() {
    let (mut rows, mut cache) = (Rows::new(8, 8), Cache::new(8));
    open(&mut rows, 0..8, &prompt(1, 100));
    let all: Vec<usize> = (0..8).collect();
    assert_eq!(cache.step(&mut rows, &all), all);
    // The opening once, and the last token of each, whose logits differ by what is drawn from them.
    let expected = DecoderWork { prefill_computed: 99 + 8, prefill_saved: 7 * 99, evictions: 0 };
    assert_eq!(rows.work(), expected);
    assert_eq!(cache.computed, 107);
}

#[test]
fn siblings_that_come_later_find_the_opening_too() {
    let (mut rows, mut cache) = (Rows::new(3, 3), Cache::new(3));
    open(&mut rows, [0], &prompt(1, 50));
    cache.step(&mut rows, &[0]);
    rows.sampled(0, 7);
    open(&mut rows, [1], &prompt(1, 50));
    cache.step(&mut rows, &[0, 1]);
    rows.close(0);
    rows.close(1);
    // A conversation sent again, one turn longer, takes over the row that it left.
    let longer = [prompt(1, 50), vec![7], prompt(2, 10)].concat();
    open(&mut rows, [2], &longer);
    let plan = rows.plan(&[2]).expect("a fed sequence");
    cache.run(&plan);
    let fill = &plan.waves[0][0];
    assert_eq!((fill.kept, fill.copied, fill.computed.len()), (51, None, 9));
    assert_eq!(rows.work().prefill_saved, 49 + 51);
}

#[test]
fn groups_share_what_their_openings_have_in_common() {
    let (mut rows, mut cache) = (Rows::new(6, 6), Cache::new(6));
    let system = prompt(9, 40);
    for (group, slots) in [(1, 0..3), (2, 3..6)] {
        open(&mut rows, slots, &[system.clone(), prompt(group, 20)].concat());
    }
    cache.step(&mut rows, &[0, 1, 2, 3, 4, 5]);
    // 40 + 19 for the first group, 19 more for the second, and six last tokens.
    assert_eq!(cache.computed, 59 + 19 + 6);
}

#[test]
fn short_common_prefixes_are_not_worth_a_copy() {
    let (mut rows, mut cache) = (Rows::new(2, 2), Cache::new(2));
    open(&mut rows, [0, 1], &prompt(1, SHARED_TOKENS_MIN as u32));
    cache.step(&mut rows, &[0, 1]);
    assert_eq!(rows.work().prefill_saved, 0);
}

#[test]
fn a_chain_of_borrowers_is_bounded() {
    let slots = 12;
    let (mut rows, mut cache) = (Rows::new(slots, slots), Cache::new(slots));
    for slot in 0..slots {
        open(&mut rows, [slot], &prompt(1, 20 * (slot as u32 + 1)));
    }
    let all: Vec<usize> = (0..slots).collect();
    let plan = rows.plan(&all).expect("fed sequences");
    assert!(plan.waves.len() <= WAVES_MAX, "{} waves", plan.waves.len());
    cache.run(&plan);
}

#[test]
fn rows_go_to_the_sequences_opened_first_and_stay_with_them() {
    let (mut rows, mut cache) = (Rows::new(3, 2), Cache::new(2));
    for slot in [2, 0, 1] {
        open(&mut rows, [slot], &prompt(slot as u32, 10));
    }
    assert_eq!(cache.step(&mut rows, &[0, 1, 2]), [0, 2]);
    rows.sampled(0, 5);
    rows.sampled(2, 5);
    assert_eq!(cache.step(&mut rows, &[0, 1, 2]), [0, 2]);
    assert_eq!(rows.work().evictions, 0);
    // Slot 2 waits for a tool: its row is free to take, and it is older, so it gets one back.
    rows.sampled(0, 6);
    assert_eq!(cache.step(&mut rows, &[0, 1]), [0, 1]);
    assert_eq!(rows.work().evictions, 1);
    rows.sampled(0, 7);
    rows.sampled(1, 7);
    rows.feed(2, &prompt(4, 12));
    assert_eq!(cache.step(&mut rows, &[0, 1, 2]), [0, 1]);
    rows.sampled(0, 8);
    rows.close(1);
    let before = rows.work().prefill_computed;
    assert_eq!(cache.step(&mut rows, &[0, 2]), [0, 2]);
    // All of slot 2 again: its prompt, one token run before, and the tool's result.
    assert_eq!(rows.work().prefill_computed - before, 10 + 1 + 12 - 1 + 1);
}

#[test]
fn nothing_computed_by_older_weights_is_lent() {
    for recompute in [false, true] {
        let (mut rows, mut cache) = (Rows::new(3, 3), Cache::new(3));
        open(&mut rows, [0, 1], &prompt(1, 30));
        cache.step(&mut rows, &[0, 1]);
        rows.sampled(0, 5);
        rows.close(1);
        let before = rows.work();
        rows.swapped(recompute);
        open(&mut rows, [2], &prompt(1, 30));
        cache.step(&mut rows, &[0, 2]);
        let after = rows.work();
        let computed = after.prefill_computed - before.prefill_computed;
        let saved = after.prefill_saved - before.prefill_saved;
        // With recompute the running sibling is run again, once for both.
        let expected = if recompute { (30 + 1, 29) } else { (30, 0) };
        assert_eq!((computed, saved), expected, "recompute {recompute}");
        rows.close(0);
        open(&mut rows, [0], &prompt(1, 30));
        cache.step(&mut rows, &[0]);
        assert_eq!(rows.work().prefill_saved - after.prefill_saved, 29);
    }
}

#[test]
fn a_sequence_without_a_token_to_run_is_a_fault() {
    let mut rows = Rows::new(2, 2);
    assert!(rows.plan(&[0]).is_err(), "not open");
    rows.open(0);
    assert!(rows.plan(&[0]).is_err(), "never fed");
    rows.feed(0, &[1]);
    assert!(rows.plan(&[0]).is_ok());
    assert!(rows.plan(&[0]).is_err(), "nothing new");
    assert!(rows.plan(&[7]).is_err(), "no such slot");
}

/// A small generator of choices, so that one failing case is a number to write down.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn rows_always_hold_what_their_sequences_say() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let (slots, memory) = (7, 1 + dice.roll(7) as usize);
        let (mut rows, mut cache) = (Rows::new(slots, memory), Cache::new(memory));
        let mut opened = [false; 7];
        // Sequences that a step asked for go on wanting until they are answered.
        let mut wants = [false; 7];
        for _ in 0..60 {
            let slot = dice.roll(7) as usize;
            match dice.roll(8) {
                0 if opened[slot] => {
                    rows.close(slot);
                    (opened[slot], wants[slot]) = (false, false);
                }
                1 | 2 if !opened[slot] => {
                    // Few distinct openings of few lengths, so that much is shared.
                    let tokens = prompt(dice.roll(2) as u32, 9 + 7 * dice.roll(4) as u32);
                    open(&mut rows, [slot], &tokens);
                    (opened[slot], wants[slot]) = (true, true);
                }
                3 if opened[slot] && !wants[slot] => {
                    rows.feed(slot, &prompt(dice.roll(2) as u32, 1 + dice.roll(12) as u32));
                    wants[slot] = true;
                }
                4 => rows.swapped(dice.roll(2) == 0),
                _ => {
                    let want: Vec<usize> = (0..7).filter(|slot| wants[*slot]).collect();
                    let answered = cache.step(&mut rows, &want);
                    assert_eq!(answered.is_empty(), want.is_empty(), "seed {seed}");
                    for slot in answered {
                        rows.sampled(slot, dice.roll(3) as u32);
                        wants[slot] = dice.roll(3) > 0;
                    }
                }
            }
        }
    }
}
