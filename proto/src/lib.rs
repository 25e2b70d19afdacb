//! Ballast's wire contract: the generated messages and services of `ballast.v1`, and newtypes for
//! ids and versions.
//!
//! Owns: what crosses a process boundary and the checks that a message is well formed (M1).
//! Does not know: who sends what when (that is each role's), torch, or any file.

#![forbid(unsafe_code)]

mod ids;
mod manifest;
mod trajectory;

/// Generated messages and services of package `ballast.v1`.
#[allow(
    missing_debug_implementations,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("ballast.v1");

    /// Encoded `FileDescriptorSet` of the package, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/ballast.v1.bin"));
}

pub use ids::{ActorId, EpisodeId, Generation, GroupId, ManifestHash, PolicyVersion};
pub use manifest::{InvalidManifest, canonical_hash, verify_manifest};
pub use trajectory::{InvalidTrajectory, verify_trajectory};

/// Largest gRPC message any Ballast process sends or accepts, in bytes. A batch of 64 long
/// trajectories stays well below it; weights travel in chunks of [`FETCH_BYTES_MAX`].
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Episodes an actor may claim when it opens a stream, per slot: one that runs and those whose
/// trajectories wait for their acknowledgement.
pub const CLAIMS_PER_SLOT_MAX: usize = 5;

/// Largest piece of a chunk in one `FetchResponse`, in bytes.
pub const FETCH_BYTES_MAX: usize = 1 << 20;
