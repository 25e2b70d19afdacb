//! What the values of `[coordinator.store]` mean.

use std::ops::RangeInclusive;

use super::Faults;
use crate::{
    config::{Store, StoreKind},
    net,
};

/// etcd grants nothing shorter; a leader that is gone for longer than the last is gone for good.
const LEASE_S: RangeInclusive<u64> = 2..=300;
const ENDPOINTS_MAX: usize = 16;
const PREFIX_BYTES_MAX: usize = 100;

pub(super) fn check(store: &Store, faults: &mut Faults) {
    faults.range("coordinator.store.lease_s", store.lease_s, LEASE_S);
    let prefix = &store.prefix;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let sound = (1..=PREFIX_BYTES_MAX).contains(&prefix.len()) && prefix.chars().all(plain);
    faults.require(sound, "coordinator.store.prefix", || {
        format!("is `{prefix}`; allowed: 1 to {PREFIX_BYTES_MAX} of A-Z a-z 0-9 - _ . /")
    });
    if store.kind == StoreKind::Embedded {
        return;
    }
    let count = store.endpoints.len();
    faults.require((1..=ENDPOINTS_MAX).contains(&count), "coordinator.store.endpoints", || {
        format!("has {count} members; allowed: 1 to {ENDPOINTS_MAX}")
    });
    for endpoint in &store.endpoints {
        let scheme =
            ["http://", "https://"].iter().find_map(|scheme| endpoint.strip_prefix(scheme));
        let address = net::split_address(scheme.unwrap_or(endpoint));
        let sound = address.is_some_and(|(_, port)| port != 0);
        faults.require(sound, "coordinator.store.endpoints", || {
            format!("holds `{endpoint}`; write HOST:PORT or https://HOST:PORT, for example 127.0.0.1:2379")
        });
    }
    let is_tls = |endpoint: &String| endpoint.starts_with("https://");
    let tls = store.endpoints.iter().filter(|endpoint| is_tls(endpoint)).count();
    faults.require(tls == 0 || tls == count, "coordinator.store.endpoints", || {
        "mixes https:// with other addresses; the members of a cluster speak one or the other"
            .into()
    });
}
