//! One call to the store, and as many requests for it as it takes: to another member where one fails, beside the first
//! where one does not answer, and again where the cluster has no leader for a moment.
//!
//! Every call through here may be repeated without harm. A request that was given up may still be applied later; whoever
//! writes watches what it has written.

use std::{sync::Arc, time::Duration};

use etcd_client::Error;
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{
    error::{classify, is_answer, is_token_refused, login_failed, timed_out, unavailable},
    login::TokenNumber,
    members::{Connection, Member, Members},
};
use crate::{
    process::{setting::SettingError, time::sleep_until},
    store::StoreError,
};

/// How long a small request may go unanswered before it is sent to another member as well.
const SMALL_PATIENCE: Duration = Duration::from_millis(300);
/// The same once every member was asked: a cluster that has lost its leader drops requests, and the next one finds the new
/// leader. It grows with each request, as what is slow because there is too much to do should get no more of it.
const NEXT_PATIENCE: Duration = Duration::from_millis(200);
const PATIENCE_GROWTH: f64 = 1.05;
/// How long after every member has answered that it cannot do it now they are asked again, at first and at most.
const ROUND_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(400));

/// How large a call's answer may be: it decides how long one member is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Size {
    /// A write, or a key that is read.
    Small,
    /// A page of a listing, or the opening of a watch.
    Large,
}

/// Why a request did not succeed.
enum Failed {
    /// Its token was refused.
    Token(TokenNumber, StoreError),
    /// The member has answered that it cannot do this now.
    NotNow(StoreError),
    /// The member could not be reached, or did not answer.
    Unreached(StoreError),
    /// Nothing that another request would change.
    Final(StoreError),
}

/// When to send a call's next request, and to whom.
struct Plan {
    /// The members that were asked in this round.
    tried: Vec<Member>,
    /// Whether one of them has answered.
    has_answer: bool,
    /// How long to wait before the next round of those who have.
    pause: Duration,
    has_sent: bool,
    /// Whether more than one request was sent.
    is_repeated: bool,
    next: Option<Instant>,
    until: Instant,
    /// How long a request may go unanswered before the next one, if there is another member.
    patience: Option<Duration>,
    /// The same from the second round on.
    next_patience: Option<Duration>,
    is_later_round: bool,
    has_logged_in: bool,
}

impl Plan {
    /// When the next request may be sent, if one may.
    fn due(&self) -> Option<Instant> {
        self.next.filter(|next| *next < self.until)
    }

    fn is_due(&self) -> bool {
        self.due().is_some_and(|due| due <= Instant::now())
    }

    fn send(&mut self, member: Member) {
        self.is_repeated |= self.has_sent;
        self.has_sent = true;
        self.tried.push(member);
        self.next = self.patience.map(|patience| Instant::now() + patience);
        self.patience = self.patience.map(|patience| patience.mul_f64(PATIENCE_GROWTH));
    }

    fn begin_round(&mut self, after: Duration) {
        if !self.is_later_round {
            self.is_later_round = true;
            self.patience = self.next_patience;
        }
        self.tried.clear();
        self.has_answer = false;
        self.next = Some(Instant::now() + after);
    }

    fn begin_round_after_answers(&mut self) {
        self.begin_round(self.pause);
        self.pause = (self.pause * 3 / 2).min(ROUND_PAUSES.1);
    }

    fn hurry(&mut self) {
        self.next = Some(Instant::now());
    }
}

impl Members {
    /// Runs a call.
    pub(super) async fn call<T, F>(
        self: &Arc<Self>,
        size: Size,
        request: impl Fn(Arc<Connection>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        if self.settings().endpoints.is_empty() {
            return Err(SettingError::missing("--etcd", "one URL or more").into());
        }
        let mut plan = self.plan(size);
        let mut requests = FuturesUnordered::new();
        let mut failure = None;
        loop {
            if plan.is_due() {
                match self.pick(&plan.tried) {
                    Some(member) => {
                        plan.send(member);
                        requests.push(self.request(member, plan.until, &request));
                    }
                    None if plan.has_answer => plan.begin_round_after_answers(),
                    None if !plan.tried.is_empty() => plan.begin_round(Duration::ZERO),
                    None if requests.is_empty() => return Err(failure.unwrap_or_else(|| self.failure())),
                    None => plan.begin_round(plan.patience.unwrap_or(ROUND_PAUSES.0)),
                }
                continue;
            }
            if requests.is_empty() && Instant::now() >= plan.until {
                return Err(failure.unwrap_or_else(|| self.failure()));
            }
            // Where no request is under way and none is due in time, the call is over then.
            let wake_at = plan.due().or_else(|| requests.is_empty().then_some(plan.until));
            tokio::select! {
                // A timer, and requests that stay where they are.
                biased;
                Some((member, answer)) = requests.next() => match answer {
                    Ok(answer) => {
                        if plan.is_repeated {
                            self.prefer(member);
                        }
                        return Ok(answer);
                    }
                    Err(Failed::Token(token, _)) if !plan.has_logged_in => {
                        self.refuse(token);
                        plan.has_logged_in = true;
                        plan.begin_round(Duration::ZERO);
                    }
                    Err(Failed::Token(_, error)) => return Err(login_failed(error)),
                    Err(Failed::Final(error)) => return Err(error),
                    Err(Failed::NotNow(error)) => {
                        failure = Some(error);
                        plan.has_answer = true;
                        plan.hurry();
                    }
                    Err(Failed::Unreached(error)) => {
                        failure = Some(error);
                        plan.hurry();
                    }
                },
                () = sleep_until(wake_at) => {}
            }
        }
    }

    fn plan(&self, size: Size) -> Plan {
        let now = Instant::now();
        let dial_timeout = self.settings().dial_timeout;
        let (patience, next_patience) = match size {
            Size::Small => (SMALL_PATIENCE.min(dial_timeout), NEXT_PATIENCE.min(dial_timeout)),
            Size::Large => (dial_timeout, dial_timeout),
        };
        Plan {
            tried: Vec::new(),
            has_answer: false,
            pause: ROUND_PAUSES.0,
            has_sent: false,
            is_repeated: false,
            next: Some(now),
            until: now + self.settings().command_timeout,
            patience: self.are_several().then_some(patience),
            next_patience: self.are_several().then_some(next_patience),
            is_later_round: false,
            has_logged_in: false,
        }
    }

    /// One request to one member.
    async fn request<T, F>(
        self: &Arc<Self>,
        member: Member,
        until: Instant,
        request: &impl Fn(Arc<Connection>) -> F,
    ) -> (Member, Result<T, Failed>)
    where
        F: Future<Output = Result<T, Error>>,
    {
        let connection = match self.connect(member).await {
            Ok(connection) => connection,
            Err(error @ StoreError::Unavailable { .. }) => return (member, Err(Failed::Unreached(error))),
            Err(error) => return (member, Err(Failed::Final(error))),
        };
        if Instant::now() >= until {
            // The connection is not to blame: it came too late.
            let late = unavailable(&connection.endpoint, "timed out connecting");
            return (member, Err(Failed::Unreached(late)));
        }
        let token = self.token();
        let answer = match tokio::time::timeout_at(until, request(connection.clone())).await {
            Ok(answer) => answer,
            Err(_) => Err(timed_out("waiting for an answer")),
        };
        if answer.as_ref().map_or_else(is_answer, |_| true) {
            self.answered(&connection);
        }
        (member, answer.map_err(|error| self.failed(&connection, token, error)))
    }

    fn failed(&self, connection: &Connection, token: TokenNumber, error: Error) -> Failed {
        let (is_token, is_answer) = (is_token_refused(&error), is_answer(&error));
        match classify(&connection.endpoint, error) {
            error if is_token => Failed::Token(token, error),
            error @ StoreError::Unavailable { .. } if is_answer => Failed::NotNow(error),
            error @ StoreError::Unavailable { .. } => {
                self.leave(connection, &error);
                Failed::Unreached(error)
            }
            error => Failed::Final(error),
        }
    }
}
