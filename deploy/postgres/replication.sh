#!/bin/sh
# Run once by the image when a server is made: replicas may connect, with the password.
set -eu
echo "host replication all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
