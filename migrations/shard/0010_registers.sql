-- A meter may send its register, the count since it was installed, instead of the energy of an interval; and no voltage.
-- A move copies its tables' columns by name: one that is under way would have tables without the new one.

DO $$
BEGIN
    IF EXISTS (SELECT FROM bucket_move) THEN
        RAISE EXCEPTION 'a move is under way, or a copy of a moved bucket is kept: end it first'
            USING HINT = 'voltroute rebalance status shows it';
    END IF;
END
$$;

-- What old routers write stays valid, and what they read of it is as before but for meters that send registers.
ALTER TABLE meter_telemetry_history ADD COLUMN register_kwh double precision;
-- squawk-ignore ban-drop-not-null
ALTER TABLE meter_telemetry_history ALTER COLUMN kwh_consumed_ac DROP NOT NULL;
-- squawk-ignore ban-drop-not-null
ALTER TABLE meter_telemetry_history ALTER COLUMN voltage DROP NOT NULL;
ALTER TABLE meter_telemetry_history
ADD CONSTRAINT one_energy CHECK ((kwh_consumed_ac IS NULL) <> (register_kwh IS NULL)) NOT VALID;

-- A status gets no column: routers of before take all that there are, and would not know this one. Its register is in history.
-- squawk-ignore ban-drop-not-null
ALTER TABLE meter_current_status ALTER COLUMN kwh_consumed_ac DROP NOT NULL;
-- squawk-ignore ban-drop-not-null
ALTER TABLE meter_current_status ALTER COLUMN voltage DROP NOT NULL;

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
        'GRANT INSERT (timestamp, kwh_consumed_ac, voltage, register_kwh, bucket, tenant_id, meter_id), '
        'SELECT (timestamp, kwh_consumed_ac, voltage, register_kwh, bucket, tenant_id, meter_id) '
        'ON meter_telemetry_history TO %I', writer
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
