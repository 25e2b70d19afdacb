//! Bugs that can be planted, to see that the invariants catch them. They live in the simulated driver,
//! disk, actors and learner only.

use clap::ValueEnum;

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// Trajectories are acknowledged when they arrive, not when they are durable.
    AcknowledgeEarly,
    /// Commands of the record after the last durable one run, too.
    ReleaseOneMore,
    /// A coordinator that dies still runs the commands it holds.
    FlushOnCrash,
    /// The disk says that it has synced, and has not.
    LyingSync,
    /// Segments are made over others, and nobody looks whether somebody took over.
    Unfenced,
    /// A start leaves out the records after the snapshot.
    SkipTail,
    /// An episode is assigned again under the same id.
    ReuseEpisode,
    /// Claims do not get to the engine.
    LoseClaims,
    /// Every credit counts twice.
    DoubleCredits,
    /// A batch is served as that of the step after its own.
    BatchTwice,
    /// A sibling is left out of its group.
    OpenGroup,
    /// A token is trained that was not sampled.
    OtherTokens,
    /// Nobody looks whether the arrays of a trajectory fit together.
    UncheckedArrays,
    /// An infrastructure failure counts as a reward of 0.
    FailureAsZero,
    /// A trajectory that is too old passes for a new one.
    AcceptStale,
    /// An actor adopts an older version in the midst of an episode that must not see it.
    AdoptOlder,
    /// A learner counts a step that it did not make.
    SkipStep,
    /// A learner that starts again takes up weights that it did not save.
    KeepUnsaved,
    /// A coordinator that was rebuilt gives no lease to those it counts on.
    NoLease,
    /// A coordinator whose disk has room again does not take note.
    StayBlocked,
}

impl Plant {
    /// The promises of which one at least must be seen broken.
    #[must_use]
    pub fn breaks(self) -> &'static [&'static str] {
        match self {
            Self::AcknowledgeEarly | Self::LyingSync => &["J1"],
            Self::ReleaseOneMore | Self::FlushOnCrash => &["J1", "J2"],
            Self::Unfenced => &["L1"],
            Self::SkipTail => &["J4"],
            Self::ReuseEpisode | Self::LoseClaims => &["J2"],
            Self::DoubleCredits => &["B1"],
            Self::BatchTwice | Self::KeepUnsaved => &["J3"],
            Self::OpenGroup | Self::FailureAsZero => &["G1"],
            Self::OtherTokens => &["M2"],
            Self::UncheckedArrays => &["M1"],
            Self::AcceptStale | Self::AdoptOlder => &["S1"],
            Self::SkipStep => &["V1"],
            Self::NoLease | Self::StayBlocked => &["A1"],
        }
    }
}
