//! The operator's word: `rollcall-consumer citus drain NODE` moves a worker's shards to the others and removes its
//! node, `citus undrain NODE` lets a drained worker in again.
//!
//! The worker may run on meanwhile. It is noted as drained first, so that no consumer adds its data again: neither the
//! container nor a successor that has the same volume. A new volume is another worker.

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};

use super::{
    conninfo::Conninfo,
    coordinator::{self, State},
    error::CitusError,
    identity::SystemId,
    libpq::{Environment, Login},
    plan::{Node, NodeId},
    registry,
    session::Session,
};

/// How often the lock is tried while a consumer is at work, and the pause between two tries.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// What to tell a Citus coordinator.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum CitusCommand {
    /// Move a worker's shards to the others, and then remove its node. It may take hours and be run again
    Drain {
        /// Which one
        #[command(flatten)]
        worker: WorkerArgs,
    },
    /// Let a drained worker in again
    Undrain {
        /// Which one
        #[command(flatten)]
        worker: WorkerArgs,
    },
}

/// A worker of a coordinator.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArgs {
    /// The worker: HOST, HOST:PORT as pg_dist_node has it, CONTAINER or NODE/CONTAINER
    pub worker: String,
    /// The coordinator's database, as libpq takes it [default: where PGHOST, PGSERVICE and the like say]
    #[arg(
        long,
        env = "ROLLCALL_CITUS_DATABASE",
        value_name = "CONNINFO",
        default_value = "",
        hide_default_value = true
    )]
    #[arg(hide_env_values = true)]
    pub database: String,
}

impl CitusCommand {
    /// Does it, and gives the line that tells what was done.
    ///
    /// # Errors
    /// There is no such worker, or Citus refuses.
    pub async fn run(&self) -> Result<String, CitusError> {
        let (CitusCommand::Drain { worker } | CitusCommand::Undrain { worker }) = self;
        let WorkerArgs { worker, database } = worker;
        let conninfo = Conninfo::parse(database).map_err(super::libpq::LoginError::from)?;
        let login = Login::resolve(conninfo, Environment::of_process())?;
        // Moving shards takes as long as it takes.
        let session = Session::open(&login, None).await?;
        let result = match self {
            CitusCommand::Drain { .. } => drain(&session, worker).await,
            CitusCommand::Undrain { .. } => undrain(&session, worker).await,
        };
        session.close().await;
        result
    }
}

/// Drains a worker and removes its node. The session must have no time-out.
///
/// # Errors
/// There is no such worker, or Citus refuses: what was done so far stays, and it may be run again.
pub async fn drain(session: &Session, worker: &str) -> Result<String, CitusError> {
    // Under the lock: a consumer may be about to give its address to another node.
    let note = async {
        let state = coordinator::read(session).await?;
        let (id, node) = find(&state, worker)?;
        let known = state.known.iter().find(|(_, known)| known.node == Some(id));
        let system = known.map(|(system, _)| *system);
        if let Some(system) = system {
            registry::set_drained(session, system, true).await?;
        }
        Ok((id, node.clone(), system))
    };
    let (id, node, system) = locked(session, note).await?;
    tracing::info!(node = id, address = %node, "a node is drained");
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&node.host, Type::TEXT), (&node.port, Type::INT4)];
    let what = format!("cannot drain node {id} ({node})");
    session.query(&what, "SELECT pg_catalog.citus_drain_node($1, $2)", &values).await?;
    let left = placements(session, node.group).await?;
    if left > 0 {
        return Err(CitusError::Unfit(format!(
            "node {id} ({node}) has {left} placements of shards after it was drained, so it is not removed"
        )));
    }
    let what = format!("cannot remove node {id} ({node})");
    let remove = async {
        session.query(&what, "SELECT pg_catalog.citus_remove_node($1, $2)", &values).await?;
        match system {
            Some(_) => registry::forget_node(session, id).await,
            None => Ok(()),
        }
    };
    locked(session, remove).await?;
    let done = format!("node {id} ({node}) is drained and removed");
    Ok(match system {
        Some(_) => done,
        None => format!(
            "{done}; it was made by hand and no consumer knows that it was drained: stop its container, or it is \
             added again where a target has it"
        ),
    })
}

/// Lets a worker in again that was drained.
///
/// # Errors
/// There is none of this name.
pub async fn undrain(session: &Session, worker: &str) -> Result<String, CitusError> {
    let state = coordinator::read(session).await?;
    let drained = state.known.iter().filter(|(_, known)| known.is_drained);
    let names = |id: &SystemId, known: &super::plan::Known| {
        let node = known.node.and_then(|node| state.nodes.get(&node));
        is_name(worker, known, node) || id.to_string() == worker
    };
    let found: Vec<_> = drained.filter(|(id, known)| names(id, known)).collect();
    match found[..] {
        [(system, known)] => {
            locked(session, registry::set_drained(session, *system, false)).await?;
            let node = known.node.and_then(|id| state.nodes.get(&id));
            Ok(node.map_or_else(
                || format!("worker {} may be added again", known.member),
                |node| {
                    let (host, port) = (super::plan::quoted(&node.host), node.port);
                    format!(
                        "worker {} is no longer drained; its node gets shards again after SELECT \
                         citus_set_node_property({host}, {port}, 'shouldhaveshards', true)",
                        known.member
                    )
                },
            ))
        }
        [] => Err(CitusError::Unfit(format!("no worker that was drained is called {worker:?}"))),
        [..] => Err(several(worker)),
    }
}

fn several(worker: &str) -> CitusError {
    CitusError::Unfit(format!(
        "several workers are called {worker:?}: name it as HOST:PORT or NODE/CONTAINER"
    ))
}

/// The node that a worker's name means.
fn find<'s>(state: &'s State, worker: &str) -> Result<(NodeId, &'s Node), CitusError> {
    let is_meant = |id: &NodeId, node: &Node| {
        let mut known = state.known.values();
        let known = known.find(|known| known.node == Some(*id));
        node.host == worker
            || node.to_string() == worker
            || known.is_some_and(|known| is_name(worker, known, None))
    };
    let found: Vec<_> = state.nodes.iter().filter(|(id, node)| is_meant(id, node)).collect();
    match found[..] {
        [(id, node)] if node.group == 0 => Err(CitusError::Unfit(format!(
            "node {id} ({node}) is the coordinator's own, which is not drained"
        ))),
        [(id, node)] => Ok((*id, node)),
        [] => {
            let names: Vec<_> =
                state.nodes.values().filter(|node| node.group != 0).map(Node::to_string).collect();
            Err(CitusError::Unfit(format!("no node is called {worker:?}: there are {}", names.join(", "))))
        }
        [..] => Err(several(worker)),
    }
}

fn is_name(worker: &str, known: &super::plan::Known, node: Option<&Node>) -> bool {
    known.member.container.as_str() == worker
        || known.member.to_string() == worker
        || node.is_some_and(|node| node.host == worker || node.to_string() == worker)
}

/// How many placements a group has that are nowhere else by their nature: reference tables are everywhere, and
/// citus_remove_node takes theirs along.
async fn placements(session: &Session, group: i32) -> Result<i64, CitusError> {
    let sql = "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) \
               JOIN pg_dist_partition USING (logicalrelid) \
               WHERE groupid = $1 AND NOT (partmethod = 'n' AND repmodel = 't')";
    let rows = session.query("cannot count placements", sql, &[(&group, Type::INT4)]).await?;
    Ok(rows.first().map_or(0, |row| row.get(0)))
}

/// Does something under the lock, once no consumer has it.
async fn locked<T>(
    session: &Session,
    what: impl Future<Output = Result<T, CitusError>>,
) -> Result<T, CitusError> {
    let mut tries = 1;
    while let Err(error) = coordinator::lock(session).await {
        if tries == LOCK_TRIES || error.ends_connection() {
            return Err(error);
        }
        tries += 1;
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    let result = what.await;
    let unlocked = coordinator::unlock(session).await;
    let value = result?;
    unlocked.map(|()| value)
}
