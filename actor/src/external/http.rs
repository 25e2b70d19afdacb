//! Just enough of an HTTP client. Every request has a connection of its own: dropping an answer
//! closes it, which is how these servers learn that nobody waits for the rest.

use std::time::Duration;

use axum::{
    body::Bytes,
    http::{Request, Uri, header},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{EngineError, Failure};

/// Time one connection attempt may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer that is no stream.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Port where the URL names none.
const PORT_DEFAULT: u16 = 80;

/// Where a server is, and how it is spoken to.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// HOST:PORT.
    address: String,
    /// Path in front of every path; without a slash at its end.
    base: String,
    /// Value of the `Authorization` header.
    authorization: Option<String>,
    /// A server that sends nothing for this long is given up.
    stall_max: Duration,
}

/// An answer whose body still comes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    body: Incoming,
    stall_max: Duration,
    /// Drives the connection, and closes it when dropped.
    _connection: AbortOnDropHandle<()>,
}

impl Endpoint {
    /// Reads a URL. A `/v1` at its end is dropped: clients of OpenAI's API write it, and the calls
    /// for weights are not below it.
    pub(super) fn parse(
        url: &str,
        api_key: Option<String>,
        stall_max: Duration,
    ) -> Result<Self, EngineError> {
        let wrong = |problem| EngineError::Url { url: url.to_owned(), problem };
        let uri: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong(
                    "is https, which is not spoken here: the server belongs on this \
                                  machine or on the cluster's own network",
                ));
            }
            _ => return Err(wrong("does not begin with http://")),
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wrong("names no host"))?;
        if uri.query().is_some() {
            return Err(wrong("has a query"));
        }
        let base = uri.path().trim_end_matches('/');
        Ok(Self {
            address: format!("{host}:{}", uri.port_u16().unwrap_or(PORT_DEFAULT)),
            base: base.strip_suffix("/v1").unwrap_or(base).to_owned(),
            authorization: api_key.map(|key| format!("Bearer {key}")),
            stall_max,
        })
    }

    /// `http://HOST:PORT/path`, for messages.
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{}{path}", self.address, self.base)
    }

    pub(super) fn stall_max(&self) -> Duration {
        self.stall_max
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let interrupted =
            |reason: String| Failure::Interrupted(format!("{method} {}: {reason}", self.url(path)));
        let silent = |_| interrupted(format!("no answer within {:?}", self.stall_max));
        let connect = timeout(CONNECT_MAX, TcpStream::connect(&self.address)).await;
        let stream = connect
            .map_err(|_| interrupted(format!("no connection within {CONNECT_MAX:?}")))?
            .map_err(|error| interrupted(format!("cannot connect: {error}")))?;
        stream.set_nodelay(true).map_err(|error| interrupted(error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| interrupted(error.to_string()))?;
        // How the connection ends is seen by whoever reads the body.
        let driver = tokio::spawn(async move { drop(connection.await) });
        let driver = AbortOnDropHandle::new(driver);
        let request = self.request(method, path, body);
        let request = request.map_err(|error| Failure::Refused(error.to_string()))?;
        let answered = timeout(self.stall_max, sender.send_request(request)).await;
        let response = answered.map_err(silent)?.map_err(|error| interrupted(error.to_string()))?;
        Ok(Answer {
            status: response.status().as_u16(),
            body: response.into_body(),
            stall_max: self.stall_max,
            _connection: driver,
        })
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, axum::http::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::HOST, &self.address)
            .header(header::CONNECTION, "close");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        request.body(Full::new(bytes))
    }
}

impl Answer {
    /// The next bytes of the body; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = timeout(self.stall_max, self.body.frame()).await.map_err(|_| {
                Failure::Interrupted(format!("the server sent nothing for {:?}", self.stall_max))
            })?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(Failure::Interrupted(format!("the answer broke off: {error}")));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body.
    pub(super) async fn text(mut self) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece().await? {
            if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Refused(format!(
                    "the answer has more than {ANSWER_BYTES_MAX} bytes; is this the right server?"
                )));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, EngineError> {
        Endpoint::parse(url, None, Duration::from_secs(1))
    }

    #[test]
    fn a_url_is_an_address_and_a_base() {
        for (url, expected) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/x"),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/x"),
            ("http://engine.rl/a/v1", "http://engine.rl:80/a/x"),
            ("http://[::1]:7", "http://[::1]:7/x"),
        ] {
            assert_eq!(parse(url).map(|endpoint| endpoint.url("/x")), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn other_urls_are_refused_with_the_reason() {
        for (url, reason) in [
            ("https://engine:8000", "https, which is not spoken here"),
            ("engine:8000", "does not begin with http://"),
            ("/v1", "does not begin with http://"),
            ("http://engine:8000/?a=b", "has a query"),
            ("", "is no URL"),
        ] {
            let error = parse(url).expect_err(url).to_string();
            assert!(error.contains(reason), "{url}: {error}");
            assert!(error.contains("write http://HOST:PORT"), "{error}");
        }
    }
}
