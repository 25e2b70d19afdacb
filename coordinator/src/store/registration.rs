//! Registers a member, and keeps it registered while it lives.
//!
//! A process that keeps its name over restarts has a larger generation each time. The larger one
//! takes the name over, and the older one is told.

use std::{sync::Arc, time::Duration};

use ballast_runtime::backoff::Backoff;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Store, StoreError,
    entry::{Entry, Expect, Guard, LeaseId, Outcome, Put},
    keys::Keys,
    lease::attempt_max,
    membership::{Member, Record},
    outage::Outage,
};

/// Longest wait of a registration for a store that does not answer.
const REGISTER_MAX: Duration = Duration::from_secs(30);
/// Longest wait for the store when a member leaves.
const LEAVE_MAX: Duration = Duration::from_secs(2);
const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A member shows that it lives, and looks whether its name is still its own, this often in the time
/// to live of its lease.
const SIGNS_PER_TTL: u32 = 3;

/// What a member makes of what stands under its key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Its own entry, as it put it.
    Registered,
    /// To be put, if nothing changes in between.
    Register(Expect),
    /// The name belongs to another.
    Superseded { registered: u64, address: String },
}

/// Decides for `member`, who put `own` last. An entry that cannot be read is older than anybody.
fn judge(member: &Member, own: Option<LeaseId>, found: Option<&Entry>) -> Verdict {
    let Some(entry) = found else { return Verdict::Register(Expect::Absent) };
    if own.is_some() && entry.lease == own {
        return Verdict::Registered;
    }
    let replace = Verdict::Register(Expect::Modified(entry.modified));
    let Ok(record) = serde_json::from_slice::<Record>(&entry.value) else { return replace };
    let Record { generation, address } = record;
    // The same process after its lease ran out, or after an answer that it never got.
    let is_same = generation == member.generation.0 && address == member.address;
    if is_same || generation < member.generation.0 {
        return replace;
    }
    Verdict::Superseded { registered: generation, address }
}

/// A member's place, until a newer generation takes it. Dropping it leaves, in the background.
#[derive(Debug)]
pub struct Registration {
    lost: CancellationToken,
    over: CancellationToken,
    leave: DropGuard,
}

impl Registration {
    /// Cancelled when the place is lost for good: another process has taken the name over, or the
    /// store refuses. This process is to end then. An outage of the store does not cancel it; the
    /// member is registered again afterwards.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Leaves, and waits until the store knows it, or has not answered for a while.
    pub async fn leave(self) {
        let Self { over, leave, .. } = self;
        drop(leave);
        if timeout(LEAVE_MAX, over.cancelled()).await.is_err() {
            tracing::warn!("the store does not answer; the registration ends with its lease");
        }
    }
}

/// Registers `member` and keeps it registered.
pub(super) async fn register(
    store: Arc<dyn Store>,
    keys: &Keys,
    member: Member,
    ttl: Duration,
    seed: u64,
) -> Result<Registration, StoreError> {
    let key = keys.member(&member.role, &member.id)?;
    let (lost, leaving) = (CancellationToken::new(), CancellationToken::new());
    let over = CancellationToken::new();
    let (first, registered) = oneshot::channel();
    let registrar = Registrar {
        value: member.value()?,
        store,
        key,
        member,
        ttl,
        lost: lost.clone(),
        backoff: Backoff::new(RETRY_INITIAL, RETRY_MAX, seed),
        outage: Outage::default(),
        lease: None,
        failure: StoreError::LeaseGone,
    };
    let leave = leaving.clone().drop_guard();
    let task_over = over.clone().drop_guard();
    tokio::spawn(async move {
        Box::pin(registrar.run(leaving, first)).await;
        drop(task_over);
    });
    // The registrar answers, or the runtime ends and this future with it.
    registered.await.unwrap_or(Err(StoreError::LeaseGone))?;
    Ok(Registration { lost, over, leave })
}

struct Registrar {
    store: Arc<dyn Store>,
    key: String,
    value: Vec<u8>,
    member: Member,
    ttl: Duration,
    lost: CancellationToken,
    backoff: Backoff,
    outage: Outage,
    /// The newest lease that the entry was put under.
    lease: Option<LeaseId>,
    /// What failed last.
    failure: StoreError,
}

impl Registrar {
    async fn run(
        mut self,
        leaving: CancellationToken,
        first: oneshot::Sender<Result<(), StoreError>>,
    ) {
        let registered = tokio::select! {
            biased;
            () = leaving.cancelled() => None,
            registered = timeout(REGISTER_MAX, self.enter()) => Some(registered),
        };
        // Out of time, with what was in the way.
        let registered = registered.map(|done| done.unwrap_or_else(|_| Err(self.failure.clone())));
        let goes_on = matches!(registered, Some(Ok(())));
        if let Some(registered) = registered {
            // Whoever waited for it may be gone: then `leaving` is cancelled too.
            let _gone = first.send(registered);
        }
        if goes_on {
            tokio::select! {
                biased;
                () = leaving.cancelled() => {}
                error = self.stay() => self.end(&error),
            }
        }
        self.revoke().await;
    }

    /// Shows again and again that it lives, until an error that time does not heal.
    async fn stay(&mut self) -> StoreError {
        loop {
            sleep(self.ttl / SIGNS_PER_TTL).await;
            if let Err(error) = self.enter().await {
                return error;
            }
        }
    }

    /// Tries until it is registered, or cannot be.
    async fn enter(&mut self) -> Result<(), StoreError> {
        let what = format!("registering {} {}", self.member.role, self.member.id);
        loop {
            match self.show().await {
                Ok(true) => {
                    self.outage.over(&what);
                    self.backoff.reset();
                    return Ok(());
                }
                // Another write came first: look again.
                Ok(false) => {}
                Err(error) if error.is_transient() => {
                    self.outage.failed(&what, &error);
                    self.failure = error;
                }
                Err(error) => return Err(error),
            }
            sleep(self.backoff.next_delay()).await;
        }
    }

    /// Keeps the lease alive, and puts the entry where it is not there. Returns whether it is.
    async fn show(&mut self) -> Result<bool, StoreError> {
        if let Some(lease) = self.lease {
            match timeout(attempt_max(self.ttl), self.store.keep_alive(lease)).await {
                Ok(Err(StoreError::LeaseGone)) => self.lease = None,
                Ok(kept) => kept?,
                // The reading below will say what is wrong, if it is not only slow.
                Err(_late) => {}
            }
        }
        let snapshot = self.store.read(&self.key).await?;
        match judge(&self.member, self.lease, snapshot.entries.get(&self.key)) {
            Verdict::Registered => Ok(true),
            Verdict::Register(expect) => self.put(expect).await,
            Verdict::Superseded { registered, address } => Err(StoreError::Superseded {
                role: self.member.role.clone(),
                id: self.member.id.clone(),
                generation: self.member.generation.0,
                registered,
                address,
            }),
        }
    }

    async fn put(&mut self, expect: Expect) -> Result<bool, StoreError> {
        let lease = self.store.grant(self.ttl).await?.lease;
        // Remembered before it is used: an answer that is lost must not hide an entry of our own.
        self.lease = Some(lease);
        let put = Put::new(self.key.clone(), self.value.clone())?.under(lease);
        let guard = Guard { key: self.key.clone(), expect };
        Ok(matches!(self.store.put(put, &[guard]).await?, Outcome::Done(_)))
    }

    fn end(&self, error: &StoreError) {
        tracing::error!("{error}");
        self.lost.cancel();
    }

    /// The entry goes with the lease; where another took the name over, nothing is under it.
    async fn revoke(&self) {
        if let Some(lease) = self.lease
            && let Err(error) = self.store.revoke(lease).await
        {
            tracing::debug!("{} ends with its lease: {error}", self.key);
        }
    }
}

#[cfg(test)]
#[path = "registration_test.rs"]
mod tests;
