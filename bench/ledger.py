"""The proof at the end of every measurement: what was acknowledged is stored, once, and nothing else is."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import asyncpg

from bench.workload import Readings

# Minutes since the workload's start, by device: what was sent is a set of such pairs.
_STORED: Final = """
SELECT {id} AS device, array_agg((extract(epoch FROM timestamp - $3) / 60)::int) AS minutes
FROM {history} WHERE {id} >= $1 AND {id} < $2 GROUP BY {id}
"""
_WRONG_STATUS: Final = """
SELECT count(*)
FROM (SELECT {id}, max(timestamp) AS newest FROM {history} WHERE {id} >= $1 AND {id} < $2 GROUP BY {id}) AS h
FULL JOIN (SELECT {id}, last_updated FROM {status} WHERE {id} >= $1 AND {id} < $2) AS s USING ({id})
WHERE h.newest IS DISTINCT FROM s.last_updated
"""
_TIMEOUT_S: Final = 300


class LedgerError(Exception):
    """Readings were lost or stored twice: the measurement counts for nothing, whatever its speed."""


@dataclass(frozen=True)
class Proof:
    """Numbers of readings. `unconfirmed` were stored although their request got no 2xx, which is allowed."""

    acknowledged: int
    stored: int
    unconfirmed: int


async def prove(
    shards: Mapping[str, str], readings: Readings, acknowledged: set[int], sent: set[int], schema: str = ""
) -> Proof:
    """Compare all stored rows of a workload with the numbers of its readings that were acknowledged and sent.

    LedgerError when one is missing, doubled or foreign, or a device's status is not that of its newest reading (the
    seed's design, in `schema`, promises nothing about that).
    """
    parts = await asyncio.gather(*(_look(dsn, readings, schema) for dsn in shards.values()))
    numbers = [number for part, _ in parts for number in part]
    stored = set(numbers)
    wrong = 0 if schema else sum(count for _, count in parts)
    _check(f"{len(numbers) - len(stored)} readings are stored twice", len(numbers) != len(stored))
    _check_none("acknowledged readings are missing", acknowledged - stored, readings)
    _check_none("stored readings were never sent", stored - sent, readings)
    _check(f"{wrong} devices have a status that is not their newest reading's", wrong != 0)
    return Proof(len(acknowledged), len(stored), len(stored) - len(acknowledged))


def _check(message: str, failed: bool) -> None:  # noqa: FBT001 - reads like an assert
    if failed:
        raise LedgerError(message)


def _check_none(what: str, numbers: Collection[int], readings: Readings) -> None:
    if numbers:
        first = min(numbers)
        example = f"{readings.device(first)} at {readings.moment(first).isoformat()}"
        message = f"{len(numbers)} {what}, {example} among them"
        raise LedgerError(message)


async def _look(dsn: str, readings: Readings, schema: str) -> tuple[list[int], int]:
    kind = readings.kind
    names = {"id": kind.id_column, "history": schema + kind.history, "status": schema + kind.status}
    ids = (f"{readings.prefix}-", f"{readings.prefix}.")
    connection = await asyncpg.connect(dsn, timeout=10, command_timeout=_TIMEOUT_S)
    try:
        rows = await connection.fetch(_STORED.format(**names), *ids, readings.start)
        wrong = await connection.fetchval(_WRONG_STATUS.format(**names), *ids)
        return [readings.number(row["device"], minute) for row in rows for minute in row["minutes"]], int(wrong)
    finally:
        connection.terminate()
