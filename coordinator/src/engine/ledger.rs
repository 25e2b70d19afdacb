//! Ledger of policy versions: which weights (by manifest hash) each version is bound to.
//!
//! Invariant: a trajectory is used only if every version that sampled a token of it is in here with
//! the hash the actor names (V1 seen from the training side).

use std::collections::{BTreeMap, VecDeque};

use ballast_proto::{ManifestHash, PolicyVersion, v1::TrajectorySummary};
use serde::{Deserialize, Serialize};

/// Hashes of one version that are kept, the newest ones: each beyond the first was trained again after
/// a crash and came out differently.
const HASHES_PER_VERSION_MAX: usize = 8;

/// What the ledger knows about the weights a trajectory was sampled under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provenance {
    /// All of them are published versions.
    Known,
    /// One of them belongs to a step whose completion has not arrived yet: actors can adopt a
    /// version before the learner's report of it reaches the coordinator.
    Early,
    /// This one was never published here with the hash the actor names, or is too old to be known.
    Unknown(PolicyVersion),
}

/// Version to hashes, oldest first. More than one hash for a version means a step was trained again
/// after a crash and came out differently; both sets of weights were published, so both stay known.
/// Bounded by [`Ledger::forget`].
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ledger {
    hashes: BTreeMap<PolicyVersion, VecDeque<ManifestHash>>,
}

impl Ledger {
    /// Binds a version to a hash. Returns whether the version was already bound to another one.
    pub(super) fn record(&mut self, version: PolicyVersion, hash: ManifestHash) -> bool {
        let hashes = self.hashes.entry(version).or_default();
        if hashes.contains(&hash) {
            return false;
        }
        hashes.push_back(hash);
        if hashes.len() > HASHES_PER_VERSION_MAX {
            hashes.pop_front();
        }
        hashes.len() > 1
    }

    /// Forgets the versions before this one: no trajectory that is still to come may use them.
    pub(super) fn forget(&mut self, before: PolicyVersion) {
        self.hashes = self.hashes.split_off(&before);
    }

    /// Judges a trajectory. `unconfirmed` holds the steps served to the learner whose completion has
    /// not arrived: after `unconfirmed.0`, up to `unconfirmed.1`.
    pub(super) fn provenance(
        &self,
        trajectory: &TrajectorySummary,
        unconfirmed: (u64, u64),
    ) -> Provenance {
        let mut provenance = Provenance::Known;
        for sampled in &trajectory.sampled_versions {
            let version = PolicyVersion(sampled.policy_version);
            let known = ManifestHash::from_wire(&sampled.manifest_hash).is_some_and(|hash| {
                self.hashes.get(&version).is_some_and(|hashes| hashes.contains(&hash))
            });
            if known {
                continue;
            }
            if version.0 <= unconfirmed.0 || version.0 > unconfirmed.1 {
                return Provenance::Unknown(version);
            }
            provenance = Provenance::Early;
        }
        provenance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_proto::v1::SampledVersion;

    const UNKNOWN_3: Provenance = Provenance::Unknown(PolicyVersion(3));

    fn sampled(version: u64, byte: u8) -> TrajectorySummary {
        let entry = SampledVersion { policy_version: version, manifest_hash: vec![byte; 32] };
        TrajectorySummary { sampled_versions: vec![entry], ..Default::default() }
    }

    #[test]
    fn a_version_is_known_with_its_hash_only() {
        let mut ledger = Ledger::default();
        assert!(!ledger.record(PolicyVersion(3), ManifestHash([3; 32])));
        assert_eq!(ledger.provenance(&sampled(3, 3), (3, 3)), Provenance::Known);
        assert_eq!(ledger.provenance(&sampled(3, 4), (3, 3)), UNKNOWN_3);
        assert_eq!(
            ledger.provenance(&sampled(4, 4), (3, 3)),
            Provenance::Unknown(PolicyVersion(4))
        );
    }

    #[test]
    fn a_served_step_may_be_sampled_before_it_is_reported() {
        let ledger = Ledger::default();
        assert_eq!(ledger.provenance(&sampled(4, 4), (3, 5)), Provenance::Early);
        assert_eq!(
            ledger.provenance(&sampled(6, 4), (3, 5)),
            Provenance::Unknown(PolicyVersion(6))
        );
    }

    #[test]
    fn a_step_that_came_out_differently_is_reported_and_both_stay_known() {
        let mut ledger = Ledger::default();
        ledger.record(PolicyVersion(3), ManifestHash([3; 32]));
        assert!(ledger.record(PolicyVersion(3), ManifestHash([4; 32])));
        assert_eq!(ledger.provenance(&sampled(3, 3), (3, 3)), Provenance::Known);
        assert_eq!(ledger.provenance(&sampled(3, 4), (3, 3)), Provenance::Known);
        assert!(!ledger.record(PolicyVersion(3), ManifestHash([4; 32])), "it is known");
    }

    #[test]
    fn it_keeps_what_can_still_be_named_and_no_more() {
        let mut ledger = Ledger::default();
        for version in 0..100 {
            for hash in 0..100 {
                ledger.record(PolicyVersion(version), ManifestHash([hash; 32]));
            }
            ledger.forget(PolicyVersion(version.saturating_sub(2)));
        }
        let kept: Vec<usize> = ledger.hashes.values().map(VecDeque::len).collect();
        assert_eq!(kept, [HASHES_PER_VERSION_MAX; 3]);
        assert_eq!(ledger.provenance(&sampled(97, 99), (99, 99)), Provenance::Known);
        assert_eq!(ledger.provenance(&sampled(3, 99), (99, 99)), UNKNOWN_3);
    }
}
