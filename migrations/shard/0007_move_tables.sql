-- What a move does to tables, always by the identity that `move_table` holds. VRHLD: things are not as recorded; the move
-- is held for an operator.

-- Up to when (by ingested_at) all readings were compared with the other side.
ALTER TABLE bucket_move ADD COLUMN verified timestamptz;

-- The latest generation of runners that worked here: an older one, paused before its first word and woken later, claims
-- nothing any more.
CREATE TABLE runner_seen (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    generation bigint NOT NULL
);

INSERT INTO runner_seen (generation) VALUES (0);

-- The tables of a move, each checked to be the one that was recorded.
CREATE FUNCTION tables_of_move(the_move bigint) RETURNS TABLE (root text, name text, role text)
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT t.root, t.name, t.table_oid, r.role
        FROM move_table AS t INNER JOIN root_table AS r ON r.root = t.root
        WHERE t.move_id = the_move ORDER BY r.lock_order
    LOOP
        IF to_regclass(format('public.%I', each.name)) IS DISTINCT FROM each.table_oid::regclass THEN
            RAISE EXCEPTION 'table % is not the one that move % recorded', each.name, the_move USING ERRCODE = 'VRHLD';
        END IF;
        root := each.root;
        name := each.name;
        role := each.role;
        RETURN NEXT;
    END LOOP;
END
$$;

-- On the source: the tables that the bucket has now.
CREATE FUNCTION claim_tables(the_bucket smallint, the_move bigint) RETURNS integer
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    found integer;
BEGIN
    INSERT INTO move_table (move_id, table_oid, root, name)
    SELECT the_move, b.table_oid, b.root, b.name
    FROM bucket_table AS b WHERE b.bucket = the_bucket AND NOT b.detaching
    ON CONFLICT DO NOTHING;
    -- What was recorded earlier must be this bucket's: a catalog from an older backup gives numbers a second time.
    IF EXISTS (
        SELECT FROM move_table AS t INNER JOIN bucket_table AS b ON b.table_oid = t.table_oid
        WHERE t.move_id = the_move AND b.bucket IS DISTINCT FROM the_bucket
    ) THEN
        RAISE EXCEPTION 'move % recorded tables of another bucket here', the_move USING ERRCODE = 'VRHLD';
    END IF;
    SELECT count(*) INTO found FROM move_table WHERE move_id = the_move;
    RETURN found;
END
$$;

-- On the target: tables like the roots, beside them; nobody but the mover sees them. The CHECK, in exactly this form, lets
-- ATTACH believe it instead of reading all rows.
CREATE FUNCTION prepare_tables(the_bucket smallint, the_move bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
BEGIN
    FOR each IN SELECT * FROM root_table ORDER BY lock_order LOOP
        own := each.root || '_b' || lpad(the_bucket::text, 4, '0') || '_m' || the_move;
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

-- The fence goes up: waits for writers in flight (lock_timeout), never for readers.
CREATE FUNCTION fence_tables(the_move bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT * FROM tables_of_move(the_move) LOOP
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON %I '
            'FOR EACH ROW EXECUTE FUNCTION refuse_write()',
            each.name
        );
    END LOOP;
END
$$;

-- Writes go through again. Disabled, not dropped: readers do not notice, and a long one does not hold it up.
CREATE FUNCTION open_tables(the_move bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT t.* FROM tables_of_move(the_move) AS t
        WHERE EXISTS (
            SELECT FROM pg_catalog.pg_trigger
            WHERE tgrelid = to_regclass(format('public.%I', t.name)) AND tgname = 'fence'
        )
    LOOP
        EXECUTE format('ALTER TABLE %I DISABLE TRIGGER fence', each.name);
    END LOOP;
END
$$;

-- What is left of a fence that was opened goes when nobody has to wait for it.
CREATE FUNCTION unfence_tables(the_move bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET lock_timeout = '150ms' AS $$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT * FROM tables_of_move(the_move) LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS fence ON %I', each.name);
    END LOOP;
END
$$;

-- The shard becomes the owner: repeating it changes nothing.
CREATE FUNCTION adopt_tables(the_bucket smallint, the_move bigint, earliest date) RETURNS void
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

-- Drops what the move recorded, and nothing else; what is still attached is left alone and refused.
CREATE FUNCTION drop_tables(the_move bigint) RETURNS integer
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    dropped integer := 0;
BEGIN
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

REVOKE ALL ON FUNCTION tables_of_move(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION claim_tables(smallint, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION prepare_tables(smallint, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION fence_tables(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION open_tables(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION unfence_tables(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION adopt_tables(smallint, bigint, date) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_tables(bigint) FROM PUBLIC;
