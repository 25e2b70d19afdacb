//! Signals that end a process: the first asks it to drain, the second ends it at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code after a second signal, the shell's convention for "ended by Ctrl-C" (128 + SIGINT).
pub const EXIT_CODE_ABORTED: i32 = 130;

/// Listens for SIGINT and SIGTERM while the process runs.
#[derive(Clone, Debug)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Starts listening; call it once, inside the async runtime, before anything is served.
    ///
    /// # Errors
    /// The system refuses to install a signal handler.
    pub fn listen() -> io::Result<Self> {
        let mut signals = Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        };
        let token = CancellationToken::new();
        let drain = token.clone();
        tokio::spawn(async move {
            let name = signals.next().await;
            tracing::info!("{name}: draining; a second signal ends the process at once");
            drain.cancel();
            let name = signals.next().await;
            tracing::warn!("{name} again: ending at once");
            abort();
        });
        Ok(Self { token })
    }

    /// A token that is cancelled by the first signal, or by [`Shutdown::request`].
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Asks this process to drain, as the first signal does.
    pub fn request(&self) {
        self.token.cancel();
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Waits for either signal; both receivers are cancel-safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the second signal means: do not wait for destructors"
)]
fn abort() {
    std::process::exit(EXIT_CODE_ABORTED);
}
