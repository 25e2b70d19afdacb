//! Listening and connecting, with errors that name the address and the remedy.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::net::TcpListener;
use tonic::transport::Endpoint;

/// Time one connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle peer is asked for a sign of life this often, so that a dead one is noticed.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// A peer that does not answer a keepalive for this long is gone. On a busy laptop a process may not
/// be scheduled for seconds; a leader that hangs holds everybody up for this time and the interval.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes one stream may have in flight: a few `Fetch` messages.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes one connection may have in flight.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Why a process cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error(
        "{address} is taken by another process; stop it, or listen on another port (0 takes a free one)"
    )]
    Taken {
        /// The address asked for.
        address: String,
    },
    /// The text is no address of this machine.
    #[error("cannot listen on {address}: it is not an address of this machine ({source})")]
    Address {
        /// The address asked for.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// Anything else, for example a port below 1024 without the right to it.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// The address asked for.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a connection will never be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The text is no address.
    #[error("`{0}` is not an address; write HOST:PORT, for example 127.0.0.1:7711")]
    Address(String),
    /// The port is 0.
    #[error(
        "`{0}` is no address to connect to: port 0 stands for any free port, and only the process \
         that listens knows which it got; name that with --coordinator HOST:PORT"
    )]
    AnyPort(String),
}

/// Listens on `address` (HOST:PORT; port 0 takes a free one) and says which address it got.
///
/// # Errors
/// [`BindError`], whose message names the address and the remedy.
pub async fn bind(address: &str) -> Result<(TcpListener, SocketAddr), BindError> {
    let fail = |source: io::Error| {
        let address = address.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken { address },
            // Name resolution reports an uncategorised error without an OS code.
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::InvalidInput => {
                BindError::Address { address, source }
            }
            _ if source.raw_os_error().is_none() => BindError::Address { address, source },
            _ => BindError::Other { address, source },
        }
    };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((listener, bound))
}

/// Whether `address` (HOST:PORT) can be reached from this machine only.
#[must_use]
pub fn is_loopback(address: &str) -> bool {
    let Some((host, _)) = split_address(address) else { return false };
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// HOST and PORT of `HOST:PORT`, without the brackets around an IPv6 host.
pub(crate) fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let valid = if bare.is_some() { host.contains(':') } else { host.chars().all(plain) };
    (valid && !host.is_empty()).then_some((host, port.parse().ok()?))
}

/// Whether `address` (HOST:PORT) is one to connect to.
pub(crate) fn check_connectable(address: &str) -> Result<(), ConnectError> {
    match split_address(address) {
        None => Err(ConnectError::Address(address.to_owned())),
        Some((_, 0)) => Err(ConnectError::AnyPort(address.to_owned())),
        Some(_) => Ok(()),
    }
}

/// A gRPC endpoint at `address` (HOST:PORT) with this project's timeouts, keepalive and windows.
/// It does not connect yet.
///
/// # Errors
/// [`ConnectError::Address`] when the text is no address.
pub fn endpoint(address: &str) -> Result<Endpoint, ConnectError> {
    let invalid = || ConnectError::Address(address.to_owned());
    split_address(address).ok_or_else(invalid)?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| invalid())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

/// tonic says "transport error" and hides the reason ("connection refused") at the end of the chain.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named_with_the_remedy() {
        let (_held, address) = bind("127.0.0.1:0").await.expect("a free port");
        let error = bind(&address.to_string()).await.expect_err("taken").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("another port"), "{error}");
    }

    #[tokio::test]
    async fn a_foreign_address_is_named() {
        // 192.0.2.0/24 is reserved for documentation: never an address of this machine.
        let error = bind("192.0.2.1:0").await.expect_err("foreign").to_string();
        assert!(error.contains("192.0.2.1:0 ") || error.contains("192.0.2.1:0:"), "{error}");
        assert!(bind("no port here").await.is_err());
    }

    #[test]
    fn loopback_is_recognised() {
        for address in ["127.0.0.1:1", "localhost:0", "[::1]:7", "127.8.8.8:1"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "coordinator:7711", "localhost", ""] {
            assert!(!is_loopback(address), "{address}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for address in
            ["", "host", "host:port", "host:99999", ":80", "a b:80", "http://h:80", "::1"]
        {
            assert!(endpoint(address).is_err(), "{address}");
        }
        for address in ["127.0.0.1:7711", "learner-0.learner:7712", "[::1]:80"] {
            assert!(endpoint(address).is_ok(), "{address}");
        }
    }
}
