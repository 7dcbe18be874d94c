-- Stands in for the extension of Citus 12.1 where no registry has it: the tables that know nodes and placements, and
-- the functions that change nodes, with the names, signatures, rights, effects and errors that Citus's documentation
-- and source give them. There is no query planner and no background worker: the maintenance daemon's work is done when
-- start_metadata_sync_to_all_nodes() is called.

CREATE TYPE noderole AS ENUM ('primary', 'secondary', 'unavailable');
CREATE SCHEMA citus;
CREATE TYPE citus.shard_transfer_mode AS ENUM ('auto', 'force_logical', 'block_writes');

CREATE SEQUENCE citus.pg_dist_node_nodeid_seq MINVALUE 1 MAXVALUE 4294967296;
CREATE SEQUENCE citus.pg_dist_groupid_seq MINVALUE 1 MAXVALUE 4294967296;
ALTER SEQUENCE citus.pg_dist_node_nodeid_seq SET SCHEMA pg_catalog;
ALTER SEQUENCE citus.pg_dist_groupid_seq SET SCHEMA pg_catalog;

CREATE TABLE citus.pg_dist_node (
    nodeid int NOT NULL DEFAULT nextval('pg_catalog.pg_dist_node_nodeid_seq') PRIMARY KEY,
    groupid int NOT NULL DEFAULT nextval('pg_catalog.pg_dist_groupid_seq'),
    nodename text NOT NULL,
    nodeport int NOT NULL DEFAULT 5432,
    noderack text NOT NULL DEFAULT 'default',
    hasmetadata bool NOT NULL DEFAULT false,
    isactive bool NOT NULL DEFAULT true,
    noderole noderole NOT NULL DEFAULT 'primary',
    nodecluster name NOT NULL DEFAULT 'default',
    metadatasynced bool DEFAULT false,
    shouldhaveshards bool NOT NULL DEFAULT true,
    UNIQUE (nodename, nodeport));
CREATE TABLE citus.pg_dist_local_group (groupid int NOT NULL PRIMARY KEY);
INSERT INTO citus.pg_dist_local_group VALUES (0);
CREATE TABLE citus.pg_dist_partition (
    logicalrelid regclass NOT NULL,
    partmethod "char" NOT NULL,
    partkey text,
    colocationid int NOT NULL DEFAULT 0,
    repmodel "char" NOT NULL DEFAULT 'c',
    autoconverted bool NOT NULL DEFAULT false);
CREATE TABLE citus.pg_dist_shard (
    logicalrelid regclass NOT NULL,
    shardid bigint NOT NULL PRIMARY KEY,
    shardstorage "char" NOT NULL,
    shardminvalue text,
    shardmaxvalue text);
CREATE TABLE citus.pg_dist_placement (
    placementid bigint NOT NULL PRIMARY KEY,
    shardid bigint NOT NULL,
    shardstate int NOT NULL,
    shardlength bigint NOT NULL,
    groupid int NOT NULL);
ALTER TABLE citus.pg_dist_node SET SCHEMA pg_catalog;
ALTER TABLE citus.pg_dist_local_group SET SCHEMA pg_catalog;
ALTER TABLE citus.pg_dist_partition SET SCHEMA pg_catalog;
ALTER TABLE citus.pg_dist_shard SET SCHEMA pg_catalog;
ALTER TABLE citus.pg_dist_placement SET SCHEMA pg_catalog;
GRANT SELECT ON pg_catalog.pg_dist_node, pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_partition,
    pg_catalog.pg_dist_shard, pg_catalog.pg_dist_placement TO public;
GRANT USAGE ON SCHEMA citus TO public;

CREATE FUNCTION pg_catalog.citus_version() RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT 'Citus 12.1.0 on x86_64-pc-linux-gnu, a stand-in for tests'::text $$;

CREATE FUNCTION citus.ensure_superuser() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('is_superuser') <> 'on' THEN
        RAISE EXCEPTION 'operation is not allowed'
            USING HINT = 'Run the command with a superuser.', ERRCODE = 'insufficient_privilege';
    END IF;
END $$;

CREATE FUNCTION citus.ensure_coordinator() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT groupid FROM pg_catalog.pg_dist_local_group) <> 0 THEN
        RAISE EXCEPTION 'operation is not allowed on this node'
            USING HINT = 'Connect to the coordinator and run it again.';
    END IF;
END $$;

-- Has a node do something, over a connection of the coordinator's own.
CREATE FUNCTION citus.run_on(host text, port int, command text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    target text := format('host=%L port=%s dbname=%L user=%L connect_timeout=3', host, port, current_database(),
        current_user);
BEGIN
    PERFORM public.dblink_connect('citus_node', target);
    PERFORM public.dblink_exec('citus_node', command);
    PERFORM public.dblink_disconnect('citus_node');
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
    RAISE EXCEPTION 'connection to the remote node %@%:% failed', current_user, host, port
        USING ERRCODE = 'connection_failure';
END $$;

-- Has a node know its group and all nodes. As with Citus, what it knows of the others stays when its node is removed.
CREATE FUNCTION citus.sync_nodes_to(host text, port int, groupid int) RETURNS void LANGUAGE sql AS $$
    SELECT citus.run_on(host, port, format(
        'DELETE FROM pg_catalog.pg_dist_node;
        INSERT INTO pg_catalog.pg_dist_node
            SELECT * FROM json_populate_recordset(NULL::pg_catalog.pg_dist_node, %L);
        UPDATE pg_catalog.pg_dist_local_group SET groupid = %s',
        (SELECT json_agg(node) FROM pg_catalog.pg_dist_node node), groupid))
$$;

-- As long as a node that has metadata is not in sync, nothing can be propagated to it.
CREATE FUNCTION citus.ensure_synced() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    node record;
BEGIN
    FOR node IN SELECT nodename, nodeport FROM pg_catalog.pg_dist_node
        WHERE hasmetadata AND NOT metadatasynced AND isactive AND noderole = 'primary' ORDER BY nodeid
    LOOP
        RAISE EXCEPTION '%:% is a metadata node, but is out of sync', node.nodename, node.nodeport
            USING HINT = 'If the node is up, wait until metadata gets synced to it and try again.';
    END LOOP;
END $$;

CREATE FUNCTION pg_catalog.citus_activate_node(nodename text, nodeport integer)
    RETURNS integer LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    node pg_catalog.pg_dist_node;
BEGIN
    PERFORM citus.ensure_superuser(), citus.ensure_coordinator();
    SELECT * INTO node FROM pg_catalog.pg_dist_node n WHERE n.nodename = $1 AND n.nodeport = $2;
    IF node.nodeid IS NULL THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', $1, $2;
    END IF;
    UPDATE pg_catalog.pg_dist_node SET isactive = true, hasmetadata = true, metadatasynced = true
        WHERE nodeid = node.nodeid;
    PERFORM citus.sync_nodes_to($1, $2, node.groupid);
    RETURN node.nodeid;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_activate_node(text, integer) FROM PUBLIC;

CREATE FUNCTION pg_catalog.citus_add_inactive_node(nodename text, nodeport integer, groupid integer DEFAULT -1,
    noderole noderole DEFAULT 'primary', nodecluster name DEFAULT 'default')
    RETURNS integer LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    id int;
    coordinator text;
BEGIN
    PERFORM citus.ensure_superuser(), citus.ensure_coordinator();
    SELECT nodeid INTO id FROM pg_catalog.pg_dist_node n WHERE n.nodename = $1 AND n.nodeport = $2;
    IF id IS NOT NULL THEN
        RETURN id;
    END IF;
    LOCK TABLE pg_catalog.pg_dist_node IN EXCLUSIVE MODE;
    SELECT n.nodename INTO coordinator FROM pg_catalog.pg_dist_node n WHERE n.groupid = 0;
    IF $3 <> 0 AND $1 <> 'localhost' AND coordinator = 'localhost' THEN
        RAISE EXCEPTION 'cannot add a worker node when the coordinator hostname is set to localhost'
            USING DETAIL = 'Worker nodes need to be able to connect to the coordinator to transfer data.',
            HINT = 'Use SELECT citus_set_coordinator_host(''<hostname>'') to configure the coordinator hostname';
    END IF;
    PERFORM citus.ensure_synced();
    INSERT INTO pg_catalog.pg_dist_node (groupid, nodename, nodeport, isactive, noderole, nodecluster)
        VALUES (CASE WHEN $3 = -1 THEN nextval('pg_catalog.pg_dist_groupid_seq') ELSE $3 END, $1, $2, false, $4, $5)
        RETURNING nodeid INTO id;
    RETURN id;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_add_inactive_node(text, int, int, noderole, name) FROM PUBLIC;

CREATE FUNCTION pg_catalog.citus_add_node(nodename text, nodeport integer, groupid integer DEFAULT -1,
    noderole noderole DEFAULT 'primary', nodecluster name DEFAULT 'default')
    RETURNS integer LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    id int;
BEGIN
    SELECT nodeid INTO id FROM pg_catalog.pg_dist_node n WHERE n.nodename = $1 AND n.nodeport = $2;
    IF id IS NULL THEN
        id := pg_catalog.citus_add_inactive_node($1, $2, $3, $4, $5);
        PERFORM pg_catalog.citus_activate_node($1, $2);
    END IF;
    RETURN id;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_add_node(text, int, int, noderole, name) FROM PUBLIC;

CREATE FUNCTION pg_catalog.citus_disable_node(nodename text, nodeport integer, synchronous bool DEFAULT false)
    RETURNS void LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
BEGIN
    PERFORM citus.ensure_coordinator();
    UPDATE pg_catalog.pg_dist_node n SET isactive = false, metadatasynced = false
        WHERE n.nodename = $1 AND n.nodeport = $2;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_disable_node(text, int, bool) FROM PUBLIC;

-- Waits for those that write to the node's placements; with force, ends them after the cooldown, given in milliseconds.
CREATE FUNCTION pg_catalog.citus_update_node(node_id int, new_node_name text, new_node_port int,
    force bool DEFAULT false, lock_cooldown int DEFAULT 10000)
    RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE
    same int;
BEGIN
    SELECT nodeid INTO same FROM pg_catalog.pg_dist_node WHERE nodename = $2 AND nodeport = $3;
    IF same = $1 THEN
        RETURN;
    ELSIF same IS NOT NULL THEN
        RAISE EXCEPTION 'there is already another node with the specified hostname and port'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF NOT EXISTS (SELECT FROM pg_catalog.pg_dist_node WHERE nodeid = $1) THEN
        RAISE EXCEPTION 'node % not found', $1 USING ERRCODE = 'no_data_found';
    END IF;
    IF force THEN
        PERFORM pg_sleep(lock_cooldown / 1000.0);
        PERFORM pg_terminate_backend(pid) FROM pg_locks
            WHERE relation = 'pg_catalog.pg_dist_placement'::regclass AND granted AND pid <> pg_backend_pid()
            AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock');
    END IF;
    LOCK TABLE pg_catalog.pg_dist_placement IN SHARE ROW EXCLUSIVE MODE;
    UPDATE pg_catalog.pg_dist_node SET nodename = $2, nodeport = $3 WHERE nodeid = $1;
    -- The maintenance daemon tells the workers, which may take several tries.
    UPDATE pg_catalog.pg_dist_node SET metadatasynced = false WHERE hasmetadata AND groupid <> 0;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_update_node(int, text, int, bool, int) FROM PUBLIC;

CREATE FUNCTION pg_catalog.citus_drain_node(nodename text, nodeport integer,
    shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto', rebalance_strategy name DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    node pg_catalog.pg_dist_node;
    other int;
BEGIN
    PERFORM citus.ensure_coordinator();
    SELECT * INTO node FROM pg_catalog.pg_dist_node n WHERE n.nodename = $1 AND n.nodeport = $2;
    IF node.nodeid IS NULL THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', $1, $2;
    END IF;
    UPDATE pg_catalog.pg_dist_node SET shouldhaveshards = false WHERE nodeid = node.nodeid;
    SELECT n.groupid INTO other FROM pg_catalog.pg_dist_node n
        WHERE n.shouldhaveshards AND n.isactive AND n.groupid <> node.groupid ORDER BY n.groupid LIMIT 1;
    UPDATE pg_catalog.pg_dist_placement SET groupid = other WHERE groupid = node.groupid AND other IS NOT NULL
        AND shardid IN (SELECT shardid FROM pg_catalog.pg_dist_shard s JOIN pg_catalog.pg_dist_partition p
            USING (logicalrelid) WHERE NOT (partmethod = 'n' AND repmodel = 't'));
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_drain_node(text, int, citus.shard_transfer_mode, name) FROM PUBLIC;

CREATE FUNCTION pg_catalog.citus_remove_node(nodename text, nodeport integer)
    RETURNS void LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    node pg_catalog.pg_dist_node;
    shard bigint;
BEGIN
    PERFORM citus.ensure_coordinator();
    SELECT * INTO node FROM pg_catalog.pg_dist_node n WHERE n.nodename = $1 AND n.nodeport = $2;
    IF node.nodeid IS NULL THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', $1, $2;
    END IF;
    SELECT p.shardid INTO shard FROM pg_catalog.pg_dist_placement p WHERE p.groupid = node.groupid AND NOT EXISTS
        (SELECT FROM pg_catalog.pg_dist_placement o WHERE o.shardid = p.shardid AND o.groupid <> p.groupid) LIMIT 1;
    IF shard IS NOT NULL THEN
        RAISE EXCEPTION 'cannot remove or disable the node %:% because because it contains the only shard placement for shard %',
            $1, $2, shard USING HINT = 'To proceed, either drop the tables or use undistribute_table() function to '
            'convert them to local tables';
    END IF;
    DELETE FROM pg_catalog.pg_dist_placement WHERE groupid = node.groupid;
    BEGIN
        PERFORM citus.run_on($1, $2, 'UPDATE pg_catalog.pg_dist_local_group SET groupid = 0');
    EXCEPTION WHEN connection_failure THEN
        RAISE WARNING 'the node does not answer';
    END;
    DELETE FROM pg_catalog.pg_dist_node WHERE nodeid = node.nodeid;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_remove_node(text, int) FROM PUBLIC;

CREATE FUNCTION pg_catalog.citus_set_coordinator_host(host text,
    port integer DEFAULT current_setting('port')::int, node_role noderole DEFAULT 'primary',
    node_cluster name DEFAULT 'default')
    RETURNS void LANGUAGE plpgsql STRICT AS $$
BEGIN
    PERFORM citus.ensure_coordinator();
    UPDATE pg_catalog.pg_dist_node SET nodename = $1, nodeport = $2 WHERE groupid = 0;
    IF NOT FOUND THEN
        INSERT INTO pg_catalog.pg_dist_node (groupid, nodename, nodeport, hasmetadata, metadatasynced, shouldhaveshards)
            VALUES (0, $1, $2, true, true, false);
    END IF;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.citus_set_coordinator_host(text, int, noderole, name) FROM PUBLIC;

CREATE FUNCTION pg_catalog.master_get_active_worker_nodes(OUT node_name text, OUT node_port bigint)
    RETURNS SETOF record LANGUAGE sql STRICT
    AS $$ SELECT nodename, nodeport FROM pg_catalog.pg_dist_node WHERE isactive AND noderole = 'primary' AND groupid <> 0 $$;

CREATE FUNCTION pg_catalog.run_command_on_workers(command text, parallel bool DEFAULT true,
    OUT nodename text, OUT nodeport int, OUT success bool, OUT result text)
    RETURNS SETOF record LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    node record;
BEGIN
    FOR node IN SELECT n.nodename, n.nodeport FROM pg_catalog.pg_dist_node n
        WHERE n.isactive AND n.noderole = 'primary' AND n.groupid <> 0 ORDER BY n.nodeid
    LOOP
        BEGIN
            RETURN QUERY SELECT node.nodename, node.nodeport, true, answer.result FROM public.dblink(
                format('host=%L port=%s dbname=%L user=%L connect_timeout=3', node.nodename, node.nodeport,
                    current_database(), current_user), command) answer (result text);
        EXCEPTION WHEN OTHERS THEN
            RETURN QUERY SELECT node.nodename, node.nodeport, false, SQLERRM;
        END;
    END LOOP;
END $$;

-- What the maintenance daemon does by itself every few seconds.
CREATE FUNCTION pg_catalog.start_metadata_sync_to_all_nodes() RETURNS bool LANGUAGE plpgsql STRICT AS $$
DECLARE
    node record;
BEGIN
    FOR node IN SELECT * FROM pg_catalog.pg_dist_node
        WHERE hasmetadata AND NOT metadatasynced AND isactive AND noderole = 'primary' ORDER BY nodeid
    LOOP
        PERFORM citus.sync_nodes_to(node.nodename, node.nodeport, node.groupid);
        UPDATE pg_catalog.pg_dist_node SET metadatasynced = true WHERE nodeid = node.nodeid;
    END LOOP;
    RETURN true;
END $$;
REVOKE ALL ON FUNCTION pg_catalog.start_metadata_sync_to_all_nodes() FROM PUBLIC;
