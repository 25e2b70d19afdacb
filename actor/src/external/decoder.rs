//! Many sequences over one server: each that wants a token and has none waiting gets a request for
//! the rest of its message.
//!
//! The server runs ahead of the engine: what it sampled and the engine did not take yet waits here.
//! A tool's result, a closed sequence, new weights or an interruption drop the request together with
//! what waits; the next want begins another one with the whole sequence, which the server's prefix
//! cache makes cheap.

use std::{
    collections::VecDeque,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ballast_runtime::backoff::Backoff;
use serde_json::Value;
use tokio::{
    runtime::{self, Runtime},
    sync::mpsc,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Failure,
    completion::{Terms, Token},
    server::Server,
    spool::{Spool, Spooled},
    stream::{Arrival, News, Stream},
};
use crate::{
    decoder::{DecodeError, Decoder, MakeReady, ReadyWeights, Sampled, Sampling},
    weights::StagedPolicy,
};

/// Tokens on their way to the decoder, per slot; then the server has to wait.
const ARRIVALS_PER_SLOT: usize = 64;
/// The server is asked for its version when the last proof of it is older than this share of the
/// patience, a second by default: a server that was restarted, or given weights by somebody else, is
/// found out within this time.
const PROOFS_PER_PATIENCE: u32 = 180;
/// Waits between two attempts after an interruption.
const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A server's sequences, the requests for them, and the weights it is to hold.
pub(super) struct ExternalDecoder {
    server: Arc<Server>,
    terms: Arc<Terms>,
    spool: Arc<Spool>,
    /// The version that tokens are tagged with.
    live: Spooled,
    /// When the server last proved to hold it; none: it may hold anything.
    proven_at: Option<Instant>,
    vocab_size: usize,
    bounds: Bounds,
    sequences: Vec<Option<Sequence>>,
    /// Requests so far.
    requests: u64,
    outlet: mpsc::Sender<Arrival>,
    inlet: mpsc::Receiver<Arrival>,
    /// Last, so that the requests are dropped before what runs them.
    runtime: Runtime,
}

/// How much it takes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Sequences.
    pub(super) slots: usize,
    /// Tokens of one sequence.
    pub(super) tokens_max: usize,
    /// How long interruptions may last before episodes are given up.
    pub(super) patience: Duration,
}

struct Sequence {
    sampling: Sampling,
    /// What was fed and handed out.
    tokens: Vec<u32>,
    request: Option<Request>,
}

/// A request for the next tokens of a sequence.
struct Request {
    number: u64,
    /// What arrived and was not handed out yet; at most what was asked for.
    waiting: VecDeque<Token>,
    /// Any token arrived.
    fruitful: bool,
    ended: bool,
    _stream: AbortOnDropHandle<()>,
}

impl ExternalDecoder {
    /// A decoder of empty slots. The server is first spoken to by the first step: it may still be
    /// starting.
    pub(super) fn new(
        server: Arc<Server>,
        terms: Terms,
        spool: Spool,
        staged: &StagedPolicy,
        bounds: Bounds,
    ) -> Result<Self, DecodeError> {
        let live = spool.write(staged)?;
        // One worker reads all streams; the engine's thread waits for what it delivers.
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("external")
            .enable_all()
            .build()
            .map_err(|error| DecodeError(format!("the async runtime does not start: {error}")))?;
        let (outlet, inlet) = mpsc::channel(ARRIVALS_PER_SLOT * bounds.slots.max(1));
        Ok(Self {
            server,
            terms: Arc::new(terms),
            spool: Arc::new(spool),
            live,
            proven_at: None,
            vocab_size: vocab_size(staged)?,
            sequences: std::iter::repeat_with(|| None).take(bounds.slots).collect(),
            bounds,
            requests: 0,
            outlet,
            inlet,
            runtime,
        })
    }

    /// Tries until it works, is refused, or the patience is at its end. After a failure the server is
    /// trusted with nothing: whatever it does next begins with its weights.
    fn persist<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, DecodeError> {
        let since = Instant::now();
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, self.requests);
        loop {
            let failure = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            self.proven_at = None;
            self.drop_requests();
            let what = match failure {
                Failure::Refused(what) => {
                    return Err(DecodeError(format!("{}: {what}", self.server.url())));
                }
                Failure::Interrupted(what) => what,
            };
            if since.elapsed() >= self.bounds.patience {
                return Err(DecodeError(format!(
                    "{}: {what}; this went on for {:.0?}: see to the server, or raise \
                     actor.engine.patience_s",
                    self.server.url(),
                    since.elapsed()
                )));
            }
            tracing::warn!("{}: {what}; trying again", self.server.url());
            thread::sleep(backoff.next_delay());
        }
    }

    /// One token for each of `want` that has one, as soon as any has.
    fn sample(&mut self, want: &[usize]) -> Result<Vec<Sampled>, Failure> {
        self.sync()?;
        loop {
            // Also where some have tokens left: the others are not to wait for them.
            while let Ok(arrival) = self.inlet.try_recv() {
                self.accept(arrival)?;
            }
            // Again after every wait: a request may end after its last token was handed out.
            for slot in want {
                self.request(*slot)?;
            }
            let sampled: Vec<Sampled> =
                want.iter().filter_map(|slot| self.hand_out(*slot)).collect();
            if !sampled.is_empty() || want.is_empty() {
                return Ok(sampled);
            }
            self.receive()?;
        }
    }

    /// Makes sure that the server holds the weights that tokens are tagged with.
    fn sync(&mut self) -> Result<(), Failure> {
        match self.proven_at {
            Some(at) if at.elapsed() < self.bounds.patience / PROOFS_PER_PATIENCE => return Ok(()),
            Some(_) => {
                let held = self.runtime.block_on(self.server.version())?;
                if held != self.live.version {
                    tracing::warn!(
                        "{} holds the weights `{held}` and not `{}`: it was restarted, or somebody \
                         else changes them; every actor needs a server of its own",
                        self.server.url(),
                        self.live.version
                    );
                    self.drop_requests();
                    self.runtime.block_on(self.server.load(&self.live))?;
                }
            }
            None => self.runtime.block_on(self.server.load(&self.live))?,
        }
        self.proven_at = Some(Instant::now());
        Ok(())
    }

    /// Asks for the rest of a sequence's message, unless that is under way.
    fn request(&mut self, slot: usize) -> Result<(), Failure> {
        let sequence = self.sequences.get_mut(slot).and_then(Option::as_mut);
        let Some(sequence) = sequence.filter(|sequence| !sequence.tokens.is_empty()) else {
            let what = format!("slot {slot}, which is not fed, was asked for a token: a bug");
            return Err(Failure::Refused(what));
        };
        if sequence.request.as_ref().is_some_and(|request| !request.is_spent()) {
            return Ok(());
        }
        self.requests += 1;
        let tokens_max = self.bounds.tokens_max.saturating_sub(sequence.tokens.len()).max(1);
        let stream = Stream {
            server: Arc::clone(&self.server),
            terms: Arc::clone(&self.terms),
            body: self.terms.request(&sequence.tokens, tokens_max, &sequence.sampling),
            sampling: sequence.sampling.clone(),
            tokens_max,
            vocab_size: self.vocab_size,
            slot,
            request: self.requests,
            outlet: self.outlet.clone(),
        };
        sequence.request = Some(Request {
            number: self.requests,
            waiting: VecDeque::new(),
            fruitful: false,
            ended: false,
            _stream: AbortOnDropHandle::new(self.runtime.spawn(stream.run())),
        });
        Ok(())
    }

    fn hand_out(&mut self, slot: usize) -> Option<Sampled> {
        let sequence = self.sequences[slot].as_mut()?;
        let token = sequence.request.as_mut()?.waiting.pop_front()?;
        sequence.tokens.push(token.token);
        let Token { token, logprob, policy_logprob, entropy, control_probs } = token;
        Some(Sampled { slot, token, logprob, policy_logprob, entropy, control_probs })
    }

    /// Waits for news.
    fn receive(&mut self) -> Result<(), Failure> {
        // Every stream says something, if only that it failed, within the time the server may be
        // silent, twice over when it is busy before.
        let deadline = self.server.stall_max() * 3;
        let inlet = &mut self.inlet;
        let arrival = self.runtime.block_on(async { timeout(deadline, inlet.recv()).await });
        let silent = || Failure::Interrupted("no stream says anything: a bug".into());
        self.accept(arrival.ok().flatten().ok_or_else(silent)?)
    }

    fn accept(&mut self, Arrival { slot, request: number, news }: Arrival) -> Result<(), Failure> {
        let sequence = self.sequences.get_mut(slot).and_then(Option::as_mut);
        let request = sequence.and_then(|sequence| sequence.request.as_mut());
        let Some(request) = request.filter(|request| request.number == number) else {
            return Ok(());
        };
        match news {
            News::Token(token) => {
                request.fruitful = true;
                request.waiting.push_back(token);
            }
            News::Ended if request.fruitful => request.ended = true,
            News::Ended => {
                let what = "the server ended a completion without a token; it must report the token \
                            that ends a message";
                return Err(Failure::Interrupted(what.into()));
            }
            News::Failed(failure) => return Err(failure),
        }
        Ok(())
    }

    fn drop_requests(&mut self) {
        self.sequences.iter_mut().flatten().for_each(|sequence| sequence.request = None);
    }
}

impl Request {
    /// Everything it brought is handed out.
    fn is_spent(&self) -> bool {
        self.ended && self.waiting.is_empty()
    }
}

impl Decoder for ExternalDecoder {
    fn open(&mut self, slot: usize, sampling: Sampling) {
        self.sequences[slot] = Some(Sequence { sampling, tokens: Vec::new(), request: None });
    }

    fn feed(&mut self, slot: usize, tokens: &[u32]) {
        if let Some(sequence) = &mut self.sequences[slot] {
            sequence.tokens.extend_from_slice(tokens);
            sequence.request = None;
        }
    }

    fn close(&mut self, slot: usize) {
        self.sequences[slot] = None;
    }

    fn step(&mut self, want: &[usize]) -> Result<Vec<Sampled>, DecodeError> {
        self.persist(|decoder| decoder.sample(want))
    }

    fn make_ready(&self, staged: &StagedPolicy) -> MakeReady {
        let (spool, staged) = (Arc::clone(&self.spool), staged.clone());
        Box::new(move || Ok(ReadyWeights::new(spool.write(&staged)?)))
    }

    fn swap(&mut self, ready: ReadyWeights) -> Result<(), DecodeError> {
        let next: Spooled = ready.take()?;
        self.drop_requests();
        self.persist(|decoder| decoder.runtime.block_on(decoder.server.load(&next)))?;
        self.live = next;
        self.proven_at = Some(Instant::now());
        Ok(())
    }
}

fn vocab_size(staged: &StagedPolicy) -> Result<usize, DecodeError> {
    let config: Option<Value> = serde_json::from_slice(&staged.config_json).ok();
    let size = config.as_ref().and_then(|config| config.get("vocab_size")?.as_u64());
    let size = size.and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(|| DecodeError("config.json has no usable vocab_size".into()))
}
