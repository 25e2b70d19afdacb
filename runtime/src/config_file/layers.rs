//! Merging of files and overrides into one table that remembers its sources.

use std::{collections::BTreeMap, fs, path::PathBuf};

use toml::{Table, Value};

use super::{Fault, shape};
use crate::config::Config;

/// The merged table and where each of its leaves came from.
#[derive(Debug)]
pub(super) struct Layers {
    /// Only what was given; defaults are not in it.
    pub(super) table: Table,
    /// Dotted key of a leaf -> file or flag.
    origins: BTreeMap<String, String>,
    /// Where everything else came from.
    base: &'static str,
}

impl Layers {
    /// Where the value of `key` came from. A list comes from one place, with all that is in it.
    pub(super) fn origin(&self, key: &str) -> String {
        let key = key.split_once('[').map_or(key, |(list, _)| list);
        let below = format!("{key}.");
        let given = self.origins.iter().find(|(leaf, _)| *leaf == key || leaf.starts_with(&below));
        given.map_or_else(|| self.base.to_owned(), |(_, origin)| origin.clone())
    }

    fn merge(&mut self, layer: Table, origin: &str) {
        merge(&mut self.table, layer, "", &mut |key| {
            self.origins.insert(key, origin.to_owned());
        });
    }
}

/// Reads everything that can be read; the faults name the rest.
pub(super) fn read(files: &[PathBuf], overrides: &[String]) -> (Layers, Vec<Fault>) {
    let mut layers = Layers { table: Table::new(), origins: BTreeMap::new(), base: "the defaults" };
    let mut faults = Vec::new();
    for path in files {
        let name = path.display().to_string();
        let table =
            fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}")).and_then(
                |text| text.parse::<Table>().map_err(|error| format!("is not TOML: {error}")),
            );
        match table {
            Ok(table) => layers.merge(table, &name),
            Err(problem) => faults.push(source_fault(name, problem)),
        }
    }
    for text in overrides {
        apply(&mut layers, &mut faults, text, format!("--set {text}"));
    }
    (layers, faults)
}

/// Changes over a configuration that a run has already.
pub(super) fn over(config: &Config, changes: &[String]) -> (Layers, Vec<Fault>) {
    let base = "the run's configuration";
    let mut faults = Vec::new();
    let table = Table::try_from(config).unwrap_or_else(|error| {
        faults.push(source_fault(base.into(), error.to_string()));
        Table::new()
    });
    let mut layers = Layers { table, origins: BTreeMap::new(), base };
    for text in changes {
        apply(&mut layers, &mut faults, text, text.clone());
    }
    (layers, faults)
}

fn apply(layers: &mut Layers, faults: &mut Vec<Fault>, text: &str, name: String) {
    match parse_override(text) {
        Some(table) => layers.merge(table, &name),
        None => faults.push(source_fault(name, "write KEY=VALUE, as in rl.group_size=16".into())),
    }
}

fn source_fault(subject: String, problem: String) -> Fault {
    Fault { subject, problem: problem.trim_end().to_owned(), origin: String::new() }
}

/// `a.b=c` as the table `{ a = { b = c } }`.
fn parse_override(text: &str) -> Option<Table> {
    let (key, value) = text.split_once('=')?;
    let key = key.trim();
    let mut parts = key.rsplit('.');
    let leaf = parts.next()?;
    if key.split('.').any(|part| part.trim().is_empty()) {
        return None;
    }
    let mut table = Table::from_iter([(leaf.trim().to_owned(), parse_value(key, value.trim()))]);
    for part in parts {
        table = Table::from_iter([(part.trim().to_owned(), Value::Table(table))]);
    }
    Some(table)
}

/// A TOML value where the text is one, else the text itself. Keys that hold text take the text even
/// where it could be read otherwise: `run.name=7` is the name "7".
fn parse_value(key: &str, text: &str) -> Value {
    match text.parse::<Value>() {
        Ok(value) if value.is_str() || !shape::holds_text(key) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// Puts `layer` over `base`, table by table; `note` hears the dotted key of every leaf written.
fn merge(base: &mut Table, layer: Table, prefix: &str, note: &mut dyn FnMut(String)) {
    for (key, value) in layer {
        let path = shape::join(prefix, &key);
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above, &path, note),
            (_, Value::Table(above)) => {
                let mut below = Table::new();
                merge(&mut below, above, &path, note);
                base.insert(key, Value::Table(below));
            }
            (_, value) => {
                base.insert(key, value);
                note(path);
            }
        }
    }
}
