"""Where asyncpg's exceptions become ours. By SQLSTATE and named fields alone: messages are translated."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import asyncpg

from shards.errors import (
    Archived,
    Cause,
    DataRejected,
    Frozen,
    MissingLeaf,
    NotAsRecorded,
    ShardError,
    ShardFault,
    ShardUnavailable,
    StaleMap,
    WriteConflict,
)
from shards.kinds import HISTORY, LATE, STATUS

NOT_AS_RECORDED: Final = "VRHLD"  # raised by the functions of a move that find another table than was recorded
FROZEN: Final = "VRFRZ"  # raised by refuse_frozen(), the trigger of a leaf that takes nothing more
ARCHIVED: Final = "VRARC"  # raised by refuse_archived(), when a statement would read what is not there any more
FENCED: Final = "VRFEN"  # raised by refuse_write(), the trigger that fences a bucket

# DETAIL of both refusals ends in the value of the partition key: "... (bucket) = (7)". Only the key is looked for,
# because the words around it are translated.
_BUCKET_KEY: Final = re.compile(r"\(bucket\) = \((\d+)\)")
_CONFLICTS: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_NO_SUCH: Final = (asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError)
_DATA: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
# From special to general: the first that fits names the cause.
_CAUSES: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], Cause], ...]] = (
    (asyncpg.CannotConnectNowError, Cause.STARTING_OR_STOPPING),
    ((asyncpg.AdminShutdownError, asyncpg.CrashShutdownError), Cause.STARTING_OR_STOPPING),
    (asyncpg.QueryCanceledError, Cause.CANCELLED),
    (asyncpg.IdleInTransactionSessionTimeoutError, Cause.CANCELLED),
    (asyncpg.LockNotAvailableError, Cause.LOCKED),
    (asyncpg.DiskFullError, Cause.DISK_FULL),
    (asyncpg.TooManyConnectionsError, Cause.CONNECTIONS_EXHAUSTED),
    (asyncpg.InsufficientResourcesError, Cause.RESOURCES_EXHAUSTED),
    (asyncpg.ReadOnlySQLTransactionError, Cause.READ_ONLY),
    (asyncpg.InvalidAuthorizationSpecificationError, Cause.LOGIN_REFUSED),
    (asyncpg.InvalidCatalogNameError, Cause.WRONG_DATABASE),
    (TimeoutError, Cause.SILENT),
    (asyncpg.OperatorInterventionError, Cause.CANCELLED),
    ((OSError, asyncpg.PostgresConnectionError), Cause.UNREACHABLE),
    ((asyncpg.InternalClientError, asyncpg.InterfaceError), Cause.UNREACHABLE),
)
_PLAIN: Final = {Cause.SILENT: "did not answer in time"}


def _stale(shard: str, error: asyncpg.PostgresError, detail: str) -> StaleMap:
    found = _BUCKET_KEY.search(getattr(error, "detail", None) or "")
    return StaleMap(shard, detail, int(found[1]) if found else None)


def _no_partition(shard: str, error: asyncpg.CheckViolationError) -> ShardError:
    if (error.table_name or "").endswith(
        (HISTORY, LATE, STATUS)
    ):  # a root; a bucket's table has its number behind that
        return _stale(shard, error, "a bucket is not owned here")
    return MissingLeaf(shard, f"{error.table_name} has no partition for a reading's time", error.table_name)


def _archived(shard: str, error: asyncpg.PostgresError) -> ShardError:
    first, _, past = str(getattr(error, "detail", "")).partition("..")
    return Archived(shard, error.args[0].partition(" ")[0], first, past)


# What the SQLSTATEs mean that functions of ours raise.
_OURS: Final[Mapping[str, Callable[[str, asyncpg.PostgresError], ShardError]]] = {
    FENCED: lambda shard, error: _stale(shard, error, "a bucket is being handed over"),
    FROZEN: lambda shard, _: Frozen(shard, "the time of a reading is frozen"),
    NOT_AS_RECORDED: lambda shard, error: NotAsRecorded(shard, error.args[0]),
    ARCHIVED: _archived,
}


def as_shard_error(shard: str, error: Exception) -> ShardError:
    """The ShardError that a driver's exception means."""
    if isinstance(error, asyncpg.PostgresError) and (ours := _by_state(shard, error)) is not None:
        return ours
    if isinstance(error, _CONFLICTS):
        return WriteConflict(shard, str(error))
    if isinstance(error, _DATA) or (isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)):
        # The message names the constraint or type; the row's values (DETAIL) stay out of logs and answers.
        return DataRejected(shard, str(error))
    for kind, cause in _CAUSES:
        if isinstance(error, kind):
            return ShardUnavailable(shard, str(error) or _PLAIN.get(cause, type(error).__name__), cause=cause)
    if isinstance(error, _NO_SUCH):
        return ShardFault(shard, f"{error}: is the schema behind this release? `voltroute migrate status`")
    return ShardFault(shard, f"{type(error).__name__}: {error}")


def _by_state(shard: str, error: asyncpg.PostgresError) -> ShardError | None:
    """What a SQLSTATE means of itself."""
    state = error.sqlstate or ""
    if isinstance(error, asyncpg.CheckViolationError) and not error.constraint_name:
        return _no_partition(shard, error)  # 23514 without a constraint: a row that no partition takes
    if (ours := _OURS.get(state)) is not None:
        return ours(shard, error)
    if state.startswith("58"):  # a file could not be extended or written: the disk is full, or broken
        return ShardUnavailable(shard, str(error), cause=Cause.DISK_FULL)
    return None


@contextmanager
def translated(shard: str) -> Iterator[None]:
    """Turn every driver exception inside into a ShardError of `shard`."""
    try:
        yield
    except ShardError:
        raise
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise as_shard_error(shard, error) from error
