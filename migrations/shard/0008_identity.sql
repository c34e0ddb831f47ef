-- Each shard carries the cluster's ID and its own name: a database that is somebody else's, or another shard, is told apart
-- whatever the catalog says.

CREATE TABLE shard_identity (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    cluster_id uuid NOT NULL,
    name text NOT NULL
);

-- Rights belong to a cluster's own two logins. The group roles are shared by all clusters of a server: they keep none here.
CREATE FUNCTION grant_rights(writer text, reader text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I, %I', current_database(), writer, reader);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I, %I', writer, reader);
    EXECUTE format('GRANT SELECT ON owned_bucket, readable_bucket, shard_identity TO %I, %I', writer, reader);
    EXECUTE format('GRANT SELECT ON root_table, bucket_table, leaf TO %I, %I', writer, reader);
    EXECUTE format('GRANT EXECUTE ON FUNCTION ensure_leaves(smallint, date []) TO %I', writer);
    EXECUTE format(
        'GRANT INSERT (timestamp, kwh_consumed_ac, voltage, bucket, tenant_id, meter_id), '
        'SELECT (timestamp, meter_id) ON meter_telemetry_history TO %I', writer
    );
    EXECUTE format(
        'GRANT INSERT (timestamp, soc, kwh_delivered_dc, battery_temp, bucket, tenant_id, vehicle_id), '
        'SELECT (timestamp, vehicle_id) ON vehicle_telemetry_history TO %I', writer
    );
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON meter_current_status, vehicle_current_status TO %I', writer);
    EXECUTE format(
        'GRANT SELECT ON meter_current_status, vehicle_current_status, meter_telemetry_history, '
        'vehicle_telemetry_history TO %I', reader
    );
END
$$;

REVOKE ALL ON FUNCTION grant_rights(text, text) FROM PUBLIC;

-- The logins that this database was given to before: those that may connect by name. Only then the groups lose theirs.
DO $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT w.rolname AS writer, r.rolname AS reader
        FROM pg_catalog.pg_roles AS w
        INNER JOIN pg_catalog.pg_roles AS r ON r.rolname = replace(w.rolname, '_writer_', '_reader_')
        INNER JOIN pg_catalog.pg_database AS d ON d.datname = current_database()
        WHERE w.rolname ~ '^voltroute_writer_[0-9a-f]{8}$'
            AND EXISTS (SELECT FROM aclexplode(d.datacl) AS a WHERE a.grantee = w.oid AND a.privilege_type = 'CONNECT')
    LOOP
        PERFORM grant_rights(each.writer, each.reader);
    END LOOP;
    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$$;

REVOKE ALL ON
meter_current_status, vehicle_current_status, meter_telemetry_history, vehicle_telemetry_history, owned_bucket
FROM voltroute_writer, voltroute_reader;
REVOKE ALL (timestamp, kwh_consumed_ac, voltage, bucket, tenant_id, meter_id)
ON meter_telemetry_history FROM voltroute_writer;
REVOKE ALL (timestamp, soc, kwh_delivered_dc, battery_temp, bucket, tenant_id, vehicle_id)
ON vehicle_telemetry_history FROM voltroute_writer;
REVOKE ALL ON FUNCTION ensure_leaves(smallint, date []) FROM voltroute_writer;
REVOKE ALL ON SCHEMA public FROM voltroute_writer, voltroute_reader;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
