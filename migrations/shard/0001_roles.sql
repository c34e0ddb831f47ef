-- Group roles. Logins are made per cluster and are members of these; a server may hold several shards.

DO $$
DECLARE
    group_role text;
BEGIN
    FOREACH group_role IN ARRAY ARRAY['voltroute_writer', 'voltroute_reader'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = group_role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', group_role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- another shard's migration on the same server was faster
            END;
        END IF;
    END LOOP;
END
$$;
