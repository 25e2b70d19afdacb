//! Generates the wire types from `ballast/v1/*.proto` with `protox`, so no `protoc` is needed, and
//! keeps the descriptor set that gRPC reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 6] = ["trajectory", "rollout", "training", "weights", "admin", "journal"];
/// Messages that are part of the coordinator's snapshots.
const SERDE: [&str; 9] = [
    "Mode",
    "StepKind",
    "TaskRef",
    "SampledVersion",
    "TrajectorySummary",
    "EpisodeLimits",
    "EvaluationResult",
    "ScheduleDecision",
    "AuditEntry",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=ballast");
    let files: Vec<String> = FILES.iter().map(|name| format!("ballast/v1/{name}.proto")).collect();
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("ballast.v1.bin"), descriptors.encode_to_vec())?;
    let serde = SERDE.iter().fold(tonic_prost_build::configure(), |builder, name| {
        let message = format!(".ballast.v1.{name}");
        builder.type_attribute(message, "#[derive(serde::Serialize, serde::Deserialize)]")
    });
    let mut config = tonic_prost_build::Config::new();
    // What `ballast --json` finds a message's description by.
    config.enable_type_names();
    serde
        // BTreeMap: maps encode in key order, so the same message is always the same bytes.
        .btree_map(".")
        .bytes(".ballast.v1.FetchResponse")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
