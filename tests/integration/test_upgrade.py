"""A shard of the release before, brought up to this one: its rows stay, a move ends first, nothing is half done."""

import asyncio
from datetime import UTC, date, datetime
from urllib.parse import urlsplit

import asyncpg
import pytest

from shards.buckets import bucket_of
from shards.errors import Refused
from shards.postgres import migrate
from shards.postgres.dsn import with_login
from tests.integration.test_keys import until
from tests.support.commands import run_command
from tests.support.ledger import execute, fetch
from tests.support.readings import meter
from tests.support.routers import in_process
from tests.support.servers import TestCluster, drop_database, new_database
from tests.support.tenants import new_key, new_tenant

BEFORE = 9  # the last shard migration without registers
BEFORE_STATUS = 11  # and the last without them in a status
BEFORE_TENANTS = {migrate.CATALOG: 5, migrate.SHARD: 10}
INSERT = "INSERT INTO meter_telemetry_history (timestamp, {columns}, bucket, meter_id) VALUES ($1, {values}, 0, 'M')"


async def test_registers_come_to_a_shard_with_data(servers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    dsn = await new_database(servers[0], "upgraded")
    every = migrate.load(migrate.SHARD)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "load", lambda _target: every[:BEFORE])
        (report,) = await migrate.migrate(None, {"s1": dsn})
        assert (report.error, report.version) == (None, BEFORE)
    connection = await asyncpg.connect(dsn)
    month, moments = date(2026, 5, 1), [datetime(2026, 5, day, tzinfo=UTC) for day in (1, 2, 3)]
    try:
        await connection.execute("SELECT attach_bucket(0::smallint, $1::date, ARRAY[$1::date])", month)
        await connection.execute(INSERT.format(columns="kwh_consumed_ac, voltage", values="0.5, 230"), moments[0])
        (done,) = await migrate.migrate(None, {"s1": dsn})
        assert (done.error, done.version) == (None, len(every))
        await connection.execute(INSERT.format(columns="kwh_consumed_ac, voltage", values="0.5, 230"), moments[1])
        await connection.execute(INSERT.format(columns="register_kwh", values="1000"), moments[2])
        for columns, values in (("kwh_consumed_ac, register_kwh", "1, 1"), ("voltage", "230")):
            with pytest.raises(asyncpg.CheckViolationError, match="one_energy"):
                await connection.execute(
                    INSERT.format(columns=columns, values=values), datetime(2026, 5, 9, tzinfo=UTC)
                )
        rows = await connection.fetch(
            "SELECT kwh_consumed_ac, register_kwh FROM meter_telemetry_history ORDER BY timestamp"
        )
        assert [tuple(row) for row in rows] == [(0.5, None), (0.5, None), (None, 1000)]
        # A router of before names the columns that it writes.
        upsert = (
            "INSERT INTO meter_current_status (bucket, meter_id, last_updated, kwh_consumed_ac, voltage) "
            "VALUES (0, 'M', $1, NULL, NULL) ON CONFLICT (meter_id, tenant_id, bucket) "
            "DO UPDATE SET last_updated = excluded.last_updated, kwh_consumed_ac = excluded.kwh_consumed_ac"
        )
        for moment in moments[1:]:
            await connection.execute(upsert, moment)
    finally:
        await connection.close()
        await drop_database(servers[0], "upgraded")


@pytest.mark.parametrize("before", [BEFORE, BEFORE_STATUS])
async def test_a_move_ends_before_its_tables_change(
    servers: list[str], monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    every, name = migrate.load(migrate.SHARD), f"moving{before}"
    dsn = await new_database(servers[0], name)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "load", lambda _target: every[:before])
        await migrate.migrate(None, {"s1": dsn})
    try:
        await execute(dsn, "INSERT INTO bucket_move (move_id, runner, bucket, role) VALUES (1, 1, 0, 'source')")
        (refused,) = await migrate.migrate(None, {"s1": dsn})
        assert refused.error is not None
        assert "a move is under way, or a copy of a moved bucket is kept: end it first" in refused.error
        assert (await fetch(dsn, "SELECT max(version) FROM schema_migration"))[0][0] == before
        await execute(dsn, "DELETE FROM bucket_move")
        (done,) = await migrate.migrate(None, {"s1": dsn})
        assert (done.error, done.version) == (None, len(every))
    finally:
        await drop_database(servers[0], name)


async def cluster_of_before(servers: list[str], monkeypatch: pytest.MonkeyPatch) -> TestCluster:
    """A cluster of one shard as the release before tenants made it, with the two logins that it knew."""
    catalog, shard = await asyncio.gather(
        new_database(servers[0], "old_catalog"), new_database(servers[1], "old_shard")
    )
    every = {target: migrate.load(target) for target in BEFORE_TENANTS}
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "load", lambda target: every[target][: BEFORE_TENANTS[target]])
        for report in await migrate.migrate(catalog, {"s1": shard}):
            assert report.error is None, report
    sql = "INSERT INTO cluster (bucket_count, hash_seed, first_month) VALUES (4, 0, '2026-05-01')"
    ((cluster_id,),) = await fetch(catalog, f"{sql} RETURNING cluster_id::text")
    dsns = {}
    for login in ("writer", "reader"):
        role = f"voltroute_{login}_{cluster_id[:8]}"
        await execute(shard, f"CREATE ROLE {role} LOGIN PASSWORD 'old'")
        dsns[login] = with_login(shard, role, "old")
    await fetch(shard, "SELECT grant_rights($1, $2)", *(urlsplit(dsn).username for dsn in dsns.values()))
    await execute(shard, "INSERT INTO shard_identity (cluster_id, name) VALUES ($1::text::uuid, 's1')", cluster_id)
    register = "INSERT INTO shard (name, owner_dsn, writer_dsn, reader_dsn) VALUES ('s1', $1, $2, $3)"
    await execute(catalog, register, shard, dsns["writer"], dsns["reader"])
    for bucket in range(4):
        attach = "SELECT attach_bucket($1::smallint, '2026-05-01', ARRAY['2026-05-01']::date[])"
        await fetch(shard, attach, bucket)
        await execute(catalog, "INSERT INTO bucket_map SELECT $1::smallint, shard_id FROM shard", bucket)
    return TestCluster(catalog, {"s1": shard}, 4)


async def test_tenants_come_to_a_cluster_with_data(servers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rewritten or lost, routers of before go on beside the new schema, until their login is retired."""
    cluster = await cluster_of_before(servers, monkeypatch)
    shard, env = cluster.shards["s1"], {"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn}
    ((writer, reader),) = await fetch(cluster.catalog_dsn, "SELECT writer_dsn, reader_dsn FROM shard")
    device = next(f"M-{number}" for number in range(99) if bucket_of(f"M-{number}", 4) == 1)
    insert = (
        "INSERT INTO meter_telemetry_history (timestamp, kwh_consumed_ac, voltage, bucket, meter_id) "
        "SELECT '2026-05-02'::timestamptz + n * interval '1 minute', 0.5, 230, 1, $1 "
        "FROM generate_series($2::int, $3::int) AS n"
    )
    count, files = (
        "SELECT count(*) FROM meter_telemetry_history",
        "SELECT leaf_oid, pg_relation_filenode(leaf_oid) FROM leaf ORDER BY leaf_oid",
    )
    try:
        await execute(writer, insert, device, 1, 500)
        before = await fetch(shard, files)
        done = await run_command("migrate", "up", env=env)
        assert done.code == 0, done.err + done.out
        assert await fetch(shard, files) == before
        await execute(writer, insert, device, 501, 510)  # a router of before goes on
        assert (await fetch(reader, count))[0][0] == 510
        async with in_process(cluster, runner=False) as client:
            window = {"from": "2026-05-01T00:00:00Z", "to": "2026-05-03T00:00:00Z"}
            fleet = (await client.get("/v1/analytics/fleet", params=window)).json()
            assert (fleet["meterDataPoints"], fleet["totalEnergyConsumedAc"]) == (510, 255.0)
            key = await new_tenant(cluster, "acme")
            await until(client, 200, headers=key.headers)
            posted = await client.post("/v1/ingest", json=meter(device), headers=key.headers)
            assert posted.json()["accepted"] == 1
        assert (await fetch(reader, count))[0][0] == 510  # and sees nothing of what it does not know
        assert (await fetch(shard, count))[0][0] == 511
        assert (await run_command("doctor", env=env)).code in {0, 1}
        kinds_epoch, keeps = "SELECT kinds_epoch FROM cluster", "SELECT kept FROM kind_field WHERE name = 'voltage'"
        ((epoch,),) = await fetch(cluster.catalog_dsn, kinds_epoch)
        assert (await fetch(cluster.catalog_dsn, keeps))[0][0]  # since all shards have a place for its time
        again = await run_command("migrate", "up", env=env)
        assert again.code == 0, again.err
        assert (await fetch(cluster.catalog_dsn, kinds_epoch))[0][0] == epoch
        assert (await run_command("migrate", "retire-reader", "--json", env=env)).json == {"retired": ["s1"]}
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await fetch(reader, count)
        # A router of before that is left is refused, instead of telling that there is nothing.
        ((left,),) = await fetch(cluster.catalog_dsn, "SELECT reader_dsn FROM shard")
        assert left == "postgresql://retired.invalid/retired"
        assert (await run_command("migrate", "retire-reader", "--json", env=env)).json == {"retired": []}
        async with in_process(cluster, runner=False) as client:
            assert (await client.get("/v1/meters", headers=key.headers)).json()["items"][0]["meterId"] == device
    finally:
        await asyncio.gather(drop_database(servers[0], "old_catalog"), drop_database(servers[1], "old_shard"))


async def test_no_tenant_is_made_before_the_shards_know_them(
    servers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await cluster_of_before(servers, monkeypatch)
    try:
        (report,) = await migrate.migrate(cluster.catalog_dsn, {})
        assert report.error is None
        for make in (new_tenant(cluster, "acme"), new_key(cluster)):
            with pytest.raises(Refused, match="s1 does not know tenants yet: run `voltroute migrate up` first"):
                await make
    finally:
        await asyncio.gather(drop_database(servers[0], "old_catalog"), drop_database(servers[1], "old_shard"))
