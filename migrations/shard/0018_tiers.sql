-- History in tiers. Hot: the leaves that writers insert into. A leaf that is old enough is frozen: it takes nothing more,
-- and what comes for its time goes to the `late` table. A frozen leaf is packed: a row for a device and UTC day, its
-- columns as planes of bytes. Which tier holds what is said by one row, `tier`, which readers read in the same snapshot.
-- A bucket has tables of late and packed readings from its first freeze on.
--
-- Beside the tiers, rollups: sums of each device by the hour, and of each bucket by the minute. They hold exactly what was
-- ingested before a mark, `tier.rolled_until`, and what is packed; a reader adds what came since.

CREATE OR REPLACE VIEW every_root AS
SELECT
    (7 * k.kind_id + r.at)::integer AS lock_order,
    k.name AS kind,
    r.role,
    k.name || r.suffix AS root,
    k.ready,
    k.id_column
FROM stored_kind AS k
CROSS JOIN (VALUES
    (0, 'history', '_telemetry_history'),
    (1, 'late', '_telemetry_late'),
    (2, 'status', '_current_status'),
    (3, 'packed', '_telemetry_packed'),
    (4, 'hourly', '_telemetry_hourly'),
    (5, 'minutely', '_telemetry_minutely'),
    (6, 'daily', '_telemetry_daily')
) AS r (at, role, suffix);

CREATE OR REPLACE VIEW bucket_table AS
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
FROM every_root AS r
INNER JOIN pg_catalog.pg_inherits AS i ON i.inhparent = to_regclass('public.' || r.root)
INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE r.ready AND r.role IN ('history', 'late', 'packed');

-- Up to where a bucket's readings of a kind are frozen, and packed: packed_until <= frozen_until. No row: nothing is.
-- `rolled_of`: which columns were summed as what; NULL: there are no rollups, whatever the tables hold.
CREATE TABLE tier (
    bucket smallint NOT NULL,
    kind text NOT NULL,
    frozen_until timestamptz NOT NULL,
    frozen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    packed_until timestamptz NOT NULL DEFAULT '0001-01-02 00:00:00+00',
    packed_at timestamptz,
    packed_readings bigint NOT NULL DEFAULT 0,
    rolled_until timestamptz NOT NULL DEFAULT '0001-01-02 00:00:00+00',
    rolled_of text,
    PRIMARY KEY (bucket, kind),
    CHECK (packed_until <= frozen_until)
);

-- Leaves whose readings are served from the packed tier, until they are dropped. By identity: names can be used again.
CREATE TABLE packed_leaf (
    table_oid oid PRIMARY KEY,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    bucket smallint NOT NULL,
    kind text NOT NULL,
    name text NOT NULL
);

-- What one column of values becomes in a packed row. `$` is in no column's name, and `$1` would be taken for a parameter.
-- pglz, which every server has: planes of one kind of byte shrink more with it than with lz4.
CREATE FUNCTION packed_columns(named text, type text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    SELECT CASE WHEN type ~ '^(character|varchar)' THEN '' ELSE format(
        '%I bigint, %I smallint, %I bytea COMPRESSION pglz, %I bytea COMPRESSION pglz, %I integer [] COMPRESSION pglz, ',
        named || '$base', named || '$scale', named || '$low', named || '$high', named || '$rest'
    ) END || format('%I %s [] COMPRESSION pglz', named || '$raw', type)
$$;

-- The columns of values of a kind, with the types that they have in its history.
CREATE FUNCTION value_columns(the_kind text) RETURNS TABLE (place smallint, name text, type text)
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    SELECT a.attnum, a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod)
    FROM every_root AS r
    INNER JOIN pg_catalog.pg_attribute AS a ON a.attrelid = to_regclass('public.' || r.root)
    WHERE r.kind = the_kind AND r.role = 'history' AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attname NOT IN ('timestamp', 'ingested_at', 'bucket', 'tenant_id', r.id_column)
    ORDER BY a.attnum
$$;

-- The roots of a kind's late and packed readings; its history is there. A packed row: `n` readings of a day; the time of
-- number i is t_base + i * t_step + the sum of the deltas up to it, in `unit` microseconds from the day's beginning.
-- `marks`: the time of each sixtieth reading, so that one can be looked for without adding up a whole day.
CREATE FUNCTION make_tier_roots(the_kind text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    history text := the_kind || '_telemetry_history';
    late text := the_kind || '_telemetry_late';
    packed text := the_kind || '_telemetry_packed';
    the_key text := (SELECT id_column FROM stored_kind WHERE name = the_kind);
    listed text := (SELECT string_agg(packed_columns(name, type) || ', ', '' ORDER BY place) FROM value_columns(the_kind));
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY LIST (bucket)', late, history);
    EXECUTE format(
        'CREATE TABLE %I (t_base bigint NOT NULL, t_step bigint NOT NULL, n integer NOT NULL, unit integer NOT NULL, '
        'day date NOT NULL, bucket smallint NOT NULL, tenant_id smallint NOT NULL DEFAULT 0, '
        '%I varchar(64) COLLATE "C" NOT NULL, marks bigint [] NOT NULL, '
        't_0 bytea COMPRESSION pglz, t_1 bytea COMPRESSION pglz, t_2 integer [] COMPRESSION pglz, %s '
        'PRIMARY KEY (%I, day, tenant_id, bucket)) PARTITION BY LIST (bucket)',
        packed, the_key, listed, the_key
    );
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', late);
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', packed);
END
$$;

-- The rollups of a kind, each one table, as a status: `at` begins an hour, or a minute, whose readings are those after it up
-- to its end. Energies are sums of millionths of a watt-hour, temperatures of millionths of a degree; `most` is the largest
-- energy of a reading, by which an implausible one is looked for. `minutes`: a bit for each minute that has a reading.
-- Hours that are packed are folded: a row for a device and day holds them in arrays, of 24 each; NULL: what `readings` says.
CREATE FUNCTION make_rollup_roots(the_kind text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    hourly text := the_kind || '_telemetry_hourly';
    minutely text := the_kind || '_telemetry_minutely';
    daily text := the_kind || '_telemetry_daily';
    the_key text := (SELECT id_column FROM stored_kind WHERE name = the_kind);
    sums text := 'at timestamptz NOT NULL, most double precision, readings integer NOT NULL, energies integer NOT NULL, '
        'registers integer NOT NULL, temperatures integer NOT NULL, energy numeric NOT NULL, temperature numeric NOT NULL, '
        'bucket smallint NOT NULL, tenant_id smallint NOT NULL DEFAULT 0, ';
    each text;
BEGIN
    EXECUTE format(
        'CREATE TABLE %I (%s minutes bigint NOT NULL, %I varchar(64) COLLATE "C" NOT NULL, '
        'PRIMARY KEY (%I, at, tenant_id, bucket)) WITH (fillfactor = 70)',
        hourly, sums, the_key, the_key
    );
    EXECUTE format('CREATE INDEX ON %I (bucket, at)', hourly);
    EXECUTE format(
        'CREATE TABLE %I (%s PRIMARY KEY (bucket, tenant_id, at)) WITH (fillfactor = 90)', minutely, sums
    );
    EXECUTE format(
        'CREATE TABLE %I (bucket smallint NOT NULL, tenant_id smallint NOT NULL DEFAULT 0, day date NOT NULL, '
        'readings integer [] NOT NULL, energies integer [], registers integer [], temperatures integer [], '
        'energy numeric [] NOT NULL, temperature numeric [], most double precision [], minutes bigint [] NOT NULL, '
        '%I varchar(64) COLLATE "C" NOT NULL, PRIMARY KEY (%I, day, tenant_id, bucket)) WITH (toast_tuple_target = 128)',
        daily, the_key, the_key
    );
    EXECUTE format('CREATE INDEX ON %I (bucket, day)', daily);
    -- Compressed where they stand: a day is read whole.
    FOREACH each IN ARRAY
        ARRAY['readings', 'energies', 'registers', 'temperatures', 'energy', 'temperature', 'most', 'minutes']
    LOOP
        EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STORAGE MAIN', daily, each);
    END LOOP;
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', daily);
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', hourly);
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', minutely);
END
$$;

DO $$
BEGIN
    PERFORM make_tier_roots(name) FROM stored_kind ORDER BY kind_id;
    PERFORM make_rollup_roots(name) FROM stored_kind ORDER BY kind_id;
END
$$;

-- A leaf is looked through for what was ingested since a time: of its pages, as few as the summaries can tell apart.
CREATE OR REPLACE FUNCTION make_leaf(parent text, leaf text, lower_bound text, upper_bound text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    found oid := to_regclass(format('public.%I', leaf));
    each record;
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
    FOR each IN
        SELECT c.relname FROM pg_catalog.pg_index AS i
        INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        INNER JOIN pg_catalog.pg_am AS a ON a.oid = c.relam
        WHERE i.indrelid = to_regclass(format('public.%I', leaf)) AND a.amname = 'brin'
    LOOP
        EXECUTE format('ALTER INDEX %I SET (pages_per_range = 16)', each.relname);
        EXECUTE format('REINDEX INDEX %I', each.relname);  -- it is empty: only now the setting holds
    END LOOP;
    EXECUTE format(
        'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', parent, leaf, lower_bound, upper_bound
    );
    RETURN true;
END
$$;

-- The tables of late and packed readings of one bucket. Repeating it changes nothing.
CREATE FUNCTION make_tier_tables(the_kind text, the_bucket smallint, suffix text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
BEGIN
    FOR each IN
        SELECT r.* FROM every_root AS r
        WHERE r.kind = the_kind AND r.role IN ('late', 'packed') AND NOT EXISTS (
            SELECT FROM bucket_table AS b WHERE b.root = r.root AND b.bucket = the_bucket
        )
        ORDER BY r.lock_order
    LOOP
        own := each.root || bucket_suffix(the_bucket) || suffix;
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL, CONSTRAINT one_bucket CHECK (bucket = %L::smallint)) %s',
            own, each.root, the_bucket, CASE WHEN each.role = 'packed' THEN 'PARTITION BY RANGE (day)' ELSE '' END
        );
        IF suffix = '' THEN
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', each.root, own, the_bucket);
        END IF;
    END LOOP;
END
$$;

-- The partition of a bucket's packed readings for one month.
CREATE FUNCTION make_packed_month(the_kind text, the_bucket smallint, the_month date) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    parent text := (
        SELECT name FROM bucket_table WHERE kind = the_kind AND role = 'packed' AND bucket = the_bucket AND NOT detaching
    );
BEGIN
    PERFORM make_leaf(
        parent,
        parent || to_char(the_month, '_YYYY_MM'),
        quote_literal(the_month),
        quote_literal((the_month + interval '1 month')::date)
    );
END
$$;

-- What is packed from a leaf must be all that it will ever hold. The exception is a move, which says so for a transaction:
-- while a bucket is in one nothing of it is packed, and what a leaf has already may be carried to it again.
CREATE FUNCTION refuse_frozen() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('voltroute.carries', true) = 'on'
        AND pg_has_role(current_user, (SELECT relowner FROM pg_catalog.pg_class WHERE oid = TG_RELID), 'usage')
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the time of a reading is frozen' USING
        ERRCODE = 'VRFRZ', DETAIL = format('(bucket) = (%s)', NEW.bucket);
END
$$;

-- Leaves of a table that end by then take nothing more. Waits for writers in flight (lock_timeout), never for readers.
CREATE FUNCTION freeze_table(own text, until timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT l.name FROM leaves_of(own) AS l
        WHERE upper(l.span) <= until AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = l.leaf_oid AND t.tgname = 'frozen'
        )
        ORDER BY upper(l.span)
    LOOP
        EXECUTE format(
            'CREATE TRIGGER frozen BEFORE INSERT ON %I FOR EACH ROW EXECUTE FUNCTION refuse_frozen()', each.name
        );
    END LOOP;
END
$$;

-- Everything of a bucket's kind before `until` is frozen. Under the lock of whoever makes leaves: one that is made for a
-- gap is there by now, and gets its trigger, or finds the horizon. The horizon comes after the triggers: who reads it
-- knows that nothing is added to any leaf behind it.
CREATE FUNCTION freeze_until(the_kind text, the_bucket smallint, until timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    PERFORM freeze_table(name, until) FROM bucket_table
    WHERE kind = the_kind AND role = 'history' AND bucket = the_bucket AND NOT detaching;
    INSERT INTO tier (bucket, kind, frozen_until) VALUES (the_bucket, the_kind, until)
    ON CONFLICT (bucket, kind) DO UPDATE
    SET frozen_until = greatest(tier.frozen_until, excluded.frozen_until), frozen_at = clock_timestamp();
END
$$;

-- The leaves that hold these days (UTC), in every kind of one bucket. Routers may call it (SECURITY DEFINER), so the days
-- are bounded: nothing before the cluster's first month (that is the `past` leaf), nothing frozen, nothing far ahead.
CREATE OR REPLACE FUNCTION ensure_leaves(the_bucket smallint, months date []) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '1s' AS $$
DECLARE
    earliest date;
    the_day date;
    each record;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    SELECT first_month INTO earliest FROM owned_bucket WHERE bucket = the_bucket;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'bucket % is not owned by this shard', the_bucket USING ERRCODE = 'no_data_found';
    END IF;
    FOREACH the_day IN ARRAY months LOOP
        IF the_day < earliest OR date_trunc('month', the_day) > now() + interval '4 months' THEN
            RAISE EXCEPTION 'no partition may be made for %', the_day USING ERRCODE = 'datetime_field_overflow';
        END IF;
        FOR each IN
            SELECT b.name, coalesce(t.frozen_until, '-infinity') AS frozen_until
            FROM bucket_table AS b LEFT JOIN tier AS t ON t.bucket = b.bucket AND t.kind = b.kind
            WHERE b.bucket = the_bucket AND b.role = 'history' ORDER BY b.lock_order
        LOOP
            CONTINUE WHEN the_day < each.frozen_until;
            made := made + cover_day(each.name, the_day, greatest(earliest, each.frozen_until))::integer;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

-- The roots of a kind. Every value may be missing: what a reading must have is the router's to say, and changes.
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
    PERFORM make_tier_roots(the_kind);
    PERFORM make_rollup_roots(the_kind);
END
$$;

-- A field more, in all tables of the kind: those attached to its roots, and those beside them that moves made. Repeating it
-- changes nothing. Nobody reads or writes meanwhile; whoever does now is waited for only a moment.
CREATE OR REPLACE FUNCTION add_column(the_kind text, the_column text, the_type text, in_status boolean, kept boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    addition text;
    packing text := packed_columns(the_column, column_type(the_type));
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
        CONTINUE WHEN each.role IN ('hourly', 'minutely', 'daily') OR each.role = 'status' AND NOT in_status;
        IF each.role = 'packed' THEN
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_catalog.pg_attribute
                WHERE attrelid = to_regclass(format('public.%I', each.name)) AND attname = the_column || '$raw'
            );
            SELECT string_agg('ADD COLUMN ' || part, ', ') INTO addition FROM string_to_table(packing, ', ') AS part;
        ELSE
            addition := format('ADD COLUMN IF NOT EXISTS %I %s', the_column, column_type(the_type));
        END IF;
        IF each.role = 'status' AND kept THEN
            addition := addition || format(', ADD COLUMN IF NOT EXISTS %I timestamptz', the_column || '_at');
        END IF;
        EXECUTE format('ALTER TABLE %I %s', each.name, addition);
    END LOOP;
END
$$;

-- The tables of a move, each checked to be the one that was recorded.
CREATE OR REPLACE FUNCTION tables_of_move(the_move bigint) RETURNS TABLE (root text, name text, role text)
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT t.root, t.name, t.table_oid, r.role
        FROM move_table AS t INNER JOIN every_root AS r ON r.root = t.root
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

-- What a shard has of a bucket beside its tables goes from a shard that does not own it: nobody reads or writes it there.
CREATE FUNCTION forget_bucket(the_bucket smallint) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
BEGIN
    IF EXISTS (SELECT FROM owned_bucket WHERE bucket = the_bucket) THEN
        RAISE EXCEPTION 'bucket % is owned by this shard', the_bucket USING ERRCODE = 'VRHLD';
    END IF;
    FOR each IN
        SELECT root FROM every_root WHERE role IN ('status', 'hourly', 'minutely', 'daily') ORDER BY lock_order
    LOOP
        EXECUTE format('DELETE FROM %I WHERE bucket = $1', each.root) USING the_bucket;
    END LOOP;
    DELETE FROM tier WHERE bucket = the_bucket;
    DELETE FROM packed_leaf WHERE bucket = the_bucket;
END
$$;

-- squawk-ignore ban-drop-function
DROP FUNCTION forget_statuses(smallint);

-- On the target: tables like the roots, beside them; nobody but the mover sees them. The CHECK, in exactly this form, lets
-- ATTACH believe it instead of reading all rows. Statuses come into their kind's table at once: the shard does not answer
-- for the bucket before it owns it. `tiered`: the kinds that have tables of late and packed readings on the source.
CREATE FUNCTION prepare_copy(the_bucket smallint, the_move bigint, tiered text []) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    own text;
    suffix text := '_m' || the_move;
BEGIN
    PERFORM forget_bucket(the_bucket);
    FOR each IN SELECT * FROM root_table ORDER BY lock_order LOOP
        own := each.root || bucket_suffix(the_bucket) || suffix;
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL, CONSTRAINT one_bucket CHECK (bucket = %L::smallint)) '
            'PARTITION BY RANGE (timestamp)',
            own, each.root, the_bucket
        );
        IF each.kind = ANY(tiered) THEN
            PERFORM make_tier_tables(each.kind, the_bucket, suffix);
        END IF;
    END LOOP;
    FOR each IN
        SELECT root, root || bucket_suffix(the_bucket) || suffix AS name FROM every_root
        WHERE ready AND (role = 'history' OR role IN ('late', 'packed') AND kind = ANY(tiered))
    LOOP
        EXECUTE format('COMMENT ON TABLE %I IS %L', each.name, 'voltroute move ' || the_move);
        INSERT INTO move_table (move_id, table_oid, root, name)
        VALUES (the_move, to_regclass(format('public.%I', each.name)), each.root, each.name);
    END LOOP;
END
$$;

-- The shard becomes the owner: repeating it changes nothing. A kind that the other side does not have yet was not carried,
-- and its table has no leaf; without the first one, what is older than the cluster would have no place. What is frozen
-- was carried before it is frozen here: nobody writes to the tables until this commits.
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
        IF each.role = 'history' THEN
            IF NOT EXISTS (
                SELECT FROM pg_catalog.pg_inherits WHERE inhparent = to_regclass(format('public.%I', each.name))
            ) THEN
                PERFORM make_first_leaves(each.name, earliest, '{}');
            END IF;
            PERFORM freeze_table(each.name, t.frozen_until)
            FROM every_root AS r INNER JOIN tier AS t ON t.bucket = the_bucket AND t.kind = r.kind
            WHERE r.root = each.root;
        END IF;
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', each.root, each.name, the_bucket);
        EXECUTE format('COMMENT ON TABLE %I IS NULL', each.name);
    END LOOP;
    IF (SELECT count(*) FROM bucket_table WHERE bucket = the_bucket AND role = 'history' AND NOT detaching)
        <> (SELECT count(*) FROM root_table)
    THEN
        RAISE EXCEPTION 'bucket % is not attached to every root', the_bucket USING ERRCODE = 'VRHLD';
    END IF;
    INSERT INTO owned_bucket (bucket, first_month) VALUES (the_bucket, earliest) ON CONFLICT DO NOTHING;
END
$$;

-- Drops what the move recorded, and nothing else; what is still attached is left alone and refused. Statuses and horizons
-- go with it.
CREATE FUNCTION drop_bucket_copy(the_bucket smallint, the_move bigint) RETURNS integer
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    dropped integer := 0;
BEGIN
    PERFORM forget_bucket(the_bucket);
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

-- A leader of an earlier release knows nothing of tiers: it finds this shard's schema to be behind, and waits.
-- squawk-ignore ban-drop-function
DROP FUNCTION prepare_history(smallint, bigint);
-- squawk-ignore ban-drop-function
DROP FUNCTION drop_copy(smallint, bigint);

-- Rights on the tables of one kind; they lock nobody out. History is INSERT-only, and its `ingested_at` nobody's to name.
-- The writer looks into packed days to tell what is there already.
CREATE OR REPLACE FUNCTION grant_kind(the_kind text, writer text, query text, reader text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    each record;
    named text;
BEGIN
    FOR each IN SELECT * FROM every_root WHERE kind = the_kind ORDER BY lock_order LOOP
        IF each.role IN ('history', 'late') THEN
            SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO named FROM pg_catalog.pg_attribute
            WHERE attrelid = to_regclass('public.' || each.root) AND attnum > 0 AND NOT attisdropped
                AND attname <> 'ingested_at';
            EXECUTE format('GRANT INSERT (%s), SELECT (%s) ON %I TO %I', named, named, each.root, writer);
        ELSIF each.role = 'packed' THEN
            EXECUTE format('GRANT SELECT ON %I TO %I', each.root, writer);
        ELSIF each.role = 'status' THEN
            EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %I TO %I', each.root, writer);
        END IF;
        EXECUTE format('GRANT SELECT ON %I TO %I', each.root, query);
        IF reader IS NOT NULL THEN
            EXECUTE format('GRANT SELECT ON %I TO %I', each.root, reader);
        END IF;
    END LOOP;
    EXECUTE format('GRANT SELECT ON tier TO %I, %I', writer, query);
    EXECUTE format('GRANT SELECT ON packed_leaf TO %I', query);
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
    EXECUTE format('GRANT SELECT ON tier, packed_leaf TO %I', monitor);
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

REVOKE ALL ON FUNCTION packed_columns(text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION value_columns(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION make_tier_roots(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION make_rollup_roots(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION make_tier_tables(text, smallint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION make_packed_month(text, smallint, date) FROM PUBLIC;
REVOKE ALL ON FUNCTION freeze_table(text, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION freeze_until(text, smallint, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION refuse_frozen() FROM PUBLIC;
REVOKE ALL ON FUNCTION forget_bucket(smallint) FROM PUBLIC;
REVOKE ALL ON FUNCTION prepare_copy(smallint, bigint, text []) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_bucket_copy(smallint, bigint) FROM PUBLIC;
