-- A status that is kept outside must be the newest one that any shard has. A bucket that is fenced may have been handed over
-- already: what is read here then answers a router with an old map, and nobody else. Added at the end, so grants stay.
CREATE OR REPLACE VIEW readable_bucket AS
SELECT
    o.bucket,
    NOT EXISTS (
        SELECT FROM bucket_move AS m WHERE m.bucket = o.bucket AND m.state IN ('fenced', 'dropping')
    ) AS is_settled
FROM owned_bucket AS o
WHERE NOT EXISTS (
    SELECT FROM bucket_move AS m
    WHERE
        m.bucket = o.bucket AND m.state IN ('fenced', 'dropping')
        AND m.fenced_at < clock_timestamp() - interval '15 seconds'
);
