-- Each reader sees one tenant: behind the condition that every statement has stands a policy of the database. The writer
-- serves all tenants in one transaction, so what it writes is bound by the router, which takes the tenant from the key. Not
-- FORCE: movers carry rows of all tenants as the owner, with row_security off, which turns silence into an error.

-- squawk-ignore ban-drop-constraint
ALTER TABLE owned_bucket DROP CONSTRAINT owned_bucket_bucket_check;
-- A row a bucket: there is nothing to wait for.
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE owned_bucket ADD CONSTRAINT owned_bucket_bucket_check CHECK (bucket >= 0);

-- How the tables of a bucket end: four digits, five where there must be.
CREATE FUNCTION bucket_suffix(bucket smallint) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    SELECT '_b' || lpad(bucket::text, greatest(length(bucket::text), 4), '0')
$$;

CREATE OR REPLACE FUNCTION bucket_of_bound(bound text) RETURNS smallint
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    SELECT substring(bound FROM '^FOR VALUES IN \(''?(\d{1,5})''?\)$')::smallint
$$;

CREATE OR REPLACE FUNCTION attach_bucket(the_bucket smallint, earliest date, months date []) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC' AS $$
DECLARE
    each record;
    own text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    IF EXISTS (SELECT FROM owned_bucket WHERE bucket = the_bucket) THEN
        RETURN false;
    END IF;
    INSERT INTO owned_bucket (bucket, first_month) VALUES (the_bucket, earliest);
    FOR each IN SELECT * FROM root_table ORDER BY lock_order LOOP
        own := each.root || bucket_suffix(the_bucket);
        IF each.role = 'history' THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY RANGE (timestamp)', own, each.root);
            PERFORM make_leaf(own, own || '_past', 'MINVALUE', quote_literal(earliest::timestamptz));
        ELSE
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) WITH (fillfactor = 50)', own, each.root);
        END IF;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', each.root, own, the_bucket);
    END LOOP;
    PERFORM ensure_leaves(the_bucket, months);
    RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION prepare_tables(the_bucket smallint, the_move bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
BEGIN
    FOR each IN SELECT * FROM root_table ORDER BY lock_order LOOP
        own := each.root || bucket_suffix(the_bucket) || '_m' || the_move;
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL, CONSTRAINT one_bucket CHECK (bucket = %L::smallint)) %s',
            own, each.root, the_bucket,
            CASE WHEN each.role = 'history' THEN 'PARTITION BY RANGE (timestamp)' ELSE 'WITH (fillfactor = 50)' END
        );
        EXECUTE format('COMMENT ON TABLE %I IS %L', own, 'voltroute move ' || the_move);
        INSERT INTO move_table (move_id, table_oid, root, name)
        VALUES (the_move, to_regclass(format('public.%I', own)), each.root, own);
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION bucket_suffix(smallint) FROM PUBLIC;

ALTER TABLE meter_telemetry_history ENABLE ROW LEVEL SECURITY;
ALTER TABLE vehicle_telemetry_history ENABLE ROW LEVEL SECURITY;
ALTER TABLE meter_current_status ENABLE ROW LEVEL SECURITY;
ALTER TABLE vehicle_current_status ENABLE ROW LEVEL SECURITY;

-- A policy of that name for that login, on each root; what it was before is gone. Policies of a root hold for what is read
-- through it; nobody but the owner may read a leaf by its name.
CREATE FUNCTION put_policy(policy text, login text, visible text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each text;
BEGIN
    FOR each IN SELECT root FROM root_table ORDER BY lock_order LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON %I', policy, each);
        EXECUTE format('CREATE POLICY %I ON %I TO %I USING (%s)', policy, each, login, visible);
    END LOOP;
END
$$;

-- Rights of a cluster's logins. `reader`: the login of routers of before, who know one tenant; NULL when there is none.
CREATE FUNCTION grant_rights(writer text, query text, monitor text, reader text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each text;
BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), writer);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', writer);
    EXECUTE format('GRANT SELECT ON owned_bucket, readable_bucket, shard_identity TO %I', writer);
    EXECUTE format('GRANT SELECT ON root_table, bucket_table, leaf TO %I', writer);
    EXECUTE format('GRANT EXECUTE ON FUNCTION ensure_leaves(smallint, date []) TO %I', writer);
    EXECUTE format(
        'GRANT INSERT (timestamp, kwh_consumed_ac, voltage, register_kwh, bucket, tenant_id, meter_id), '
        'SELECT (timestamp, kwh_consumed_ac, voltage, register_kwh, bucket, tenant_id, meter_id) '
        'ON meter_telemetry_history TO %I', writer
    );
    EXECUTE format(
        'GRANT INSERT (timestamp, soc, kwh_delivered_dc, battery_temp, bucket, tenant_id, vehicle_id), '
        'SELECT (timestamp, soc, kwh_delivered_dc, battery_temp, bucket, tenant_id, vehicle_id) '
        'ON vehicle_telemetry_history TO %I', writer
    );
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON meter_current_status, vehicle_current_status TO %I', writer);
    PERFORM put_policy('written', writer, 'true');
    -- As a sub-select it is asked once a statement; nullif, because a setting that was reset is the empty text.
    PERFORM put_policy(
        'one_tenant', query, 'tenant_id = (SELECT nullif(current_setting(''voltroute.tenant'', true), '''')::smallint)'
    );
    FOREACH each IN ARRAY array_remove(ARRAY[query, reader], NULL) LOOP
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), each);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', each);
        EXECUTE format('GRANT SELECT ON owned_bucket, readable_bucket, shard_identity TO %I', each);
        EXECUTE format('GRANT SELECT ON root_table, bucket_table, leaf TO %I', each);
        EXECUTE format(
            'GRANT SELECT ON meter_current_status, vehicle_current_status, meter_telemetry_history, '
            'vehicle_telemetry_history TO %I', each
        );
    END LOOP;
    -- It reads PostgreSQL's statistics, as a member of pg_monitor, and no reading.
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), monitor);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', monitor);
    EXECUTE format('GRANT SELECT ON owned_bucket, shard_identity, root_table, bucket_table, leaf TO %I', monitor);
    IF reader IS NOT NULL THEN
        PERFORM put_policy('default_tenant', reader, 'tenant_id = 0');
    END IF;
END
$$;

-- The login of routers of before loses what it could do here.
CREATE FUNCTION retire_reader(reader text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each text;
BEGIN
    FOR each IN SELECT root FROM root_table ORDER BY lock_order LOOP
        EXECUTE format('DROP POLICY IF EXISTS default_tenant ON %I', each);
    END LOOP;
    EXECUTE format(
        'REVOKE ALL ON owned_bucket, readable_bucket, shard_identity, root_table, bucket_table, leaf, meter_current_status, '
        'vehicle_current_status, meter_telemetry_history, vehicle_telemetry_history FROM %I', reader
    );
    EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', reader);
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM %I', current_database(), reader);
END
$$;

-- Commands of the release before refuse this schema as newer than theirs before they would call it.
-- squawk-ignore ban-drop-function
DROP FUNCTION grant_rights(text, text);
REVOKE ALL ON FUNCTION put_policy(text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION grant_rights(text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION retire_reader(text) FROM PUBLIC;

-- Until `voltroute migrate up` has made the new login: the logins that this database was given to before keep what they have.
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
        PERFORM put_policy('written', each.writer, 'true');
        PERFORM put_policy('default_tenant', each.reader, 'tenant_id = 0');
    END LOOP;
END
$$;
