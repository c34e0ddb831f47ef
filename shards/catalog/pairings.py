"""Pairings in the catalog: which meter feeds which vehicle, from when to when."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shards.catalog.database import Catalog
from shards.errors import Refused
from shards.window import Window

_COLUMNS: Final = "vehicle_id, meter_id, valid_from, valid_to"
# Writers of one meter take turns, so that no two overlapping pairings can slip past the check.
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('voltroute.pairing'), hashtext($1))"
_OVERLAP: Final = f"""
SELECT {_COLUMNS} FROM pairing
WHERE meter_id = $2::text AND tenant_id = $5
  AND valid_from < coalesce($4::timestamptz, 'infinity') AND coalesce(valid_to, 'infinity') > $3::timestamptz
  AND (vehicle_id, valid_from) <> ($1::text, $3::timestamptz)
LIMIT 1
"""
_PUT: Final = """
INSERT INTO pairing (vehicle_id, meter_id, valid_from, valid_to, tenant_id) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (vehicle_id, meter_id, valid_from, tenant_id) DO UPDATE SET valid_to = excluded.valid_to
RETURNING (xmax = 0) AS created
"""
_DELETE: Final = """
DELETE FROM pairing WHERE vehicle_id = $1 AND meter_id = $2 AND valid_from = $3 AND tenant_id = $4
"""
_LIST: Final = f"""
SELECT {_COLUMNS} FROM pairing
WHERE tenant_id = $7 AND ($1::text IS NULL OR vehicle_id = $1) AND ($2::text IS NULL OR meter_id = $2)
  AND ($3::text IS NULL OR (vehicle_id, meter_id, valid_from) > ($3, $4::text, $5::timestamptz))
ORDER BY vehicle_id, meter_id, valid_from
LIMIT $6
"""
_OF_VEHICLE: Final = f"""
SELECT {_COLUMNS} FROM pairing
WHERE vehicle_id = $1 AND tenant_id = $4 AND valid_from < $3 AND coalesce(valid_to, 'infinity') > $2
ORDER BY meter_id, valid_from
"""
PAGE: Final = 2_000
_IN_WINDOW: Final = f"""
SELECT {_COLUMNS} FROM pairing
WHERE tenant_id = $7 AND valid_from < $2 AND coalesce(valid_to, 'infinity') > $1
    AND ($3::text IS NULL OR (vehicle_id, meter_id, valid_from) > ($3, $4, $5))
ORDER BY vehicle_id, meter_id, valid_from
LIMIT $6
"""
_EXISTS: Final = "SELECT EXISTS (SELECT FROM pairing WHERE vehicle_id = $1 AND tenant_id = $2)"


@dataclass(frozen=True)
class Pairing:
    """The meter feeds the vehicle during (valid_from, valid_to]; None: until further notice."""

    vehicle_id: str
    meter_id: str
    valid_from: datetime
    valid_to: datetime | None

    def clipped(self, window: Window) -> Window:
        """The part of `window` in which the pairing holds; they must overlap."""
        end = window.end if self.valid_to is None else min(self.valid_to, window.end)
        return Window(max(self.valid_from, window.start), end)


class PairingConflict(Refused):
    """The meter already feeds a vehicle at that time."""


async def put(catalog: Catalog, tenant: int, pairing: Pairing, deadline: float) -> bool:
    """Store a pairing, or change the end of the one with the same vehicle, meter and start. True when it is new.

    PairingConflict when the meter feeds any vehicle in an overlapping window: its energy would count twice.
    """
    key = (pairing.vehicle_id, pairing.meter_id, pairing.valid_from, pairing.valid_to, tenant)
    async with catalog.transaction(deadline, tenant) as connection:
        await connection.execute(_LOCK, f"{tenant} {pairing.meter_id}")
        other = await connection.fetchrow(_OVERLAP, *key)
        if other is not None:
            message = (
                f"meter {other['meter_id']} already feeds vehicle {other['vehicle_id']} "
                f"from {other['valid_from'].isoformat()} {_until(other['valid_to'])}"
            )
            raise PairingConflict(message)
        return bool(await connection.fetchval(_PUT, *key))


def _until(moment: datetime | None) -> str:
    return "on" if moment is None else f"to {moment.isoformat()}"


async def delete(
    catalog: Catalog, tenant: int, vehicle_id: str, meter_id: str, valid_from: datetime, deadline: float
) -> bool:
    """Remove one pairing; False when there was none."""
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        return (await connection.execute(_DELETE, vehicle_id, meter_id, valid_from, tenant)) != "DELETE 0"


async def page(
    catalog: Catalog,
    tenant: int,
    of: tuple[str | None, str | None],
    after: Pairing | None,
    limit: int,
    deadline: float,
) -> list[Pairing]:
    """At most `limit` pairings after `after`, by vehicle, meter, start; `of`: (vehicle, meter), None for any."""
    start = (after.vehicle_id, after.meter_id, after.valid_from) if after else (None, None, None)
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        records = await connection.fetch(_LIST, *of, *start, limit, tenant)
    return [Pairing(**dict(record)) for record in records]


async def of_vehicle(catalog: Catalog, tenant: int, vehicle_id: str, window: Window, deadline: float) -> list[Pairing]:
    """The pairings of a vehicle that overlap `window`."""
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        records = await connection.fetch(_OF_VEHICLE, vehicle_id, window.start, window.end, tenant)
    return [Pairing(**dict(record)) for record in records]


async def in_window(catalog: Catalog, tenant: int, window: Window, deadline: float) -> list[Pairing]:
    """All pairings that overlap `window`."""
    found: list[Pairing] = []
    after: tuple[str | None, str | None, datetime | None] = (None, None, None)
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        while True:  # in pages: to decode all of them at once would hold up every other request
            records = await connection.fetch(_IN_WINDOW, window.start, window.end, *after, PAGE, tenant)
            found += [Pairing(**dict(record)) for record in records]
            if len(records) < PAGE:
                return found
            after = (found[-1].vehicle_id, found[-1].meter_id, found[-1].valid_from)


async def known(catalog: Catalog, tenant: int, vehicle_id: str, deadline: float) -> bool:
    """Whether the vehicle was ever paired."""
    async with catalog.pool.connection(deadline, turn=tenant) as connection:
        return bool(await connection.fetchval(_EXISTS, vehicle_id, tenant))
