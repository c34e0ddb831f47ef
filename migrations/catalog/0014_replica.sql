-- Streaming replicas of shards, which routers read history and analytics from. They are reached with the shard's own
-- logins; a change of them moves the map's epoch, so that routers hear of it.

CREATE TABLE replica (
    shard_id smallint NOT NULL REFERENCES shard ON DELETE CASCADE,
    name text NOT NULL,
    -- host:port, or several with commas between them, as in a DSN.
    address text NOT NULL,
    -- Routers of the same zone read from it first; NULL: of none.
    zone text,
    added_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard_id, name)
);

CREATE TRIGGER replica_epoch AFTER INSERT OR UPDATE OR DELETE ON replica
FOR EACH ROW EXECUTE FUNCTION advance_epoch();
