//! `ballast plot`: a run's curves as SVG and PNG, from `metrics.jsonl` and `result.json`.

mod canvas;
mod charts;
mod figure;
mod records;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};

use self::{figure::Figure, records::Records};
use crate::terminal;

/// Suffix of the run that is the SFT-only arm of another one.
const CONTROL_SUFFIX: &str = "-sft-only";

/// Flags of `ballast plot`.
#[derive(Debug, clap::Args)]
pub(crate) struct PlotArgs {
    /// Run directory, for example runs/quickstart-0. If RUN-sft-only lies beside it, its evaluation
    /// is drawn as the control arm.
    run: PathBuf,
}

/// Draws every chart in both formats into RUN/plots.
pub(crate) fn plot(args: &PlotArgs) -> anyhow::Result<ExitCode> {
    let records = Records::read(&args.run)?;
    if records.is_empty() {
        bail!("{} holds no finished step yet", args.run.join(records::METRICS_FILE).display());
    }
    let control = control_arm(&args.run).map(|run| Records::read(&run)).transpose()?;
    let plots = args.run.join("plots");
    fs::create_dir_all(&plots).with_context(|| format!("cannot create {}", plots.display()))?;
    canvas::register_fonts()?;
    for figure in charts::all(&records, control.as_ref()) {
        draw(&figure, &plots)?;
    }
    terminal::say(&format!("plots are in {}", plots.display()));
    Ok(ExitCode::SUCCESS)
}

/// The directory beside `run` that holds its SFT-only arm, once that arm has metrics.
fn control_arm(run: &Path) -> Option<PathBuf> {
    let run = run.canonicalize().ok()?;
    let mut name = run.file_name()?.to_owned();
    name.push(CONTROL_SUFFIX);
    let control = run.with_file_name(name);
    control.join(records::METRICS_FILE).is_file().then_some(control)
}

fn draw(figure: &Figure, plots: &Path) -> anyhow::Result<()> {
    let path = |extension: &str| plots.join(format!("{}.{extension}", figure.name));
    for (file, result) in [
        (path("svg"), canvas::draw_svg(figure, &path("svg"))),
        (path("png"), canvas::draw_png(figure, &path("png"))),
    ] {
        result.with_context(|| format!("cannot draw {}", file.display()))?;
    }
    Ok(())
}
