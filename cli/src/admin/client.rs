//! One call to the coordinator: every address in turn, a standby's word on who leads, and errors for
//! people.

use std::{env, time::Duration};

use anyhow::anyhow;
use ballast_proto::{MESSAGE_BYTES_MAX, v1::admin_client::AdminClient};
use ballast_runtime::{
    leader::{Candidates, LEADER_METADATA, Turn},
    net,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

/// Request header with the name of whoever asks; the audit log quotes it.
const USER_HEADER: &str = "ballast-user";
/// A change waits for the journal; people are not to wait for ever.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// The admin API of one coordinator.
pub(crate) type Client = AdminClient<Channel>;

/// Connects to `address`.
///
/// # Errors
/// Why nobody answers there.
pub(crate) async fn connect(address: &str) -> anyhow::Result<Client> {
    let channel = net::endpoint(address)?.connect().await;
    let channel = channel.map_err(|error| anyhow!(anyhow!(error).root_cause().to_string()))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Makes one call at the first of the candidates that answers, each asked once. A standby names the
/// leader, which is then asked.
///
/// # Errors
/// The coordinator's refusal, or why there was no answer.
pub(super) async fn call<Q: Clone, A>(
    mut candidates: Candidates,
    request: &Q,
    rpc: impl AsyncFn(&mut Client, Request<Q>) -> Result<Response<A>, Status>,
) -> anyhow::Result<A> {
    let mut tried: Vec<String> = Vec::new();
    loop {
        let Turn { address, begins_round } = candidates.next_turn();
        if begins_round && !tried.is_empty() {
            return Err(nobody(&tried));
        }
        match call_at(&address, request, &rpc).await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Absent(cause)) => tried.push(format!("{address} ({cause})")),
            Err(Failure::Standby(leader)) => {
                tried.push(format!("{address} (a standby, which names {leader})"));
                candidates.on_named(&address, &leader);
            }
            Err(Failure::Refused(status)) => return Err(explain(&address, &status)),
            Err(Failure::Silent) => {
                let seconds = ANSWER_WAIT.as_secs();
                return Err(anyhow!(
                    "the coordinator at {address} took the request and did not answer within \
                     {seconds} s; `ballast status` says what it waits for"
                ));
            }
        }
    }
}

/// Why a call at one address came to nothing.
enum Failure {
    /// Nobody is there.
    Absent(String),
    /// A standby is. It did nothing, and names who leads.
    Standby(String),
    /// The coordinator says no.
    Refused(Status),
    /// The coordinator says nothing.
    Silent,
}

async fn call_at<Q: Clone, A>(
    address: &str,
    request: &Q,
    rpc: &impl AsyncFn(&mut Client, Request<Q>) -> Result<Response<A>, Status>,
) -> Result<A, Failure> {
    let connected = connect(address).await;
    let mut client = connected.map_err(|cause| Failure::Absent(cause.to_string()))?;
    let mut request = Request::new(request.clone());
    if let Some(user) = user() {
        request.metadata_mut().insert(USER_HEADER, user);
    }
    match tokio::time::timeout(ANSWER_WAIT, rpc(&mut client, request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(classify(status)),
        Err(_) => Err(Failure::Silent),
    }
}

/// Who uses this program, as far as it can be told.
fn user() -> Option<MetadataValue<Ascii>> {
    let name = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|name| !name.is_empty()))?;
    name.parse().ok()
}

fn classify(status: Status) -> Failure {
    let leader = status.metadata().get(LEADER_METADATA).and_then(|leader| leader.to_str().ok());
    match leader {
        Some(leader) if status.code() == Code::Unavailable => Failure::Standby(leader.to_owned()),
        _ => Failure::Refused(status),
    }
}

fn nobody(tried: &[String]) -> anyhow::Error {
    anyhow!(
        "no coordinator answers at {}; its run may have ended, or it is being restarted; choose \
         another with --run NAME or --coordinator HOST:PORT",
        tried.join(", ")
    )
}

/// What a refusal means, for people. What is wrong with a request the coordinator says in full.
fn explain(address: &str, status: &Status) -> anyhow::Error {
    let message = status.message();
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::NotFound => {
            anyhow!("{message}")
        }
        Code::Unavailable => anyhow!(
            "the coordinator at {address} cannot answer now: {message}; if it is being restarted, \
             try again in a moment"
        ),
        Code::Unimplemented => anyhow!(
            "the coordinator at {address} does not know this call; it is of another version than \
             this `ballast`"
        ),
        code => anyhow!("the coordinator at {address} failed: {message} ({code:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_known_by_its_header() {
        let status = |code, leader: Option<&str>| {
            let mut status = Status::new(code, "not now");
            if let Some(leader) = leader {
                let leader = leader.parse().expect("an ASCII value");
                status.metadata_mut().insert(LEADER_METADATA, leader);
            }
            status
        };
        let unavailable = |leader| classify(status(Code::Unavailable, leader));
        assert!(matches!(unavailable(Some("b:2")), Failure::Standby(leader) if leader == "b:2"));
        assert!(matches!(unavailable(None), Failure::Refused(_)));
        let refused = classify(status(Code::NotFound, Some("b:2")));
        assert!(matches!(refused, Failure::Refused(_)));
    }

    #[test]
    fn a_fault_of_the_request_is_told_in_the_words_of_the_coordinator() {
        let text = |code| explain("a:1", &Status::new(code, "no such key")).to_string();
        for code in [Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound] {
            assert_eq!(text(code), "no such key");
        }
        assert!(text(Code::Unavailable).contains("a:1 cannot answer now: no such key; if"));
        assert!(text(Code::Unimplemented).contains("another version"));
        assert!(text(Code::DataLoss).contains("no such key (DataLoss)"));
    }
}
