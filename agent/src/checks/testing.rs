//! Ports that answer as a test says.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    Spec,
    probe::{Probe, ProbeError},
    target::Target,
};

/// How a port answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// As it should.
    Well,
    /// With this HTTP status.
    Status(u16),
    /// It refuses connections.
    Refuses,
    /// Not at all.
    Never,
}

/// The ports of all containers; one of which nothing is said refuses.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScriptedPorts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<SocketAddr, Answers>,
    asked: BTreeMap<SocketAddr, usize>,
    under_way: usize,
    most_under_way: usize,
}

impl ScriptedPorts {
    /// Has a port answer like this from now on.
    pub(crate) fn set(&self, address: &str, answers: Answers) {
        self.lock().answers.insert(address.parse().expect("an address"), answers);
    }

    /// How often a port was asked.
    pub(crate) fn asked(&self, address: &str) -> usize {
        self.lock().asked.get(&address.parse().expect("an address")).copied().unwrap_or_default()
    }

    /// How many probes there were at once.
    pub(crate) fn most_under_way(&self) -> usize {
        self.lock().most_under_way
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with it")
    }

    fn begin(&self, address: SocketAddr) -> Answers {
        let mut state = self.lock();
        *state.asked.entry(address).or_default() += 1;
        state.under_way += 1;
        state.most_under_way = state.most_under_way.max(state.under_way);
        state.answers.get(&address).copied().unwrap_or(Answers::Refuses)
    }
}

#[async_trait]
impl Probe for ScriptedPorts {
    async fn probe(&self, target: &Target, spec: &Spec) -> Result<(), ProbeError> {
        let address = target.choose(|_| true, |_| true).ok_or(ProbeError::NoAddress)?;
        let found = match self.begin(address) {
            Answers::Well => Ok(()),
            Answers::Status(status) => Err(ProbeError::Status(status)),
            Answers::Refuses => Err(ProbeError::Connect(io::ErrorKind::ConnectionRefused.into())),
            Answers::Never => {
                tokio::time::sleep(spec.timeout).await;
                Err(ProbeError::TimedOut(Duration::from_secs(0)))
            }
        };
        self.lock().under_way -= 1;
        found
    }
}
