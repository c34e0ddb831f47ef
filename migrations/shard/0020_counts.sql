-- What registers counted in an hour of a device. Counts do not add up by when they were ingested: what one means depends on
-- those before it. So an hour keeps what its own counts come to, and where they begin and end; whoever adds hours up looks at
-- what lies between one and the next. In whole hundred-thousandths of a watt-hour.
--
-- counted: how many; peak: the highest since the last reset (a count below 90 % of the one before); risen: when a count was
-- last above all before it; rate: the most that an hour's count rose by in a second; odd: NULL, or the number of counts below
-- the one before that are no resets, twice 0, and of each reset the peak before it, the count before it, and its own.
CREATE TYPE count_span AS (
    counted integer,
    first_count bigint,
    last_count bigint,
    peak bigint,
    began timestamptz,
    risen timestamptz,
    rate double precision,
    odd bigint []
);

-- Whoever changes the sums of a day, and knows nothing of counts, leaves none: a leader of before.
CREATE FUNCTION forget_counts() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.counts := NULL;
    RETURN NEW;
END
$$;

-- An hour without it, or with another number of counts than `registers`, is not known: its readings are read. An hour that is
-- written to has the time of its newest count beside it. Of a day, all hours are known, or none is.
CREATE FUNCTION add_counts(the_kind text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    hourly text := the_kind || '_telemetry_hourly';
    daily text := the_kind || '_telemetry_daily';
BEGIN
    EXECUTE format('ALTER TABLE %I ADD COLUMN counts count_span, ADD COLUMN counted_until timestamptz', hourly);
    EXECUTE format('ALTER TABLE %I ADD COLUMN counts count_span []', daily);
    EXECUTE format('ALTER TABLE %I ALTER COLUMN counts SET STORAGE MAIN', daily);
    EXECUTE format(
        'CREATE TRIGGER counts_of_others BEFORE UPDATE ON %I FOR EACH ROW WHEN ('
        'NEW.registers IS DISTINCT FROM OLD.registers AND NEW.counts IS NOT DISTINCT FROM OLD.counts'
        ') EXECUTE FUNCTION forget_counts()', daily
    );
    -- None like it on hours: what an index looks at cannot change without a new entry in all of them.
    EXECUTE format(
        'CREATE INDEX %I ON %I (bucket, day) WHERE registers IS NOT NULL AND counts IS NULL', daily || '_uncounted', daily
    );
END
$$;

SELECT add_counts(name) FROM stored_kind ORDER BY kind_id;

-- A kind that is made from now on has them, too.
-- squawk-ignore renaming-object
ALTER FUNCTION make_rollup_roots(text) RENAME TO make_sum_roots;

CREATE FUNCTION make_rollup_roots(the_kind text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM make_sum_roots(the_kind);
    PERFORM add_counts(the_kind);
END
$$;

REVOKE ALL ON FUNCTION forget_counts() FROM PUBLIC;
REVOKE ALL ON FUNCTION add_counts(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION make_rollup_roots(text) FROM PUBLIC;
