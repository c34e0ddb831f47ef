-- How much time a leaf of history holds is a setting: a month, as ever, or a week or a day. Leaves of all widths live side
-- by side; a new one holds what its neighbours leave.

CREATE TABLE leaf_width (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    width text NOT NULL CHECK (width IN ('day', 'week', 'month'))
);

INSERT INTO leaf_width (width) VALUES ('month');

-- The time that a leaf's bound says. It must be read in UTC and ISO 8601, as every caller sets it.
CREATE FUNCTION leaf_range(bound text) RETURNS tstzrange
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    SELECT tstzrange(
        CASE WHEN parts[1] = 'MINVALUE' THEN NULL ELSE btrim(parts[1], '''')::timestamptz END,
        CASE WHEN parts[2] = 'MAXVALUE' THEN NULL ELSE btrim(parts[2], '''')::timestamptz END
    )
    FROM regexp_match(bound, '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') AS parts
    WHERE parts IS NOT NULL
$$;

-- The leaves of one bucket's table, which need not be attached to a root.
CREATE FUNCTION leaves_of(parent text) RETURNS TABLE (leaf_oid oid, name text, span tstzrange)
LANGUAGE sql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO' AS $$
    SELECT c.oid, c.relname::text, leaf_range(pg_catalog.pg_get_expr(c.relpartbound, c.oid))
    FROM pg_catalog.pg_inherits AS i
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
    WHERE i.inhparent = to_regclass(format('public.%I', parent)) AND NOT i.inhdetachpending
$$;

-- The leaf that holds a day (UTC) and nothing before `earliest`; false when there is one.
CREATE FUNCTION cover_day(parent text, the_day date, earliest timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO' AS $$
DECLARE
    the_width text := (SELECT width FROM leaf_width);
    moment timestamptz := the_day::timestamptz;
    starts timestamptz := date_trunc(the_width, moment);
    ends timestamptz := starts + ('1 ' || the_width)::interval;
    is_month boolean;
BEGIN
    IF EXISTS (SELECT FROM leaves_of(parent) WHERE span @> moment) THEN
        RETURN false;
    END IF;
    SELECT greatest(starts, earliest, max(upper(span))) INTO starts FROM leaves_of(parent) WHERE upper(span) <= moment;
    SELECT least(ends, min(lower(span))) INTO ends FROM leaves_of(parent) WHERE lower(span) > moment;
    is_month := starts = date_trunc('month', moment) AND ends = starts + interval '1 month';
    RETURN make_leaf(
        parent,
        parent || to_char(starts, CASE WHEN is_month THEN '_YYYY_MM' ELSE '_YYYYMMDD' END),
        quote_literal(starts),
        quote_literal(ends)
    );
END
$$;

-- The first leaves of a bucket's history.
CREATE OR REPLACE FUNCTION make_first_leaves(own text, earliest date, months date []) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC' AS $$
DECLARE
    the_day date;
BEGIN
    PERFORM make_leaf(own, own || '_past', 'MINVALUE', quote_literal(earliest::timestamptz));
    FOREACH the_day IN ARRAY months LOOP
        CONTINUE WHEN the_day < earliest;
        PERFORM cover_day(own, the_day, earliest);
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION leaf_range(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION leaves_of(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION cover_day(text, date, timestamptz) FROM PUBLIC;
