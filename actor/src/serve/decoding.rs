//! The decoding thread: takes jobs from the queue as slots come free, and sends every token to the
//! client that waits for it.

use std::{io, sync::Arc, thread};

use super::{
    batch::Batch,
    metrics::Metrics,
    queue::{Job, Outlet, Queue, WeightUpdate},
    sequence::Update,
};
use crate::decoder::DecodeError;

/// A client of a running sequence.
struct Client {
    choice: usize,
    outlet: Outlet,
}

/// Runs a batch, made by `build` on the thread itself (a backend's thread settings belong to the
/// thread that decodes), until the queue is closed and empty.
///
/// # Errors
/// The system starts no more threads.
pub fn spawn(
    build: impl FnOnce() -> Batch + Send + 'static,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
) -> io::Result<thread::JoinHandle<()>> {
    let builder = thread::Builder::new().name("decoding".into());
    builder.spawn(move || {
        let served = Served(queue);
        Decoding::new(build(), metrics).run(&served.0);
    })
}

/// A queue that no client waits in once nobody serves it, not even after a panic.
struct Served(Arc<Queue>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Decoding {
    batch: Batch,
    /// One per slot of the batch; set exactly while a sequence is in it.
    clients: Vec<Option<Client>>,
    metrics: Arc<Metrics>,
}

impl Decoding {
    fn new(batch: Batch, metrics: Arc<Metrics>) -> Self {
        let clients = std::iter::repeat_with(|| None).take(batch.free()).collect();
        Self { batch, clients, metrics }
    }

    fn run(mut self, queue: &Queue) {
        while self.batch.running() > 0 || queue.wait() {
            self.drop_departed();
            match queue.update_waits() {
                Some(cut_off) => self.make_way(cut_off, queue),
                None => queue.take(self.batch.free()).into_iter().for_each(|job| self.admit(job)),
            }
            match self.batch.step() {
                Ok(updates) => self.deliver(updates),
                Err(error) => self.fail(&error),
            }
        }
    }

    fn admit(&mut self, Job { choice, plan, outlet }: Job) {
        if let Some(slot) = self.batch.admit(&plan) {
            self.clients[slot] = Some(Client { choice, outlet });
        }
    }

    /// Replaces the weights as soon as nothing runs.
    fn make_way(&mut self, cut_off: bool, queue: &Queue) {
        if cut_off {
            self.fail(&DecodeError("new weights cut it off; send the request again".into()));
        }
        if self.batch.running() == 0
            && let Some(WeightUpdate { staged, done, .. }) = queue.take_update()
            && done.send(self.batch.swap(&staged)).is_err()
        {
            tracing::warn!("whoever sent new weights left before they were in use");
        }
    }

    /// Frees the slots of clients that disconnected.
    fn drop_departed(&mut self) {
        for slot in 0..self.clients.len() {
            if self.clients[slot].take_if(|client| client.outlet.is_closed()).is_some() {
                self.batch.cancel(slot);
                self.metrics.cancelled();
            }
        }
    }

    fn deliver(&mut self, updates: Vec<(usize, Update)>) {
        // Before the clients hear of it, so that one that has its answer finds it counted.
        self.metrics.stepped(updates.len(), self.batch.running(), self.batch.work());
        for (slot, update) in updates {
            let Some(client) = &self.clients[slot] else { continue };
            let finished = update.finish.is_some();
            client.send(Ok(update));
            if finished {
                self.clients[slot] = None;
            }
        }
    }

    fn fail(&mut self, error: &DecodeError) {
        if self.occupied() > 0 {
            tracing::error!("{} completions are lost: {error}", self.occupied());
        }
        for (slot, client) in self.clients.iter_mut().enumerate() {
            if let Some(client) = client.take() {
                self.batch.cancel(slot);
                client.send(Err(error.clone()));
            }
        }
        self.metrics.stepped(0, 0, self.batch.work());
    }

    fn occupied(&self) -> usize {
        self.clients.iter().flatten().count()
    }
}

impl Client {
    /// The channel has room for every token of the request, so this fails only for a client that
    /// left; the next look at it frees its slot.
    fn send(&self, update: Result<Update, DecodeError>) {
        if self.outlet.try_send((self.choice, update)).is_err() {
            tracing::debug!("a client left before the end of its completion");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        decoder::{DecoderFactory as _, Sampling},
        serve::{queue::QueueError, sequence::Plan},
        testing::{TableFactory, plays, staged, tokenizer},
    };

    fn job(outlet: &Outlet) -> Job {
        let plan = Plan {
            prompt: [1].into(),
            sampling: Sampling::new(0, 1.0),
            tokens_max: 3,
            stop_tokens: [].into(),
            stop_strings: Vec::new(),
        };
        Job { choice: 4, plan, outlet: outlet.clone() }
    }

    fn batch(failing_from: usize) -> Batch {
        let script = plays(&["lamp lamp lamp"]);
        let mut factory = TableFactory { failing_from, ..TableFactory::new(script) };
        let decoder = factory.build(&staged(0), 1, 64).expect("a decoder");
        Batch::new(decoder, 1, Some(tokenizer().clone()))
    }

    #[test]
    fn every_token_reaches_its_client_and_a_closed_queue_ends_the_thread() {
        let (queue, (outlet, mut inlet)) = (Arc::new(Queue::default()), mpsc::channel(8));
        queue.push(vec![job(&outlet), job(&outlet)]).expect("room");
        queue.close();
        drop(outlet);
        let thread = spawn(|| batch(usize::MAX), Arc::clone(&queue), Arc::default());
        thread.expect("a thread").join().expect("no panic");
        let mut finished = Vec::new();
        while let Some((choice, update)) = inlet.blocking_recv() {
            assert_eq!(choice, 4);
            finished.push(update.expect("a token").finish.is_some());
        }
        assert_eq!(finished, [false, false, true, false, false, true]);
    }

    #[test]
    fn a_failing_network_is_told_to_those_it_failed() {
        let (queue, (outlet, mut inlet)) = (Arc::new(Queue::default()), mpsc::channel(8));
        queue.push(vec![job(&outlet)]).expect("room");
        queue.close();
        drop(outlet);
        let thread = spawn(|| batch(1), queue, Arc::default());
        thread.expect("a thread").join().expect("no panic");
        assert!(inlet.blocking_recv().is_some_and(|(_, update)| update.is_ok()));
        assert!(inlet.blocking_recv().is_some_and(|(_, update)| update.is_err()));
        assert!(inlet.blocking_recv().is_none());
    }

    /// Asks for new weights once a first completion of `tokens_max` tokens runs, before a second one;
    /// the news of both clients in their order, and what became of the update.
    fn updated(cut_off: bool) -> (Vec<bool>, Result<(), DecodeError>) {
        let (queue, (outlet, mut inlet)) = (Arc::new(Queue::default()), mpsc::channel(8));
        let mut decoding = Decoding::new(batch(usize::MAX), Arc::default());
        decoding.admit(job(&outlet));
        queue.push(vec![job(&outlet)]).expect("room");
        let (done, mut replaced) = tokio::sync::oneshot::channel();
        queue.update(WeightUpdate { staged: staged(2), cut_off, done }).expect("no other");
        let (done, _) = tokio::sync::oneshot::channel();
        let another = queue.update(WeightUpdate { staged: staged(3), cut_off, done });
        assert_eq!(another, Err(QueueError::Updating));
        queue.close();
        drop(outlet);
        decoding.run(&queue);
        let mut sampled = Vec::new();
        while let Some((_, update)) = inlet.blocking_recv() {
            sampled.push(update.is_ok());
        }
        (sampled, replaced.try_recv().expect("an answer"))
    }

    #[test]
    fn new_weights_wait_for_what_runs_or_cut_it_off() {
        assert_eq!(updated(false), (vec![true; 6], Ok(())));
        assert_eq!(updated(true), (vec![false, true, true, true], Ok(())));
    }

    #[test]
    fn a_thread_that_panics_leaves_nobody_waiting() {
        let (queue, (outlet, mut inlet)) = (Arc::new(Queue::default()), mpsc::channel(8));
        queue.push(vec![job(&outlet)]).expect("room");
        let thread = spawn(|| panic!("no model"), Arc::clone(&queue), Arc::default());
        assert!(thread.expect("a thread").join().is_err());
        assert_eq!(queue.push(vec![job(&outlet)]), Err(QueueError::Closed));
        drop(outlet);
        assert!(inlet.blocking_recv().is_none());
    }
}
