"""A batch that was wrongly taken for new: stored exactly once, told exactly, and not tried again soon."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from shards.kinds import VEHICLE, Row
from shards.storage.repeats import Repeats
from shards.storage.write import write
from tests.support.ledger import fetch
from tests.support.readings import START
from tests.support.servers import TestCluster


async def test_a_repeat_is_found_whichever_way_its_batch_is_written(cluster: TestCluster) -> None:
    dsn = cluster.shards["s1"]
    bucket = (await fetch(dsn, "SELECT min(bucket) AS bucket FROM owned_bucket"))[0]["bucket"]
    connection, asked = await asyncpg.connect(dsn), list[type[BaseException] | None]()

    def row(minute: int, level: float = 50.0) -> Row:
        return (bucket, 0, "V", START + timedelta(minutes=minute), level, 0.5, 20.0)

    def listen(query: asyncpg.connection.LoggedQuery) -> None:
        if query.query.startswith("\nWITH input"):
            asked.append(None if query.exception is None else type(query.exception))

    async def told() -> list[type[BaseException] | None]:
        await asyncio.sleep(0)  # the driver tells in the next turn of the loop
        return asked

    connection.add_query_logger(listen)
    try:
        repeats = Repeats()
        assert (await write(connection, VEHICLE, [row(0), row(1)], repeats, 10)).new is None
        assert await told() == [None]
        found = await write(connection, VEHICLE, [row(1, 60.0), row(2)], repeats, 10)
        assert await told() == [None, asyncpg.UniqueViolationError, None]
        assert found.new == {(0, "V", START + timedelta(minutes=2))}
        assert found.stored[0, "V", START + timedelta(minutes=1)] == (50.0, 0.5, 20.0)
        found = await write(connection, VEHICLE, [row(2), row(3)], repeats, 10)
        assert found.new == {(0, "V", START + timedelta(minutes=3))}
        assert (await told())[3:] == [None]
        twice = await write(connection, VEHICLE, [row(4), row(4, 60.0)], Repeats(), 10)
        assert twice.new == {(0, "V", START + timedelta(minutes=4))}
        assert (await told())[4:] == [None]  # it need not be tried to be known
        status = (await connection.fetch("SELECT last_updated, soc FROM vehicle_current_status"))[0]
        assert tuple(status) == (START + timedelta(minutes=4), 50.0)
        kept = await connection.fetch("SELECT soc FROM vehicle_telemetry_history")
        assert [each["soc"] for each in kept] == [50.0] * 5
    finally:
        await connection.close()


async def test_both_of_two_batches_with_one_key_are_answered(cluster: TestCluster) -> None:
    """The later one waits for the COMMIT of the other, and is then a repeat."""
    dsn = cluster.shards["s1"]
    bucket = (await fetch(dsn, "SELECT min(bucket) AS bucket FROM owned_bucket"))[0]["bucket"]
    first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    row: Row = (bucket, 0, "W", START, 50.0, 0.5, 20.0)
    try:
        begun = first.transaction()
        await begun.start()
        assert (await write(first, VEHICLE, [row], Repeats(), 10)).new is None
        with pytest.raises(TimeoutError):
            await write(second, VEHICLE, [row], Repeats(), 0.2)
        await begun.commit()
        assert (await write(second, VEHICLE, [row], Repeats(), 10)).new == set()
    finally:
        await first.close()
        await second.close()
