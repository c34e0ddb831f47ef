-- Which meter feeds which vehicle, and from when to when: (valid_from, valid_to], open when valid_to is NULL.

CREATE TABLE pairing (
    valid_from timestamptz NOT NULL,
    valid_to timestamptz CHECK (valid_to > valid_from),
    created_at timestamptz NOT NULL DEFAULT now(),
    tenant_id smallint NOT NULL DEFAULT 0,
    vehicle_id varchar(64) COLLATE "C" NOT NULL,
    meter_id varchar(64) COLLATE "C" NOT NULL,
    PRIMARY KEY (vehicle_id, meter_id, valid_from, tenant_id)
);

CREATE INDEX pairing_meter ON pairing (meter_id, valid_from);
