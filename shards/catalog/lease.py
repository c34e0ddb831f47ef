"""The leader's lease in the catalog: it runs out by the catalog's clock, and each has a generation."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shards.catalog.database import Catalog

# A generation is also a time: a catalog that was restored from a backup does not give one a second time.
_ACQUIRE: Final = """
INSERT INTO runner (name, generation, expires_at)
SELECT $1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint, clock_timestamp() + make_interval(secs => $2)
ON CONFLICT (singleton) DO UPDATE
SET generation = greatest(runner.generation + 1, excluded.generation), name = excluded.name,
    since = now(), seen_at = now(), expires_at = excluded.expires_at
WHERE runner.expires_at < clock_timestamp()
RETURNING generation
"""
_RENEW: Final = """
UPDATE runner SET seen_at = now(), expires_at = clock_timestamp() + make_interval(secs => $2) WHERE generation = $1
"""
_RELEASE: Final = "UPDATE runner SET expires_at = '-infinity' WHERE generation = $1"
_HOLDER: Final = """
SELECT name, since, extract(epoch FROM now() - seen_at)::float8 AS silent_s, expires_at > now() AS leads FROM runner
"""


@dataclass(frozen=True)
class Holder:
    """Who leads, or did last. `silent_s`: since its last sign of life. `leads`: its lease has not run out."""

    name: str
    since: datetime
    silent_s: float
    leads: bool


async def acquire(catalog: Catalog, name: str, lease_s: float, deadline: float) -> int | None:
    """Begin a leadership: its generation, greater than all before; None while somebody else's lease runs."""
    async with catalog.pool.connection(deadline) as connection:
        generation = await connection.fetchval(_ACQUIRE, name, lease_s)
    return None if generation is None else int(generation)


async def renew(catalog: Catalog, generation: int, lease_s: float, deadline: float) -> bool:
    """Prolong a leadership; False when another one leads by now."""
    async with catalog.pool.connection(deadline) as connection:
        return (await connection.execute(_RENEW, generation, lease_s)) == "UPDATE 1"


async def release(catalog: Catalog, generation: int, deadline: float) -> None:
    """Let the next one begin at once."""
    async with catalog.pool.connection(deadline) as connection:
        await connection.execute(_RELEASE, generation)


async def holder(catalog: Catalog, deadline: float) -> Holder | None:
    """The leader, or who was it last; None when nobody ever was."""
    async with catalog.pool.connection(deadline) as connection:
        record = await connection.fetchrow(_HOLDER)
    return None if record is None else Holder(**dict(record))
