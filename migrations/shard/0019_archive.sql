-- Months that are not here any more. Behind `sealed_until` a bucket's packed days are as they will ever be: late readings are
-- refused, corrections were before. `archived` is the time whose readings are gone, to an object store or for good; a month
-- that is restored leaves it. Rollups of what is sealed stay, and are never made anew: nobody could.
ALTER TABLE tier
ADD COLUMN sealed_until timestamptz NOT NULL DEFAULT '0001-01-02 00:00:00+00',
ADD COLUMN archived tstzmultirange NOT NULL DEFAULT '{}',
ADD COLUMN summed_since timestamptz NOT NULL DEFAULT '0001-01-02 00:00:00+00'; -- older rollups are none, whatever is there

-- Whether some time after `after` up to `until` is archived; NULL: no limit. Times are whole microseconds.
CREATE FUNCTION is_archived(archived tstzmultirange, after timestamptz, until timestamptz) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path = public, pg_temp AS $$
    SELECT archived <> '{}' AND CASE
        WHEN after IS NULL OR until IS NULL OR after < until THEN archived && tstzrange(after + interval '1 microsecond', until, '[]')
        ELSE false
    END
$$;

-- Ends a statement that would read what is archived: its answer would be short, and nobody would be told. Asked last, of a
-- bucket of which that is known.
CREATE FUNCTION refuse_archived(the_kind text, archived tstzmultirange) RETURNS boolean
LANGUAGE plpgsql STABLE COST 1000000
SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% %', the_kind, upper(archived) USING
        ERRCODE = 'VRARC',
        DETAIL = format('%s..%s', (lower(archived) AT TIME ZONE 'UTC')::date, (upper(archived) AT TIME ZONE 'UTC')::date);
END
$$;
