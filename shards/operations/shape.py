"""Giving one shard every kind and field that the catalog declares."""

from collections.abc import Iterable
from datetime import UTC, date, datetime

from shards.catalog.database import ClusterInfo
from shards.catalog.kinds import Declared
from shards.errors import Refused
from shards.postgres.connections import Connection
from shards.postgres.logins import Logins
from shards.storage import shaping
from shards.storage.partitions import runway
from shards.storage.shaping import Names


def days_ahead(info: ClusterInfo) -> list[date]:
    """First days of the partitions that a bucket of the cluster has."""
    return [max(day, info.first_month) for day in runway(datetime.now(UTC), info.leaf_width)]


async def bring(connection: Connection, declared: Iterable[Declared], logins: Logins, info: ClusterInfo) -> None:
    """Make what the shard lacks, as its owner; nothing is changed where it has all of it.

    Refused when something that somebody made by hand is in the way.
    """
    names = Names(logins.writer, logins.query, None if logins.reader_password is None else logins.reader)
    there = await shaping.shapes(connection)
    for each in declared:
        shape = there.get(each.whole.name)
        if shape is None or not shape.ready:
            await shaping.make_kind(connection, each.kind_id, each.whole, names, (info.first_month, days_ahead(info)))
            shape = (await shaping.shapes(connection))[each.whole.name]
        if shape.lacks(each.whole):
            await shaping.add_fields(connection, each.whole, each.whole.stored, names)
            shape = (await shaping.shapes(connection))[each.whole.name]
        if wrong := shape.lacks(each.whole):
            raise Refused(
                f"what is there is not what is declared: {'; '.join(wrong)}: it was made by hand, or of another "
                "declaration; rename it there"
            )
