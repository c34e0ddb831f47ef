#!/bin/sh
# A streaming replica: replica.sh PRIMARY SLOT [ARGUMENTS OF postgres]. Copies the primary the first time, then follows it.
set -eu
primary=$1 slot=$2
shift 2
# The file that comes last: without it the copy was interrupted, and is made anew.
if [ ! -s "$PGDATA/global/pg_control" ]; then
    find "$PGDATA" -mindepth 1 -delete
    PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    export PGPASSWORD
    psql --host="$primary" --username="$POSTGRES_USER" --dbname=postgres --no-psqlrc --quiet --set=slot="$slot" <<'SQL'
SELECT pg_create_physical_replication_slot(:'slot') WHERE NOT EXISTS (
    SELECT FROM pg_replication_slots WHERE slot_name = :'slot'
);
SQL
    pg_basebackup --host="$primary" --username="$POSTGRES_USER" --pgdata="$PGDATA" --wal-method=stream --checkpoint=fast \
        --write-recovery-conf --slot="$slot"
    unset PGPASSWORD
fi
exec docker-entrypoint.sh "$@"
