"""Where asyncpg's exceptions become ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from shards.errors import DataRejected, MissingLeaf, ShardError, ShardFault, ShardUnavailable, StaleMap, WriteConflict
from shards.kinds import ROOT_TABLES

NO_PARTITION: Final = "no partition of relation"
FENCED: Final = "VRFEN"  # raised by refuse_write(), the trigger that fences a bucket

_BUCKET_KEY: Final = re.compile(r"\(bucket\) = \((\d+)\)")
_CONFLICTS: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.OperatorInterventionError,  # class 57: shutdown, crash, cancelled by statement_timeout
    asyncpg.InsufficientResourcesError,  # class 53: too many connections, disk full
    asyncpg.ReadOnlySQLTransactionError,  # a primary that became a replica
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
)
_DATA: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


def _stale(shard: str, error: asyncpg.PostgresError, detail: str) -> StaleMap:
    found = _BUCKET_KEY.search(getattr(error, "detail", None) or "")
    return StaleMap(shard, detail, int(found[1]) if found else None)


def _no_partition(shard: str, error: asyncpg.CheckViolationError) -> ShardError:
    if error.table_name in ROOT_TABLES:
        return _stale(shard, error, "a bucket is not owned here")
    return MissingLeaf(shard, f"{error.table_name} has no partition for {error.detail}")


def as_shard_error(shard: str, error: Exception) -> ShardError:
    """The ShardError that a driver's exception means."""
    if isinstance(error, asyncpg.CheckViolationError) and str(error).startswith(NO_PARTITION):
        return _no_partition(shard, error)
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate == FENCED:
        return _stale(shard, error, "a bucket is being handed over")
    if isinstance(error, _CONFLICTS):
        return WriteConflict(shard, str(error))
    if isinstance(error, _DATA) or (isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)):
        # The message names the constraint or type; the row's values (DETAIL) stay out of logs and answers.
        return DataRejected(shard, str(error))
    if isinstance(error, _UNAVAILABLE):
        return ShardUnavailable(shard, str(error) or type(error).__name__)
    return ShardFault(shard, f"{type(error).__name__}: {error}")


@contextmanager
def translated(shard: str) -> Iterator[None]:
    """Turn every driver exception inside into a ShardError of `shard`."""
    try:
        yield
    except ShardError:
        raise
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise as_shard_error(shard, error) from error
