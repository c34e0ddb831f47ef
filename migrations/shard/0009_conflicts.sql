-- A repeat with other values is told apart from one with the same values: the writer reads what is stored under the keys of
-- a batch that was not all new. `voltroute migrate up` gives the logins these rights.

CREATE OR REPLACE FUNCTION grant_rights(writer text, reader text) RETURNS void
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I, %I', current_database(), writer, reader);
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I, %I', writer, reader);
    EXECUTE format('GRANT SELECT ON owned_bucket, readable_bucket, shard_identity TO %I, %I', writer, reader);
    EXECUTE format('GRANT SELECT ON root_table, bucket_table, leaf TO %I, %I', writer, reader);
    EXECUTE format('GRANT EXECUTE ON FUNCTION ensure_leaves(smallint, date []) TO %I', writer);
    EXECUTE format(
        'GRANT INSERT (timestamp, kwh_consumed_ac, voltage, bucket, tenant_id, meter_id), '
        'SELECT (timestamp, kwh_consumed_ac, voltage, bucket, tenant_id, meter_id) ON meter_telemetry_history TO %I', writer
    );
    EXECUTE format(
        'GRANT INSERT (timestamp, soc, kwh_delivered_dc, battery_temp, bucket, tenant_id, vehicle_id), '
        'SELECT (timestamp, soc, kwh_delivered_dc, battery_temp, bucket, tenant_id, vehicle_id) '
        'ON vehicle_telemetry_history TO %I', writer
    );
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON meter_current_status, vehicle_current_status TO %I', writer);
    EXECUTE format(
        'GRANT SELECT ON meter_current_status, vehicle_current_status, meter_telemetry_history, '
        'vehicle_telemetry_history TO %I', reader
    );
END
$$;

-- Readings that an operator replaced: history itself stays INSERT-only for writers. It stays on the shard where it happened.
CREATE TABLE correction (
    correction_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    corrected_at timestamptz NOT NULL DEFAULT now(),
    corrected_by text NOT NULL DEFAULT session_user,
    timestamp timestamptz NOT NULL,
    tenant_id smallint NOT NULL DEFAULT 0,
    kind text NOT NULL,
    device_id varchar(64) COLLATE "C" NOT NULL,
    before jsonb NOT NULL,
    after jsonb NOT NULL,
    reason text
);
