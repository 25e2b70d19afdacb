//! Who may depend on whom: the arrows of ARCHITECTURE.md, checked over `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::checkout::Checkout;

/// Each crate of ours, and those of ours it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("chat", &["proto"]),
    ("arena", &["proto", "chat"]),
    ("policy", &["proto", "chat"]),
    ("runtime", &["proto"]),
    ("actor", &["proto", "chat", "arena", "policy", "runtime"]),
    ("learner", &["proto", "chat", "arena", "policy", "runtime"]),
    ("coordinator", &["proto", "chat", "arena", "runtime"]),
    ("cli", &["proto", "chat", "arena", "runtime"]),
    ("sim", &["proto", "chat", "arena", "runtime", "actor", "learner", "coordinator"]),
    ("xtask", &[]),
];

/// Crates of ours that may name libtorch's bindings.
const TORCH_USERS: &[&str] = &["policy", "learner"];

/// Crates of ours that must build where there is no libtorch.
const TORCH_FREE: &[&str] =
    &["proto", "chat", "arena", "runtime", "coordinator", "cli", "sim", "xtask"];

/// libtorch's bindings.
const TORCH: &str = "tch";

/// Prefix of our packages' names.
const OURS: &str = "ballast-";

/// One package depends on another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edge {
    from: String,
    to: String,
    /// Only its tests and examples do.
    development: bool,
}

/// Fails with every arrow that points the wrong way.
pub(super) fn check(checkout: &Checkout) -> Result<()> {
    let metadata = MetadataCommand::new().current_dir(checkout.root()).exec()?;
    let faults = faults(&edges(&metadata));
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

fn edges(metadata: &Metadata) -> Vec<Edge> {
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.to_string())).collect();
    let name = |id| names.get(id).cloned().unwrap_or_default();
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    nodes
        .flat_map(|node| node.deps.iter().map(move |dependency| (node, dependency)))
        .map(|(node, dependency)| Edge {
            from: name(&node.id),
            to: name(&dependency.pkg),
            development: dependency
                .dep_kinds
                .iter()
                .all(|kind| kind.kind == DependencyKind::Development),
        })
        .collect()
}

/// Every violation, in words.
fn faults(edges: &[Edge]) -> Vec<String> {
    let mut faults = Vec::new();
    for edge in edges {
        let Some(from) = edge.from.strip_prefix(OURS) else { continue };
        if let Some(to) = edge.to.strip_prefix(OURS) {
            match ALLOWED.iter().find(|(crate_name, _)| *crate_name == from) {
                None => faults.push(format!("{from} is new: say in ALLOWED what it may depend on")),
                Some((_, allowed)) if !allowed.contains(&to) => {
                    faults.push(format!("{from} must not depend on {to}"));
                }
                Some(_) => {}
            }
        }
        if edge.to == TORCH && !TORCH_USERS.contains(&from) {
            faults.push(format!("{from} must not use {TORCH}; only {TORCH_USERS:?} may"));
        }
    }
    for crate_name in TORCH_FREE {
        if let Some(path) = path_to_torch(&format!("{OURS}{crate_name}"), edges) {
            faults.push(format!("{crate_name} must build without libtorch: {}", path.join(" -> ")));
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

/// A chain of dependencies from `start` to libtorch's bindings. Tests of our own crate count; those
/// of its dependencies are not built with it.
fn path_to_torch(start: &str, edges: &[Edge]) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut paths = vec![vec![start.to_owned()]];
    while let Some(path) = paths.pop() {
        let last = path.last()?;
        if last == TORCH {
            return Some(path);
        }
        if !seen.insert(last.clone()) {
            continue;
        }
        let next = edges.iter().filter(|e| e.from == *last && (!e.development || last == start));
        paths.extend(next.map(|edge| [path.as_slice(), std::slice::from_ref(&edge.to)].concat()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str) -> Edge {
        Edge { from: from.into(), to: to.into(), development: false }
    }

    /// The workspace as it should be, in small.
    fn sound() -> Vec<Edge> {
        vec![
            edge("ballast-chat", "ballast-proto"),
            edge("ballast-policy", "ballast-chat"),
            edge("ballast-policy", "tch"),
            edge("ballast-actor", "ballast-policy"),
            edge("ballast-coordinator", "ballast-runtime"),
            edge("tch", "torch-sys"),
        ]
    }

    fn faults_with(planted: Edge) -> Vec<String> {
        faults(&[sound(), vec![planted]].concat())
    }

    #[test]
    fn a_sound_workspace_has_no_faults() {
        assert_eq!(faults(&sound()), Vec::<String>::new());
    }

    #[test]
    fn a_role_that_depends_on_a_role_is_caught() {
        let faults = faults_with(edge("ballast-actor", "ballast-coordinator"));
        assert_eq!(faults, ["actor must not depend on coordinator"]);
    }

    #[test]
    fn an_arrow_that_points_back_is_caught() {
        let faults = faults_with(edge("ballast-proto", "ballast-chat"));
        assert_eq!(faults, ["proto must not depend on chat"]);
    }

    #[test]
    fn torch_behind_another_crate_is_caught() {
        let faults = faults_with(edge("ballast-coordinator", "ballast-policy"));
        assert_eq!(
            faults,
            [
                "coordinator must build without libtorch: \
                 ballast-coordinator -> ballast-policy -> tch",
                "coordinator must not depend on policy",
            ]
        );
    }

    #[test]
    fn torch_named_directly_is_caught() {
        let faults = faults_with(edge("ballast-actor", "tch"));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("actor must not use tch"));
    }

    #[test]
    fn a_crate_that_the_table_does_not_know_is_caught() {
        let faults = faults_with(edge("ballast-scheduler", "ballast-proto"));
        assert!(faults[0].starts_with("scheduler is new"), "{faults:?}");
    }

    #[test]
    fn the_simulation_sees_the_roles_and_none_sees_it() {
        assert_eq!(faults_with(edge("ballast-sim", "ballast-coordinator")), Vec::<String>::new());
        let faults = faults_with(edge("ballast-cli", "ballast-sim"));
        assert_eq!(faults, ["cli must not depend on sim"]);
    }

    #[test]
    fn tests_of_a_dependency_do_not_count_but_our_own_do() {
        let test_of_arena = Edge { development: true, ..edge("ballast-arena", "ballast-policy") };
        let edges = [sound(), vec![edge("ballast-cli", "ballast-arena"), test_of_arena]].concat();
        assert_eq!(path_to_torch("ballast-cli", &edges), None);
        assert!(path_to_torch("ballast-arena", &edges).is_some());
    }
}
