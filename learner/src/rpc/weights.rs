//! `ballast.v1.Weights`: manifests as they are published, chunks by hash.

use std::pin::Pin;

use ballast_proto::{
    FETCH_BYTES_MAX,
    v1::{
        FetchRequest, FetchResponse, WatchWeightsRequest, WeightManifest, weights_server::Weights,
    },
};
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use crate::publish::WeightStore;

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves a [`WeightStore`].
#[derive(Debug)]
pub struct WeightsService {
    store: WeightStore,
}

impl WeightsService {
    /// A service over the store.
    #[must_use]
    pub fn new(store: WeightStore) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl Weights for WeightsService {
    type WatchStream = Outgoing<WeightManifest>;
    type FetchStream = Outgoing<FetchResponse>;

    async fn watch(
        &self,
        _: Request<WatchWeightsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // A watch channel keeps the newest value only, so a slow watcher skips versions.
        let newest = WatchStream::new(self.store.watch());
        let manifests =
            newest.filter_map(|manifest| manifest.map(|manifest| Ok((*manifest).clone())));
        Ok(Response::new(Box::pin(manifests)))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let hash: [u8; 32] = request
            .into_inner()
            .hash
            .try_into()
            .map_err(|_| Status::invalid_argument("hash must have 32 bytes"))?;
        let chunk = self.store.chunk(&hash).ok_or_else(|| {
            Status::not_found("no version on offer has this chunk; watch for the newest manifest")
        })?;
        let pieces: Vec<_> = (0..chunk.len())
            .step_by(FETCH_BYTES_MAX)
            .map(|start| {
                let end = chunk.len().min(start + FETCH_BYTES_MAX);
                Ok(FetchResponse { data: chunk.slice(start..end) })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }
}
