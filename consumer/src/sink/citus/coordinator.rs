//! The coordinator: whether this server is one that we may tell, which nodes it has, and how it is told.

use std::{collections::BTreeMap, time::Duration};

use rollcall_shared::model::instance::Endpoint;
use tokio_postgres::types::Type;

use super::{
    error::CitusError,
    identity::{Identity, SystemId, identity},
    plan::{Known, Move, Node, NodeId, Step},
    registry,
    session::{InTransaction, Session},
    settings::CitusConfig,
};

/// Whoever changes nodes by way of Rollcall holds the advisory lock of this number: `rollcall` in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"rollcall");

/// What the coordinator has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Who it is.
    pub system: SystemId,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The workers that were recorded.
    pub known: BTreeMap<SystemId, Known>,
}

/// Reads what it has, and makes sure that it is a coordinator, and ours to tell.
///
/// # Errors
/// It is not, or does not answer.
pub async fn read(session: &Session) -> Result<State, CitusError> {
    check_rights(session).await?;
    let system = check_identity(session, identity(session).await?)?;
    let nodes = nodes(session).await?;
    if !nodes.values().any(|node| node.group == 0) {
        return Err(CitusError::Unfit(format!(
            "the coordinator's own host is not set at {}: SELECT citus_set_coordinator_host('<host>', <port>) sets it \
             to where the workers reach it",
            session.server
        )));
    }
    Ok(State { system, nodes, known: registry::read(session).await? })
}

async fn check_rights(session: &Session) -> Result<(), CitusError> {
    // By name, as their types are absent where Citus is.
    let sql = "SELECT current_user::text, current_database()::text, \
               (SELECT extversion FROM pg_extension WHERE extname = 'citus'), \
               bool_and(has_function_privilege(oid, 'EXECUTE')) FILTER (WHERE proname = 'citus_add_node'), \
               bool_and(has_function_privilege(oid, 'EXECUTE')) FILTER (WHERE proname = 'citus_update_node') \
               FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace \
               AND proname IN ('citus_add_node', 'citus_update_node')";
    let rows = session.query("cannot ask for Citus", sql, &[]).await?;
    let row = rows.first().ok_or_else(|| CitusError::Unfit("no answer".to_owned()))?;
    let (user, database): (String, String) = (row.get(0), row.get(1));
    let (version, may_add, may_update): (Option<String>, Option<bool>, Option<bool>) =
        (row.get(2), row.get(3), row.get(4));
    let server = &session.server;
    let problem = match (version, may_add, may_update) {
        (None, ..) => {
            format!("database {database:?} at {server} has no Citus: CREATE EXTENSION citus adds it")
        }
        (Some(version), None, _) | (Some(version), _, None) => {
            format!("database {database:?} at {server} has Citus {version}: expected 10 or later")
        }
        (_, Some(false), _) | (_, _, Some(false)) => format!(
            "permission denied: user {user:?} at {server} may not run citus_add_node and citus_update_node: use a \
             superuser"
        ),
        (Some(_), Some(true), Some(true)) => return Ok(()),
    };
    Err(CitusError::Unfit(problem))
}

fn check_identity(session: &Session, identity: Identity) -> Result<SystemId, CitusError> {
    let server = &session.server;
    let problem = match identity {
        Identity { is_standby: true, .. } => format!("{server} is a read-only standby, not the coordinator"),
        Identity { group: Some(group), .. } if group != 0 => {
            format!("{server} is a worker, of group {group}, not the coordinator")
        }
        Identity { system, .. } => return Ok(system),
    };
    Err(CitusError::Unfit(problem))
}

async fn nodes(session: &Session) -> Result<BTreeMap<NodeId, Node>, CitusError> {
    let sql = "SELECT nodeid, groupid, nodename, nodeport, isactive, noderole::text = 'primary', hasmetadata, \
               coalesce(metadatasynced, false) FROM pg_dist_node";
    let rows = session.query("cannot read pg_dist_node", sql, &[]).await?;
    let node = |row: &tokio_postgres::Row| {
        let node = Node {
            group: row.get(1),
            host: row.get(2),
            port: row.get(3),
            is_active: row.get(4),
            is_primary: row.get(5),
            has_metadata: row.get(6),
            is_synced: row.get(7),
        };
        (row.get(0), node)
    };
    Ok(rows.iter().map(node).collect())
}

/// Takes the lock of those who change nodes, or tells that another consumer has it.
///
/// # Errors
/// Another one has it.
pub async fn lock(session: &Session) -> Result<(), CitusError> {
    let sql = "SELECT pg_try_advisory_lock($1)";
    let rows = session.query("cannot take the advisory lock", sql, &[(&LOCK, Type::INT8)]).await?;
    match rows.first().map(|row| row.get(0)) {
        Some(true) => Ok(()),
        _ => Err(CitusError::Unfit("another consumer is at work on this coordinator".to_owned())),
    }
}

/// Gives the lock back.
///
/// # Errors
/// The server does not answer.
pub async fn unlock(session: &Session) -> Result<(), CitusError> {
    let sql = "SELECT pg_advisory_unlock($1)";
    session.query("cannot give the advisory lock back", sql, &[(&LOCK, Type::INT8)]).await.map(drop)
}

/// Does a step, other than asking.
///
/// # Errors
/// Citus refuses it, or does not answer.
pub async fn act(session: &mut Session, step: &Step, config: &CitusConfig) -> Result<(), CitusError> {
    registry::create(session).await?;
    let what = format!("cannot {step}");
    match step {
        Step::Ask { .. } => Ok(()),
        Step::AddNode { candidate, system } => {
            let Endpoint { address, port } = &candidate.endpoint;
            let to = (address.to_string(), *port);
            check_is_no_node(session, *system)
                .await
                .map_err(|why| CitusError::Unfit(format!("{what}: {why}")))?;
            registry::add(session, &what, *system, &candidate.member, to).await
        }
        Step::RecordIdentity { node, member, system } => {
            let within = session.transaction().await?;
            registry::record(&within, *system, member, *node).await?;
            within.commit(&what).await
        }
        Step::UpdateNode { node, force } => {
            let within = session.transaction().await?;
            update(&within, &what, node, *force, config).await?;
            within.commit(&what).await
        }
        Step::SwapNodes { nodes, force } => {
            let within = session.transaction().await?;
            // Addresses are unique: first everybody leaves, to names that nobody has, then everybody comes.
            for node in nodes {
                let away = format!("rollcall-moving-{}", node.node);
                let port = node.to.endpoint.port;
                set_address(&within, &what, node.node, (away, port), *force, config.lock_cooldown).await?;
            }
            for node in nodes {
                update(&within, &what, node, *force, config).await?;
            }
            within.commit(&what).await
        }
    }
}

/// Before Citus 11, a worker need not have the metadata, and then does not know that it is one. It may be the worker of a
/// node that was made by hand, under another address: nodes like that are asked, as the coordinator reaches them.
async fn check_is_no_node(session: &Session, system: SystemId) -> Result<(), CitusError> {
    const WHAT: &str = "cannot ask nodes that were made by hand";
    let unknown = "SELECT nodeid, nodename::text, nodeport FROM pg_dist_node WHERE groupid <> 0 AND isactive \
                   AND noderole::text = 'primary' AND NOT hasmetadata \
                   AND NOT EXISTS (SELECT FROM rollcall.citus_worker WHERE node_id = nodeid)";
    let unknown = session.query(WHAT, unknown, &[]).await?;
    if unknown.is_empty() {
        return Ok(());
    }
    let ask = "SELECT nodename::text, nodeport, CASE WHEN success THEN result::text END FROM \
               run_command_on_workers('SELECT system_identifier FROM pg_control_system()')";
    let answers = session.query(WHAT, ask, &[]).await?;
    for node in unknown {
        let (id, host, port): (NodeId, String, i32) = (node.get(0), node.get(1), node.get(2));
        let mut of_node = answers.iter().filter(|row| (row.get(0), row.get(1)) == (host.as_str(), port));
        let found: Option<String> = of_node.next().and_then(|row| row.get(2));
        match found.and_then(|text| text.trim().parse().ok()) {
            Some(found) if SystemId(found) == system => {
                return Err(CitusError::Unfit(format!(
                    "it is node {id} ({host}:{port}) already, under another address: \
                     SELECT citus_update_node({id}, '<host>', <port>) gives the node this one"
                )));
            }
            Some(_) => {}
            None => {
                let why = format!(
                    "it may be node {id} ({host}:{port}), which was made by hand and does not answer"
                );
                return Err(CitusError::Unfit(why));
            }
        }
    }
    Ok(())
}

async fn update(
    within: &InTransaction<'_>,
    what: &str,
    node: &Move,
    force: bool,
    config: &CitusConfig,
) -> Result<(), CitusError> {
    let Endpoint { address, port } = &node.to.endpoint;
    set_address(within, what, node.node, (address.to_string(), *port), force, config.lock_cooldown).await?;
    registry::record(within, node.system, &node.to.member, node.node).await
}

async fn set_address(
    within: &InTransaction<'_>,
    what: &str,
    node: NodeId,
    (host, port): (String, u16),
    force: bool,
    lock_cooldown: Duration,
) -> Result<(), CitusError> {
    let cooldown = i32::try_from(lock_cooldown.as_millis()).unwrap_or(i32::MAX);
    let sql = "SELECT pg_catalog.citus_update_node($1, $2, $3, $4, $5)";
    let values: [super::session::Value<'_>; 5] = [
        (&node, Type::INT4),
        (&host, Type::TEXT),
        (&i32::from(port), Type::INT4),
        (&force, Type::BOOL),
        (&cooldown, Type::INT4),
    ];
    within.query(what, sql, &values).await.map(drop)
}
