//! Lines on stdout and stderr. A reader that has gone (`ballast watch | head`) is no error.

use std::io::{self, Write as _};

/// Writes a line to stdout; false when nobody reads it any more.
pub(crate) fn say(line: &str) -> bool {
    writeln!(io::stdout(), "{line}").is_ok()
}

/// Writes a line to stderr.
pub(crate) fn complain(line: &str) {
    // Nothing is left to tell when stderr is gone.
    drop(writeln!(io::stderr(), "{line}"));
}
