//! One probe of one port: a TCP connection, or one HTTP request on it.
//!
//! What answers is a stranger: only the head of its answer is read, up to 16 KiB, within the time-out of the check, and
//! no redirect is followed.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use async_trait::async_trait;
use http::{
    Request,
    header::{CONNECTION, HOST, USER_AGENT},
    uri::PathAndQuery,
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use if_addrs::IfAddr;
use ipnet::IpNet;
use rollcall_shared::process::time;
use tokio::net::TcpStream;

use super::{Spec, spec::Method, target::Target};

/// The most that is read of an answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The most lines of an answer's head.
const MAX_HEADERS: usize = 100;
/// How the probes of HTTP name themselves.
const AGENT: &str = concat!("rollcall-agent/", env!("CARGO_PKG_VERSION"));

/// Asks a port. Probes of other ports may be under way.
#[async_trait]
pub trait Probe: fmt::Debug + Send + Sync + 'static {
    /// Asks once, for as long as the check's time-out lets it.
    ///
    /// # Errors
    /// Why the port does not pass.
    async fn probe(&self, target: &Target, spec: &Spec) -> Result<(), ProbeError>;
}

/// Why a port does not pass.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// None of its addresses is reached from here.
    #[error("this agent is on none of its networks")]
    NoAddress,
    /// It refuses connections: nobody listens.
    #[error("connection refused")]
    Refused,
    /// There is no connection.
    #[error("no connection")]
    Connect(#[source] io::Error),
    /// It does not speak HTTP, or breaks off.
    #[error("no HTTP answer")]
    Http(#[source] hyper::Error),
    /// It answers with another status than those that are expected.
    #[error("HTTP {0}")]
    Status(u16),
    /// It takes longer than the time-out.
    #[error("no answer within {}", time::show(*.0))]
    TimedOut(Duration),
}

/// Asks over this host's network.
#[derive(Debug)]
pub struct Sockets {
    /// Whether the containers run on this host: else an address of theirs may be another container's here.
    is_engine_local: bool,
}

impl Sockets {
    /// Asks the containers of the engine at this address.
    pub fn new(docker_host: Option<&str>) -> Self {
        Self { is_engine_local: docker_host.is_none_or(|host| host.starts_with("unix://")) }
    }

    fn address(&self, target: &Target) -> Option<SocketAddr> {
        target
            .choose(|ip| self.is_engine_local && is_local(ip), |ip| self.is_engine_local && is_neighbour(ip))
    }
}

#[async_trait]
impl Probe for Sockets {
    async fn probe(&self, target: &Target, spec: &Spec) -> Result<(), ProbeError> {
        let address = self.address(target).ok_or(ProbeError::NoAddress)?;
        let asked = async {
            let stream = TcpStream::connect(address).await.map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => ProbeError::Refused,
                _ => ProbeError::Connect(error),
            })?;
            match &spec.method {
                Method::Tcp => Ok(()),
                Method::Http { path, statuses } => match get(stream, address, path).await? {
                    status if statuses.contain(status) => Ok(()),
                    status => Err(ProbeError::Status(status)),
                },
            }
        };
        let in_time = tokio::time::timeout(spec.timeout, asked).await;
        in_time.unwrap_or(Err(ProbeError::TimedOut(spec.timeout)))
    }
}

/// Asks for the path; gives the status of the answer.
async fn get(stream: TcpStream, address: SocketAddr, path: &PathAndQuery) -> Result<u16, ProbeError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS);
    let (mut sender, connection) =
        builder.handshake::<_, String>(TokioIo::new(stream)).await.map_err(ProbeError::Http)?;
    let request = Request::get(path.clone())
        .header(HOST, address.to_string())
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(String::new())
        .expect("its headers are plain texts");
    let carry = async {
        // Why it has ended, the request is told.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // The connection goes with the answer's head; its body is not read.
        answer = sender.send_request(request) => Ok(answer.map_err(ProbeError::Http)?.status().as_u16()),
        () = carry => unreachable!("it never ends"),
    }
}

/// Whether an address is this host's own: only such a one can be bound, unless the host lets any (`ip_nonlocal_bind`, as
/// those do that share an address by VRRP).
fn is_local(ip: IpAddr) -> bool {
    if UdpSocket::bind((ip, 0)).is_err() {
        return false;
    }
    // Nothing is sent. A host's own addresses are mostly reached from themselves; of a second one the list knows.
    let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    let is_an_interfaces =
        || if_addrs::get_if_addrs().is_ok_and(|found| found.iter().any(|one| one.ip() == ip));
    source.is_ok_and(|source| source.ip() == ip) || is_an_interfaces()
}

/// Whether an address is on a network of this host's.
fn is_neighbour(ip: IpAddr) -> bool {
    let contains = |address: IfAddr| {
        let network = match address {
            IfAddr::V4(v4) => IpNet::with_netmask(v4.ip.into(), v4.netmask.into()),
            IfAddr::V6(v6) => IpNet::with_netmask(v6.ip.into(), v6.netmask.into()),
        };
        network.is_ok_and(|network| network.contains(&ip))
    };
    if_addrs::get_if_addrs().is_ok_and(|found| found.into_iter().any(|interface| contains(interface.addr)))
}

#[cfg(test)]
mod tests {
    use rollcall_shared::{model::instance::Address, process::error::one_line};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        checks::Ready,
        inventory::{RunningContainers, container::testing::container},
        registration::description::{
            self,
            tests::{policy, web},
        },
    };

    fn spec(labels: &[(&str, &str)]) -> Spec {
        let mut web = container("web");
        for (name, value) in
            [("rollcall.check", "http"), ("rollcall.check.timeout", "200ms")].iter().chain(labels)
        {
            web.labels.insert((*name).to_owned(), (*value).to_owned());
        }
        Spec::of(&web, "80".parse().expect("a port"), Ready::None).expect("good labels").expect("a check")
    }

    fn target(address: SocketAddr) -> Target {
        let description = description::describe(&web(), &RunningContainers::new(), &policy());
        let mut instance = description.instances(&web(), &policy().node).remove(0).1;
        (instance.address, instance.port) = (Address::Ip(address.ip()), address.port());
        let mut host = container("web");
        host.host_network = true;
        Target::new(&host, &instance)
    }

    /// Asks a port that answers with these bytes once; gives what was found, and what it was sent.
    async fn asked(answer: &'static [u8], labels: &[(&str, &str)]) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let serving: JoinHandle<String> = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.expect("it is sent at once");
            // It may have gone already.
            let _ = stream.write_all(answer).await;
            let _ = stream.read(&mut [0; 64]).await;
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let spec = spec(labels);
        let found = Sockets::new(None).probe(&target(address), &spec).await;
        (found.map_err(|error| one_line(&error)), serving.await.expect("no panic"))
    }

    #[tokio::test]
    async fn a_port_that_answers_as_expected_passes_and_is_asked_with_one_proper_request() {
        let labels = [("rollcall.check.path", "/health?deep=1")];
        let (found, request) = asked(b"HTTP/1.1 204 No Content\r\n\r\n", &labels).await;
        assert_eq!(found, Ok(()));
        assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\nhost: 127.0.0.1:"), "{request}");
        assert!(request.ends_with("connection: close\r\n\r\n"), "{request}");
    }

    #[tokio::test]
    async fn another_status_fails_and_a_redirect_is_not_followed() {
        let (found, _) = asked(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", &[]).await;
        assert_eq!(found, Err("HTTP 503".to_owned()));
        let moved = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n";
        assert_eq!(asked(moved, &[]).await.0, Ok(()), "200-399");
        let strict = [("rollcall.check.status", "200")];
        assert_eq!(asked(moved, &strict).await.0, Err("HTTP 302".to_owned()));
    }

    #[tokio::test]
    async fn what_is_no_http_or_endless_fails() {
        let (found, _) = asked(b"SSH-2.0-OpenSSH_9.2\r\n", &[]).await;
        assert!(found.as_ref().is_err_and(|error| error.starts_with("no HTTP answer")), "{found:?}");
        let endless = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'x'; 1 << 20]].concat();
        let (found, _) = asked(endless.leak(), &[]).await;
        assert!(found.as_ref().is_err_and(|error| error.starts_with("no HTTP answer")), "{found:?}");
        assert_eq!(asked(b"", &[]).await.0, Err("no answer within 200ms".to_owned()));
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_refused_and_one_that_listens_passes_by_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (sockets, spec) = (Sockets::new(None), spec(&[("rollcall.check", "tcp")]));
        assert!(sockets.probe(&target(address), &spec).await.is_ok());
        drop(listener);
        let error = sockets.probe(&target(address), &spec).await.expect_err("nobody listens");
        assert_eq!(one_line(&error), "connection refused");
    }

    #[test]
    fn an_address_of_this_host_is_known_and_anothers_is_none() {
        let ip = |text: &str| text.parse().expect("an address");
        assert!(is_local(ip("127.0.0.1")) && !is_local(ip("192.0.2.1")));
        assert!(is_neighbour(ip("127.0.0.9")) && !is_neighbour(ip("198.51.100.1")));
    }

    #[test]
    fn the_containers_of_a_remote_engine_are_not_asked_at_addresses_of_this_host() {
        let target = Target::new(&container("web"), &{
            let description = description::describe(&web(), &RunningContainers::new(), &policy());
            description.instances(&web(), &policy().node).remove(0).1
        });
        let address = Sockets::new(Some("tcp://10.0.0.9:2376")).address(&target);
        assert_eq!(address, Some("10.0.0.5:8080".parse().expect("what is registered")));
    }
}
