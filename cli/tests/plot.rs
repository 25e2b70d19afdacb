//! `ballast plot` over a run directory on disk.

use std::{fs, path::Path, process::Command};

fn write_run(directory: &Path, lines: &[&str]) {
    fs::create_dir_all(directory).expect("a run directory");
    fs::write(directory.join("metrics.jsonl"), lines.join("\n")).expect("metrics");
}

/// Runs `ballast plot`: whether it succeeded, and its stderr.
fn plot(run: &Path) -> (bool, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_ballast")).arg("plot").arg(run).output().expect("ballast");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_figure_is_drawn_in_both_formats() {
    let runs = tempfile::tempdir().expect("a temporary directory");
    let run = runs.path().join("demo");
    write_run(
        &run,
        &[
            r#"{"t":1,"step":1,"kind":"sft","loss/cross_entropy":2.5,"train/gradient_norm":0.5}"#,
            r#"{"t":2,"step":1,"kind":"evaluation","name":"after_cold_start","episodes":10,"successes":4}"#,
            r#"{"t":3,"step":2,"kind":"rl","rollout/success":0.5,"rollout/control_token_mass":0}"#,
            r#"{"t":4,"step":3,"kind":"rl","rollout/success":0.625,"rollout/tokens_per_s":3000}"#,
            r#"{"t":5,"step":3,"kind":"evaluation","name":"final","episodes":10,"successes":8}"#,
            r#"{"t":6,"st"#,
        ],
    );
    let final_line =
        r#"{"t":9,"step":2,"kind":"evaluation","name":"final","episodes":10,"successes":5}"#;
    write_run(&runs.path().join("demo-sft-only"), &[final_line]);
    let (success, stderr) = plot(&run);
    assert!(success, "{stderr}");
    for (figure, text) in [
        ("success", "held-out tasks, SFT only"),
        ("success", "cold start"),
        ("structure", "Tool calls per episode"),
        ("optimisation", "optimizer step"),
        ("throughput", "no data"),
    ] {
        let svg = fs::read_to_string(run.join("plots").join(format!("{figure}.svg")));
        assert!(svg.expect(figure).contains(text), "{figure}: {text}");
        let png = fs::read(run.join("plots").join(format!("{figure}.png"))).expect(figure);
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{figure}");
    }
}

#[test]
fn a_directory_without_metrics_is_named() {
    let runs = tempfile::tempdir().expect("a temporary directory");
    let (success, stderr) = plot(runs.path());
    assert!(!success && stderr.contains("no metrics.jsonl"), "{stderr}");
    write_run(runs.path(), &[]);
    let (success, stderr) = plot(runs.path());
    assert!(!success && stderr.contains("no finished step"), "{stderr}");
}
