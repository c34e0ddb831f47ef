"""A shard of the release before, brought up to this one: its rows stay, a move ends first, nothing is half done."""

from datetime import UTC, date, datetime

import asyncpg
import pytest

from shards.postgres import migrate
from tests.support.servers import drop_database, new_database

BEFORE = 9  # the last shard migration without registers
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
        await connection.execute("INSERT INTO bucket_move (move_id, runner, bucket, role) VALUES (1, 1, 0, 'source')")
        (refused,) = await migrate.migrate(None, {"s1": dsn})
        assert refused.error is not None
        assert "a move is under way, or a copy of a moved bucket is kept: end it first" in refused.error
        assert await connection.fetchval("SELECT max(version) FROM schema_migration") == BEFORE
        await connection.execute("DELETE FROM bucket_move")
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
        # What routers of before take of a status is what they know.
        names = [a.name for a in (await connection.prepare("SELECT * FROM meter_current_status")).get_attributes()]
        assert "register_kwh" not in names
    finally:
        await connection.close()
        await drop_database(servers[0], "upgraded")
