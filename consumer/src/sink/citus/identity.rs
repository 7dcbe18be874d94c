//! Who a worker is: not its name and not its address, but the system identifier of its data, which initdb makes.
//!
//! A worker is asked itself, over a short connection of its own. What was learnt is kept on the coordinator, in
//! [`super::registry`].

use std::{fmt, time::Duration};

use rollcall_shared::{
    model::{
        instance::InstanceId,
        name::{ContainerId, ContainerName, NodeName, ServiceName},
    },
    process::error::one_line,
};
use tokio_postgres::types::FromSql;

use super::{error::CitusError, libpq::Login, session::Session};
use crate::roll::Row;

/// How long a worker may take to say who it is, from connecting on.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The system identifier of a PostgreSQL's data. A copy of the data has it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub i64);

impl fmt::Display for SystemId {
    /// As pg_controldata shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.cast_unsigned().fmt(f)
    }
}

/// Which container a worker is, as Rollcall knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The service.
    pub service: ServiceName,
    /// The node whose agent registered it.
    pub node: NodeName,
    /// The container's name, which its successor has too.
    pub container: ContainerName,
    /// The container's ID, which its successor has not.
    pub id: ContainerId,
    /// The port inside the container.
    pub port: u16,
}

impl Member {
    /// The row's.
    pub fn of_row(row: &Row) -> Self {
        let InstanceId { node, container, port, .. } = &*row.id;
        Self {
            service: row.instance.service.clone(),
            node: node.clone(),
            container: row.instance.container.clone(),
            id: *container,
            port: *port,
        }
    }

    /// Whether it goes by the same name, as a container that was made anew does.
    pub fn has_name_of(&self, other: &Member) -> bool {
        (&self.node, &self.container, self.port) == (&other.node, &other.container, other.port)
    }
}

impl fmt::Display for Member {
    /// `node/container`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.container)
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whose data it has.
    pub system: SystemId,
    /// The group that it was made a member of: 0 for one that never was, or whose metadata is not synced. `None` where
    /// its database has no Citus.
    pub group: Option<i32>,
    /// Whether it is a standby.
    pub is_standby: bool,
    /// Whether it knows other nodes than a coordinator, or tables that are distributed: in group 0, that is a coordinator,
    /// or a worker whose node was removed. Adding one wipes what it knows of them.
    pub has_metadata: bool,
    /// The host and port of its cluster's coordinator, where its copy of the metadata has them.
    pub coordinator: Option<(String, i32)>,
}

/// What came of asking a worker: who it is, or why it did not say, on one line.
pub type Answer = Result<Identity, String>;

/// Asks a worker who it is.
pub async fn ask(login: &Login, host: String, port: u16) -> Answer {
    let answer = tokio::time::timeout(ASK_TIMEOUT, ask_now(&login.at(host, port))).await;
    match answer {
        Ok(answer) => answer.map_err(|error| one_line(&error)),
        Err(_) => Err("no answer within 3s".to_owned()),
    }
}

async fn ask_now(login: &Login) -> Result<Identity, CitusError> {
    let session = Session::open(login, Some(ASK_TIMEOUT)).await?;
    let identity = identity(&session).await;
    session.close().await;
    identity
}

/// Its group, whether it has metadata of more than a coordinator, and where its coordinator is.
const GROUP: &str = "SELECT own.groupid::int4, \
    EXISTS (SELECT FROM pg_catalog.pg_dist_node WHERE groupid <> 0) \
    OR EXISTS (SELECT FROM pg_catalog.pg_dist_partition), first.nodename::text, first.nodeport::int4 \
    FROM pg_catalog.pg_dist_local_group own \
    LEFT JOIN pg_catalog.pg_dist_node first ON first.groupid = 0 AND first.noderole::text = 'primary'";

/// Who the server of a session is.
///
/// # Errors
/// It does not say.
pub async fn identity(session: &Session) -> Result<Identity, CitusError> {
    const WHAT: &str = "cannot ask who it is";
    let rows = session
        .query(
            WHAT,
            "SELECT system_identifier, pg_is_in_recovery(), to_regclass('pg_catalog.pg_dist_local_group') IS NOT NULL \
             FROM pg_control_system()",
            &[],
        )
        .await?;
    let row = rows.first().ok_or_else(|| CitusError::Unfit(format!("{WHAT}: no answer")))?;
    let plain = |row| Some((get(row, 0)?, get(row, 1)?, get(row, 2)?));
    let (system, is_standby, has_citus): (i64, bool, bool) = plain(row).ok_or_else(nonsense)?;
    let mut identity = Identity {
        system: SystemId(system),
        group: None,
        is_standby,
        has_metadata: false,
        coordinator: None,
    };
    if !has_citus {
        return Ok(identity);
    }
    let rows = session.query(WHAT, GROUP, &[]).await?;
    let Some(row) = rows.first() else { return Ok(identity) };
    let plain = |row| Some((get(row, 0)?, get(row, 1)?, get(row, 2)?, get(row, 3)?));
    let (group, has_metadata, host, port): (i32, bool, Option<String>, Option<i32>) =
        plain(row).ok_or_else(nonsense)?;
    (identity.group, identity.has_metadata) = (Some(group), has_metadata);
    identity.coordinator = host.zip(port);
    Ok(identity)
}

/// A column. Whoever is asked may be anybody, and answer with other types than were asked for.
fn get<'r, T: FromSql<'r>>(row: &'r tokio_postgres::Row, at: usize) -> Option<T> {
    row.try_get(at).ok()
}

fn nonsense() -> CitusError {
    CitusError::Unfit("its answer makes no sense".to_owned())
}
