-- The one catalogue of tables: which table serves a bucket is read from PostgreSQL's own tree of partitions, never from
-- a name. Names only have to differ: tables of a move carry its number, so that what a runner of an earlier move still
-- sends can never mean a table of a later one.

CREATE VIEW root_table AS
SELECT *
FROM (VALUES
    (1, 'meter', 'history', 'meter_telemetry_history'),
    (2, 'meter', 'status', 'meter_current_status'),
    (3, 'vehicle', 'history', 'vehicle_telemetry_history'),
    (4, 'vehicle', 'status', 'vehicle_current_status')
) AS r (lock_order, kind, role, root); -- writers lock history before status, so everything here is in that order

-- The bucket of a table attached to a root; NULL for a bound that voltroute did not write: a DEFAULT, several values.
CREATE FUNCTION bucket_of_bound(bound text) RETURNS smallint
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    SELECT substring(bound FROM '^FOR VALUES IN \(''?(\d{1,4})''?\)$')::smallint
$$;

-- The tables attached to the roots.
CREATE VIEW bucket_table AS
SELECT
    r.lock_order,
    r.kind,
    r.role,
    r.root,
    c.oid AS table_oid,
    c.relname::text AS name,
    i.inhdetachpending AS detaching,
    pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bound,
    bucket_of_bound(pg_catalog.pg_get_expr(c.relpartbound, c.oid)) AS bucket
FROM root_table AS r
INNER JOIN pg_catalog.pg_inherits AS i ON i.inhparent = to_regclass('public.' || r.root)
INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid;

-- The partitions of buckets' history tables. `lower_bound` is NULL for one that is no range of time.
CREATE VIEW leaf AS
SELECT
    b.bucket,
    b.kind,
    b.table_oid AS parent_oid,
    b.name AS parent,
    c.oid AS leaf_oid,
    c.relname::text AS name,
    pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bound,
    substring(pg_catalog.pg_get_expr(c.relpartbound, c.oid) FROM '^FOR VALUES FROM \((.*)\) TO \(') AS lower_bound
FROM bucket_table AS b
INNER JOIN pg_catalog.pg_inherits AS i ON i.inhparent = b.table_oid
INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE b.role = 'history';

-- Tables that take part in a move, by their identity: on its source those it had, on its target those made for it.
CREATE TABLE move_table (
    move_id bigint NOT NULL,
    table_oid oid NOT NULL,
    root text NOT NULL,
    name text NOT NULL,
    PRIMARY KEY (move_id, root)
);

INSERT INTO move_table (move_id, table_oid, root, name)
SELECT m.move_id, c.oid, t.root, t.name
FROM bucket_move AS m
CROSS JOIN LATERAL bucket_tables(m.bucket) AS t
INNER JOIN pg_catalog.pg_class AS c ON c.oid = to_regclass('public.' || t.name);

-- What a shard answers reads for. A copy that was fenced a while ago is old: whoever still asks for it has an old map and
-- no catalog, and is told so instead. 15 s are more than a map's age and the longest query together.
CREATE VIEW readable_bucket AS
SELECT o.bucket
FROM owned_bucket AS o
WHERE NOT EXISTS (
    SELECT FROM bucket_move AS m
    WHERE
        m.bucket = o.bucket AND m.state IN ('fenced', 'dropping')
        AND m.fenced_at < clock_timestamp() - interval '15 seconds'
);

-- A router of an earlier release finds them gone and carries nothing; its moves wait for one of this release.
-- squawk-ignore ban-drop-function
DROP FUNCTION fence_bucket(smallint);
-- squawk-ignore ban-drop-function
DROP FUNCTION unfence_bucket(smallint);
-- squawk-ignore ban-drop-function
DROP FUNCTION prepare_bucket(smallint, bigint);
-- squawk-ignore ban-drop-function
DROP FUNCTION adopt_bucket(smallint, date);
-- squawk-ignore ban-drop-function
DROP FUNCTION bucket_tables(smallint);

CREATE OR REPLACE FUNCTION make_leaf(parent text, leaf text, lower_bound text, upper_bound text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    found oid := to_regclass(format('public.%I', leaf));
BEGIN
    IF found IS NOT NULL THEN
        IF EXISTS (
            SELECT FROM pg_catalog.pg_inherits
            WHERE inhrelid = found AND inhparent = to_regclass(format('public.%I', parent)) AND NOT inhdetachpending
        ) THEN
            RETURN false;
        END IF;
        RAISE EXCEPTION 'table % exists and is no partition of %', leaf, parent USING
            ERRCODE = 'duplicate_table', HINT = 'attach it again, or rename it';
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', leaf, parent);
    EXECUTE format(
        'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', parent, leaf, lower_bound, upper_bound
    );
    RETURN true;
END
$$;

CREATE OR REPLACE FUNCTION ensure_leaves(the_bucket smallint, months date []) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '1s' AS $$
DECLARE
    earliest date;
    the_month date;
    each record;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    SELECT first_month INTO earliest FROM owned_bucket WHERE bucket = the_bucket;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'bucket % is not owned by this shard', the_bucket USING ERRCODE = 'no_data_found';
    END IF;
    FOREACH the_month IN ARRAY months LOOP
        the_month := date_trunc('month', the_month)::date;
        IF the_month < earliest OR the_month > now() + interval '4 months' THEN
            RAISE EXCEPTION 'no partition may be made for %', the_month USING ERRCODE = 'datetime_field_overflow';
        END IF;
        FOR each IN
            SELECT name FROM bucket_table WHERE bucket = the_bucket AND role = 'history' ORDER BY lock_order
        LOOP
            made := made + make_leaf(
                each.name,
                each.name || to_char(the_month, '_YYYY_MM'),
                quote_literal(the_month::timestamptz),
                quote_literal((the_month + interval '1 month')::timestamptz)
            )::integer;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

-- Everything a shard needs to own a bucket of a new cluster. Repeating it changes nothing.
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
        own := each.root || '_b' || lpad(the_bucket::text, 4, '0');
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
