//! Which curves a run is shown by.

use super::{
    figure::{Figure, Hue, Marks, Panel, Scale, Series},
    records::{Evaluation, Records, moving_mean},
};

/// Steps one point of a smoothed curve is the mean of; odd, so that it is centred.
const WINDOW: usize = 9;

/// All figures of a run; `control` is its SFT-only arm.
pub(super) fn all(run: &Records, control: Option<&Records>) -> [Figure; 4] {
    [success(run, control), structure(run), optimisation(run), throughput(run)]
}

fn figure(
    run: &Records,
    name: &'static str,
    title: &'static str,
    columns: usize,
    panels: Vec<Panel>,
) -> Figure {
    let (last_step, cold_start_step) = (run.last_step(), run.cold_start_step);
    Figure { name, title, columns, panels, last_step, cold_start_step }
}

fn success(run: &Records, control: Option<&Records>) -> Figure {
    let rollout = run.series("rollout/success");
    let line = |label, hue, points| Series { label, hue, marks: Marks::Line(points) };
    let mut series = vec![
        Series {
            label: "rollouts, each batch",
            hue: Hue::Blue,
            marks: Marks::Dots(rollout.clone()),
        },
        line("rollouts, mean of 9 batches", Hue::Blue, moving_mean(&rollout, WINDOW)),
        evaluations("cold-start checks", Hue::Grey, run, 0.0, |name| name == "cold_start_check"),
        evaluations("held-out tasks", Hue::Vermilion, run, 0.0, |name| name != "cold_start_check"),
    ];
    if let Some(control) = control {
        // The arm counts its steps from the checkpoint it started at: the end of the cold start.
        let offset = run.cold_start_step.unwrap_or(0.0);
        let arm = evaluations("held-out tasks, SFT only", Hue::Green, control, offset, |_| true);
        series.push(arm);
    }
    let panel = Panel { title: "Success rate (bars: 95% interval)", scale: Scale::Share, series };
    figure(run, "success", "Success", 1, vec![panel])
}

fn evaluations(
    label: &'static str,
    hue: Hue,
    run: &Records,
    offset: f64,
    wanted: impl Fn(&str) -> bool,
) -> Series {
    let point = |one: Evaluation| (one.step + offset, one.interval.0, one.success, one.interval.1);
    let points = run.evaluations().into_iter().filter(|one| wanted(&one.name)).map(point);
    Series { label, hue, marks: Marks::Intervals(points.collect()) }
}

fn structure(run: &Records) -> Figure {
    let panels = vec![
        curve(run, "rollout/invalid_call_rate", "Messages with an invalid call", Scale::SmallShare),
        curve(run, "rollout/polluted_rate", "Polluted or collapsed messages", Scale::SmallShare),
        curve(
            run,
            "rollout/control_token_mass",
            "Control-token mass where the grammar forbids it",
            Scale::Log,
        ),
        curve(run, "rollout/calls_mean", "Tool calls per episode", Scale::FromZero),
    ];
    figure(run, "structure", "Structure", 2, panels)
}

fn optimisation(run: &Records) -> Figure {
    let panels = vec![
        curve(run, "loss/policy_gradient", "Policy-gradient loss (RL steps)", Scale::Free),
        curve(
            run,
            "loss/cross_entropy",
            "Cross-entropy (SFT steps), nats per token",
            Scale::FromZero,
        ),
        curve(run, "train/gradient_norm", "Gradient norm before clipping", Scale::FromZero),
        curve(run, "train/entropy", "Entropy, nats per token", Scale::FromZero),
        curve(run, "train/behavior_kl", "KL(behaviour || learner), nats per token", Scale::Free),
        curve(run, "train/clip_fraction", "Tokens with a clipped ratio", Scale::SmallShare),
    ];
    figure(run, "optimisation", "Optimisation", 2, panels)
}

fn throughput(run: &Records) -> Figure {
    let panels = vec![
        curve(run, "rollout/tokens_per_s", "Rollout, sampled tokens per second", Scale::FromZero),
        curve(run, "train/tokens_per_s", "Training, tokens per second", Scale::FromZero),
        curve(run, "actor/idle_share", "Idle time of the actors", Scale::Share),
        curve(
            run,
            "rollout/staleness_max",
            "Staleness of the oldest token, versions",
            Scale::FromZero,
        ),
    ];
    figure(run, "throughput", "Throughput", 2, panels)
}

/// One metric: every step as a dot, and the moving mean.
fn curve(run: &Records, metric: &str, title: &'static str, scale: Scale) -> Panel {
    let points = run.series(metric);
    let mean = Marks::Line(moving_mean(&points, WINDOW));
    let series = vec![
        Series { label: "", hue: Hue::Blue, marks: Marks::Dots(points) },
        Series { label: "", hue: Hue::Blue, marks: mean },
    ];
    Panel { title, scale, series }
}
