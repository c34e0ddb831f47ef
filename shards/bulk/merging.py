"""Readings of days of which a shard has something already, packed or late: what is new is packed with the rest."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import numpy as np

from shards.bulk.planes import packed
from shards.bulk.readings import Flags, Ints, Readings
from shards.bulk.session import LATE_OF_DAYS, OF_DAYS, Outcome, Session, keys_of
from shards.postgres.sql import LOCK_TIMEOUT, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage import late
from shards.storage.packing import packed_rows, readings
from shards.storage.write import refreshing
from shards.tiers import rolling

MERGED_DAYS: Final = 16  # in a transaction: late writers of the bucket wait for it
_IN_ORDER: Final = "SET LOCAL enable_hashagg = off"  # see packed_rows
_KEYED: Final = "s.{id} = k.{id} AND s.tenant_id = k.tenant_id AND s.timestamp = k.timestamp"
_STORED: Final = "SELECT bucket, tenant_id, {id}, timestamp, {values} FROM "


def some_days(readings_: Readings, places: Ints) -> Iterator[Ints]:
    """The places of some devices' days each."""
    begins = readings_.at(places).device_days()
    return iter(np.split(places, begins[MERGED_DAYS::MERGED_DAYS])) if len(places) else iter(())


async def same(session: Session, some: Readings) -> Flags:
    """Which readings are of days that are packed there exactly so: of a load that is repeated, all of them."""
    days = [*zip(*keys_of(some), strict=True)]
    root, given = (quote_identifier(name) for name in (session.kind.packed, session.table("packed")))
    one, other = (", ".join(f"{side}.{quote_identifier(name)}" for name in session.columns) for side in "gp")
    keyed = f"p.bucket = {session.bucket:d} AND p.{{id}} = g.{{id}} AND p.day = g.day AND p.tenant_id = g.tenant_id"
    equal = f"record_image_eq(ROW({one}), ROW({other}))"
    query = f"SELECT g.{{id}}, g.day FROM {given} AS g JOIN {root} AS p ON {keyed} WHERE {equal}"
    rows = packed(session.shape, some, *session.place)
    async with transaction(session.connection):
        await session.connection.copy_records_to_table(session.table("packed"), records=rows, columns=session.columns)
        found = {tuple(record) for record in await session.connection.fetch(session.sql(query))}
    counts = np.diff(np.append(some.device_days(), len(some)))
    return np.repeat(np.array([day in found for day in days], np.bool_), counts)


async def merge(session: Session, some: Readings, packed_until: datetime) -> None:
    """Some days, all before the horizon, of which the shard has something."""
    connection, keys = session.connection, keys_of(some)
    staged, known = (quote_identifier(session.table(what)) for what in ("staged", "known"))
    listed = session.shape.reading
    async with transaction(connection):
        await connection.execute(LOCK_TIMEOUT)
        await connection.execute(_IN_ORDER)
        # First alone: from here on no late reading is stored, and none was that the next statements do not see.
        await connection.execute(late.ALONE, session.bucket)
        await session.stage(some)
        unpacked = readings(session.shape, f"(SELECT * FROM {{packed}} WHERE {OF_DAYS})")
        await connection.execute(
            session.sql(
                f"INSERT INTO {known} SELECT {listed}, false FROM ({unpacked}) AS p "
                f"UNION ALL SELECT {listed}, true FROM {{late}} WHERE {LATE_OF_DAYS}"
            ),
            *session.place,
            *keys,
        )
        repeats, equal = await _repeats(session, staged, known)
        if new := len(some) - repeats:
            await _count(session, staged, packed_until)
            await connection.execute(f"INSERT INTO {staged} SELECT {listed} FROM {known} WHERE NOT late")
            await connection.execute(session.sql(f"DELETE FROM {{packed}} WHERE {OF_DAYS}"), *session.place, *keys)
            rows = packed_rows(session.shape, staged)
            await connection.execute(session.sql(f"INSERT INTO {{packed}} ({session.shape.listed}) {rows}"))
            await session.compare(keys)
            await session.count(new)
        await session.at("inside merge of loaded")
    session.outcome.add(Outcome(new, equal, repeats - equal))


async def _repeats(session: Session, staged: str, known: str) -> tuple[int, int]:
    """How many are there already, and how many of them with these values; they leave the staged ones."""
    keyed, names = session.sql(_KEYED), [each.quoted for each in session.shape.columns]
    one, other = (", ".join(f"{side}.{name}" for name in names) for side in "sk")
    found = await session.connection.fetch(
        f"SELECT count(*), count(*) FILTER (WHERE record_image_eq(ROW({one}), ROW({other}))) "
        f"FROM {staged} AS s JOIN {known} AS k ON {keyed}"
    )
    await session.connection.execute(f"DELETE FROM {staged} AS s USING {known} AS k WHERE {keyed}")
    return found[0][0], found[0][1]


async def _count(session: Session, staged: str, packed_until: datetime) -> None:
    """What is staged is new: sums and statuses follow."""
    connection, kind, bucket = session.connection, session.kind, session.bucket
    await rolling.check_known(connection, bucket, kind.name, session.keyed)
    if session.summed:
        await rolling.add_rows(connection, kind, bucket, staged)
        await rolling.fold(connection, kind, bucket, packed_until)
    stored = f"WITH stored AS ({_STORED}{staged}), refreshed AS ({refreshing(kind)}) SELECT count(*) FROM stored"
    await connection.execute(session.sql(stored))
