-- What becomes of readings that get old, kind by kind; without a policy nothing does. How much time a new leaf holds.

CREATE TABLE lifecycle_policy (
    set_at timestamptz NOT NULL DEFAULT now(),
    hot interval NOT NULL CHECK (hot >= interval '1 day'), -- readings are frozen and packed when they are older
    archive_after interval, -- packed months go to an object store; NULL: none does
    drop_after interval, -- months go for good; NULL: none does
    rollups_for interval, -- sums are kept for so long; NULL: for ever
    kind_id smallint PRIMARY KEY REFERENCES kind,
    CHECK (
        coalesce(archive_after > hot, true) AND coalesce(drop_after > hot, true)
        AND coalesce(drop_after > archive_after, true) AND coalesce(rollups_for > hot, true)
        AND coalesce(rollups_for > archive_after, true) AND coalesce(rollups_for >= drop_after, true)
    )
);

ALTER TABLE cluster ADD COLUMN leaf_width text NOT NULL DEFAULT 'month'
CHECK (leaf_width IN ('day', 'week', 'month'));
