//! `Training`: the learner's stream of batches and its answers.

use std::{
    collections::BTreeMap,
    pin::Pin,
    task::{Context, Poll},
};

use ballast_proto::v1::{
    self, CompleteStepRequest, CompleteStepResponse, NextBatchRequest, TrainBatch,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use super::Handle;
use crate::{
    engine::{CallId, Event, SERVED_AHEAD_MAX, StreamId},
    inputs::{Input, LearnerOutbox},
};

#[derive(Debug)]
pub(super) struct Training {
    handle: Handle,
}

impl Training {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

#[tonic::async_trait]
impl v1::training_server::Training for Training {
    type NextBatchStream = BatchStream;

    async fn next_batch(
        &self,
        request: Request<NextBatchRequest>,
    ) -> Result<Response<Self::NextBatchStream>, Status> {
        let stream = StreamId(self.handle.id());
        let event = Event::LearnerConnected { stream, request: request.into_inner() };
        let (batches, receiver) = mpsc::channel(SERVED_AHEAD_MAX as usize);
        let (admission, admitted) = oneshot::channel();
        // From here on the end of the call, at whatever point, is reported.
        let guard = self.report_end(stream);
        let outbox = LearnerOutbox { batches, admission };
        self.handle.send(Input::Learner(stream, event, outbox)).await?;
        answer(admitted).await?;
        let batches = ReceiverStream::new(receiver);
        Ok(Response::new(BatchStream { batches, _guard: guard }))
    }

    async fn complete_step(
        &self,
        request: Request<CompleteStepRequest>,
    ) -> Result<Response<CompleteStepResponse>, Status> {
        let call = CallId(self.handle.id());
        let event =
            Event::StepCompleted { call, request: request.into_inner(), actors: BTreeMap::new() };
        let (answerer, answered) = oneshot::channel();
        self.handle.send(Input::Step(call, event, answerer)).await?;
        answer(answered).await?;
        Ok(Response::new(CompleteStepResponse {}))
    }
}

impl Training {
    /// Reports `LearnerDisconnected` when the guard is dropped.
    fn report_end(&self, stream: StreamId) -> DropGuard {
        let ended = CancellationToken::new();
        let (handle, guard) = (self.handle.clone(), ended.clone().drop_guard());
        tokio::spawn(async move {
            ended.cancelled().await;
            let event = Event::LearnerDisconnected { stream };
            // When the loop has ended nobody needs to know.
            drop(handle.send(Input::Event(event)).await);
        });
        guard
    }
}

async fn answer(answered: oneshot::Receiver<Result<(), String>>) -> Result<(), Status> {
    match answered.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => Err(Status::failed_precondition(reason)),
        Err(_) => Err(Status::unavailable("the run is over")),
    }
}

/// The batches of one learner. Dropped when the learner is gone, which its guard reports.
#[derive(Debug)]
pub(super) struct BatchStream {
    batches: ReceiverStream<Result<TrainBatch, Status>>,
    _guard: DropGuard,
}

impl Stream for BatchStream {
    type Item = Result<TrainBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.batches).poll_next(cx)
    }
}
