"""The newest readings of all devices."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from router.reads import merge
from router.reads.fanout import Tagged, fan_out
from router.reads.scope import Scope
from router.wire.answers import Answer
from router.wire.problems import archived
from router.wire.queries import ActivityQuery
from router.wire.stored import activity_list, activity_type
from shards.kinds import Kind, Kinds
from shards.storage import read, tiers
from shards.storage.rows import Reader, Record, Rows

PERIOD_DEFAULT: Final = timedelta(hours=1)


async def activity(scope: Scope, query: ActivityQuery) -> Answer:
    """By time, kind and device, descending. ProblemError 503 when a shard is missing, unless `partial` allows it.

    409 when readings that belong to the answer are archived.
    """
    since = query.since or scope.now - PERIOD_DEFAULT
    kinds = scope.cluster.kinds

    async def ask(reader: Reader, buckets: list[int]) -> Iterable[Tagged[Kind, Rows]]:
        return [
            Tagged(kind, _named(kind, await read.activity(reader, kind, buckets, since, query.limit))) for kind in kinds
        ]

    merged = await fan_out(scope, ask, partial=query.partial == "allow")
    rows = merge.newest([each.part.rows for each in merged.parts], query.limit)
    oldest = rows[-1]["timestamp"] if len(rows) == query.limit else since
    for each in merged.parts:
        until = each.part.archived_until
        if until is not None and oldest < until:
            raise archived(each.tag.name, f"{until:%Y-%m-%d}")
    wire_type = activity_type(kinds.all)
    items = [_item(wire_type, kinds, row) for row in rows]
    found = tiers.names(sum({row["tier"] for row in rows}))
    return activity_list(kinds.all)(items, None, found, merged.is_partial, merged.shards())


def _item(wire_type: type[Answer], kinds: Kinds, row: Record) -> Answer:
    """A row as an answer has it: by the names that its kind's fields have in JSON."""
    kind = kinds.by_name[row["kind"]]
    values = {field.name: row[field.column] for field in kind.stored}
    return wire_type(
        kind=kind.name, deviceId=row["device_id"], timestamp=row["timestamp"], ingestedAt=row["ingested_at"], **values
    )


def _named(kind: Kind, rows: Rows) -> Rows:
    for row in rows.rows:
        row["kind"] = kind.name
        row["device_id"] = row.pop(kind.id_column)
    return rows
