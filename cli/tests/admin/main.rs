//! The admin commands against an admin service in this process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod asking;
mod changes;
#[path = "../fake/mod.rs"]
mod fake;
mod views;

use std::process::Stdio;

/// What a `ballast` left behind.
struct Ran {
    success: bool,
    stdout: String,
    stderr: String,
}

/// Runs `ballast` as the user `ada`.
async fn ballast(args: &[&str]) -> Ran {
    ballast_as(&[("USER", "ada")], args).await
}

/// Runs `ballast` with nothing but these in its environment.
async fn ballast_as(environment: &[(&str, &str)], args: &[&str]) -> Ran {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(args)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("ballast");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran {
        success: output.status.success(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

impl Ran {
    /// Its stdout, after a success.
    fn out(self) -> String {
        assert!(self.success, "{}", self.stderr);
        self.stdout
    }

    /// Its stdout as one JSON object, after a success.
    fn json(self) -> serde_json::Value {
        let out = self.out();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// Its stderr, after a failure.
    fn error(self) -> String {
        assert!(!self.success, "it succeeded: {}", self.stdout);
        self.stderr
    }
}

/// Asserts that each of the texts is a part of the whole.
#[track_caller]
fn assert_contains(whole: &str, parts: &[&str]) {
    for part in parts {
        assert!(whole.contains(part), "{part:?} is not in\n{whole}");
    }
}
