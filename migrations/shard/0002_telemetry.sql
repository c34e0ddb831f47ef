-- Status (hot: one row a device) and history (cold: LIST(bucket) x RANGE(timestamp)) of both kinds.
-- A shard has partitions only for the buckets it owns, so PostgreSQL itself refuses a foreign bucket.
-- Columns go from wide to narrow, so that padding costs nothing. varchar(64) instead of text keeps the leaves free
-- of TOAST tables: a third fewer relations.

CREATE TABLE meter_current_status (
    last_updated timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    kwh_consumed_ac double precision NOT NULL,
    voltage double precision NOT NULL,
    bucket smallint NOT NULL,
    tenant_id smallint NOT NULL DEFAULT 0,
    meter_id varchar(64) COLLATE "C" NOT NULL,
    PRIMARY KEY (meter_id, tenant_id, bucket)
) PARTITION BY LIST (bucket);

CREATE TABLE vehicle_current_status (
    last_updated timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    soc double precision NOT NULL,
    kwh_delivered_dc double precision NOT NULL,
    battery_temp double precision NOT NULL,
    bucket smallint NOT NULL,
    tenant_id smallint NOT NULL DEFAULT 0,
    vehicle_id varchar(64) COLLATE "C" NOT NULL,
    PRIMARY KEY (vehicle_id, tenant_id, bucket)
) PARTITION BY LIST (bucket);

CREATE TABLE meter_telemetry_history (
    timestamp timestamptz NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT now(),
    kwh_consumed_ac double precision NOT NULL,
    voltage double precision NOT NULL,
    bucket smallint NOT NULL,
    tenant_id smallint NOT NULL DEFAULT 0,
    meter_id varchar(64) COLLATE "C" NOT NULL,
    PRIMARY KEY (meter_id, timestamp, tenant_id, bucket)
) PARTITION BY LIST (bucket);

CREATE TABLE vehicle_telemetry_history (
    timestamp timestamptz NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT now(),
    soc double precision NOT NULL,
    kwh_delivered_dc double precision NOT NULL,
    battery_temp double precision NOT NULL,
    bucket smallint NOT NULL,
    tenant_id smallint NOT NULL DEFAULT 0,
    vehicle_id varchar(64) COLLATE "C" NOT NULL,
    PRIMARY KEY (vehicle_id, timestamp, tenant_id, bucket)
) PARTITION BY LIST (bucket);

-- (timestamp) answers "the newest readings"; the BRIN on ingested_at finds what a move has yet to carry.
CREATE INDEX meter_history_timestamp ON meter_telemetry_history (timestamp);
CREATE INDEX vehicle_history_timestamp ON vehicle_telemetry_history (timestamp);
CREATE INDEX meter_history_ingested_at ON meter_telemetry_history USING brin (ingested_at);
CREATE INDEX vehicle_history_ingested_at ON vehicle_telemetry_history USING brin (ingested_at);

-- The shard's own word on what it owns; written in the transaction that attaches or detaches the tables.
CREATE TABLE owned_bucket (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 1023),
    first_month date NOT NULL CHECK (first_month = date_trunc('month', first_month)),
    attached_at timestamptz NOT NULL DEFAULT now()
);
