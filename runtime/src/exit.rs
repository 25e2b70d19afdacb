//! How a process ends after an error: one line that says what is wrong, and an exit code that says
//! whether starting it again could help.

use std::{error::Error, process::ExitCode};

/// Exit code of a process that cannot work with what it was given: a bad key, a damaged checkpoint,
/// an absent device. Starting it again would end the same way. EX_CONFIG of sysexits.h.
pub const CODE_UNUSABLE: u8 = 78;

/// Marks an error after which starting the process again would not help.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unusable(Box<dyn Error + Send + Sync>);

/// Marks `error`; use it as `.map_err(unusable)`.
pub fn unusable(error: impl Into<Box<dyn Error + Send + Sync>>) -> Unusable {
    Unusable(error.into())
}

/// Says on stderr why the process ends, and returns the code for `main`.
#[must_use]
pub fn failure(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("error: {}", describe(error));
    if chain(error).any(|cause| cause.is::<Unusable>()) {
        ExitCode::from(CODE_UNUSABLE)
    } else {
        ExitCode::FAILURE
    }
}

/// The error and its causes on one line, without those that the text before already tells.
#[must_use]
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in chain(error).skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot read x: {0}")]
        Quoting(#[source] io::Error),
        #[error("cannot read x")]
        Silent(#[source] io::Error),
    }

    #[test]
    fn a_cause_is_told_once() {
        for outer in [Outer::Quoting, Outer::Silent] {
            let error = outer(io::Error::other("gone"));
            assert_eq!(describe(&error), "cannot read x: gone");
        }
    }

    #[test]
    fn the_code_tells_whether_starting_again_could_help() {
        let code = |error: &(dyn Error + 'static)| format!("{:?}", failure(error));
        let fault = || io::Error::other("no such device");
        assert_eq!(code(&fault()), format!("{:?}", ExitCode::FAILURE));
        let marked = unusable(fault());
        assert_eq!(marked.to_string(), "no such device");
        assert_eq!(code(&marked), format!("{:?}", ExitCode::from(CODE_UNUSABLE)));
    }
}
