#!/bin/sh
# Run once by the image when a server is made: replicas may connect, with the password. A volume that is there already
# needs the line by hand, and a reload.
set -eu
echo "host replication all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
