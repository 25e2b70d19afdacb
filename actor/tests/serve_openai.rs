//! The official `openai` client against `ballast-actor serve`.
//!
//! Needs a Python with the package `openai`: the one of the peers' environment, or the one that
//! `BALLAST_PYTHON` names. Where there is none the test says so and passes.

#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "here another client speaks HTTP")]
mod support;

use std::process::Command;

use support::Server;

const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/python/bin/python");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");

#[test]
fn the_official_client_converses_over_two_tools() {
    let python = std::env::var("BALLAST_PYTHON").unwrap_or_else(|_| PYTHON.to_owned());
    let has_client = Command::new(&python).args(["-c", "import openai"]).output();
    if !has_client.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no package `openai`");
        return;
    }
    let server = Server::start(&[]);
    let url = format!("http://{}/v1", server.address);
    let output = Command::new(python).args([SCRIPT, &url, "market"]).output().unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.starts_with("ok: "), "{stdout}{stderr}");
}
