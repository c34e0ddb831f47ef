-- Kinds are declared in the catalog, and made here: roots, the tables of every bucket, rights. A kind is not in root_table,
-- and so in nobody's way, until all buckets that the shard owns have their tables (`ready`).

CREATE TABLE stored_kind (
    kind_id smallint PRIMARY KEY,
    ready boolean NOT NULL DEFAULT false,
    name text NOT NULL UNIQUE,
    id_column text NOT NULL
);

INSERT INTO stored_kind (kind_id, ready, name, id_column) VALUES
(1, true, 'meter', 'meter_id'), (2, true, 'vehicle', 'vehicle_id');

-- Every look at the tree of partitions begins here: the planner must know how few these are, and autovacuum would never say.
ANALYZE stored_kind;

-- Writers lock history before status, so everything here is in that order.
CREATE VIEW every_root AS
SELECT
    (2 * k.kind_id + r.at)::integer AS lock_order,
    k.name AS kind,
    r.role,
    k.name || r.suffix AS root,
    k.ready,
    k.id_column
FROM stored_kind AS k
CROSS JOIN (VALUES (0, 'history', '_telemetry_history'), (1, 'status', '_current_status')) AS r (at, role, suffix);

CREATE OR REPLACE VIEW root_table AS
SELECT lock_order, kind, role, root FROM every_root WHERE ready;

-- What the catalog calls a type, as a column has it. varchar(64): no TOAST table for a closed list's words.
CREATE FUNCTION column_type(declared text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    SELECT CASE declared
        WHEN 'float8' THEN 'double precision'
        WHEN 'float4' THEN 'real'
        WHEN 'int4' THEN 'integer'
        WHEN 'bool' THEN 'boolean'
        WHEN 'text' THEN 'varchar(64)'
    END
$$;

-- Columns of values as CREATE TABLE takes them, from wide to narrow. `columns`: [{name, type, in_status, kept}].
CREATE FUNCTION listed_columns(columns jsonb, of_status boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    WITH declared AS (
        SELECT c.*, row_number() OVER () AS place
        FROM jsonb_to_recordset(columns) AS c (name text, type text, in_status boolean, kept boolean)
    )
    SELECT string_agg(definition, ', ' ORDER BY width, place)
    FROM (
        SELECT
            format('%I %s', name, column_type(type)) AS definition,
            array_position(ARRAY['float8', 'float4', 'int4', 'bool', 'text'], type) AS width,
            place
        FROM declared WHERE in_status OR NOT of_status
        UNION ALL
        SELECT format('%I timestamptz', name || '_at'), 0, place FROM declared WHERE of_status AND in_status AND kept
    ) AS d
$$;

-- The two roots of a kind. Every value may be missing: what a reading must have is the router's to say, and changes.
CREATE FUNCTION make_roots(the_id smallint, the_kind text, the_key text, columns jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    history text := the_kind || '_telemetry_history';
    status text := the_kind || '_current_status';
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.kinds'));
    IF EXISTS (SELECT FROM stored_kind WHERE name = the_kind) THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE TABLE %I (timestamp timestamptz NOT NULL, ingested_at timestamptz NOT NULL DEFAULT now(), %s, '
        'bucket smallint NOT NULL, tenant_id smallint NOT NULL DEFAULT 0, %I varchar(64) COLLATE "C" NOT NULL, '
        'PRIMARY KEY (%I, timestamp, tenant_id, bucket)) PARTITION BY LIST (bucket)',
        history, listed_columns(columns, false), the_key, the_key
    );
    EXECUTE format('CREATE INDEX ON %I (timestamp)', history);
    EXECUTE format('CREATE INDEX ON %I USING brin (ingested_at)', history);
    EXECUTE format(
        'CREATE TABLE %I (last_updated timestamptz NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), %s '
        'bucket smallint NOT NULL, tenant_id smallint NOT NULL DEFAULT 0, %I varchar(64) COLLATE "C" NOT NULL, '
        'PRIMARY KEY (%I, tenant_id, bucket)) PARTITION BY LIST (bucket)',
        status, coalesce(listed_columns(columns, true) || ',', ''), the_key, the_key
    );
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', history);
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', status);
    -- A catalog that was restored may give a number twice. Here it only orders locks.
    INSERT INTO stored_kind (kind_id, name, id_column)
    SELECT
        CASE WHEN EXISTS (SELECT FROM stored_kind WHERE kind_id = the_id) THEN max(k.kind_id) + 1 ELSE the_id END,
        the_kind,
        the_key
    FROM stored_kind AS k;
    ANALYZE stored_kind;
END
$$;

-- The first leaves of a bucket's history.
CREATE FUNCTION make_first_leaves(own text, earliest date, months date []) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC' AS $$
DECLARE
    the_month date;
BEGIN
    PERFORM make_leaf(own, own || '_past', 'MINVALUE', quote_literal(earliest::timestamptz));
    FOREACH the_month IN ARRAY months LOOP
        CONTINUE WHEN the_month < earliest;
        PERFORM make_leaf(
            own,
            own || to_char(the_month, '_YYYY_MM'),
            quote_literal(the_month::timestamptz),
            quote_literal((the_month + interval '1 month')::timestamptz)
        );
    END LOOP;
END
$$;

-- The tables of one bucket in a kind's roots.
CREATE FUNCTION attach_tables(the_kind text, the_bucket smallint, earliest date, months date []) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
BEGIN
    FOR each IN SELECT * FROM every_root WHERE kind = the_kind ORDER BY lock_order LOOP
        own := each.root || bucket_suffix(the_bucket);
        IF each.role = 'history' THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY RANGE (timestamp)', own, each.root);
            PERFORM make_first_leaves(own, earliest, months);
        ELSE
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) WITH (fillfactor = 50)', own, each.root);
        END IF;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', each.root, own, the_bucket);
    END LOOP;
END
$$;

-- The tables attached to a kind's roots, also while it is not ready.
CREATE FUNCTION kind_tables(the_kind text) RETURNS TABLE (root text, table_oid oid, name text, bucket smallint)
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    SELECT r.root, c.oid, c.relname::text, bucket_of_bound(pg_catalog.pg_get_expr(c.relpartbound, c.oid))
    FROM every_root AS r
    INNER JOIN pg_catalog.pg_inherits AS i ON i.inhparent = to_regclass('public.' || r.root)
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
    WHERE r.kind = the_kind
$$;

-- Makes the tables of at most so many owned buckets; returns for how many they were missing. Each table takes an entry of
-- the lock table until the transaction's end.
CREATE FUNCTION attach_kind(the_kind text, at_once integer, months date []) RETURNS integer
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    found integer := 0;
BEGIN
    FOR each IN
        SELECT o.bucket, o.first_month FROM owned_bucket AS o
        WHERE NOT EXISTS (SELECT FROM kind_tables(the_kind) AS t WHERE t.bucket = o.bucket)
        ORDER BY o.bucket LIMIT at_once
    LOOP
        PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), each.bucket);
        PERFORM attach_tables(the_kind, each.bucket, each.first_month, months);
        found := found + 1;
    END LOOP;
    RETURN found;
END
$$;

-- From now on the kind is one of the shard's. While no move changes what it has and no bucket changes hands: what was
-- missed is made, what went away is dropped (nobody could write to it), and moves get the tables that they lack.
CREATE FUNCTION finish_kind(the_kind text, earliest date, months date []) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
BEGIN
    IF (SELECT ready FROM stored_kind WHERE name = the_kind) THEN
        RETURN;
    END IF;
    LOCK TABLE bucket_move IN SHARE MODE;
    LOCK TABLE owned_bucket IN SHARE MODE;
    SELECT * INTO each FROM bucket_move WHERE state NOT IN ('copying', 'fenced', 'attached') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'move % of bucket % is being ended', each.move_id, each.bucket USING ERRCODE = 'lock_not_available';
    END IF;
    PERFORM attach_kind(the_kind, 32768, months);
    FOR each IN
        SELECT t.root, t.name FROM kind_tables(the_kind) AS t
        WHERE NOT EXISTS (SELECT FROM owned_bucket AS o WHERE o.bucket = t.bucket)
    LOOP
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', each.root, each.name);
        EXECUTE format('DROP TABLE %I', each.name);
    END LOOP;
    -- What is attached here takes part in its bucket's move as it is, behind the same fence.
    INSERT INTO move_table (move_id, table_oid, root, name)
    SELECT m.move_id, t.table_oid, t.root, t.name
    FROM bucket_move AS m INNER JOIN kind_tables(the_kind) AS t ON t.bucket = m.bucket
    ON CONFLICT DO NOTHING;
    FOR each IN
        SELECT t.name FROM bucket_move AS m INNER JOIN kind_tables(the_kind) AS t ON t.bucket = m.bucket
        WHERE m.state = 'fenced'
    LOOP
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON %I '
            'FOR EACH ROW EXECUTE FUNCTION refuse_write()',
            each.name
        );
    END LOOP;
    -- The target of a copy that is under way: tables beside the roots, as prepare_tables makes them. With leaves: a move
    -- that is past its last pass makes none any more.
    FOR each IN
        SELECT m.move_id, m.bucket, r.root, r.role
        FROM bucket_move AS m CROSS JOIN every_root AS r
        WHERE m.role = 'target' AND m.state = 'copying' AND r.kind = the_kind
        ORDER BY m.move_id, r.lock_order
    LOOP
        own := each.root || bucket_suffix(each.bucket) || '_m' || each.move_id;
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL, CONSTRAINT one_bucket CHECK (bucket = %L::smallint)) %s',
            own, each.root, each.bucket,
            CASE WHEN each.role = 'history' THEN 'PARTITION BY RANGE (timestamp)' ELSE 'WITH (fillfactor = 50)' END
        );
        EXECUTE format('COMMENT ON TABLE %I IS %L', own, 'voltroute move ' || each.move_id);
        INSERT INTO move_table (move_id, table_oid, root, name)
        VALUES (each.move_id, to_regclass(format('public.%I', own)), each.root, own);
        IF each.role = 'history' THEN
            PERFORM make_first_leaves(own, earliest, months);
        END IF;
    END LOOP;
    UPDATE stored_kind SET ready = true WHERE name = the_kind;
END
$$;

-- A field more, in all tables of the kind: those attached to its roots, and those beside them that moves made. Repeating it
-- changes nothing. Nobody reads or writes meanwhile; whoever does now is waited for only a moment.
CREATE FUNCTION add_column(the_kind text, the_column text, the_type text, in_status boolean, kept boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    addition text;
BEGIN
    -- First: no move is claimed or changes its state until the commit, so that the tables found here are all there are.
    LOCK TABLE bucket_move IN SHARE MODE;
    FOR each IN
        SELECT r.lock_order, 0 AS beside, r.role, r.root AS name FROM every_root AS r WHERE r.kind = the_kind
        UNION ALL
        SELECT r.lock_order, 1, r.role, m.name FROM every_root AS r INNER JOIN move_table AS m ON m.root = r.root
        WHERE r.kind = the_kind AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = m.table_oid)
            AND to_regclass(format('public.%I', m.name)) = m.table_oid::regclass
        ORDER BY lock_order, beside
    LOOP
        CONTINUE WHEN each.role = 'status' AND NOT in_status;
        addition := format('ADD COLUMN IF NOT EXISTS %I %s', the_column, column_type(the_type));
        IF each.role = 'status' AND kept THEN
            addition := addition || format(', ADD COLUMN IF NOT EXISTS %I timestamptz', the_column || '_at');
        END IF;
        EXECUTE format('ALTER TABLE %I %s', each.name, addition);
    END LOOP;
END
$$;

-- The shard becomes the owner: repeating it changes nothing. A kind that the other side does not have yet was not carried,
-- and its table has no leaf; without the first one, what is older than the cluster would have no place.
CREATE OR REPLACE FUNCTION adopt_tables(the_bucket smallint, the_move bigint, earliest date) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    FOR each IN
        SELECT t.* FROM tables_of_move(the_move) AS t
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = to_regclass(format('public.%I', t.name)))
    LOOP
        IF each.role = 'history' AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_inherits WHERE inhparent = to_regclass(format('public.%I', each.name))
        ) THEN
            PERFORM make_first_leaves(each.name, earliest, '{}');
        END IF;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', each.root, each.name, the_bucket);
        EXECUTE format('COMMENT ON TABLE %I IS NULL', each.name);
    END LOOP;
    IF (SELECT count(*) FROM bucket_table WHERE bucket = the_bucket AND NOT detaching)
        <> (SELECT count(*) FROM root_table)
    THEN
        RAISE EXCEPTION 'bucket % is not attached to every root', the_bucket USING ERRCODE = 'VRHLD';
    END IF;
    INSERT INTO owned_bucket (bucket, first_month) VALUES (the_bucket, earliest) ON CONFLICT DO NOTHING;
END
$$;

-- Sessions of movers know the columns as they were; they begin their step anew. Only then may routers hear of a change.
CREATE FUNCTION end_movers(mover text) RETURNS integer
LANGUAGE sql
SET search_path = public, pg_temp AS $$
    SELECT count(pg_terminate_backend(pid))::integer FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
        AND starts_with(application_name, mover)
$$;

CREATE OR REPLACE FUNCTION put_policy(policy text, login text, visible text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each text;
BEGIN
    FOR each IN SELECT root FROM every_root ORDER BY lock_order LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON %I', policy, each);
        EXECUTE format('CREATE POLICY %I ON %I TO %I USING (%s)', policy, each, login, visible);
    END LOOP;
END
$$;

-- Rights on the tables of one kind; they lock nobody out. History is INSERT-only, and its `ingested_at` nobody's to name.
CREATE FUNCTION grant_kind(the_kind text, writer text, query text, reader text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    named text;
BEGIN
    FOR each IN SELECT * FROM every_root WHERE kind = the_kind ORDER BY lock_order LOOP
        IF each.role = 'history' THEN
            SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO named FROM pg_catalog.pg_attribute
            WHERE attrelid = to_regclass('public.' || each.root) AND attnum > 0 AND NOT attisdropped
                AND attname <> 'ingested_at';
            EXECUTE format('GRANT INSERT (%s), SELECT (%s) ON %I TO %I', named, named, each.root, writer);
        ELSE
            EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %I TO %I', each.root, writer);
        END IF;
        EXECUTE format('GRANT SELECT ON %I TO %I', each.root, query);
        IF reader IS NOT NULL THEN
            EXECUTE format('GRANT SELECT ON %I TO %I', each.root, reader);
        END IF;
    END LOOP;
END
$$;

-- Rights and policies of a cluster's logins on everything.
CREATE OR REPLACE FUNCTION grant_rights(writer text, query text, monitor text, reader text) RETURNS void
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
    FOREACH each IN ARRAY array_remove(ARRAY[query, reader], NULL) LOOP
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), each);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', each);
        EXECUTE format('GRANT SELECT ON owned_bucket, readable_bucket, shard_identity TO %I', each);
        EXECUTE format('GRANT SELECT ON root_table, bucket_table, leaf TO %I', each);
    END LOOP;
    PERFORM grant_kind(name, writer, query, reader) FROM stored_kind ORDER BY kind_id;
    -- It reads PostgreSQL's statistics, as a member of pg_monitor, and no reading.
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), monitor);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', monitor);
    EXECUTE format('GRANT SELECT ON owned_bucket, shard_identity, root_table, bucket_table, leaf TO %I', monitor);
    PERFORM put_policy('written', writer, 'true');
    -- As a sub-select it is asked once a statement; nullif, because a setting that was reset is the empty text.
    PERFORM put_policy(
        'one_tenant', query, 'tenant_id = (SELECT nullif(current_setting(''voltroute.tenant'', true), '''')::smallint)'
    );
    IF reader IS NOT NULL THEN
        PERFORM put_policy('default_tenant', reader, 'tenant_id = 0');
    END IF;
END
$$;

-- A new kind's roots get the policies that the others have. Nobody has the roots in use yet.
CREATE FUNCTION copy_policies(the_kind text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT p.polname, r.root, o.rolname, pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS visible
        FROM pg_catalog.pg_policy AS p
        CROSS JOIN unnest(p.polroles) AS granted (oid)
        INNER JOIN pg_catalog.pg_roles AS o ON o.oid = granted.oid
        CROSS JOIN every_root AS r
        WHERE p.polrelid = 'public.meter_current_status'::regclass AND r.kind = the_kind
            AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_policy AS q
                WHERE q.polrelid = to_regclass('public.' || r.root) AND q.polname = p.polname
            )
    LOOP
        EXECUTE format('CREATE POLICY %I ON %I TO %I USING (%s)', each.polname, each.root, each.rolname, each.visible);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION retire_reader(reader text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each text;
BEGIN
    FOR each IN SELECT root FROM every_root ORDER BY lock_order LOOP
        EXECUTE format('DROP POLICY IF EXISTS default_tenant ON %I', each);
        EXECUTE format('REVOKE ALL ON %I FROM %I', each, reader);
    END LOOP;
    EXECUTE format(
        'REVOKE ALL ON owned_bucket, readable_bucket, shard_identity, root_table, bucket_table, leaf FROM %I', reader
    );
    EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', reader);
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM %I', current_database(), reader);
END
$$;

REVOKE ALL ON FUNCTION make_roots(smallint, text, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION attach_tables(text, smallint, date, date []) FROM PUBLIC;
REVOKE ALL ON FUNCTION kind_tables(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION attach_kind(text, integer, date []) FROM PUBLIC;
REVOKE ALL ON FUNCTION finish_kind(text, date, date []) FROM PUBLIC;
REVOKE ALL ON FUNCTION make_first_leaves(text, date, date []) FROM PUBLIC;
REVOKE ALL ON FUNCTION add_column(text, text, text, boolean, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION end_movers(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION column_type(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION listed_columns(jsonb, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION grant_kind(text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION copy_policies(text) FROM PUBLIC;
