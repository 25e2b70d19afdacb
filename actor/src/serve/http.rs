//! The server's HTTP side: routes, bodies, server-sent events.
//!
//! Owns: what is HTTP. Does not know: what a request means (`openai`), how it is decoded.
//! Invariants: every answer with an error status has OpenAI's error body; a client that leaves
//! drops the receiving end of its tokens, which frees its slots at the next step.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request as HttpRequest, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::{
    events,
    metrics::Metrics,
    openai::{self, ApiError, Identity, Request},
    queue::{Job, Queue},
    served_model::ServedModel,
    weight_updates::{self, WeightUpdates},
};

/// Largest request body, in bytes.
pub const BODY_BYTES_MAX: usize = 10 << 20;
/// Bytes of a too large body that are still read, so that the client, busy sending, comes to read
/// the answer.
const OVERLONG_BYTES_READ_MAX: usize = 64 << 20;
/// Requests that are parsed and tokenised at once; the others wait for their turn.
const PREPARED_AT_ONCE: usize = 2;

/// What the handlers share.
#[expect(missing_debug_implementations, reason = "weight updates hold a function")]
pub struct Server {
    model: Arc<ServedModel>,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    preparing: Semaphore,
    /// Requests so far: names answers, and seeds those that bring no seed.
    requests: AtomicU64,
    seed: u64,
    api_key: Option<String>,
    decoding: JoinHandle<()>,
    weight_updates: Option<WeightUpdates>,
}

type Prepare = fn(&Arc<ServedModel>, &Value, Identity, u64) -> Result<Request, ApiError>;

impl Server {
    /// A server over a queue that the thread `decoding` serves. `api_key`, where there is one, is
    /// asked of every request but `/health` and `/metrics`.
    #[must_use]
    pub fn new(
        model: ServedModel,
        queue: Arc<Queue>,
        metrics: Arc<Metrics>,
        seed: u64,
        api_key: Option<String>,
        decoding: JoinHandle<()>,
    ) -> Self {
        let (model, preparing) = (Arc::new(model), Semaphore::new(PREPARED_AT_ONCE));
        Self {
            model,
            queue,
            metrics,
            preparing,
            requests: AtomicU64::new(0),
            seed,
            api_key,
            decoding,
            weight_updates: None,
        }
    }

    /// The same server, whose weights can be replaced.
    #[must_use]
    pub fn with_weight_updates(self, weight_updates: WeightUpdates) -> Self {
        Self { weight_updates: Some(weight_updates), ..self }
    }

    /// All routes.
    #[must_use]
    pub fn router(self) -> Router {
        let server = Arc::new(self);
        let guarded = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(text_completion))
            .route("/v1/models", get(models))
            .route("/v1/models/{*name}", get(model))
            .route("/update_weights_from_disk", post(update_weights))
            .route("/model_info", get(model_info))
            .route_layer(middleware::from_fn_with_state(Arc::clone(&server), authenticate));
        Router::new()
            .merge(guarded)
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .fallback(not_found)
            .method_not_allowed_fallback(wrong_method)
            .with_state(server)
    }

    async fn answer(&self, body: Body, prepare: Prepare) -> Result<Response, ApiError> {
        let body = read_body(body).await?;
        let request = self.prepare(body, prepare).await?;
        let room = request.plans.iter().map(|plan| plan.tokens_max + 1).sum();
        let (outlet, inlet) = mpsc::channel(room);
        let job = |(choice, plan)| Job { choice, plan, outlet: outlet.clone() };
        let jobs: Vec<Job> = request.plans.into_iter().enumerate().map(job).collect();
        let choices = jobs.len();
        self.queue.push(jobs)?;
        self.metrics.accepted(request.prompt_tokens);
        drop(outlet);
        if request.reply.stream {
            let events = events::stream(request.answer, inlet, choices, request.reply.stream_usage);
            let headers =
                [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
            return Ok((headers, Body::from_stream(events)).into_response());
        }
        let answer = events::whole(request.answer, inlet, choices).await?;
        Ok(json_response(StatusCode::OK, &answer))
    }

    /// Parsing and tokenising can take long, so they run beside the async threads, a few at once.
    async fn prepare(&self, body: Vec<u8>, prepare: Prepare) -> Result<Request, ApiError> {
        const OPEN: &str = "the semaphore is never closed";
        let _turn = self.preparing.acquire().await.expect(OPEN);
        let number = self.requests.fetch_add(1, Relaxed);
        let seed = self.seed.wrapping_add(number.wrapping_mul(openai::CHOICES_MAX as u64));
        let identity = Identity {
            id: format!("ballast-{:x}-{number:x}", self.model.created),
            created: unix_seconds(),
            model: self.model.name.clone(),
        };
        let model = Arc::clone(&self.model);
        let prepared = tokio::task::spawn_blocking(move || {
            let body = serde_json::from_slice(&body).map_err(|error| {
                ApiError::body(400, "invalid_json", format!("the body is no valid JSON: {error}"))
            })?;
            prepare(&model, &body, identity, seed)
        });
        prepared.await.unwrap_or_else(|_| Err(internal("the request could not be read")))
    }

    fn error(&self, error: &ApiError) -> Response {
        self.metrics.answered_error(error.status);
        error_response(error)
    }
}

async fn chat(State(server): State<Arc<Server>>, body: Body) -> Response {
    let answered = server.answer(body, openai::chat).await;
    answered.unwrap_or_else(|error| server.error(&error))
}

async fn text_completion(State(server): State<Arc<Server>>, body: Body) -> Response {
    let answered = server.answer(body, openai::text_completion).await;
    answered.unwrap_or_else(|error| server.error(&error))
}

async fn models(State(server): State<Arc<Server>>) -> Response {
    let list = json!({ "object": "list", "data": [described(&server.model)] });
    json_response(StatusCode::OK, &list)
}

async fn model(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Response {
    if name == server.model.name {
        return json_response(StatusCode::OK, &described(&server.model));
    }
    let served = &server.model.name;
    let message = format!("the model {name:?} does not exist; this server has {served:?}");
    server.error(&ApiError::body(404, "model_not_found", message))
}

async fn update_weights(State(server): State<Arc<Server>>, body: Body) -> Response {
    let running = Arc::clone(&server);
    // A task of its own: an update goes on to its end, and is recorded, also if its sender leaves.
    let update = tokio::spawn(async move {
        let updates = running.weight_updates.as_ref().ok_or_else(weight_updates::off)?;
        updates.update(&running.queue, &read_body(body).await?).await
    });
    let updated = update.await.unwrap_or_else(|_| Err(internal("the weights were not replaced")));
    updated.map_or_else(
        |error| {
            server.metrics.answered_error(error.status);
            json_response(status(&error), &weight_updates::refusal(&error))
        },
        |answer| json_response(StatusCode::OK, &answer),
    )
}

async fn model_info(State(server): State<Arc<Server>>) -> Response {
    let info = server.weight_updates.as_ref().map_or_else(|| json!({}), WeightUpdates::describe);
    json_response(StatusCode::OK, &info)
}

fn described(model: &ServedModel) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "ballast",
        "max_model_len": model.context_tokens,
    })
}

async fn health(State(server): State<Arc<Server>>) -> Response {
    if !server.decoding.is_finished() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the decoding thread has ended\n").into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (format, server.metrics.render(server.queue.len())).into_response()
}

async fn not_found(State(server): State<Arc<Server>>, request: HttpRequest) -> Response {
    let message = format!(
        "there is no {}; there are /v1/chat/completions, /v1/completions, /v1/models, /health and \
         /metrics",
        request.uri().path()
    );
    server.error(&ApiError::body(404, "not_found", message))
}

async fn wrong_method(State(server): State<Arc<Server>>, request: HttpRequest) -> Response {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    server.error(&ApiError::body(405, "method_not_allowed", message))
}

async fn authenticate(
    State(server): State<Arc<Server>>,
    request: HttpRequest,
    next: Next,
) -> Response {
    let Some(key) = &server.api_key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    // Compared as hashes, so that the time it takes tells nothing about the key.
    if blake3::hash(given.as_bytes()) == blake3::hash(key.as_bytes()) {
        return next.run(request).await;
    }
    let message = "the API key is missing or wrong; send `Authorization: Bearer KEY`";
    server.error(&ApiError::body(401, "invalid_api_key", message))
}

async fn read_body(body: Body) -> Result<Vec<u8>, ApiError> {
    let (mut pieces, mut bytes, mut size) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            ApiError::body(
                400,
                "incomplete_body",
                format!("the body did not arrive whole: {error}"),
            )
        })?;
        size += piece.len();
        if size <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&piece);
        } else if size > OVERLONG_BYTES_READ_MAX {
            break;
        }
    }
    if size > BODY_BYTES_MAX {
        let message =
            format!("the body has {size} bytes or more; at most {BODY_BYTES_MAX} are read");
        return Err(ApiError::body(413, "body_too_large", message));
    }
    Ok(bytes)
}

/// What a task that panicked could not do.
fn internal(what: &str) -> ApiError {
    ApiError::body(500, "internal", format!("{what}: a bug in the server, see its log"))
}

fn status(error: &ApiError) -> StatusCode {
    StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn error_response(error: &ApiError) -> Response {
    let status = status(error);
    let mut response = json_response(status, &error.json());
    if status == StatusCode::TOO_MANY_REQUESTS {
        let soon = header::HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, soon);
    }
    response
}

fn json_response(status: StatusCode, value: &Value) -> Response {
    let format = [(header::CONTENT_TYPE, "application/json")];
    (status, format, Bytes::from(value.to_string())).into_response()
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
