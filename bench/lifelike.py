"""Readings that look like a fleet's: vehicles park, charge and drive, meters follow a household. Made by PostgreSQL."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from bench.ownership import bucket_of, owners
from bench.systems import System
from bench.workload import METER, VEHICLE, Kind

FILL_TIMEOUT_S: Final = 900
DEVICES_AT_ONCE: Final = 25
MINUTES_A_DAY: Final = 1440
# What is older than a new cluster's first month can be packed when that month is older than a day.
OLD_AFTER: Final = 1
TOO_EARLY: Final = "not run on the first day of a month: nothing in a new cluster is old enough to be packed"
# Names of values and how each is made of: m (the minute), d (a number of the device), r, s, t (noise from 0 to 1, anew
# for each reading), w (a walk: the sum of noise from -0.5 to 0.5 up to here).
USUAL: Final = {
    VEHICLE: {
        "soc": "round((50 + 40 * sin((m + d * 37) / 300.0))::numeric, 1)",
        "kwh_delivered_dc": "CASE WHEN (m + d * 37) % 480 < 90 THEN round((0.11 + r * 0.002)::numeric, 4) ELSE 0 END",
        "battery_temp": "round((25 + w * 0.1)::numeric, 1)",
    },
    METER: {
        "kwh_consumed_ac": "round((0.008 + 0.03 * ((m + d * 7) % 60 < 20)::int + r * r * 0.004)::numeric, 4)",
        "voltage": "round((230 + 3 * sin(m / 200.0) + w * 0.05 + s * 0.4)::numeric, 2)",
    },
}
# A meter's register, which rises with every reading.
COUNTS: Final = {"register_kwh": "round((d * 10 + m * 0.011 + 0.3 * ((m + d * 7) / 60))::numeric, 3)"}
NOISY: Final = {
    VEHICLE: {
        "soc": "round((r * 100)::numeric, 1)",
        "kwh_delivered_dc": "round((s * 0.3)::numeric, 4)",
        "battery_temp": "round((20 + t * 20)::numeric, 1)",
    },
    METER: {
        "kwh_consumed_ac": "round((r * 0.3)::numeric, 4)",
        "voltage": "round((220 + s * 20)::numeric, 2)",
    },
}


@dataclass(frozen=True)
class Telemetry:
    """What a fleet sends: values of a kind, and how exact its clocks are. `jitter_us`: of each stamp, to both sides."""

    name: str
    kind: Kind
    values: dict[str, str]
    unit_us: int = 1_000
    jitter_us: int = 150_000

    def device(self, number: int) -> str:
        """Its ID."""
        return f"{self.name.upper()}-{number:05d}"


async def fill(system: System, telemetry: Telemetry, devices: int, start: datetime, days: int) -> int:
    """Readings of every minute but for one in two hundred, straight into history; how many were made."""
    where = await owners(system.shards)
    share: dict[str, list[tuple[int, int, str]]] = {name: [] for name in system.shards}
    for number in range(devices):
        device = telemetry.device(number)
        bucket = bucket_of(device, len(where))
        share[where[bucket]].append((bucket, number, device))
    async with asyncio.timeout(FILL_TIMEOUT_S):
        counts = await asyncio.gather(
            *(_fill(system.shards[name], telemetry, mine, start, days) for name, mine in share.items())
        )
    return sum(counts)


async def _fill(dsn: str, telemetry: Telemetry, devices: list[tuple[int, int, str]], start: datetime, days: int) -> int:
    kind, values = telemetry.kind, telemetry.values
    stamp = f"round((r2 - 0.5) * 2 * {telemetry.jitter_us} / {telemetry.unit_us}) * {telemetry.unit_us}"
    sql = f"""
INSERT INTO {kind.history} (bucket, {kind.id_column}, timestamp, {", ".join(values)})
SELECT b, id, $4::timestamptz + m * interval '1 minute' + {stamp} * interval '1 microsecond',
    {", ".join(values.values())}
FROM (
    SELECT *, sum(q - 0.5) OVER (PARTITION BY id ORDER BY m) AS w
    FROM (
        SELECT b, d, id, m, random() AS q, random() AS r, random() AS s, random() AS t, random() AS r2
        FROM unnest($1::smallint[], $2::int[], $3::varchar[]) AS u (b, d, id),
            generate_series(1, $5::int) AS m
    ) AS each
) AS each
WHERE random() >= 0.005
ON CONFLICT DO NOTHING"""
    made = 0
    connection = await asyncpg.connect(dsn)
    try:
        for at in range(0, len(devices), DEVICES_AT_ONCE):
            buckets, numbers, ids = zip(*devices[at : at + DEVICES_AT_ONCE], strict=True)
            done = await connection.execute(sql, buckets, numbers, ids, start, days * MINUTES_A_DAY - 2)
            made += int(done.rpartition(" ")[2])
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
    return made
