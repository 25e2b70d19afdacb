//! `cluster.json`: what a run took, as seen from outside its processes.

use std::{io, path::Path, time::Duration};

use ballast_runtime::{atomic_file, memory};
use serde_json::{Map, Value, json};

use super::cluster::Cluster;

/// Name in the run directory.
pub(super) const FILE: &str = "cluster.json";

/// Writes wall time, restarts, and the peak memory of each process and of all together. The sum
/// of peaks bounds the peak of the sum, since processes need not peak at the same moment.
pub(super) fn write(run: &Path, cluster: &Cluster, wall: Duration) -> io::Result<()> {
    let mut processes = Map::new();
    let mut sum = memory::peak_rss_bytes();
    processes.insert("ballast".into(), json!({ "peak_rss_bytes": sum, "restarts": 0 }));
    let mut restarts = 0;
    for usage in cluster.usage() {
        sum += usage.peak_rss_bytes;
        restarts += usage.restarts;
        processes.insert(
            usage.name.to_owned(),
            json!({ "peak_rss_bytes": usage.peak_rss_bytes, "restarts": usage.restarts }),
        );
    }
    let report: Value = json!({
        "wall_s": wall.as_secs_f64(),
        "peak_rss_bytes": sum,
        "restarts": restarts,
        "processes": processes,
    });
    atomic_file::write(&run.join(FILE), format!("{report:#}\n").as_bytes())
}
