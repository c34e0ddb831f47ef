#!/bin/sh
# Makes the secrets that docker-compose.yml mounts, unless they are there: a password for the databases, and the DSNs with it.
# The folder is closed; the files in it are readable, because in a container another user reads them.
set -eu
cd "$(dirname "$0")/.."
mkdir -p secrets
chmod 700 secrets
[ -e secrets/postgres_password ] || openssl rand -hex 24 >secrets/postgres_password
[ -e secrets/grafana_password ] || openssl rand -hex 12 >secrets/grafana_password
password=$(cat secrets/postgres_password)
for name in catalog shard-1 shard-2 shard-3 shard-4; do
    echo "postgresql://voltroute_owner:$password@$name:5432/voltroute" >"secrets/${name}_dsn"
done
chmod 644 secrets/*
