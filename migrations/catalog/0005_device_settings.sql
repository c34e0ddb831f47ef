-- What is known of devices beside what they send: a row each, and one with the empty ID for all of a kind.

CREATE TABLE device_setting (
    updated_at timestamptz NOT NULL DEFAULT now(),
    interval_s double precision CHECK (interval_s > 0),
    power_max_kw double precision CHECK (power_max_kw > 0),
    register_max_kwh double precision CHECK (register_max_kwh > 0),
    battery_kwh double precision CHECK (battery_kwh > 0),
    tenant_id smallint NOT NULL DEFAULT 0,
    kind text NOT NULL CHECK (kind IN ('meter', 'vehicle')),
    device_id varchar(64) COLLATE "C" NOT NULL,
    label text,
    PRIMARY KEY (kind, device_id, tenant_id)
);
