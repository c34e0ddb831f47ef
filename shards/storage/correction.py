"""Replacing a stored reading, as the shard's owner: writers only insert."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Final

from shards.errors import InvalidArgument, Refused
from shards.kinds import Kind
from shards.postgres.pools import Connection
from shards.postgres.sql import for_kind, quote_identifier
from shards.postgres.transactions import transaction

# Until the transaction's end no move can claim the bucket: its passes carry what was inserted, not what was changed.
_NO_MOVE_BEGINS: Final = "LOCK TABLE bucket_move IN SHARE MODE"
_PLACE: Final = """
SELECT EXISTS (SELECT FROM owned_bucket WHERE bucket = $1) AS owned,
    (SELECT move_id FROM bucket_move WHERE bucket = $1) AS move_id
"""
_KEY: Final = "bucket = $1 AND {id} = $2 AND timestamp = $3 AND tenant_id = {tenant}"
_LOOK: Final = "SELECT {values} FROM {history} WHERE " + _KEY + " FOR UPDATE"
_HISTORY: Final = "UPDATE {history} SET {assignments}, ingested_at = now() WHERE " + _KEY
_STATUS: Final = (
    "UPDATE {status} SET {assignments} WHERE bucket = $1 AND {id} = $2 AND last_updated = $3 AND tenant_id = {tenant}"
)
_AUDIT: Final = """
INSERT INTO correction (timestamp, kind, tenant_id, device_id, before, after, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""


@cache
def _sql(template: str, kind: Kind) -> str:
    assignments = ", ".join(f"{quote_identifier(name)} = ${4 + at}" for at, name in enumerate(kind.values))
    return for_kind(template.replace("{assignments}", assignments), kind)


@dataclass(frozen=True)
class Correction:
    """A reading before and after: column -> value."""

    before: Mapping[str, float | None]
    after: Mapping[str, float | None]


def _changed(kind: Kind, before: Mapping[str, float | None], changed: Mapping[str, float]) -> dict[str, float | None]:
    """The values with what changed. A reading has an energy or a register: to set the one takes the other away."""
    after = {**before, **changed}
    if kind.alternatives and (given := {*kind.alternatives} & changed.keys()):
        after[({*kind.alternatives} - given).pop()] = None
    return after


def _check_one_way(kind: Kind, changed: Mapping[str, float]) -> None:
    if kind.alternatives and {*kind.alternatives} <= changed.keys():
        raise InvalidArgument(f"a reading of a {kind} has either {kind.energy} or {kind.register}: set one of them")


async def correct(
    connection: Connection,
    kind: Kind,
    key: tuple[int, int, str, datetime],
    changed: Mapping[str, float],
    reason: str | None,
) -> Correction:
    """Replace values of the reading with `key` (bucket, tenant, device, timestamp); the device's status follows.

    It counts as ingested anew, and what it was stays in `correction`. Refused when there is no such reading, or its
    bucket is in a move.
    """
    bucket, tenant, device_id, moment = key
    key_values = (bucket, device_id, moment)
    _check_one_way(kind, changed)
    async with transaction(connection):
        await connection.execute(_NO_MOVE_BEGINS)
        place = (await connection.fetch(_PLACE, bucket))[0]
        if not place["owned"]:
            raise Refused(f"bucket {bucket} of {kind} {device_id} is not on this shard any more: try again")
        if place["move_id"] is not None:
            raise Refused(
                f"bucket {bucket} of {kind} {device_id} is in move {place['move_id']}: correct it when that has ended "
                "(see `voltroute rebalance status`)"
            )
        found = await connection.fetchrow(_sql(_LOOK, kind), *key_values, tenant)
        if found is None:
            raise Refused(f"there is no reading of {kind} {device_id} at {moment.isoformat()}")
        before = dict(found)
        after = _changed(kind, before, changed)
        values = [after[name] for name in kind.values]
        for statement in (_HISTORY, _STATUS):
            await connection.execute(_sql(statement, kind), *key_values, *values, tenant)
        told = (json.dumps(before), json.dumps(after))
        await connection.execute(_AUDIT, moment, kind.name, tenant, device_id, *told, reason)
        return Correction(before, after)
