-- Routers write as voltroute_writer and read as voltroute_reader; neither owns anything or can run DDL.
-- History is INSERT-only, and `ingested_at` is always the server's now(): the writer has no right to name it.

REVOKE ALL ON FUNCTION make_leaf(text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION ensure_leaves(smallint, date []) FROM PUBLIC;
REVOKE ALL ON FUNCTION attach_bucket(smallint, date, date []) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ensure_leaves(smallint, date []) TO voltroute_writer;

GRANT USAGE ON SCHEMA public TO voltroute_writer, voltroute_reader;
GRANT SELECT ON owned_bucket TO voltroute_writer, voltroute_reader;

-- SELECT on the key columns is what RETURNING needs, to tell new readings from duplicates.
GRANT INSERT (timestamp, kwh_consumed_ac, voltage, bucket, tenant_id, meter_id),
SELECT (timestamp, meter_id)
ON meter_telemetry_history TO voltroute_writer;

GRANT INSERT (timestamp, soc, kwh_delivered_dc, battery_temp, bucket, tenant_id, vehicle_id),
SELECT (timestamp, vehicle_id)
ON vehicle_telemetry_history TO voltroute_writer;

GRANT SELECT, INSERT, UPDATE ON meter_current_status, vehicle_current_status TO voltroute_writer;

GRANT SELECT ON
meter_current_status, vehicle_current_status, meter_telemetry_history, vehicle_telemetry_history
TO voltroute_reader;
