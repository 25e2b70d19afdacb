//! The section `[coordinator.store]`: what the coordinators of a run share.

use serde::{Deserialize, Serialize};

/// Kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// The memory of the coordinator: there is one.
    Embedded,
    /// etcd: one coordinator leads, others stand by and take over.
    Etcd,
}

/// Where the coordinators of a run agree who leads.
///
/// Credentials and certificates come from the environment: `BALLAST_ETCD_USER` and
/// `BALLAST_ETCD_PASSWORD`; `BALLAST_ETCD_CA`, `BALLAST_ETCD_CERTIFICATE` and `BALLAST_ETCD_KEY` name
/// PEM files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// "embedded" or "etcd".
    pub kind: StoreKind,
    /// Members of the etcd cluster: HOST:PORT, or http:// or https:// before that.
    pub endpoints: Vec<String>,
    /// Seconds after which a leader that etcd does not hear of is replaced, whole ones. A leader stops
    /// by itself a sixth earlier.
    pub lease_s: u64,
    /// Begins every key in etcd; the run's name follows, so that runs can share one.
    pub prefix: String,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            endpoints: vec!["127.0.0.1:2379".into()],
            lease_s: 5,
            prefix: "/ballast".into(),
        }
    }
}
