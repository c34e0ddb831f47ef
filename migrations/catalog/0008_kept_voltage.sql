-- A meter's status keeps its newest voltage when a newer reading has none. Shards of before have no place for its time:
-- theirs is set when all of them have it (`voltroute migrate up`).
UPDATE kind_field SET kept = true WHERE kind_id = 1 AND name = 'voltage' AND NOT EXISTS (SELECT FROM shard);
