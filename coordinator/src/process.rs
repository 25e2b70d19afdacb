//! A whole coordinator, from its config to its end: what `main` runs, and what tests run in process.

use std::{future::Future, net::SocketAddr, time::Duration};

use ballast_runtime::{
    config::{Config, StoreKind},
    net::{self, BindError},
};
use tokio::{net::TcpListener, sync::mpsc, task, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    compaction::{self, Background},
    driver::{Driver, JournalEnds, OnStop},
    driver_error::DriverError,
    inputs::{INPUTS_MAX, Inboxes, QUESTIONS_MAX},
    journal::{self, Reader},
    recovery::{self, RecoveryError},
    rpc::{self, Handle, ServeError},
    run_directory::{RunDirectory, RunDirectoryError},
    standby::{self, StandbyError},
    store::{self, Candidate, Cluster, Leadership, StoreError},
};

/// Time open calls get to end after the run is over.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Why a coordinator cannot run, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The address is not loopback.
    #[error(
        "refusing to listen on {0}: TLS and tokens come first, so only loopback is safe; \
         --insecure-listen overrides this on a network where every peer is trusted"
    )]
    Insecure(String),
    /// The address cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The store that says who leads cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot wait for its turn.
    #[error(transparent)]
    Standby(#[from] StandbyError),
    /// The run directory cannot be used.
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
    /// The run cannot be begun or taken up again.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The recovery did not come to its end.
    #[error("the journal could not be read: its thread ended early")]
    Unread,
    /// A thread of the journal cannot be started.
    #[error("cannot start a thread for the journal: {0}")]
    Thread(std::io::Error),
    /// The run cannot go on.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The services failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl ProcessError {
    /// Whether a start in the same place would end the same way.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Insecure(_) | Self::Bind(_) | Self::Directory(_) => true,
            Self::Recovery(error) => error.is_lasting(),
            Self::Store(error) | Self::Standby(StandbyError::Store(error)) => !error.is_transient(),
            _ => false,
        }
    }
}

/// A coordinator that leads, is bound and has taken its run over, but serves nobody yet.
#[derive(Debug)]
pub struct Coordinator {
    listener: TcpListener,
    address: SocketAddr,
    driver: Driver,
    reader: Reader,
    handle: Handle,
    status: tokio::sync::watch::Receiver<ballast_proto::v1::StatusResponse>,
    /// The right to lead, where others stand by.
    leadership: Option<Leadership>,
    /// Writes the journal as Parquet, if it is to be.
    compaction: Option<Background>,
}

impl Coordinator {
    /// Binds the address, stands by until it is this process's turn to lead, takes the journal over
    /// and rebuilds the run from it, or begins a new one. Everything that can be wrong with a start
    /// is found here. `None`: `stop` came while it stood by.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub async fn build(
        config: Config,
        insecure_listen: bool,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, ProcessError> {
        let listen = config.coordinator.listen.clone();
        if !insecure_listen && !net::is_loopback(&listen) {
            return Err(ProcessError::Insecure(listen));
        }
        let (listener, address) = net::bind(&listen).await?;
        let (listener, leadership) = match config.coordinator.store.kind {
            StoreKind::Embedded => (listener, None),
            StoreKind::Etcd => match stand_by(listener, address, &config, stop).await? {
                Some((listener, leadership)) => (listener, Some(leadership)),
                None => return Ok(None),
            },
        };
        // Not before: while another one leads, the run may come to its end.
        let directory = RunDirectory::open(&config)?;
        let journal = directory.journal();
        let term = leadership.as_ref().map(|leadership| journal::Term(leadership.term().0));
        let compacts = config.coordinator.journal.compact;
        let recovered = task::spawn_blocking(move || recovery::recover(&config, &journal, term));
        let recovered = recovered.await.map_err(|_| ProcessError::Unread)??;
        directory.write_config(&recovered.run.created.config_toml)?;

        let (reader, next, term) = (recovered.reader, recovered.next, recovered.term);
        let writer = journal::spawn(recovered.journal).map_err(ProcessError::Thread)?;
        let (inputs, inbox) = mpsc::channel(INPUTS_MAX);
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let inboxes = Inboxes { inputs: inbox, questions: asked };
        let ends = JournalEnds { writer, reader: reader.clone(), next, term };
        let (driver, status) = Driver::new(recovered.run, inboxes, ends, directory.clone())?;
        let compaction = compacts
            .then(|| compaction::spawn(reader.clone(), driver.durable(), directory.path().into()))
            .transpose()
            .map_err(ProcessError::Thread)?;
        directory.write_address(address)?;
        let handle = Handle::new(inputs, questions);
        Ok(Some(Self { listener, address, driver, reader, handle, status, leadership, compaction }))
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the run is over, or until another coordinator has to take it over. `stop` asks
    /// for an orderly end before that: of the run where this process is alone, of this process where
    /// others stand by to go on.
    ///
    /// # Errors
    /// The run could not go on here.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ProcessError> {
        let closing = CancellationToken::new();
        let services =
            rpc::serve(self.listener, self.handle, self.reader, self.status, closing.clone());
        let mut services = tokio::spawn(services);
        let (deposed, on_stop) = match &self.leadership {
            Some(leadership) => (leadership.lost(), OnStop::HandOver),
            None => (CancellationToken::new(), OnStop::EndRun),
        };
        let driver = self.driver.run(stop, on_stop, deposed);
        // Neither branch is resumed after the other has ended, so nothing is lost.
        let ended = tokio::select! {
            biased;
            ended = Box::pin(driver) => ended.map_err(ProcessError::from),
            failed = &mut services => return flatten(failed),
        };
        closing.cancel();
        if let (Ok(()), Some(compaction)) = (&ended, self.compaction) {
            compaction.finish().await;
        }
        if let Some(leadership) = self.leadership {
            leadership.resign().await;
        }
        within_grace(services).await;
        ended
    }
}

/// Waits for the right to lead, and sends everybody who comes meanwhile to the one that has it.
async fn stand_by(
    listener: TcpListener,
    address: SocketAddr,
    config: &Config,
    stop: &CancellationToken,
) -> Result<Option<(TcpListener, Leadership)>, ProcessError> {
    let listener = listener.into_std().map_err(StandbyError::from)?;
    let advertised = match config.coordinator.advertise.as_str() {
        "" => address.to_string(),
        advertised => advertised.to_owned(),
    };
    let candidate = Candidate { id: advertised.clone(), address: advertised };
    let store = &config.coordinator.store;
    let cluster = Cluster::open(store, &config.run.name, store::Term(0)).await?;
    let leadership = standby::stand_by(&listener, &cluster, &candidate, stop).await?;
    let Some(leadership) = leadership else { return Ok(None) };
    let listener = TcpListener::from_std(listener).map_err(StandbyError::from)?;
    Ok(Some((listener, leadership)))
}

/// Waits for the services to close their calls, but not for ever.
async fn within_grace(services: impl Future + Unpin) {
    if timeout(CLOSE_GRACE, services).await.is_err() {
        tracing::debug!("calls were still open when the run was over");
    }
}

/// The services ended before the run: always a failure.
fn flatten(ended: Result<Result<(), ServeError>, task::JoinError>) -> Result<(), ProcessError> {
    match ended {
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(())) | Err(_) => Err(DriverError::Services.into()),
    }
}
