"""A shard of the release before, brought up to this one: its rows stay, a move ends first, nothing is half done."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from shards.buckets import bucket_of
from shards.errors import Refused
from shards.postgres import migrate
from shards.postgres.dsn import with_login
from shards.storage import tables
from tests.integration.test_keys import until
from tests.support.commands import run_command
from tests.support.ledger import execute, fetch
from tests.support.moving import ended, running, start
from tests.support.moving_cluster import TO_S2, moving_cluster
from tests.support.readings import meter
from tests.support.routers import in_process
from tests.support.servers import TestCluster, drop_database, new_database
from tests.support.tenants import new_key, new_tenant

BEFORE = 9  # the last shard migration without registers
BEFORE_STATUS = 11  # and the last without them in a status
BEFORE_FLAT = 15  # and the last with a status table for each bucket
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


@pytest.mark.parametrize("before", [BEFORE, BEFORE_STATUS, BEFORE_FLAT])
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


FLAT_FACTS = """
SELECT c.relname::text, c.relrowsecurity,
    (SELECT array_agg(i.indexrelid::regclass::text) FROM pg_index AS i WHERE i.indrelid = c.oid) AS indexes,
    (SELECT array_agg(o.rolname || ' ' || g.privilege_type ORDER BY o.rolname, g.privilege_type)
     FROM aclexplode(c.relacl) AS g JOIN pg_roles AS o ON o.oid = g.grantee) AS rights,
    (SELECT array_agg(p.polname || pg_get_expr(p.polqual, p.polrelid) || p.polroles::regrole[]::text ORDER BY p.polname)
     FROM pg_policy AS p WHERE p.polrelid = c.oid) AS policies,
    (SELECT array_agg(a.attname || ' ' || a.atttypid || a.attnotnull ORDER BY a.attnum) FROM pg_attribute AS a
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_class AS c WHERE c.relname = ANY(ARRAY['meter_current_status', 'vehicle_current_status', 'pump_current_status'])
ORDER BY 1
"""


async def _write_until(ended: asyncio.Event, dsn: str, upsert: str) -> None:
    """A router's statement, prepared before, again and again."""
    connection = await asyncpg.connect(dsn)
    try:
        statement, second = await connection.prepare(upsert), 0
        while not ended.is_set():
            second += 1
            await statement.fetch(0, 0, "BESIDE", datetime(2026, 5, 1, tzinfo=UTC) + timedelta(seconds=second))
        assert second
    finally:
        await connection.close()


async def _fill(connection: asyncpg.Connection, logins: list[str], upsert: str, moment: datetime) -> None:
    """Two buckets, a declared kind, rights, and some statuses, as a release before made them."""
    for name in logins:
        await connection.execute(f"CREATE ROLE {name}")
    for bucket in (0, 1):
        attach = "SELECT attach_bucket($1::smallint, '2026-05-01', ARRAY['2026-05-01']::date[])"
        await connection.execute(attach, bucket)
    column = '[{"name": "flow", "type": "float8", "in_status": true, "kept": true}]'
    await connection.execute("SELECT make_roots(9::smallint, 'pump', 'pump_id', $1::jsonb)", column)
    await connection.execute("SELECT finish_kind('pump', '2026-05-01', ARRAY['2026-05-01']::date[])")
    await connection.execute("SELECT grant_rights($1, $2, $3, NULL)", *logins)
    for bucket, tenant, device in ((0, 0, "A"), (1, 0, "B"), (1, 3, "B")):
        await connection.execute(upsert, bucket, tenant, device, moment)
    pump = "INSERT INTO pump_current_status (last_updated, flow, flow_at, bucket, pump_id) VALUES ($1, 3, $1, 1, 'P')"
    await connection.execute(pump, moment)


async def _used_by_their_logins(connection: asyncpg.Connection, upsert: str, moment: datetime) -> None:
    await connection.execute("SET ROLE flat_writer")
    await connection.execute(upsert, 1, 3, "B", moment)
    await connection.execute("RESET ROLE; SET ROLE flat_query; SET voltroute.tenant = '3'")
    seen = await connection.fetch("SELECT vehicle_id, last_updated FROM vehicle_current_status")
    assert [tuple(row) for row in seen] == [("B", moment)]
    await connection.execute("RESET ROLE; SET ROLE flat_monitor")
    assert len(await connection.fetch("SELECT root FROM every_root WHERE role IN ('history', 'status')")) == 6
    await connection.execute("RESET ROLE")


async def _forgotten(connection: asyncpg.Connection) -> None:
    """Statuses go with their bucket, and not while it is owned."""
    with pytest.raises(asyncpg.PostgresError, match="bucket 1 is owned by this shard"):
        await connection.execute("SELECT forget_bucket(1::smallint)")
    await connection.execute("DELETE FROM owned_bucket WHERE bucket = 1")
    stray = ["bucket 1 in vehicle_current_status", "bucket 1 in pump_current_status"]
    assert await tables.stray_statuses(connection) == stray
    await connection.execute("SELECT forget_bucket(1::smallint)")
    assert await tables.stray_statuses(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM vehicle_current_status") == 1


async def test_statuses_become_one_table(servers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows, rights and policies stay, for a declared kind, too; a router of before writes on."""
    every = migrate.load(migrate.SHARD)
    dsn = await new_database(servers[0], "flattened")
    names = [f"flat_{login}" for login in ("writer", "query", "monitor")]
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "load", lambda _target: every[:BEFORE_FLAT])
        (report,) = await migrate.migrate(None, {"s1": dsn})
        assert (report.error, report.version) == (None, BEFORE_FLAT)
    connection = await asyncpg.connect(dsn)
    upsert = (
        "INSERT INTO vehicle_current_status AS known (bucket, tenant_id, vehicle_id, last_updated, soc, "
        "kwh_delivered_dc, battery_temp) VALUES ($1, $2, $3, $4, 50, 0.5, 20) "
        "ON CONFLICT (vehicle_id, tenant_id, bucket) DO UPDATE SET last_updated = excluded.last_updated"
    )
    moments = [datetime(2026, 5, day, tzinfo=UTC) for day in (1, 2)]
    try:
        await _fill(connection, names, upsert, moments[0])
        facts, rows = await connection.fetch(FLAT_FACTS), "SELECT * FROM {} AS s ORDER BY s"
        kept = [await connection.fetch(rows.format(fact["relname"])) for fact in facts]
        beside = asyncio.create_task(_write_until(ended := asyncio.Event(), dsn, upsert))
        (done,) = await migrate.migrate(None, {"s1": dsn})
        assert (done.error, done.version) == (None, len(every))
        ended.set()
        await beside
        await connection.execute("DELETE FROM vehicle_current_status WHERE vehicle_id = 'BESIDE'")
        assert await connection.fetch(FLAT_FACTS) == facts
        assert [await connection.fetch(rows.format(fact["relname"])) for fact in facts] == kept
        assert [len(each) for each in kept] == [0, 1, 3]
        kinds = "SELECT DISTINCT relkind::text, reloptions[1] FROM pg_class WHERE relname ~ '_current_status($|_b)'"
        assert [tuple(row) for row in await connection.fetch(kinds)] == [("r", "fillfactor=50")]
        await _used_by_their_logins(connection, upsert, moments[1])
        await _forgotten(connection)
    finally:
        await connection.close()
        await drop_database(servers[0], "flattened")
        for name in names:
            await execute(servers[0], f"DROP ROLE IF EXISTS {name}")


async def test_a_move_waits_at_a_shard_whose_schema_is_behind(servers: list[str]) -> None:
    """Routers that were updated before `migrate up`: nothing is begun that could not be ended."""
    rename = "ALTER FUNCTION {}(smallint, bigint) RENAME TO {}"
    async with moving_cluster(servers) as moving:
        behind = moving.cluster.shards["s2"]
        await execute(behind, rename.format("drop_bucket_copy", "later"))
        async with running(moving.catalog):
            await start(moving.catalog, [TO_S2])
            async with asyncio.timeout(30):
                told = "SELECT coalesce(last_error, '') AS said FROM move"
                while "behind" not in (said := (await fetch(moving.cluster.catalog_dsn, told))[0]["said"]):
                    await asyncio.sleep(0.05)
            await execute(behind, rename.format("later", "drop_bucket_copy"))
            assert await ended(moving.catalog) == "done"
        assert said == "s2: its schema is behind: `voltroute migrate up`"
        await moving.whole()


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
