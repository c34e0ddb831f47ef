"""What is known of devices beside what they send, in the catalog: of each, and of all devices of a kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shards.catalog.database import Catalog
from shards.kinds import Kind
from shards.ratings import Rating, Ratings

ALL: Final = ""  # stands for a device's ID in what is known of a whole kind
PAGE: Final = 5_000
_COLUMNS: Final = "interval_s, power_max_kw, register_max_kwh, battery_kwh, label"
_PUT: Final = f"""
INSERT INTO device_setting (kind, device_id, {_COLUMNS}, tenant_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (kind, device_id, tenant_id) DO UPDATE
SET (updated_at, {_COLUMNS}) = (now(), $3, $4, $5, $6, $7)
RETURNING updated_at, (xmax = 0) AS created
"""
_GET: Final = f"""
SELECT {_COLUMNS}, updated_at FROM device_setting WHERE kind = $1 AND device_id = $2 AND tenant_id = $3
"""
_DELETE: Final = "DELETE FROM device_setting WHERE kind = $1 AND device_id = $2 AND tenant_id = $3"
_RATINGS: Final = """
SELECT device_id, interval_s, power_max_kw, register_max_kwh FROM device_setting
WHERE kind = $1 AND tenant_id = $4 AND device_id > $2
    AND num_nonnulls(interval_s, power_max_kw, register_max_kwh) > 0
ORDER BY device_id LIMIT $3
"""
_RATINGS_OF: Final = """
SELECT device_id, interval_s, power_max_kw, register_max_kwh FROM device_setting
WHERE kind = $1 AND tenant_id = $3 AND device_id = ANY($2::varchar[])
    AND num_nonnulls(interval_s, power_max_kw, register_max_kwh) > 0
"""


@dataclass(frozen=True)
class DeviceSetting:
    """None: not known. `battery_kwh`: a vehicle's capacity when it was new."""

    interval_s: float | None = None
    power_max_kw: float | None = None
    register_max_kwh: float | None = None
    battery_kwh: float | None = None
    label: str | None = None
    updated_at: datetime | None = None


async def put(
    catalog: Catalog, tenant: int, kind: Kind, device_id: str, setting: DeviceSetting, deadline: float
) -> tuple[datetime, bool]:
    """Replace what is known of a device (ALL: of a kind); when that was, and whether nothing was known before."""
    values = (setting.interval_s, setting.power_max_kw, setting.register_max_kwh, setting.battery_kwh, setting.label)
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        record = (await connection.fetch(_PUT, kind.name, device_id, *values, tenant))[0]
    return record["updated_at"], record["created"]


async def get(catalog: Catalog, tenant: int, kind: Kind, device_id: str, deadline: float) -> DeviceSetting | None:
    """What is known of a device (ALL: of a kind), None when nothing is."""
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        record = await connection.fetchrow(_GET, kind.name, device_id, tenant)
    return DeviceSetting(**dict(record)) if record else None


async def delete(catalog: Catalog, tenant: int, kind: Kind, device_id: str, deadline: float) -> bool:
    """Forget it; False when nothing was known."""
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        return (await connection.execute(_DELETE, kind.name, device_id, tenant)) != "DELETE 0"


async def ratings(catalog: Catalog, tenant: int, kind: Kind, deadline: float) -> Ratings:
    """The ratings of all devices of a kind."""
    found: dict[str, Rating] = {}
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        default = await connection.fetch(_RATINGS_OF, kind.name, [ALL], tenant)
        after = ALL
        while True:  # in pages: to decode all of them at once would hold up every other request
            records = await connection.fetch(_RATINGS, kind.name, after, PAGE, tenant)
            found.update((record["device_id"], Rating(*record[1:])) for record in records)
            if len(records) < PAGE:
                break
            after = records[-1]["device_id"]
    found.update((ALL, Rating(*record[1:])) for record in default)
    return _ratings(kind, found)


async def ratings_of(catalog: Catalog, tenant: int, kind: Kind, device_ids: list[str], deadline: float) -> Ratings:
    """The ratings of a few devices."""
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        records = await connection.fetch(_RATINGS_OF, kind.name, [ALL, *device_ids], tenant)
    return _ratings(kind, {record["device_id"]: Rating(*record[1:]) for record in records})


def _ratings(kind: Kind, found: Mapping[str, Rating]) -> Ratings:
    default = found.get(ALL, Rating()).over(Rating(kind.interval_s))
    return Ratings(default, {device: rating for device, rating in found.items() if device != ALL})
