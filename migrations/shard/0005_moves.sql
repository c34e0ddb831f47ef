-- What a shard knows of moves. On the source, `state` is the authority for going on or aborting; on the target, the row is
-- what makes its tables findable. `runner` is a fencing token, the runner's generation: an older one can
-- neither take over nor write here any more.

CREATE TABLE bucket_move (
    move_id bigint NOT NULL,
    low_water timestamptz,
    fenced_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    runner bigint NOT NULL,
    bucket smallint NOT NULL,
    role text NOT NULL CHECK (role IN ('source', 'target')),
    state text NOT NULL DEFAULT 'copying'
    CHECK (state IN ('copying', 'fenced', 'aborted', 'attached', 'returned', 'dropping')),
    PRIMARY KEY (bucket)
);

-- The target's leaves that are whole, each written in the transaction that copied it.
CREATE TABLE copied_leaf (
    move_id bigint NOT NULL,
    name text NOT NULL,
    PRIMARY KEY (move_id, name)
);

-- The fence. Only the owner of the table gets through, who is the mover that carries readings back in a rollback.
CREATE FUNCTION refuse_write() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_catalog.pg_class WHERE oid = TG_RELID), 'usage') THEN
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    RAISE EXCEPTION 'the bucket is fenced' USING
        ERRCODE = 'VRFEN',
        DETAIL = format('(bucket) = (%s)', CASE WHEN TG_OP = 'DELETE' THEN OLD.bucket ELSE NEW.bucket END);
END
$$;

CREATE FUNCTION bucket_tables(the_bucket smallint) RETURNS TABLE (root text, name text)
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    -- Writers lock history before status, so everything here is in that order.
    SELECT kind || suffix, kind || suffix || '_b' || lpad(the_bucket::text, 4, '0')
    FROM (VALUES (1, 'meter'), (2, 'vehicle')) AS k (k_order, kind),
        (VALUES (1, '_telemetry_history'), (2, '_current_status')) AS s (s_order, suffix)
    ORDER BY k_order, s_order
$$;

-- The fence goes up: waits for writers in flight (lock_timeout), never for readers.
CREATE FUNCTION fence_bucket(the_bucket smallint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each text;
BEGIN
    FOR each IN SELECT name FROM bucket_tables(the_bucket) LOOP
        EXECUTE format(
            'CREATE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_write()',
            each
        );
    END LOOP;
END
$$;

CREATE FUNCTION unfence_bucket(the_bucket smallint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each text;
BEGIN
    FOR each IN SELECT name FROM bucket_tables(the_bucket) LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS fence ON %I', each);
    END LOOP;
END
$$;

-- Tables like the roots, beside them: nobody but the mover sees them. The CHECK, in exactly this form, lets ATTACH believe
-- it instead of reading all rows.
CREATE FUNCTION prepare_bucket(the_bucket smallint, the_move bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT * FROM bucket_tables(the_bucket) LOOP
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL, CONSTRAINT one_bucket CHECK (bucket = %L::smallint)) %s',
            each.name, each.root, the_bucket,
            CASE WHEN each.root LIKE '%\_history' THEN 'PARTITION BY RANGE (timestamp)' ELSE 'WITH (fillfactor = 50)' END
        );
        EXECUTE format('COMMENT ON TABLE %I IS %L', each.name, 'voltroute move ' || the_move);
    END LOOP;
END
$$;

-- The shard becomes the owner: repeating it changes nothing.
CREATE FUNCTION adopt_bucket(the_bucket smallint, earliest date) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    FOR each IN
        SELECT t.* FROM bucket_tables(the_bucket) AS t
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = to_regclass(format('public.%I', t.name)))
    LOOP
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', each.root, each.name, the_bucket);
        EXECUTE format('COMMENT ON TABLE %I IS NULL', each.name);
    END LOOP;
    INSERT INTO owned_bucket (bucket, first_month) VALUES (the_bucket, earliest) ON CONFLICT DO NOTHING;
END
$$;

REVOKE ALL ON FUNCTION refuse_write() FROM PUBLIC;
REVOKE ALL ON FUNCTION bucket_tables(smallint) FROM PUBLIC;
REVOKE ALL ON FUNCTION fence_bucket(smallint) FROM PUBLIC;
REVOKE ALL ON FUNCTION unfence_bucket(smallint) FROM PUBLIC;
REVOKE ALL ON FUNCTION prepare_bucket(smallint, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION adopt_bucket(smallint, date) FROM PUBLIC;
