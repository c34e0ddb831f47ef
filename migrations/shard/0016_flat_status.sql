-- The status of a kind is one table of all buckets. A foreign bucket is refused by history, which every writer of a status
-- writes in the same transaction, and before it. A table for each bucket cost PostgreSQL a fifth of its work on a small
-- batch: a status' partition had to be found and opened, with the index that decides conflicts, for every bucket in it.

-- Until the end no move begins.
LOCK TABLE bucket_move IN SHARE ROW EXCLUSIVE MODE;

DO $$
BEGIN
    IF EXISTS (SELECT FROM bucket_move) THEN
        RAISE EXCEPTION 'a move is under way, or a copy of a moved bucket is kept: end it first'
            USING HINT = 'voltroute rebalance status shows it';
    END IF;
END
$$;

-- Those that have a table for each bucket; every_root has the statuses, too.
CREATE OR REPLACE VIEW root_table AS
SELECT
    lock_order,
    kind,
    role,
    root
FROM every_root WHERE ready AND role = 'history';

-- Writers wait for this, some seconds for a million devices. A lock for each table that goes, its index and what depends on
-- them: a full lock table would be an error for every session of the server, so it is asked for first.
DO $$
DECLARE
    each record;
    given record;
    columns text;
    flat text;
    needed bigint;
    room bigint := current_setting('max_locks_per_transaction')::bigint
        * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint);
BEGIN
    SELECT 10 * count(*) INTO needed
    FROM every_root AS r INNER JOIN pg_catalog.pg_inherits AS i ON i.inhparent = to_regclass('public.' || r.root)
    WHERE r.role = 'status';
    IF needed > room THEN
        RAISE EXCEPTION 'the server has room for % locks, and this needs %', room, needed
            USING HINT = 'raise max_locks_per_transaction until the migration is done', ERRCODE = 'out_of_memory';
    END IF;
    FOR each IN 
        SELECT root, id_column, to_regclass('public.' || root) AS old FROM every_root
        WHERE role = 'status' ORDER BY lock_order
    LOOP
        flat := each.root || '_flat';
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', each.root);
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns FROM pg_catalog.pg_attribute
        WHERE attrelid = each.old AND attnum > 0 AND NOT attisdropped;
        -- Half of each page is left for the next version of its rows: then an update makes no entry in an index.
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING INDEXES) WITH (fillfactor = 50)', flat, each.root
        );
        EXECUTE format('INSERT INTO %I (%s) SELECT %s FROM %I', flat, columns, columns, each.root);
        -- A key made over all rows at once takes a fraction of the time.
        EXECUTE format('ALTER TABLE %I ADD PRIMARY KEY (%I, tenant_id, bucket)', flat, each.id_column);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', flat);
        FOR given IN
            SELECT p.polname, o.rolname, pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS visible
            FROM pg_catalog.pg_policy AS p
            CROSS JOIN unnest(p.polroles) AS granted (oid)
            INNER JOIN pg_catalog.pg_roles AS o ON o.oid = granted.oid
            WHERE p.polrelid = each.old
        LOOP
            EXECUTE format('CREATE POLICY %I ON %I TO %I USING (%s)', given.polname, flat, given.rolname, given.visible);
        END LOOP;
        FOR given IN
            SELECT g.privilege_type, o.rolname
            FROM pg_catalog.pg_class AS c
            CROSS JOIN aclexplode(c.relacl) AS g
            INNER JOIN pg_catalog.pg_roles AS o ON o.oid = g.grantee
            WHERE c.oid = each.old AND g.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT %s ON %I TO %I', given.privilege_type, flat, given.rolname);
        END LOOP;
        EXECUTE format('DROP TABLE %I', each.root);
        EXECUTE format('ALTER TABLE %I RENAME TO %I', flat, each.root);
        EXECUTE format('ALTER INDEX %I RENAME TO %I', flat || '_pkey', each.root || '_pkey');
        EXECUTE format('ANALYZE %I', each.root);
    END LOOP;
    -- Whoever reads the list of roots reads this one for the statuses.
    FOR given IN
        SELECT o.rolname
        FROM pg_catalog.pg_class AS c
        CROSS JOIN aclexplode(c.relacl) AS g
        INNER JOIN pg_catalog.pg_roles AS o ON o.oid = g.grantee
        WHERE c.oid = 'public.root_table'::regclass AND g.grantee <> c.relowner AND g.privilege_type = 'SELECT'
    LOOP
        EXECUTE format('GRANT SELECT ON every_root TO %I', given.rolname);
    END LOOP;
END
$$;

-- Everything a shard needs to own a bucket of a new cluster. Repeating it changes nothing.
CREATE OR REPLACE FUNCTION attach_bucket(the_bucket smallint, earliest date, months date []) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC' AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    IF EXISTS (SELECT FROM owned_bucket WHERE bucket = the_bucket) THEN
        RETURN false;
    END IF;
    INSERT INTO owned_bucket (bucket, first_month) VALUES (the_bucket, earliest);
    PERFORM attach_tables(kind, the_bucket, earliest, '{}') FROM root_table ORDER BY lock_order;
    PERFORM ensure_leaves(the_bucket, months);
    RETURN true;
END
$$;

-- The table of one bucket in a kind's history.
CREATE OR REPLACE FUNCTION attach_tables(the_kind text, the_bucket smallint, earliest date, months date []) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
BEGIN
    FOR each IN SELECT * FROM every_root WHERE kind = the_kind AND role = 'history' LOOP
        own := each.root || bucket_suffix(the_bucket);
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY RANGE (timestamp)', own, each.root);
        PERFORM make_first_leaves(own, earliest, months);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', each.root, own, the_bucket);
    END LOOP;
END
$$;

-- The two roots of a kind. Every value may be missing: what a reading must have is the router's to say, and changes.
CREATE OR REPLACE FUNCTION make_roots(the_id smallint, the_kind text, the_key text, columns jsonb) RETURNS void
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
        'PRIMARY KEY (%I, tenant_id, bucket)) WITH (fillfactor = 50)',
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

-- A bucket's statuses go from a shard that does not own it: nobody reads or writes them there.
CREATE FUNCTION forget_statuses(the_bucket smallint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    IF EXISTS (SELECT FROM owned_bucket WHERE bucket = the_bucket) THEN
        RAISE EXCEPTION 'bucket % is owned by this shard', the_bucket USING ERRCODE = 'VRHLD';
    END IF;
    FOR each IN SELECT root FROM every_root WHERE role = 'status' ORDER BY lock_order LOOP
        EXECUTE format('DELETE FROM %I WHERE bucket = $1', each.root) USING the_bucket;
    END LOOP;
END
$$;

-- On the target: tables like the roots, beside them; nobody but the mover sees them. The CHECK, in exactly this form, lets
-- ATTACH believe it instead of reading all rows. Statuses come into their kind's table at once: the shard does not answer
-- for the bucket before it owns it.
CREATE FUNCTION prepare_history(the_bucket smallint, the_move bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
BEGIN
    PERFORM forget_statuses(the_bucket);
    FOR each IN SELECT * FROM root_table ORDER BY lock_order LOOP
        own := each.root || bucket_suffix(the_bucket) || '_m' || the_move;
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL, CONSTRAINT one_bucket CHECK (bucket = %L::smallint)) '
            'PARTITION BY RANGE (timestamp)',
            own, each.root, the_bucket
        );
        EXECUTE format('COMMENT ON TABLE %I IS %L', own, 'voltroute move ' || the_move);
        INSERT INTO move_table (move_id, table_oid, root, name)
        VALUES (the_move, to_regclass(format('public.%I', own)), each.root, own);
    END LOOP;
END
$$;

-- Drops what the move recorded, and nothing else; what is still attached is left alone and refused. The statuses go with it.
CREATE FUNCTION drop_copy(the_bucket smallint, the_move bigint) RETURNS integer
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    dropped integer := 0;
BEGIN
    PERFORM forget_statuses(the_bucket);
    FOR each IN SELECT * FROM move_table WHERE move_id = the_move ORDER BY name LOOP
        CONTINUE WHEN to_regclass(format('public.%I', each.name)) IS NULL;
        IF to_regclass(format('public.%I', each.name)) <> each.table_oid::regclass THEN
            RAISE EXCEPTION 'table % is not the one that move % recorded', each.name, the_move USING ERRCODE = 'VRHLD';
        END IF;
        IF EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = each.table_oid) THEN
            RAISE EXCEPTION 'table % is attached', each.name USING ERRCODE = 'VRHLD';
        END IF;
        EXECUTE format('DROP TABLE %I', each.name);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM move_table WHERE move_id = the_move;
    RETURN dropped;
END
$$;

-- A leader of an earlier release cannot move any more: it gives a rebalance up at once, before anything is copied.
-- squawk-ignore ban-drop-function
DROP FUNCTION prepare_tables(smallint, bigint);
-- squawk-ignore ban-drop-function
DROP FUNCTION drop_tables(bigint);

-- From now on the kind is one of the shard's. While no move changes what it has and no bucket changes hands: what was
-- missed is made, what went away is dropped (nobody could write to it), and moves get the tables that they lack.
CREATE OR REPLACE FUNCTION finish_kind(the_kind text, earliest date, months date []) RETURNS void
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
    -- The target of a copy that is under way: a table beside the root, as prepare_history makes it. With leaves: a move
    -- that is past its last pass makes none any more.
    FOR each IN
        SELECT m.move_id, m.bucket, r.root
        FROM bucket_move AS m CROSS JOIN every_root AS r
        WHERE m.role = 'target' AND m.state = 'copying' AND r.kind = the_kind AND r.role = 'history'
        ORDER BY m.move_id
    LOOP
        own := each.root || bucket_suffix(each.bucket) || '_m' || each.move_id;
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL, CONSTRAINT one_bucket CHECK (bucket = %L::smallint)) '
            'PARTITION BY RANGE (timestamp)',
            own, each.root, each.bucket
        );
        EXECUTE format('COMMENT ON TABLE %I IS %L', own, 'voltroute move ' || each.move_id);
        INSERT INTO move_table (move_id, table_oid, root, name)
        VALUES (each.move_id, to_regclass(format('public.%I', own)), each.root, own);
        PERFORM make_first_leaves(own, earliest, months);
    END LOOP;
    UPDATE stored_kind SET ready = true WHERE name = the_kind;
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
    EXECUTE format('GRANT SELECT ON every_root, root_table, bucket_table, leaf TO %I', writer);
    EXECUTE format('GRANT EXECUTE ON FUNCTION ensure_leaves(smallint, date []) TO %I', writer);
    FOREACH each IN ARRAY array_remove(ARRAY[query, reader], NULL) LOOP
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), each);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', each);
        EXECUTE format('GRANT SELECT ON owned_bucket, readable_bucket, shard_identity TO %I', each);
        EXECUTE format('GRANT SELECT ON every_root, root_table, bucket_table, leaf TO %I', each);
    END LOOP;
    PERFORM grant_kind(name, writer, query, reader) FROM stored_kind ORDER BY kind_id;
    -- It reads PostgreSQL's statistics, as a member of pg_monitor, and no reading.
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), monitor);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', monitor);
    EXECUTE format('GRANT SELECT ON owned_bucket, shard_identity, every_root, root_table, bucket_table, leaf TO %I', monitor);
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
        'REVOKE ALL ON owned_bucket, readable_bucket, shard_identity, every_root, root_table, bucket_table, leaf FROM %I',
        reader
    );
    EXECUTE format('REVOKE ALL ON SCHEMA public FROM %I', reader);
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM %I', current_database(), reader);
END
$$;

REVOKE ALL ON FUNCTION forget_statuses(smallint) FROM PUBLIC;
REVOKE ALL ON FUNCTION prepare_history(smallint, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_copy(smallint, bigint) FROM PUBLIC;
