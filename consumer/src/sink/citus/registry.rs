//! Rollcall's own table on the coordinator, `rollcall.citus_worker`: whose data each node has, which container had it
//! last, and which workers an operator drained.
//!
//! It is made when the first worker is recorded. That takes the right to create a schema in the database; afterwards
//! SELECT, INSERT and UPDATE on the table do.

use std::collections::BTreeMap;

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{
    error::CitusError,
    identity::{Member, SystemId},
    plan::{Known, NodeId},
    session::{InTransaction, Session, Value},
};

/// Citus would make the schema on its workers too. What is sent at once is one transaction, also for what is set.
const CREATE: &str = "
    SET citus.enable_ddl_propagation = off;
    CREATE SCHEMA IF NOT EXISTS rollcall;
    CREATE TABLE IF NOT EXISTS rollcall.citus_worker (
        system_identifier bigint PRIMARY KEY,
        node_id integer UNIQUE,
        service text NOT NULL,
        node text NOT NULL,
        container text NOT NULL,
        container_id text NOT NULL,
        port integer NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT now(),
        drained_at timestamptz);
    COMMENT ON TABLE rollcall.citus_worker IS 'Rollcall: whose data each node of pg_dist_node has';
    RESET citus.enable_ddl_propagation";

/// The values are those of [`values`], then the node.
const RECORD: &str = "
    INSERT INTO rollcall.citus_worker (system_identifier, service, node, container, container_id, port, node_id)
    SELECT $1, $2, $3, $4, $5, $6, given.node_id FROM (SELECT $7::integer AS node_id) given
    ON CONFLICT (system_identifier) DO UPDATE SET
        node_id = EXCLUDED.node_id, service = EXCLUDED.service, node = EXCLUDED.node,
        container = EXCLUDED.container, container_id = EXCLUDED.container_id, port = EXCLUDED.port,
        recorded_at = now(), drained_at = NULL";

/// As [`RECORD`], in one statement with adding the node: either both are done or neither.
const ADD: &str = "
    INSERT INTO rollcall.citus_worker (system_identifier, service, node, container, container_id, port, node_id)
    SELECT $1, $2, $3, $4, $5, $6, added.node_id
    FROM (SELECT pg_catalog.citus_add_node($7, $8) AS node_id) added
    ON CONFLICT (system_identifier) DO UPDATE SET
        node_id = EXCLUDED.node_id, service = EXCLUDED.service, node = EXCLUDED.node,
        container = EXCLUDED.container, container_id = EXCLUDED.container_id, port = EXCLUDED.port,
        recorded_at = now(), drained_at = NULL";

/// The columns of a row of the table, as they are sent.
struct Columns {
    system: i64,
    texts: [String; 4],
    port: i32,
}

impl Columns {
    fn new(system: SystemId, member: &Member) -> Self {
        let Member { service, node, container, id, port } = member;
        let texts = [service.to_string(), node.to_string(), container.to_string(), id.to_string()];
        Self { system: system.0, texts, port: i32::from(*port) }
    }

    fn values(&self) -> Vec<Value<'_>> {
        let mut values: Vec<Value<'_>> = vec![(&self.system, Type::INT8)];
        values.extend(self.texts.iter().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT)));
        values.push((&self.port, Type::INT4));
        values
    }
}

/// Makes the table, unless it is there.
///
/// # Errors
/// It may not be made.
pub async fn create(session: &Session) -> Result<(), CitusError> {
    if is_there(session).await? {
        return Ok(());
    }
    session.batch("cannot make table rollcall.citus_worker", CREATE).await
}

/// Whether the table is there.
pub(super) async fn is_there(session: &Session) -> Result<bool, CitusError> {
    let sql = "SELECT to_regclass('rollcall.citus_worker') IS NOT NULL";
    let rows = session.query("cannot look for table rollcall.citus_worker", sql, &[]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// The workers that were recorded.
///
/// # Errors
/// The table cannot be read, or is another one.
pub async fn read(session: &Session) -> Result<BTreeMap<SystemId, Known>, CitusError> {
    if !is_there(session).await? {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT system_identifier, node_id, service, node, container, container_id, port, \
               drained_at IS NOT NULL FROM rollcall.citus_worker";
    let rows = session.query("cannot read table rollcall.citus_worker", sql, &[]).await?;
    rows.iter().map(known).collect()
}

fn known(row: &Row) -> Result<(SystemId, Known), CitusError> {
    let system = SystemId(row.get(0));
    let bad = |error: String| {
        CitusError::Unfit(format!("table rollcall.citus_worker, system_identifier {}: {error}", system.0))
    };
    fn name<T: TryFrom<String, Error: ToString>>(row: &Row, at: usize) -> Result<T, String> {
        row.get::<_, String>(at).try_into().map_err(|error: T::Error| error.to_string())
    }
    let port: i32 = row.get(6);
    let member = Member {
        service: name(row, 2).map_err(bad)?,
        node: name(row, 3).map_err(bad)?,
        container: name(row, 4).map_err(bad)?,
        id: name(row, 5).map_err(bad)?,
        port: port.try_into().map_err(|_| bad(format!("{port} is no port")))?,
    };
    Ok((system, Known { node: row.get(1), member, is_drained: row.get(7) }))
}

/// Adds a worker and records whose data it has.
///
/// # Errors
/// Citus refuses it.
pub async fn add(
    session: &Session,
    what: &str,
    system: SystemId,
    member: &Member,
    (host, port): (String, u16),
) -> Result<(), CitusError> {
    let (columns, port) = (Columns::new(system, member), i32::from(port));
    let mut values = columns.values();
    values.extend([(&host as &(dyn ToSql + Sync), Type::TEXT), (&port, Type::INT4)]);
    session.query(what, ADD, &values).await.map(drop)
}

/// Records whose data a node has, and which container has it.
///
/// # Errors
/// It may not be written.
pub async fn record(
    within: &InTransaction<'_>,
    system: SystemId,
    member: &Member,
    node: NodeId,
) -> Result<(), CitusError> {
    let columns = Columns::new(system, member);
    let mut values = columns.values();
    values.push((&node, Type::INT4));
    within.query("cannot write table rollcall.citus_worker", RECORD, &values).await.map(drop)
}

/// Notes that a worker is drained, or that it is not any more.
///
/// # Errors
/// It may not be written.
pub async fn set_drained(session: &Session, system: SystemId, is_drained: bool) -> Result<(), CitusError> {
    let sql = "UPDATE rollcall.citus_worker SET drained_at = CASE WHEN $2 THEN now() END WHERE system_identifier = $1";
    let values: [Value<'_>; 2] = [(&system.0, Type::INT8), (&is_drained, Type::BOOL)];
    session.query("cannot write table rollcall.citus_worker", sql, &values).await.map(drop)
}

/// Forgets the node of a worker, which has been removed.
///
/// # Errors
/// It may not be written.
pub async fn forget_node(session: &Session, node: NodeId) -> Result<(), CitusError> {
    let sql = "UPDATE rollcall.citus_worker SET node_id = NULL WHERE node_id = $1";
    session.query("cannot write table rollcall.citus_worker", sql, &[(&node, Type::INT4)]).await.map(drop)
}
