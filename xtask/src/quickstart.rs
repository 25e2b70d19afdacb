//! `cargo xtask quickstart`: a real run on this machine, beside what its demonstrations alone buy.
//!
//! Two arms share the cold start. The first goes on with RL interleaved with SFT; the second starts
//! from the checkpoint where the first one's cold start ended, and does as many optimizer steps of
//! SFT. Both are evaluated on the same held-out tasks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::checkout::Checkout;
use crate::{command, machine, setup};

mod summary;

use summary::{Arms, Cluster, RunResult, Summary};

/// The run's configuration, relative to the checkout.
const CONFIG: &str = "examples/market/quickstart.toml";

/// Names tried for a run that was given none.
const NAMES_MAX: u32 = 1000;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seed of everything random: tasks, sampling, batch order.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Name of the run, and of its directory under runs/ [default: quickstart-SEED].
    #[arg(long)]
    run: Option<String>,
    /// Print lines instead of progress bars.
    #[arg(long)]
    plain: bool,
}

/// Sets up, builds, trains both arms, and writes the comparison.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    let name = run_name(checkout, options)?;
    setup::run(checkout)?;
    println!("building the programs (the first time takes some minutes)");
    command::run(command::cargo(checkout).args(["build", "--quiet"]))?;

    let start = Instant::now();
    let up = Up { checkout, options };
    println!("training {name}: cold start, then RL interleaved with SFT");
    let main = up.train(&name, &[])?;
    let branch = main.0.cold_start_checkpoint()?;
    let control = control_name(&name);
    println!("training {control}: SFT alone from the same cold start, as many steps");
    let control = up.train(&control, &control_overrides(&main.0, branch))?;

    let directory = checkout.run_directory(&name);
    let arms = Arms { main, control };
    let summary = Summary::new(&arms, start.elapsed().as_secs_f64(), machine::describe())?;
    let path = directory.join("summary.json");
    fs::write(&path, serde_json::to_string_pretty(&summary)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut plot = command::program(checkout, checkout.program("ballast"));
    command::run(plot.arg("plot").arg(&directory))?;
    println!("\n{}\n", summary::table(&arms)?);
    println!("{}", summary.closing_lines(&Path::new("runs").join(&name)));
    Ok(())
}

/// The wanted name, or the first free one. Both arms' directories must be free.
fn run_name(checkout: &Checkout, options: &Options) -> Result<String> {
    let free = |name: &str| {
        !checkout.run_directory(name).exists()
            && !checkout.run_directory(&control_name(name)).exists()
    };
    if let Some(name) = &options.run {
        if !free(name) {
            bail!(
                "there already is a run named {name} under runs/: choose another with --run, or \
                 remove runs/{name} and runs/{}",
                control_name(name)
            );
        }
        return Ok(name.clone());
    }
    let first = format!("quickstart-{}", options.seed);
    let later = (2..NAMES_MAX).map(|count| format!("{first}-{count}"));
    let mut names = std::iter::once(first.clone()).chain(later);
    names.find(|name| free(name)).context("runs/ is full of quickstarts: remove some")
}

/// Name of the arm that does SFT only.
fn control_name(name: &str) -> String {
    format!("{name}-sft-only")
}

/// What the SFT-only arm changes in the configuration.
fn control_overrides(main: &RunResult, checkpoint: &Path) -> [String; 4] {
    [
        "schedule.kind=sft_only".into(),
        format!("schedule.steps={}", main.steps_after_cold_start()),
        "schedule.cold_start_steps_max=0".into(),
        format!("model.checkpoint={}", checkpoint.display()),
    ]
}

/// Starts clusters.
struct Up<'a> {
    checkout: &'a Checkout,
    options: &'a Options,
}

impl Up<'_> {
    /// Runs a cluster until its run is complete, and reads what it left.
    fn train(&self, name: &str, overrides: &[String]) -> Result<(RunResult, Cluster)> {
        let mut up = command::program(self.checkout, self.checkout.program("ballast"));
        up.args(["up", "--config", CONFIG]);
        up.args(["--set", &format!("run.name={name}")]);
        up.args(["--set", &format!("run.seed={}", self.options.seed)]);
        for setting in overrides {
            up.args(["--set", setting]);
        }
        if self.options.plain {
            up.arg("--plain");
        }
        command::run(&mut up).with_context(|| {
            format!("the run did not complete; its logs are in runs/{name}/logs")
        })?;
        let directory = self.checkout.run_directory(name);
        Ok((read(directory.join("result.json"))?, read(directory.join("cluster.json"))?))
    }
}

fn read<T: DeserializeOwned>(path: PathBuf) -> Result<T> {
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not as expected", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(run: Option<&str>) -> Options {
        Options { seed: 3, run: run.map(str::to_owned), plain: true }
    }

    #[test]
    fn a_taken_default_name_gets_a_number() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkout = Checkout::at(folder.path());
        let name = || run_name(&checkout, &options(None)).expect("a free name");
        assert_eq!(name(), "quickstart-3");
        fs::create_dir_all(checkout.run_directory("quickstart-3")).expect("writable");
        assert_eq!(name(), "quickstart-3-2");
        fs::create_dir_all(checkout.run_directory("quickstart-3-2-sft-only")).expect("writable");
        assert_eq!(name(), "quickstart-3-3");
    }

    #[test]
    fn a_taken_name_that_was_asked_for_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkout = Checkout::at(folder.path());
        fs::create_dir_all(checkout.run_directory("mine")).expect("writable");
        let error = run_name(&checkout, &options(Some("mine"))).expect_err("it is taken");
        assert!(error.to_string().contains("--run"), "{error}");
    }
}
