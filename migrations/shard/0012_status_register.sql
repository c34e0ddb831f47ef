-- A status holds the register, too, so that a meter's newest count outlives the partition that it came in.
-- A move copies its tables' columns by name: one that is under way would have tables without the new one.

DO $$
BEGIN
    IF EXISTS (SELECT FROM bucket_move) THEN
        RAISE EXCEPTION 'a move is under way, or a copy of a moved bucket is kept: end it first'
            USING HINT = 'voltroute rebalance status shows it';
    END IF;
END
$$;

-- Routers of the release before name the columns that they take, and do not write this one: what they stored is read from
-- history, which is asked first.
ALTER TABLE meter_current_status ADD COLUMN register_kwh double precision;
