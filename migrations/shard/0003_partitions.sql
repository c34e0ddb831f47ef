-- Making partitions. A leaf is built beside its parent and then attached: ATTACH lets writers and readers go on,
-- CREATE ... PARTITION OF would lock them out.

CREATE FUNCTION make_leaf(parent text, leaf text, lower_bound text, upper_bound text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    IF to_regclass(format('public.%I', leaf)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', leaf, parent);
    EXECUTE format(
        'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', parent, leaf, lower_bound, upper_bound
    );
    RETURN true;
END
$$;

-- The leaves [month, month + 1) of both kinds of one bucket, in UTC. Routers may call it (SECURITY DEFINER), so the
-- months are bounded: nothing before the cluster's first month (that is the `past` leaf), nothing far ahead.
CREATE FUNCTION ensure_leaves(the_bucket smallint, months date []) RETURNS integer
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = public, pg_temp
SET timezone = 'UTC' AS $$
DECLARE
    earliest date;
    the_month date;
    kind text;
    parent text;
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
        FOREACH kind IN ARRAY ARRAY['meter', 'vehicle'] LOOP
            parent := format('%s_telemetry_history_b%s', kind, lpad(the_bucket::text, 4, '0'));
            made := made + make_leaf(
                parent,
                parent || to_char(the_month, '_YYYY_MM'),
                quote_literal(the_month::timestamptz),
                quote_literal((the_month + interval '1 month')::timestamptz)
            )::integer;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;

-- Everything a shard needs to own a bucket. Repeating it changes nothing.
CREATE FUNCTION attach_bucket(the_bucket smallint, earliest date, months date []) RETURNS boolean
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC' AS $$
DECLARE
    kind text;
    suffix text := '_b' || lpad(the_bucket::text, 4, '0');
    history text;
    status text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('voltroute.partitions'), the_bucket);
    IF EXISTS (SELECT 1 FROM owned_bucket WHERE bucket = the_bucket) THEN
        RETURN false;
    END IF;
    INSERT INTO owned_bucket (bucket, first_month) VALUES (the_bucket, earliest);
    FOREACH kind IN ARRAY ARRAY['meter', 'vehicle'] LOOP
        status := kind || '_current_status';
        history := kind || '_telemetry_history';
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL) WITH (fillfactor = 50)', status || suffix, status
        );
        EXECUTE format(
            'CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY RANGE (timestamp)', history || suffix, history
        );
        PERFORM make_leaf(
            history || suffix, history || suffix || '_past', 'MINVALUE', quote_literal(earliest::timestamptz)
        );
    END LOOP;
    PERFORM ensure_leaves(the_bucket, months);
    FOREACH kind IN ARRAY ARRAY['meter', 'vehicle'] LOOP
        status := kind || '_current_status';
        history := kind || '_telemetry_history';
        EXECUTE format(
            'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', status, status || suffix, the_bucket
        );
        EXECUTE format(
            'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', history, history || suffix, the_bucket
        );
    END LOOP;
    RETURN true;
END
$$;
