//! What keeps train, validation and test apart.
//!
//! Two layers. The split is part of the seed, so different splits are different streams. And the
//! request text decides which split a drawn task may be in, so that no request of a held-out split
//! ever occurs in training, whatever the seeds: tasks are drawn again until the text fits.

/// Names of the splits of every world.
pub const SPLITS: [&str; 3] = ["train", "validation", "test"];

/// Draws of one task before giving up. A held-out split accepts one draw in five, so this many fail
/// together with a chance of 0.8^512, below 1e-49.
pub(crate) const DRAWS_MAX: u32 = 512;

/// A disjoint part of the task space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Train, Self::Validation, Self::Test].into_iter().find(|split| split.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        SPLITS[self as usize]
    }

    /// The only split a task with this request text can be in: train 60 %, validation 20 %,
    /// test 20 % of all texts.
    pub(crate) fn of_request(world: &str, text: &str) -> Self {
        let hash = hash(&format!("ballast request 1: {world} {text}"));
        match hash[0] % 5 {
            0..=2 => Self::Train,
            3 => Self::Validation,
            _ => Self::Test,
        }
    }
}

/// Seed of draw number `attempt` of a task: the BLAKE3 hash of its canonical name.
pub(crate) fn task_seed(
    world: &str,
    split: Split,
    seed: u64,
    calls: u32,
    attempt: u32,
) -> [u8; 32] {
    hash(&format!("ballast task 1: {world} {} {seed} {calls} {attempt}", split.name()))
}

fn hash(text: &str) -> [u8; 32] {
    *blake3::hash(text.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_splits() {
        for name in SPLITS {
            assert_eq!(Split::named(name).map(Split::name), Some(name));
        }
        assert_eq!(Split::named("dev"), None);
    }

    #[test]
    fn request_texts_divide_in_the_stated_shares() {
        let mut counts = [0; 3];
        for number in 0..10_000 {
            counts[Split::of_request("market", &number.to_string()) as usize] += 1;
        }
        for (count, share) in counts.into_iter().zip([6_000, 2_000, 2_000]) {
            // Five standard deviations of a binomial count are 245 at most.
            assert!((share - 245..share + 245).contains(&count), "{counts:?}");
        }
    }

    #[test]
    fn every_part_of_the_name_enters_the_seed() {
        let seeds = [
            task_seed("market", Split::Train, 1, 2, 0),
            task_seed("bazaar", Split::Train, 1, 2, 0),
            task_seed("market", Split::Test, 1, 2, 0),
            task_seed("market", Split::Train, 2, 2, 0),
            task_seed("market", Split::Train, 1, 3, 0),
            task_seed("market", Split::Train, 1, 2, 1),
        ];
        let distinct: std::collections::BTreeSet<_> = seeds.iter().collect();
        assert_eq!(distinct.len(), seeds.len());
    }
}
