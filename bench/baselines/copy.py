"""The ceiling: asyncpg's COPY into the same two tables of the same shards, without HTTP, checks or conflicts."""

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Final, TypeAlias

import asyncpg

from bench.ownership import bucket_of, owners
from bench.workload import Readings

HISTORY: Final = ("bucket", "vehicle_id", "timestamp", "soc", "kwh_delivered_dc", "battery_temp")
STATUS: Final = ("bucket", "vehicle_id", "last_updated", "soc", "kwh_delivered_dc", "battery_temp")
WRITERS_A_SHARD: Final = 2

_Row: TypeAlias = tuple[int, str, datetime, float, float, float]


async def copy_ceiling(shards: Mapping[str, str], readings: Readings, size: int) -> float:
    """Readings a second of copying one reading of each device of a workload.

    Every device is new, because COPY into the status table cannot update. Each shard's share is copied in batches of
    `size`, by two connections a shard.
    """
    connections = {name: [await asyncpg.connect(dsn) for _ in range(WRITERS_A_SHARD)] for name, dsn in shards.items()}
    owner = await owners(shards)
    shares: dict[str, list[_Row]] = {name: [] for name in shards}
    for number in range(readings.devices):
        device = readings.device(number)
        bucket = bucket_of(device, len(owner))
        shares[owner[bucket]].append((bucket, device, readings.moment(number), 50.25, 0.1234, 25.5))
    jobs = []
    for name, rows in shares.items():
        queue = [rows[at : at + size] for at in range(0, len(rows), size)]
        jobs += [_copy(connection, queue) for connection in connections[name]]
    started = time.perf_counter()
    await asyncio.gather(*jobs)
    seconds = time.perf_counter() - started
    for pool in connections.values():
        for connection in pool:
            await connection.close()
    return readings.devices / seconds


async def _copy(connection: "asyncpg.Connection[asyncpg.Record]", queue: list[list[_Row]]) -> None:
    while queue:
        rows = sorted(queue.pop())
        async with connection.transaction():
            await connection.copy_records_to_table("vehicle_telemetry_history", records=rows, columns=HISTORY)
            await connection.copy_records_to_table("vehicle_current_status", records=rows, columns=STATUS)
