-- Statements that take more than 100 ms on average, for whoever looks with psql.

-- A function, because the extension is not there on every server, or not loaded: then there are none.
CREATE FUNCTION slow_statements() RETURNS TABLE (
    queryid bigint, query text, calls bigint, mean_ms double precision, max_ms double precision, total_s double precision
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp AS $$
BEGIN
    IF to_regclass('pg_stat_statements') IS NULL THEN
        RETURN;
    END IF;
    -- Only of these are the literals replaced by parameters; of all others a password may be in the text.
    RETURN QUERY EXECUTE $sql$
        SELECT queryid, query, calls, mean_exec_time, max_exec_time, total_exec_time / 1000
        FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND mean_exec_time > 100 AND query ~* '^\s*(select|insert|update|delete|merge|with)\M'
    $sql$;
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RETURN;
END
$$;
CREATE VIEW slow_statement AS SELECT * FROM slow_statements() ORDER BY mean_ms DESC;

REVOKE ALL ON FUNCTION slow_statements() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION slow_statements() TO pg_monitor;
GRANT SELECT ON slow_statement TO pg_monitor;
