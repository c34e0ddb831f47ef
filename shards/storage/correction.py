"""Replacing a stored reading, as the shard's owner: writers only insert."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final

from shards.bins import HOUR, MINUTE, bin_of
from shards.errors import InvalidArgument, Refused
from shards.kinds import Field, Kind, Value
from shards.postgres.connections import Connection
from shards.postgres.sql import LIFECYCLE_XACT, for_kind, quote_identifier
from shards.postgres.transactions import transaction
from shards.storage import rollups, spans
from shards.storage.tiers import ONE, Place, columns_of, source

# Until the transaction's end no move can claim the bucket: its passes carry what was inserted, not what was changed.
_NO_MOVE_BEGINS: Final = "LOCK TABLE bucket_move IN SHARE MODE"
_BRIEFLY: Final = "SET LOCAL lock_timeout = '1s'"  # records of moves queue behind it
_PLACE: Final = """
SELECT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1) AS owned,
    (SELECT move_id FROM bucket_move WHERE bucket = $1) AS move_id,
    t.frozen_until, t.sealed_until, coalesce(t.archived <> '{}', false) AS archived
FROM (SELECT) AS one LEFT JOIN tier AS t ON t.bucket = $1 AND t.kind = $2
"""
_KEY: Final = "bucket = $1 AND {id} = $2 AND timestamp = $3 AND tenant_id = {tenant}"
_LOOK: Final = "SELECT {values} FROM {history} WHERE " + _KEY + " FOR UPDATE"
_HISTORY: Final = "UPDATE {history} SET {assignments}, ingested_at = now() WHERE " + _KEY
_DEVICE: Final = "bucket = $1 AND {id} = $2 AND tenant_id = {tenant}"
_HOLD: Final = "SELECT FROM {status} WHERE " + _DEVICE + " FOR UPDATE"
_STATUS: Final = "UPDATE {status} SET {assignments} WHERE last_updated = $3 AND " + _DEVICE
# What a status keeps is the newest value of the field, whichever reading had it: that may be archived by now, and then
# only the status has it.
_KEPT: Final = (
    """UPDATE {status} AS s SET ({field}, {time}) = (
    SELECT (array_agg({field}))[1], max(timestamp)
    FROM (
        SELECT {field}, timestamp FROM (
            SELECT {field}, timestamp FROM {readings} AS h UNION ALL SELECT s.{field}, nullif(s.{time}, $3)
        ) AS known
        WHERE {field} IS NOT NULL AND timestamp IS NOT NULL ORDER BY timestamp DESC LIMIT 1
    ) AS newest
) WHERE """
    + _DEVICE
)
_MARK: Final = "SELECT rolled_until FROM tier WHERE bucket = $1 AND kind = $2 AND rolled_of = $3"
_UNSUM: Final = "UPDATE tier SET rolled_of = NULL WHERE bucket = $1 AND kind = $2"
_AUDIT: Final = """
INSERT INTO correction (timestamp, kind, tenant_id, device_id, before, after, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""


@cache
def _sql(template: str, kind: Kind, columns: tuple[str, ...] = ()) -> str:
    """A statement; `columns` are assigned from $4 on."""
    assignments = ", ".join(f"{quote_identifier(name)} = ${4 + at}" for at, name in enumerate(columns))
    return for_kind(template.replace("{assignments}", assignments), kind)


@cache
def _kept_sql(kind: Kind, field: Field) -> str:
    names = {
        "{readings}": source(kind, Place(ONE, guarded=False), columns_of(kind, [field.column])),
        "{field}": quote_identifier(field.column),
        "{time}": quote_identifier(field.time_column),
    }
    template = _KEPT
    for placeholder, name in names.items():
        template = template.replace(placeholder, name)
    return for_kind(template, kind)


@dataclass(frozen=True)
class Correction:
    """A reading before and after: column -> value."""

    before: Mapping[str, Value]
    after: Mapping[str, Value]


def _changed(kind: Kind, before: Mapping[str, Value], changed: Mapping[str, Value]) -> dict[str, Value]:
    """The values with what changed. A reading has an energy or a register: to set the one takes the other away."""
    after = {**before, **changed}
    if kind.alternatives and (given := {*kind.alternatives} & changed.keys()):
        after[({*kind.alternatives} - given).pop()] = None
    return after


def _check_one_way(kind: Kind, changed: Mapping[str, Value]) -> None:
    if kind.alternatives and {*kind.alternatives} <= changed.keys():
        raise InvalidArgument(f"a reading of a {kind} has either {kind.energy} or {kind.register}: set one of them")


async def correct(
    connection: Connection,
    kind: Kind,
    key: tuple[int, int, str, datetime],
    changed: Mapping[str, Value],
    reason: str | None,
) -> Correction:
    """Replace values of the reading with `key` (bucket, tenant, device, timestamp); the device's status follows.

    It counts as ingested anew, and what it was stays in `correction`. Refused when there is no such reading, its time
    is frozen, or its bucket is in a move.
    """
    bucket, tenant, device_id, moment = key
    key_values = (bucket, device_id, moment)
    _check_one_way(kind, changed)
    async with transaction(connection):
        # In this order, as a move's beginning: and while a step of the lifecycle is waited for, moves go on.
        await connection.execute(LIFECYCLE_XACT, bucket)
        await connection.execute(_BRIEFLY)
        await connection.execute(_NO_MOVE_BEGINS)
        place = (await connection.fetch(_PLACE, bucket, kind.name))[0]
        if not place["owned"]:
            raise Refused(f"bucket {bucket} of {kind} {device_id} is not on this shard any more: try again")
        if place["move_id"] is not None:
            raise Refused(
                f"bucket {bucket} of {kind} {device_id} is in move {place['move_id']}: correct it when that has ended "
                "(see `voltroute rebalance status`)"
            )
        if place["frozen_until"] is not None and moment < place["frozen_until"]:
            raise Refused(
                f"readings of {kind} {device_id} before {place['frozen_until'].isoformat()} are frozen: they are "
                "packed, or about to be, and stay as they are"
            )
        if place["sealed_until"] is not None and bin_of(moment, HOUR) < place["sealed_until"]:
            raise Refused(f"{moment.isoformat()} ends an hour whose sums are archived: they could not be made anew")
        found = await connection.fetchrow(_sql(_LOOK, kind), *key_values, tenant)
        if found is None:
            raise Refused(f"there is no reading of {kind} {device_id} at {moment.isoformat()}")
        before = dict(found)
        after = _changed(kind, before, changed)
        await _store(connection, kind, (*key_values, tenant), before, after)
        if place["archived"]:
            await _check_kept(connection, kind, (*key_values, tenant), before, after)
        await _sum_anew(connection, kind, (*key_values, tenant))
        told = (json.dumps(before), json.dumps(after))
        await connection.execute(_AUDIT, moment, kind.name, tenant, device_id, *told, reason)
        return Correction(before, after)


async def _check_kept(
    connection: Connection,
    kind: Kind,
    key: tuple[int, str, datetime, int],
    before: Mapping[str, Value],
    after: Mapping[str, Value],
) -> None:
    """Refused when a status would lose a value to which an archived reading may hold the one before."""
    bucket, device_id, _, tenant = key
    for field in kind.kept:
        column = field.column
        if before[column] is not None and after[column] is None:
            shown = f"SELECT {quote_identifier(column)} FROM {{status}} WHERE {_DEVICE}"
            if await connection.fetchval(_sql(shown, kind), bucket, device_id, tenant) is None:
                raise Refused(
                    f"the status of {kind} {device_id} would need the {field.name} before, and that may be archived: "
                    "restore it first (`voltroute archive restore`)"
                )


async def _sum_anew(connection: Connection, kind: Kind, key: tuple[int, str, datetime, int]) -> None:
    """The hour and the minute that held the reading as it was: as it is now it came after the mark."""
    bucket, device_id, moment, tenant = key
    mark = await connection.fetchval(_MARK, bucket, kind.name, rollups.roles(kind))
    if mark is None:  # there are none, or of other columns: then they are made anew
        await connection.execute(_UNSUM, bucket, kind.name)
        return
    (forget_hour, make_hour), (forget_minute, make_minute) = rollups.anew(kind)
    hour, minute = (bucket, device_id, bin_of(moment, HOUR)), (bucket, bin_of(moment, MINUTE))
    await connection.execute(forget_hour, *hour, tenant)
    await connection.execute(make_hour, *hour, mark, tenant)
    if spans.are_kept(kind):
        await connection.execute(spans.hours(kind), bucket, mark, [tenant], [device_id], [bin_of(moment, HOUR)])
    await connection.execute(forget_minute, *minute, tenant)
    await connection.execute(make_minute, *minute, mark, tenant)


async def _store(
    connection: Connection,
    kind: Kind,
    key: tuple[int, str, datetime, int],
    before: Mapping[str, Value],
    after: Mapping[str, Value],
) -> None:
    """History first, as writers lock; then the status, where it shows the reading, or keeps a value of it."""
    *place, tenant = key
    in_status = tuple(field.column for field in kind.in_status if not field.kept)
    await connection.execute(_sql(_HISTORY, kind, kind.values), *place, *(after[name] for name in kind.values), tenant)
    # From here on no writer changes the status, and what the statements below see is what the last one left.
    await connection.execute(_sql(_HOLD, kind), place[0], place[1], tenant)
    if in_status:
        values = [after[name] for name in in_status]
        await connection.execute(_sql(_STATUS, kind, in_status), *place, *values, tenant)
    for field in kind.kept:
        if before[field.column] != after[field.column]:
            await connection.execute(_kept_sql(kind, field), *place, tenant)
