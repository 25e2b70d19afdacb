//! Log lines and panics of a process, on stderr.

use std::{
    io::{self, IsTerminal as _},
    panic,
};

use tracing_subscriber::{EnvFilter, fmt, fmt::format::Format, fmt::time::SystemTime};

/// Environment variable that sets the log level: `debug`, or per module `info,ballast_actor=debug`.
pub const LEVEL_VARIABLE: &str = "BALLAST_LOG";

const LEVEL_DEFAULT: &str = "info";
/// Characters of a panic that are logged: what follows is a library's own backtrace.
const PANIC_CHARS_MAX: usize = 400;

/// Sends log lines to stderr, one compact line each with `role` in it, and panics into the log.
/// A second call changes nothing, so that tests may call it freely.
pub fn init(role: &'static str) {
    let wanted = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_| LEVEL_DEFAULT.to_owned());
    let (filter, fault) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(fault) => (EnvFilter::new(LEVEL_DEFAULT), Some(fault)),
    };
    let format = RoleFormat { role, inner: Format::default().compact().with_target(false) };
    let installed = fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .event_format(format)
        .with_writer(io::stderr)
        .try_init();
    if let Some(fault) = fault {
        tracing::warn!(
            "{LEVEL_VARIABLE}={wanted} is no log level ({fault}); using {LEVEL_DEFAULT}"
        );
    }
    if installed.is_ok() {
        panic::set_hook(Box::new(|info| {
            let text: String = info.to_string().chars().take(PANIC_CHARS_MAX).collect();
            tracing::error!(thread = std::thread::current().name(), "{text}");
        }));
    }
}

/// The compact format behind the name of the role, so that merged logs stay readable.
struct RoleFormat {
    role: &'static str,
    inner: Format<fmt::format::Compact, SystemTime>,
}

impl<S, N> fmt::FormatEvent<S, N> for RoleFormat
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    N: for<'a> fmt::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &fmt::FmtContext<'_, S, N>,
        mut writer: fmt::format::Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        write!(writer, "{} ", self.role)?;
        self.inner.format_event(context, writer, event)
    }
}
