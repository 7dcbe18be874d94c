//! The members of the cluster and the connections to them.
//!
//! Members are tried in an order that is random for each process. One is dialed at a time, whoever waits for it; one that
//! could not be reached is left alone for a while, which grows and is random from nothing to its whole length, so that
//! many processes do not come back at once. The first connection after a time without one wakes those who wait to try
//! again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use etcd_client::{Channel, Client, ConnectOptions};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::HeaderName;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::{
    error::{again, classify, login_failed, root, timed_out, unavailable},
    login::{Login, TokenNumber},
    pulse::Pulse,
};
use crate::{
    process::{backoff::Backoff, error::one_line},
    store::{Recoveries, StoreError, settings::EtcdSettings},
};

/// How often a member is pinged while something is asked of it. etcd allows a ping every five seconds.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long it may take to answer the ping.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The first and the longest time that a member is left alone which could not be reached.
const DIAL_DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The header in which etcd looks for the token.
const TOKEN_HEADER: HeaderName = HeaderName::from_static("token");

/// A member, by its place among the endpoints.
pub(super) type Member = usize;

/// A connection to a member.
pub(super) struct Connection {
    pub(super) member: Member,
    pub(super) endpoint: String,
    pub(super) client: Client,
    pulse: Mutex<Pulse>,
    /// Whether it was ever answered: a connection alone does not show that there is an etcd behind it.
    has_answered: AtomicBool,
    /// Cancelled when the member has not answered: every watch of it ends.
    pub(super) hung: CancellationToken,
}

impl Connection {
    /// Whether it is another connection that is in use.
    fn is_up(&self, than: &Connection) -> bool {
        !std::ptr::eq(self, than) && self.has_answered.load(Ordering::Relaxed)
    }

    /// Looks at, or notes, the member's signs of life.
    pub(super) fn pulse<T>(&self, look: impl FnOnce(&mut Pulse) -> T) -> T {
        look(&mut self.pulse.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The members of a cluster.
#[derive(Debug)]
pub(super) struct Members {
    settings: EtcdSettings,
    login: Login,
    state: Mutex<State>,
    /// One permit: one dial at a time.
    dial: Semaphore,
    /// Counts the connections that were the first after a time without.
    recoveries: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// Which member is tried first, second and so on.
    order: Vec<Member>,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    connection: Option<Arc<Connection>>,
    dialing: Option<Dialing>,
    backoff: Backoff,
    /// Why the last dial failed, and until when there is no other.
    failed: Option<(Instant, Arc<StoreError>)>,
}

type Dialing = Shared<BoxFuture<'static, Result<Arc<Connection>, Arc<StoreError>>>>;

impl Slot {
    fn new() -> Self {
        let backoff = Backoff::new(DIAL_DELAYS.0, DIAL_DELAYS.1);
        Self { connection: None, dialing: None, backoff, failed: None }
    }

    /// Leaves the member alone for a while, which is longer each time.
    fn fail(&mut self, error: Arc<StoreError>) {
        let delay = self.backoff.next_delay().mul_f64(fastrand::f64());
        self.failed = Some((Instant::now() + delay, error));
    }

    fn may_be_tried(&self, now: Instant) -> bool {
        self.connection.is_some()
            || self.dialing.is_some()
            || self.failed.as_ref().is_none_or(|(until, _)| now >= *until)
    }
}

impl Members {
    pub(super) fn new(settings: EtcdSettings) -> Self {
        let count = settings.endpoints.len();
        let mut order: Vec<Member> = (0..count).collect();
        fastrand::shuffle(&mut order);
        let slots = (0..count).map(|_| Slot::new()).collect();
        Self {
            settings,
            login: Login::default(),
            state: Mutex::new(State { order, slots }),
            dial: Semaphore::new(1),
            recoveries: watch::Sender::new(0),
        }
    }

    pub(super) fn settings(&self) -> &EtcdSettings {
        &self.settings
    }

    /// Whether there is another member to go to.
    pub(super) fn are_several(&self) -> bool {
        self.settings.endpoints.len() > 1
    }

    /// The first member in the order that is none of these and may be tried now.
    pub(super) fn pick(&self, tried: &[Member]) -> Option<Member> {
        let (state, now) = (self.state(), Instant::now());
        let may_be_picked =
            |member: &Member| !tried.contains(member) && state.slots[*member].may_be_tried(now);
        state.order.iter().copied().find(may_be_picked)
    }

    /// Why no member may be tried.
    pub(super) fn failure(&self) -> StoreError {
        let state = self.state();
        let failed = state.order.iter().find_map(|member| state.slots[*member].failed.as_ref());
        match failed {
            Some((_, error)) => again(error),
            None => unavailable("any endpoint", "it was not dialed"),
        }
    }

    /// The connection to a member, which is dialed where there is none.
    pub(super) async fn connect(self: &Arc<Self>, member: Member) -> Result<Arc<Connection>, StoreError> {
        let dialing = {
            let mut state = self.state();
            let slot = &mut state.slots[member];
            if let Some(connection) = &slot.connection {
                return Ok(connection.clone());
            }
            slot.dialing.get_or_insert_with(|| self.clone().start_dialing(member)).clone()
        };
        dialing.await.map_err(|error| again(&error))
    }

    /// Dials in a task of its own: it goes on also where nobody waits for it any more.
    fn start_dialing(self: Arc<Self>, member: Member) -> Dialing {
        let task = tokio::spawn(async move {
            let dialed = self.dial(member).await.map_err(Arc::new);
            self.dialed(member, &dialed);
            dialed
        });
        let ended = |error| Err(Arc::new(unavailable("any endpoint", format!("dialing it ended: {error}"))));
        task.map(move |dialed| dialed.unwrap_or_else(ended)).boxed().shared()
    }

    async fn dial(&self, member: Member) -> Result<Arc<Connection>, StoreError> {
        let _permit = self.dial.acquire().await.expect("it is never closed");
        let endpoint = self.settings.endpoints[member].clone();
        let begun = Instant::now();
        let classified = |error| classify(&endpoint, error);
        let timeout = self.settings.dial_timeout;
        let channel = match tokio::time::timeout(timeout, self.channel(&endpoint)).await {
            Ok(channel) => channel.map_err(|error| unavailable(&endpoint, error))?,
            Err(_) => return Err(classified(timed_out("connecting"))),
        };
        // A member cut off from its peers ends its watches instead of keeping silent.
        let options = ConnectOptions::new().with_require_leader(true);
        let client = Client::from_channel(channel, Some(options)).await.map_err(classified)?;
        let login = self.login.ensure(&client, &self.settings);
        match tokio::time::timeout_at(begun + timeout, login).await {
            Ok(logged_in) => logged_in.map_err(|error| login_failed(classified(error)))?,
            Err(_) => return Err(classified(timed_out("logging in"))),
        }
        Ok(Arc::new(Connection {
            member,
            endpoint: self.settings.endpoints[member].clone(),
            client,
            pulse: Mutex::new(Pulse::new(Instant::now())),
            has_answered: AtomicBool::new(false),
            hung: CancellationToken::new(),
        }))
    }

    /// A channel to an endpoint, whose requests bear the token of the moment. Certificates are read anew.
    async fn channel(&self, endpoint: &str) -> Result<Channel, String> {
        let settings = self.settings.clone();
        let tls = tokio::task::spawn_blocking(move || settings.tls()).await.expect("reading does not panic");
        let tls = tls.map_err(|error| one_line(&error))?;
        let url = match (endpoint.contains("://"), &tls) {
            (true, _) => endpoint.to_owned(),
            (false, Some(_)) => format!("https://{endpoint}"),
            (false, None) => format!("http://{endpoint}"),
        };
        let mut channel = Endpoint::from_shared(url).map_err(|error| root(&error))?;
        if let Some(tls) = tls {
            channel = channel.tls_config(tls).map_err(|error| root(&error))?;
        }
        let channel = channel
            .connect_timeout(self.settings.dial_timeout)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .connect()
            .await
            .map_err(|error| root(&error))?;
        let login = self.login.clone();
        let channel = channel
            .map_request(move |mut request: http::Request<tonic::body::Body>| {
                request.headers_mut().extend(login.token().map(|token| (TOKEN_HEADER, token)));
                request
            })
            .map_err(tower::BoxError::from);
        Ok(Channel::Custom(BoxCloneSyncService::new(channel)))
    }

    fn dialed(&self, member: Member, dialed: &Result<Arc<Connection>, Arc<StoreError>>) {
        let mut state = self.state();
        let slot = &mut state.slots[member];
        slot.dialing = None;
        match dialed {
            Ok(connection) => slot.connection = Some(connection.clone()),
            Err(error) => slot.fail(error.clone()),
        }
    }

    /// Takes note that a member has answered.
    pub(super) fn answered(&self, by: &Connection) {
        if by.has_answered.swap(true, Ordering::Relaxed) {
            return;
        }
        let is_first = {
            let mut state = self.state();
            let is_other = |slot: &Slot| slot.connection.as_ref().is_some_and(|other| other.is_up(by));
            let is_first = !state.slots.iter().any(is_other);
            let slot = &mut state.slots[by.member];
            slot.backoff.reset();
            slot.failed = None;
            is_first
        };
        if is_first {
            self.recoveries.send_modify(|count| *count += 1);
        }
    }

    /// The connections that are the first after a time without, from now on.
    pub(super) fn recoveries(&self) -> Recoveries {
        Recoveries::of(self.recoveries.subscribe())
    }

    /// Goes to another member next time: this one does not answer, or lags behind. One that never answered is left alone
    /// for a while.
    pub(super) fn leave(&self, left: &Connection, why: &StoreError) {
        let mut state = self.state();
        let slot = &mut state.slots[left.member];
        if slot.connection.as_ref().is_some_and(|known| std::ptr::eq(&**known, left)) {
            slot.connection = None;
            if !left.has_answered.load(Ordering::Relaxed) {
                slot.fail(Arc::new(again(why)));
            }
            state.order.retain(|member| *member != left.member);
            state.order.push(left.member);
        }
    }

    /// Goes to this member first from now on: it has answered where another has not.
    pub(super) fn prefer(&self, preferred: Member) {
        let mut state = self.state();
        state.order.retain(|member| *member != preferred);
        state.order.insert(0, preferred);
    }

    /// Which token is sent.
    pub(super) fn token(&self) -> TokenNumber {
        self.login.number()
    }

    /// Drops a token that etcd refuses, and the connections with it: the next one logs in.
    pub(super) fn refuse(&self, token: TokenNumber) {
        if self.login.number() == token {
            self.login.forget(token);
            self.state().slots.iter_mut().for_each(|slot| slot.connection = None);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::atomic::AtomicUsize};

    use clap::Parser;
    use futures_util::future::join_all;
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        etcd: EtcdSettings,
    }

    fn members(endpoints: &str) -> Arc<Members> {
        Arc::new(Members::new(Cli::parse_from(["test", "--etcd", endpoints]).etcd))
    }

    /// A member that takes connections and never says a word.
    async fn silent_member() -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, accepted) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
        let counted = accepted.clone();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                held.push(connection);
            }
        });
        (address.to_string(), accepted)
    }

    #[tokio::test]
    async fn whoever_waits_for_a_connection_waits_for_the_same_one() {
        let (address, accepted) = silent_member().await;
        let members = members(&address);
        let connected = join_all((0..7).map(|_| members.connect(0))).await;
        let first = connected[0].as_ref().expect("a connection");
        assert!(connected.iter().all(|other| other.as_ref().is_ok_and(|other| Arc::ptr_eq(other, first))));
        assert_eq!(accepted.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_member_that_cannot_be_reached_is_left_alone_for_longer_and_longer() {
        // Nobody listens at this port.
        let members = members("127.0.0.1:1");
        let mut pauses = Vec::new();
        for _ in 0..12 {
            // As if the pause were over.
            members.state().slots[0].failed = None;
            members.connect(0).await.expect_err("nobody listens");
            let state = members.state();
            let (until, _) = state.slots[0].failed.as_ref().expect("it has failed");
            pauses.push(until.duration_since(Instant::now()));
            assert!(
                !state.slots[0].may_be_tried(Instant::now())
                    || pauses.last() < Some(&Duration::from_millis(9))
            );
        }
        assert!(pauses[..3].iter().all(|pause| *pause < Duration::from_secs(1)), "{pauses:?}");
        assert!(pauses.iter().max() > Some(&Duration::from_secs(1)), "they grow: {pauses:?}");
        assert!(pauses.iter().all(|pause| *pause < DIAL_DELAYS.1 * 2), "{pauses:?}");
        let distinct: BTreeSet<u128> = pauses.iter().map(Duration::as_micros).collect();
        assert!(distinct.len() > 10, "they are random: {pauses:?}");
        assert_eq!(members.pick(&[]), None, "it is not tried now");
    }

    #[tokio::test]
    async fn what_takes_connections_and_never_answers_is_left_alone_as_well() {
        let (address, accepted) = silent_member().await;
        let members = members(&address);
        for _ in 0..5 {
            members.state().slots[0].failed = None;
            let connection = members.connect(0).await.expect("a connection");
            members.leave(&connection, &members.failure());
        }
        assert!(members.state().slots[0].failed.is_some());
        assert_eq!(accepted.load(Ordering::Relaxed), 5);
    }

    #[tokio::test]
    async fn processes_try_the_members_in_different_orders() {
        let first = |_| members("a:1,b:1,c:1").pick(&[]);
        let firsts: BTreeSet<_> = (0..100).map(first).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[tokio::test]
    async fn the_first_connection_after_a_time_without_wakes_those_who_wait() {
        let (address, _) = silent_member().await;
        let members = members(&address);
        let mut recoveries = members.recoveries();
        let connection = members.connect(0).await.expect("a connection");
        assert!(recoveries.next().now_or_never().is_none(), "nobody knows whether there is an etcd");
        members.answered(&connection);
        recoveries.next().await;
        members.leave(&connection, &members.failure());
        let another = members.connect(0).await.expect("another connection");
        members.answered(&another);
        members.answered(&another);
        recoveries.next().await;
        assert!(recoveries.next().now_or_never().is_none(), "there was no third");
    }
}
