-- One leader carries out everything that runs in the background. Its lease runs out by this database's clock: whoever is
-- paused or cut off is replaced, and everything it still sends names an older generation.

ALTER TABLE runner ADD COLUMN expires_at timestamptz NOT NULL DEFAULT '-infinity';

-- Why a move waits for an operator (`voltroute rebalance resolve`); NULL: it does not.
ALTER TABLE move ADD COLUMN held text;

-- Readings that the second comparison found missing on the new owner and carried there.
ALTER TABLE move ADD COLUMN healed bigint NOT NULL DEFAULT 0;

-- What an operator decided about a held move: who keeps the bucket, whether readings that differ may be given up, whether
-- the other shard is gone for good. The leader carries it out.
ALTER TABLE move ADD COLUMN keeper text CHECK (keeper IN ('source', 'target'));
ALTER TABLE move ADD COLUMN keeper_forced boolean NOT NULL DEFAULT false;
ALTER TABLE move ADD COLUMN keeper_alone boolean NOT NULL DEFAULT false;
