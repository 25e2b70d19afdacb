//! House rules that no other tool checks: file sizes, notes with an issue number, ASCII, and
//! dependencies that are confined to one file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;
use crate::command;

/// Lines of a Rust file, its inline tests apart, above which it is about more than one thing.
const LINES_MAX: usize = 500;

/// Endings of the files that are text of ours.
const SOURCES: &[&str] = &[".rs", ".proto", ".toml", ".py", ".md", ".yaml"];

/// A note in the code. Spelled so that this file holds none.
const NOTE: &str = concat!("TO", "DO");

/// A crate that a single file may use, so that what is behind it can be exchanged.
const CONFINED: &str = concat!("etcd_", "client::");

/// Fails with every rule that a file breaks.
pub(super) fn check(checkout: &Checkout) -> Result<()> {
    let mut git = command::program(checkout, "git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let listed = command::stdout(&mut git)?;
    let mut faults = Vec::new();
    let mut confined = Vec::new();
    for path in listed.split('\0').filter(|path| SOURCES.iter().any(|end| path.ends_with(end))) {
        let place = checkout.root().join(path);
        // Git also lists what was deleted but not yet recorded.
        if !place.is_file() {
            continue;
        }
        let text = read(&place)?;
        faults.extend(faults_of(path, &text));
        if path.ends_with(".rs") && text.contains(CONFINED) {
            confined.push(path);
        }
    }
    if confined.len() > 1 {
        faults.push(format!("{CONFINED} belongs in one file: {}", confined.join(", ")));
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

fn read(place: &Path) -> Result<String> {
    fs::read_to_string(place).with_context(|| format!("cannot read {}", place.display()))
}

/// What one file breaks on its own.
fn faults_of(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if !line.is_ascii() {
            faults.push(format!("{path}:{number}: a character that is not ASCII"));
        }
        if !path.ends_with(".md") && has_loose_note(line) {
            faults.push(format!("{path}:{number}: {NOTE} without an issue: write {NOTE}(#12)"));
        }
    }
    let lines = code_lines(path, text);
    if lines > LINES_MAX {
        faults.push(format!("{path}: {lines} lines of code, and {LINES_MAX} are the limit"));
    }
    faults
}

/// Whether a note in the line lacks its issue number.
fn has_loose_note(line: &str) -> bool {
    line.match_indices(NOTE).any(|(at, _)| {
        let rest = &line[at + NOTE.len()..];
        let number = rest.strip_prefix("(#").and_then(|rest| rest.split_once(')'));
        number.is_none_or(|(digits, _)| digits.parse::<u32>().is_err())
    })
}

/// Lines of a Rust file outside its tests; 0 for a file of tests or of another language.
fn code_lines(path: &str, text: &str) -> usize {
    let tests =
        path.contains("/tests/") || path.ends_with("tests.rs") || path.ends_with("_test.rs");
    if !path.ends_with(".rs") || tests {
        return 0;
    }
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_needs_an_issue_number() {
        assert!(has_loose_note(&format!("// {NOTE}: later")));
        assert!(has_loose_note(&format!("// {NOTE}(someone): later")));
        assert!(!has_loose_note(&format!("// {NOTE}(#12): later")));
        assert!(!has_loose_note("// nothing to do"));
    }

    #[test]
    fn tests_do_not_count_as_code() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(code_lines("src/a.rs", text), 1);
        assert_eq!(code_lines("src/a/tests.rs", text), 0);
        assert_eq!(code_lines("actor/tests/a.rs", text), 0);
    }

    #[test]
    fn long_and_foreign_text_is_reported_with_its_place() {
        let long = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(faults_of("a.rs", &long), ["a.rs: 501 lines of code, and 500 are the limit"]);
        assert_eq!(
            faults_of("a.md", "ok\nna\u{ef}ve\n"),
            ["a.md:2: a character that is not ASCII"]
        );
    }
}
