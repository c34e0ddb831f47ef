#!/bin/sh
# A streaming replica: replica.sh PRIMARY SLOT [ARGUMENTS OF postgres]. Copies the primary the first time, then follows it.
set -eu
primary=$1 slot=$2
shift 2
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
    export PGPASSWORD
    pg_basebackup --host="$primary" --username="$POSTGRES_USER" --pgdata="$PGDATA" --wal-method=stream --checkpoint=fast \
        --write-recovery-conf --create-slot --slot="$slot"
    unset PGPASSWORD
fi
exec docker-entrypoint.sh "$@"
