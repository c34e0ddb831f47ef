"""The archive's ledger in the catalog: which months of which buckets left their shards, and where they are."""

from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Final

import asyncpg

from shards.catalog.database import Catalog
from shards.errors import ClusterError
from shards.postgres.connections import Connection

_COLUMNS: Final = """m.archived_month_id AS number, k.name AS kind, m.bucket, m.month, m.state, m.readings,
    m.packed_columns, m.fingerprint, m.store, m.object, m.bytes, m.sha256, m.restored_until, m.changed_at"""
_ALL: Final = f"SELECT {_COLUMNS} FROM archived_month AS m JOIN kind AS k USING (kind_id) ORDER BY month, kind, bucket"
_ONE: Final = f"""
SELECT {_COLUMNS} FROM archived_month AS m JOIN kind AS k USING (kind_id)
WHERE k.name = $1 AND m.bucket = $2 AND m.month = $3
"""
_PLAN: Final = """
INSERT INTO archived_month (kind_id, bucket, month, state)
SELECT kind_id, $2, $3, 'planned' FROM kind WHERE name = $1 ON CONFLICT DO NOTHING
"""
_MOVE_ON: Final = """
UPDATE archived_month
SET state = $3, readings = $4, packed_columns = $5, fingerprint = $6, store = $7, object = $8, bytes = $9, sha256 = $10,
    restored_until = $11, changed_at = now()
WHERE archived_month_id = $1 AND state = $2 AND restored_until IS NOT DISTINCT FROM $12
"""
_STORE: Final = "SELECT url FROM archive_store"
_SET_STORE: Final = """
INSERT INTO archive_store (url) VALUES ($1) ON CONFLICT (is_one) DO UPDATE SET url = excluded.url, set_at = now()
"""
_HOLDS: Final = """
SELECT EXISTS (
    SELECT FROM archived_month WHERE object IS NOT NULL AND state NOT IN ('planned', 'sealed', 'expired')
)
"""


_ADOPT: Final = """
INSERT INTO archived_month (kind_id, bucket, month, state, readings, store, object, bytes, sha256)
SELECT kind_id, $2, $3, 'dropped', $4, $5, $6, $7, $8 FROM kind WHERE name = $1
ON CONFLICT DO NOTHING
"""


class State(StrEnum):
    """How far a month came; each is written after what it says was done."""

    PLANNED = "planned"
    SEALED = "sealed"
    EXPORTED = "exported"
    UPLOADED = "uploaded"
    VERIFIED = "verified"
    DROPPING = "dropping"
    DROPPED = "dropped"
    RESTORING = "restoring"
    RESTORED = "restored"
    EXPIRING = "expiring"
    EXPIRED = "expired"


# In these the archive has the readings.
STORED: Final = frozenset({State.VERIFIED, State.DROPPING, State.DROPPED, State.RESTORING, State.RESTORED})


class Overtaken(ClusterError):
    """Somebody else took the month further meanwhile."""


@dataclass(frozen=True)
class Entry:
    """A month of a bucket and kind. `columns`: of its packed rows, in `fingerprint`; `bytes`: of the object."""

    number: int
    kind: str
    bucket: int
    month: date
    state: State
    readings: int
    columns: tuple[str, ...]
    fingerprint: str | None
    store: str | None
    object: str | None
    bytes: int | None
    sha256: str | None
    restored_until: datetime | None
    changed_at: datetime

    @property
    def name(self) -> str:
        """As it is told."""
        return f"{self.month:%Y-%m} of bucket {self.bucket} of {self.kind}"


@dataclass(frozen=True)
class Found:
    """An object that was found in a store."""

    store: str
    object: str
    bytes: int
    sha256: str


def _entry(record: asyncpg.Record) -> Entry:
    values = dict(record)
    values["columns"] = tuple(values.pop("packed_columns"))
    values["state"] = State(values["state"])
    return Entry(**values)


async def entries(catalog: Catalog, deadline: float) -> list[Entry]:
    """All, by month."""
    async with catalog.pool.connection(deadline) as connection:
        return [_entry(record) for record in await connection.fetch(_ALL)]


async def planned(catalog: Catalog, kind: str, bucket: int, month: date, deadline: float) -> Entry:
    """The entry of a month, which begins as planned."""
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_PLAN, kind, bucket, month)
        return _entry((await connection.fetch(_ONE, kind, bucket, month))[0])


async def adopt(catalog: Catalog, place: tuple[str, int, date], readings: int, found: Found, deadline: float) -> bool:
    """An entry for a month (kind, bucket, first day) that is away; False, and nothing is done, when there is one.

    Without a fingerprint: what comes back is compared with the object.
    """
    values = (readings, found.store, found.object, found.bytes, found.sha256)
    async with catalog.pool.connection(deadline) as connection:
        return await connection.execute(_ADOPT, *place, *values) == "INSERT 0 1"


async def move_on(catalog: Catalog, entry: Entry, deadline: float, **changes: Any) -> Entry:
    """The entry with its changes, a state among them. Overtaken unless it is as it was read."""
    new = replace(entry, **changes)
    values = (
        *(new.readings, list(new.columns), new.fingerprint, new.store, new.object, new.bytes, new.sha256),
        *(new.restored_until, entry.restored_until),
    )
    async with catalog.pool.connection(deadline) as connection:
        done = await connection.execute(_MOVE_ON, entry.number, entry.state.value, new.state.value, *values)
    if done != "UPDATE 1":
        raise Overtaken(f"{entry.name} is not {entry.state} any more: somebody else archives or restores it")
    return new


async def store_url(catalog: Catalog, deadline: float) -> str | None:
    """Where the archive is; None: there is none."""
    async with catalog.pool.connection(deadline) as connection:
        found: str | None = await connection.fetchval(_STORE)
        return found


async def set_store_url(connection: Connection, url: str) -> None:
    """Where the archive is from now on."""
    await connection.execute(_SET_STORE, url)


async def holds_objects(connection: Connection) -> bool:
    """Whether some readings are in the archive, or on their way."""
    return bool(await connection.fetchval(_HOLDS))
