//! Lines on stdout and stderr. A reader that has gone (`ballast watch | head`) is no error.
//!
//! What people see may quote what a model wrote, so no control character reaches their terminal.

use std::io::{self, Write as _};

/// Writes lines for people to stdout; false when nobody reads them any more.
pub(crate) fn say(lines: &str) -> bool {
    emit(&without_control(lines, |c| c == '\n'))
}

/// Writes a line for programs to stdout as it is; false when nobody reads it any more.
pub(crate) fn emit(line: &str) -> bool {
    writeln!(io::stdout(), "{line}").is_ok()
}

/// Writes lines to stderr.
pub(crate) fn complain(lines: &str) {
    // Nothing is left to tell when stderr is gone.
    drop(writeln!(io::stderr(), "{}", without_control(lines, |c| c == '\n')));
}

/// Any text as a part of one line.
pub(crate) fn one_line(text: &str) -> String {
    without_control(text, |_| false)
}

/// The text with its control characters spelled out, except those that are `allowed`.
fn without_control(text: &str, allowed: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !allowed(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out() {
        assert_eq!(one_line("a\tb\r\n\u{1b}[31m\u{9b}m"), "a\\tb\\r\\n\\u{1b}[31m\\u{9b}m");
        assert_eq!(without_control("a\nb\u{7}", |c| c == '\n'), "a\nb\\u{7}");
        // A backslash of the text's own stays as it is: this is for reading, not for parsing.
        assert_eq!(one_line(r"C:\n, gr\u00fc\u00df"), r"C:\n, gr\u00fc\u00df");
    }
}
