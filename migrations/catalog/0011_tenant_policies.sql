-- A tenant with buckets of its own may have policies of its own: in these buckets they stand for those of the kinds.
CREATE TABLE tenant_policy (
    set_at timestamptz NOT NULL DEFAULT now(),
    hot interval NOT NULL CHECK (hot >= interval '1 day'),
    archive_after interval,
    drop_after interval,
    rollups_for interval,
    kind_id smallint REFERENCES kind,
    tenant_id smallint REFERENCES tenant,
    PRIMARY KEY (kind_id, tenant_id),
    CHECK (
        coalesce(archive_after > hot, true) AND coalesce(drop_after > hot, true)
        AND coalesce(drop_after > archive_after, true) AND coalesce(rollups_for > hot, true)
        AND coalesce(rollups_for > archive_after, true) AND coalesce(rollups_for >= drop_after, true)
    )
);
