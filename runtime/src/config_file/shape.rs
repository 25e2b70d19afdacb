//! Which keys exist and what type each holds, judged against the serialized defaults, so that the
//! structs in [`crate::config`] are the only list of keys.

use std::sync::LazyLock;

use toml::{Table, Value};

use super::{Fault, layers::Layers};
use crate::config::{Config, PhaseEnd, SchedulePhase};

/// The defaults as a table: every key there is.
static SCHEMA: LazyLock<Table> = LazyLock::new(|| {
    Table::try_from(Config::default()).expect("the defaults are plain numbers, text and lists")
});

/// Key of the one list whose items are tables.
const PHASES: &str = "schedule.phases";

/// Every key of one of its items, those with no default too.
static PHASE_SCHEMA: LazyLock<Table> = LazyLock::new(|| {
    let until = PhaseEnd { above: Some(0.0), below: Some(0.0), ..PhaseEnd::default() };
    Table::try_from(SchedulePhase { until, ..SchedulePhase::default() })
        .expect("a phase is plain numbers, text and a table")
});

/// `prefix.key`.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// Whether the known key `key` holds text.
pub(super) fn holds_text(key: &str) -> bool {
    let mut parts = key.split('.').map(str::trim);
    let first = parts.next().and_then(|part| SCHEMA.get(part));
    parts
        .try_fold(first, |value, part| value?.get(part).map(Some))
        .flatten()
        .is_some_and(Value::is_str)
}

/// Removes every key that is unknown or of the wrong type, and says why, so that the rest can be
/// deserialized and judged too.
pub(super) fn prune(layers: &mut Layers) -> Vec<Fault> {
    let mut problems = Vec::new();
    prune_table(&mut layers.table, &SCHEMA, "", &mut problems);
    let fault = |(subject, problem): (String, String)| {
        let origin = layers.origin(&subject);
        Fault { subject, problem, origin }
    };
    problems.into_iter().map(fault).collect()
}

fn prune_table(
    table: &mut Table,
    schema: &Table,
    prefix: &str,
    problems: &mut Vec<(String, String)>,
) {
    table.retain(|key, value| {
        let path = join(prefix, key);
        let problem = match (schema.get(key), &mut *value) {
            (None, _) => Some(unknown(key, schema)),
            // A section whose keys the user names.
            (Some(Value::Table(schema)), Value::Table(_)) if schema.is_empty() => None,
            (Some(Value::Table(schema)), Value::Table(below)) => {
                prune_table(below, schema, &path, problems);
                None
            }
            (Some(Value::Table(_)), _) => Some(format!("is a section; write [{path}]")),
            (Some(_), Value::Array(items)) if path == PHASES => {
                prune_phases(items, problems);
                None
            }
            (Some(_), value) => type_problem(&path, value),
        };
        let sound = problem.is_none();
        problems.extend(problem.map(|problem| (path, problem)));
        sound
    });
}

/// The same for each item of the list of phases; `schedule.phases[0]` is the path of the first one.
fn prune_phases(items: &mut Vec<Value>, problems: &mut Vec<(String, String)>) {
    let mut index = 0;
    items.retain_mut(|item| {
        let path = format!("{PHASES}[{index}]");
        index += 1;
        match item {
            Value::Table(phase) => prune_table(phase, &PHASE_SCHEMA, &path, problems),
            _ => problems.push((path, "is no table; write [[schedule.phases]]".into())),
        }
        item.is_table()
    });
}

/// Tries a value alone on top of the defaults: serde's verdict on exactly this key.
fn type_problem(path: &str, value: &Value) -> Option<String> {
    let alone = path.rsplit('.').fold(value.clone(), |value, part| {
        let (name, value) = match part.split_once('[') {
            Some((name, _)) => (name, Value::Array(vec![value])),
            None => (part, value),
        };
        Value::Table(Table::from_iter([(name.to_owned(), value)]))
    });
    let error = alone.try_into::<Config>().err()?;
    Some(error.message().to_owned())
}

fn unknown(key: &str, schema: &Table) -> String {
    match suggest(key, schema) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => {
            let known: Vec<&str> = schema.keys().map(String::as_str).collect();
            format!("unknown key; known here: {}", known.join(", "))
        }
    }
}

/// Whether `text` may have been meant as `known`: at most one edit in three letters.
pub(super) fn is_similar(text: &str, known: &str) -> bool {
    strsim::damerau_levenshtein(text, known) <= known.len().max(3) / 3
}

/// The most similar key at this level, else the same key in another section.
fn suggest(key: &str, level: &Table) -> Option<String> {
    let distance = |known: &str| strsim::damerau_levenshtein(key, known);
    let near = level.keys().min_by_key(|known| distance(known))?;
    if is_similar(key, near) {
        return Some(near.clone());
    }
    let elsewhere = |(section, value): (&String, &Value)| {
        value.as_table()?.contains_key(key).then(|| join(section, key))
    };
    SCHEMA.iter().find_map(elsewhere)
}
