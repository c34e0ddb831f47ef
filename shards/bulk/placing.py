"""Putting sorted readings of one tenant into a bucket's packed days, with their sums and statuses.

The caller holds the bucket, which is in no move (see runner). Days that nobody has anything of arrive packed; of others
the shard takes out what it has (see merging). Whatever fails, a transaction leaves nothing: what is placed again counts
as duplicates.
"""

import asyncio
from collections.abc import Iterable
from datetime import date, datetime
from functools import partial
from typing import Final

import numpy as np

from shards.bulk import sums
from shards.bulk.merging import merge, same, some_days
from shards.bulk.planes import packed
from shards.bulk.readings import Flags, Readings
from shards.bulk.session import LATE_OF_DAYS, Outcome, Session, keys_of, moments
from shards.postgres.sql import LOCK_TIMEOUT, measured_at, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage import late
from shards.storage.rollups import SUMMED
from shards.storage.write import refreshing
from shards.tiers import rolling
from shards.tiers.holding import patiently

_OF_DEVICES: Final = "bucket = $1::smallint AND tenant_id = $2::smallint AND {id} = ANY($3::varchar[])"
_THERE: Final = f"""
SELECT {{id}} AS device, day, false AS late FROM {{packed}} WHERE {_OF_DEVICES} AND day BETWEEN $4 AND $5
UNION
SELECT {{id}}, (timestamp AT TIME ZONE 'UTC')::date, true FROM {{late}}
WHERE {_OF_DEVICES} AND timestamp >= $4::timestamp AT TIME ZONE 'UTC'
    AND timestamp < ($5 + 1)::timestamp AT TIME ZONE 'UTC'
"""
_GIVEN: Final = """
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::smallint[], $2::smallint[], $3::varchar[], $4::timestamptz[], {value_arrays})
        AS t (bucket, tenant_id, {id}, timestamp, {values})
), stored AS MATERIALIZED (
    SELECT g.* FROM given AS g
    LEFT JOIN {status} AS s ON s.{id} = g.{id} AND s.tenant_id = g.tenant_id AND s.bucket = g.bucket
    WHERE s.{id} IS NULL OR g.timestamp > s.last_updated"""


class _LateCame(Exception):
    """Somebody stored late readings of these days meanwhile."""


async def place(session: Session, some: Readings, packed_until: datetime, left: Flags, *, verify: bool = False) -> None:
    """Readings of whole days, all before the bucket's horizon. PackingFailed when they are not what was packed.

    `left`: of which readings nothing became yet; it says so also when an error ends this. `verify`: the shard reads
    every day again, not one of each transaction.
    """
    while True:
        there, with_late = await _there(session, some)
        fresh = some.at(~there)
        try:
            if len(fresh):
                await patiently(partial(_put, session, fresh, packed_until, verify=verify))
                left &= there
                await session.at("after load")
            break
        except _LateCame:
            continue
    known = np.flatnonzero(there & ~with_late)
    if len(known):
        equal = await same(session, some.at(known))
        session.outcome.add(Outcome(duplicates=int(equal.sum())))
        left[known[equal]] = False
    for places in some_days(some, np.flatnonzero(left)):
        await patiently(partial(merge, session, some.at(places), packed_until))
        left[places] = False
        await session.at("after merge of loaded")


async def _there(session: Session, some: Readings) -> tuple[Flags, Flags]:
    """Of which readings the shard has something of the device's day, and of which some of it is late."""
    devices, days = keys_of(some)
    found = await session.connection.fetch(
        session.sql(_THERE), *session.place, sorted(set(devices)), min(days), max(days)
    )
    counts = np.diff(np.append(some.device_days(), len(some)))
    keys = [*zip(devices, days, strict=True)]

    def flags(those: set[tuple[str, date]]) -> Flags:
        return np.repeat(np.array([key in those for key in keys], np.bool_), counts)

    every = {(record["device"], record["day"]) for record in found}
    return flags(every), flags({(record["device"], record["day"]) for record in found if record["late"]})


async def _put(session: Session, some: Readings, packed_until: datetime, *, verify: bool) -> None:
    """Days that nobody has anything of."""
    connection, kind, bucket = session.connection, session.kind, session.bucket
    rows = await asyncio.to_thread(packed, session.shape, some, *session.place)
    async with transaction(connection):
        await connection.execute(LOCK_TIMEOUT)
        await rolling.check_known(connection, bucket, kind.name, session.keyed)
        await connection.copy_records_to_table(kind.packed, records=rows, columns=session.columns)
        is_summed = session.summed and await rolling.is_rolled(connection, kind, bucket)
        fits = is_summed and sums.fit(kind, session.shape, some)
        await _read_again(session, some, verify=verify or (is_summed and not fits))
        if fits:
            await _add_sums(session, some, packed_until)
        elif is_summed:  # as the shard can
            await rolling.add_rows(connection, kind, bucket, quote_identifier(session.table("staged")))
            await rolling.fold(connection, kind, bucket, packed_until)
        await session.at("inside load")
        # Last, as late writers wait for it: from here on none of theirs is stored, and what was is seen.
        await connection.execute(late.ALONE, bucket)
        query = session.sql(f"SELECT EXISTS (SELECT FROM {{late}} WHERE {LATE_OF_DAYS})")
        if await connection.fetchval(query, *session.place, *keys_of(some)):
            raise _LateCame
        await _refresh(session, some)
        await session.count(len(some))
    session.outcome.add(Outcome(accepted=len(some)))


async def _read_again(session: Session, some: Readings, *, verify: bool) -> None:
    """The shard unpacks what it was given, and compares."""
    if not verify:
        begins = some.device_days()
        at = len(begins) // 2
        upto = int(begins[at + 1]) if at + 1 < len(begins) else len(some)
        some = some.at(slice(int(begins[at]), upto))
    await session.stage(some)
    await session.compare(keys_of(some))


async def _add_sums(session: Session, some: Readings, packed_until: datetime) -> None:
    connection, kind, sums_of = session.connection, session.kind, [*SUMMED, "most"]
    place = (kind, session.shape, some, *session.place)
    hours = await asyncio.to_thread(sums.hours, *place)
    names = ["at", "bucket", "tenant_id", kind.id_column, *sums_of, "minutes", "counts", "counted_until"]
    await connection.copy_records_to_table(session.table("hours"), records=hours, columns=names)
    minutes = await asyncio.to_thread(sums.minutes, *place)
    await connection.copy_records_to_table(
        session.table("minutes"), records=minutes, columns=["at", "bucket", "tenant_id", *sums_of]
    )
    tables = quote_identifier(session.table("hours")), quote_identifier(session.table("minutes"))
    await rolling.take(connection, kind, session.bucket, packed_until, tables)


async def _refresh(session: Session, some: Readings) -> None:
    """Statuses that are older than these readings; others are not even locked."""
    kind = session.kind
    places = {column.name: at for at, column in enumerate(session.shape.columns)}
    kept = [some.values[places[each.column]] for each in kind.kept]
    newest = some.at(sums.flags_of_newest(some, kept))
    await session.connection.execute(
        session.sql(f"{_GIVEN}{_older(session)}), refreshed AS ({refreshing(kind)}) SELECT count(*) FROM stored"),
        [session.bucket] * len(newest),
        [session.tenant] * len(newest),
        [newest.devices[each] for each in newest.device.tolist()],
        list(moments(newest.times)),
        *(newest.values[places[name]].listed() for name in kind.values),
    )


def _older(session: Session) -> str:
    """Or a status' kept values are."""
    kept: Iterable[tuple[str, str]] = ((each.column, each.time_column) for each in session.kind.kept)
    return "".join(
        f" OR g.{quote_identifier(column)} IS NOT NULL AND g.timestamp > {measured_at(column, time_column, 's')}"
        for column, time_column in kept
    )
