-- The catalog: what the cluster is, which shards it has, which shard owns which bucket.

CREATE TABLE cluster (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    cluster_id uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    epoch bigint NOT NULL DEFAULT 0,
    first_month date NOT NULL CHECK (first_month = date_trunc('month', first_month)),
    hash_seed integer NOT NULL,
    bucket_count smallint NOT NULL
    CHECK (bucket_count BETWEEN 1 AND 1024 AND (bucket_count & (bucket_count - 1)) = 0)
);

-- The data source names carry passwords: only the owner of the catalog reads this table.
CREATE TABLE shard (
    shard_id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    name text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_-]{0,30}$'),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'draining')),
    owner_dsn text NOT NULL,
    writer_dsn text NOT NULL,
    reader_dsn text NOT NULL
);

CREATE TABLE bucket_map (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 1023),
    shard_id smallint NOT NULL REFERENCES shard
);

CREATE INDEX bucket_map_shard_id ON bucket_map (shard_id);

-- The epoch cannot be forgotten: every statement on the map, and every change of a shard's row, moves it.
-- NOTIFY is only a hint; routers also poll.
CREATE FUNCTION advance_epoch() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    new_epoch bigint;
BEGIN
    UPDATE cluster SET epoch = epoch + 1 RETURNING epoch INTO new_epoch;
    PERFORM pg_notify('voltroute_map', new_epoch::text);
    RETURN NULL;
END
$$;

CREATE TRIGGER bucket_map_epoch AFTER INSERT OR UPDATE OR DELETE ON bucket_map
FOR EACH STATEMENT EXECUTE FUNCTION advance_epoch();

CREATE TRIGGER shard_epoch AFTER INSERT OR UPDATE OR DELETE ON shard
FOR EACH ROW EXECUTE FUNCTION advance_epoch();
