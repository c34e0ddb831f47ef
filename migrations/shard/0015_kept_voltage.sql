-- When a status' voltage was measured: a reading without one, or a late one, leaves a newer voltage as it is.
SELECT add_column('meter', 'voltage', 'float8', true, true);
SELECT end_movers('voltroute mover');
