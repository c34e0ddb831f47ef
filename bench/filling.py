"""Much history, quickly: PostgreSQL makes the readings itself, which is faster than COPY."""

import asyncio
from datetime import timedelta
from typing import Final

import asyncpg

from bench.ownership import bucket_of, owners
from bench.systems import System
from bench.workload import METER, VEHICLE, Readings

KWH: Final = 0.25  # adds up without rounding
FILL_TIMEOUT_S: Final = 540
DEVICES_AT_ONCE: Final = 50  # of one shard, in one statement
_VALUES: Final = {VEHICLE: ("soc", "kwh_delivered_dc", "battery_temp"), METER: ("kwh_consumed_ac", "voltage")}


async def fill(system: System, readings: Readings, minutes: int) -> None:
    """A reading of each device for each of the minutes after the start, and its status; vacuumed and analysed."""
    where = await owners(system.shards)
    share: dict[str, list[tuple[int, str]]] = {name: [] for name in system.shards}
    for number in range(readings.devices):
        device = readings.device(number)
        bucket = bucket_of(device, len(where))
        share[where[bucket]].append((bucket, device))
    async with asyncio.timeout(FILL_TIMEOUT_S):
        await asyncio.gather(*(_fill(system.shards[name], readings, mine, minutes) for name, mine in share.items()))


async def _fill(dsn: str, readings: Readings, devices: list[tuple[int, str]], minutes: int) -> None:
    kind = readings.kind
    values = _VALUES[kind]
    chosen = ", ".join(str(KWH) if name.startswith("kwh") else "50" for name in values)
    columns = f"(bucket, {kind.id_column}, {{time}}, {', '.join(values)})"
    history = (
        f"INSERT INTO {kind.history} {columns.format(time='timestamp')} "
        f"SELECT b, d, $3::timestamptz + m * interval '1 minute', {chosen} "
        f"FROM unnest($1::smallint[], $2::varchar[]) AS t (b, d), generate_series(1, $4::int) AS m"
    )
    status = (
        f"INSERT INTO {kind.status} {columns.format(time='last_updated')} "
        f"SELECT b, d, $3::timestamptz, {chosen} FROM unnest($1::smallint[], $2::varchar[]) AS t (b, d)"
    )
    end = readings.start + timedelta(minutes=minutes)
    connection = await asyncpg.connect(dsn)
    try:
        for at in range(0, len(devices), DEVICES_AT_ONCE):
            buckets, ids = zip(*devices[at : at + DEVICES_AT_ONCE], strict=True)
            await connection.execute(history, buckets, ids, readings.start, minutes)
            await connection.execute(status, buckets, ids, end)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
