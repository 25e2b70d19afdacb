//! From files and flags to a checked [`Config`]: layers, overrides, and every fault at once.
//!
//! 1. `layers` merges the files in order and then the `--set` overrides, remembering for each key
//!    where its value came from.
//! 2. `shape` compares the result with the defaults: unknown keys, wrong types.
//! 3. `check` looks at what the values mean: ranges, and keys that contradict each other.

mod check;
mod layers;
mod shape;

use std::{ffi::OsString, fmt, path::PathBuf};

pub use check::PHASE_END_METRICS;

use self::layers::Layers;
use crate::config::Config;

/// Flags with which every process takes its configuration; flatten it into the process' own.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArgs {
    /// TOML file with the run's configuration; repeat it to layer files, the last one wins.
    #[arg(long = "config", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Override one key, for example `--set rl.group_size=16`; repeatable, wins over all files.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the configuration with all defaults filled in, and exit.
    #[arg(long)]
    pub dry_run: bool,
}

impl ConfigArgs {
    /// The configuration these flags describe.
    ///
    /// # Errors
    /// All faults of the files and overrides together.
    pub fn load(&self) -> Result<Config, ConfigError> {
        load(&self.files, &self.overrides)
    }

    /// The same flags again, to hand them to a child process; without `--dry-run`.
    #[must_use]
    pub fn to_args(&self) -> Vec<OsString> {
        let files = self.files.iter().flat_map(|file| ["--config".into(), file.into()]);
        let overrides = self.overrides.iter().flat_map(|set| ["--set".into(), set.into()]);
        files.chain(overrides).collect()
    }
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key (`rl.group_size`), or the file or flag when that cannot be read at all.
    pub subject: String,
    /// What is wrong and what is allowed.
    pub problem: String,
    /// File or flag it came from; empty when `subject` is that already.
    pub origin: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.problem)?;
        if self.origin.is_empty() { Ok(()) } else { write!(f, " (from {})", self.origin) }
    }
}

/// Everything that is wrong with the configuration, at least one fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// In the order of the keys.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.as_slice() {
            [fault] => write!(f, "the configuration has a fault\n  {fault}"),
            faults => {
                write!(f, "the configuration has {} faults", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

/// Reads `files` in order, the last one wins, then applies `overrides` (`a.b=c`, where `c` is a
/// TOML value or a bare word), and checks the result.
///
/// # Errors
/// All faults together, each with its key, what is allowed and where it came from.
pub fn load(files: &[PathBuf], overrides: &[String]) -> Result<Config, ConfigError> {
    let (layers, faults) = layers::read(files, overrides);
    resolve(layers, faults)
}

/// A running configuration with some keys changed, checked as a whole. `changes` are KEY=VALUE as in
/// `overrides`.
///
/// # Errors
/// All faults together, as from [`load`].
pub fn change(config: &Config, changes: &[String]) -> Result<Config, ConfigError> {
    let (layers, faults) = layers::over(config, changes);
    resolve(layers, faults)
}

/// A whole configuration from its text, as [`to_toml`] writes it.
///
/// # Errors
/// The text is not one, for example because another version of the program wrote it.
pub fn from_toml(text: &str) -> Result<Config, toml::de::Error> {
    toml::from_str(text)
}

fn resolve(mut layers: Layers, mut faults: Vec<Fault>) -> Result<Config, ConfigError> {
    faults.extend(shape::prune(&mut layers));
    // What is left deserializes: `shape` tried every key by itself.
    let config: Config = match layers.table.clone().try_into() {
        Ok(config) => config,
        Err(error) => {
            faults.push(Fault {
                subject: "configuration".into(),
                problem: error.to_string(),
                origin: String::new(),
            });
            Config::default()
        }
    };
    let known: Vec<String> = faults.iter().map(|fault| fault.subject.clone()).collect();
    let meaning = check::check(&config).into_iter().filter(|fault| !known.contains(&fault.subject));
    faults.extend(meaning.map(|fault| Fault { origin: layers.origin(&fault.subject), ..fault }));
    if faults.is_empty() { Ok(config) } else { Err(ConfigError { faults }) }
}

/// The whole configuration as TOML, defaults included: what a run directory keeps.
#[must_use]
pub fn to_toml(config: &Config) -> String {
    // A u64 beyond TOML's i64 is the only value that does not fit, and `check` refuses it.
    toml::to_string_pretty(config).unwrap_or_else(|error| format!("# not writable: {error}\n"))
}

/// One section of the configuration as TOML, under its heading; empty if there is no such section.
#[must_use]
pub fn section_to_toml(config: &Config, section: &str) -> String {
    let table = toml::Table::try_from(config).unwrap_or_default();
    let only = table.into_iter().filter(|(key, _)| key == section);
    toml::to_string_pretty(&only.collect::<toml::Table>()).unwrap_or_default()
}

/// A key that has another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key, as in `rl.group_size`.
    pub key: String,
    /// Its value in the one configuration, as TOML; "absent" if it has none.
    pub before: String,
    /// And in the other.
    pub after: String,
}

/// The keys in which two configurations differ, in their order.
#[must_use]
pub fn differences(before: &Config, after: &Config) -> Vec<Difference> {
    let table = |config| toml::Table::try_from(config).map(toml::Value::Table);
    let (Ok(before), Ok(after)) = (table(before), table(after)) else { return Vec::new() };
    let mut found = Vec::new();
    compare("", Some(&before), Some(&after), &mut found);
    found
}

fn compare(
    key: &str,
    before: Option<&toml::Value>,
    after: Option<&toml::Value>,
    found: &mut Vec<Difference>,
) {
    if let (Some(toml::Value::Table(before)), Some(toml::Value::Table(after))) = (before, after) {
        let new = after.keys().filter(|name| !before.contains_key(*name));
        for name in before.keys().chain(new) {
            let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            compare(&inner, before.get(name), after.get(name), found);
        }
    } else if before != after {
        let say = |value: Option<&toml::Value>| value.map_or("absent".into(), ToString::to_string);
        found.push(Difference { key: key.to_owned(), before: say(before), after: say(after) });
    }
}

/// The keys that begin with one of these, as TOML under their headings. A prefix is a key
/// (`rl.learning_rate`) or a section (`schedule.`).
#[must_use]
pub fn keys_to_toml(config: &Config, prefixes: &[&str]) -> String {
    let mut table = toml::Table::try_from(config).unwrap_or_default();
    for (section, values) in table.iter_mut() {
        if let (toml::Value::Table(values), false) =
            (values, prefixes.contains(&format!("{section}.").as_str()))
        {
            values.retain(|key, _| prefixes.contains(&format!("{section}.{key}").as_str()));
        }
    }
    table.retain(|_, values| values.as_table().is_some_and(|table| !table.is_empty()));
    toml::to_string_pretty(&table).unwrap_or_default()
}

#[cfg(test)]
mod tests;
