-- Rebalances and their moves: what was planned, how far it is, what came of it. Shards are named, not referenced: the
-- history outlives them. While a move is open, its bucket's row here is the only one (see the index).

ALTER TABLE shard ADD COLUMN weight double precision NOT NULL DEFAULT 1 CHECK (weight > 0 AND weight <= 1000);

CREATE TABLE rebalance (
    rebalance_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'cancelled', 'failed', 'done')),
    reason text NOT NULL,
    note text,
    parallel_max smallint NOT NULL CHECK (parallel_max BETWEEN 1 AND 64),
    bytes_per_s_max bigint CHECK (bytes_per_s_max > 0),
    keep_s double precision NOT NULL CHECK (keep_s BETWEEN 0 AND 604800)
);

-- One at a time: what a second one would plan, the first is already changing.
CREATE UNIQUE INDEX rebalance_open ON rebalance ((true)) WHERE ended_at IS NULL;

CREATE TABLE move (
    move_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rebalance_id bigint NOT NULL REFERENCES rebalance,
    bucket smallint NOT NULL,
    source text NOT NULL,
    target text NOT NULL CHECK (target <> source),
    phase text NOT NULL DEFAULT 'planned' CHECK (phase IN (
        'planned', 'backfill', 'catchup', 'verify', 'fence', 'cutover', 'cleanup', 'done',
        'abort', 'aborted', 'rollback', 'rollback_cleanup', 'rolled_back'
    )),
    started_at timestamptz,
    cut_over_at timestamptz,
    ended_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    rows_total bigint,
    rows_done bigint NOT NULL DEFAULT 0,
    bytes_total bigint,
    bytes_done bigint NOT NULL DEFAULT 0,
    delta_rows bigint NOT NULL DEFAULT 0,
    copy_s double precision NOT NULL DEFAULT 0,
    lag_s double precision,
    passes integer NOT NULL DEFAULT 0,
    retries integer NOT NULL DEFAULT 0,
    pause_ms double precision,
    rows_verified bigint,
    last_error text
);

CREATE UNIQUE INDEX move_open ON move (bucket) WHERE ended_at IS NULL;
CREATE INDEX move_rebalance ON move (rebalance_id);

-- Who carries the moves out at the moment, for those who ask why nothing happens. Each leadership has a generation of
-- its own, by which shards tell a runner from one that was replaced.
CREATE TABLE runner (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    generation bigint NOT NULL DEFAULT 1,
    name text NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);
