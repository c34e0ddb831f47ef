"""What can go wrong with a shard, the catalog or the cluster. Driver exceptions end here."""

from datetime import datetime
from enum import StrEnum
from typing import TypeAlias


class Cause(StrEnum):
    """Why a database cannot be used now, as told in logs and metrics."""

    UNREACHABLE = "unreachable"
    SILENT = "silent"
    STARTING_OR_STOPPING = "starting_or_stopping"
    LOGIN_REFUSED = "login_refused"
    CONNECTIONS_EXHAUSTED = "connections_exhausted"
    DISK_FULL = "disk_full"
    RESOURCES_EXHAUSTED = "resources_exhausted"
    READ_ONLY = "read_only"
    SUPERSEDED = "superseded"  # an old primary: another server was promoted
    CANCELLED = "cancelled"
    LOCKED = "locked"
    BUSY = "busy"
    BREAKER_OPEN = "breaker_open"
    WRONG_DATABASE = "wrong_database"
    PARTITION_MISSING = "partition_missing"
    FAULT = "fault"


class ShardError(Exception):
    """A database said no. `retryable`: the same call may succeed later, unchanged."""

    retryable = False

    def __init__(self, shard: str, detail: str) -> None:
        super().__init__(f"{shard}: {detail}")
        self.shard = shard
        self.detail = detail


class ShardUnavailable(ShardError):
    """The database cannot be reached, does not answer in time, or takes no work now."""

    retryable = True

    def __init__(self, shard: str, detail: str, retry_after_s: float = 1.0, cause: Cause = Cause.UNREACHABLE) -> None:
        super().__init__(shard, detail)
        self.retry_after_s = retry_after_s
        self.cause = cause


class BucketUnavailable(ShardUnavailable):
    """One bucket of the shard takes no writes now: a lock, or a partition that cannot be made. The others do."""

    def __init__(self, shard: str, detail: str, buckets: frozenset[int], cause: Cause = Cause.LOCKED) -> None:
        super().__init__(shard, detail, 1.0, cause)
        self.buckets = buckets


class LateUnavailable(BucketUnavailable):
    """A bucket takes no late readings now, of times up to `until`: they are being merged. Others it does."""

    def __init__(self, shard: str, detail: str, bucket: int, until: datetime) -> None:
        super().__init__(shard, detail, frozenset([bucket]))
        self.until = until


class StaleMap(ShardError):
    """The shard does not own `bucket` (None: not known which): the caller's map is older than the truth."""

    retryable = True

    def __init__(self, shard: str, detail: str, bucket: int | None = None) -> None:
        super().__init__(shard, detail)
        self.bucket = bucket


class MissingLeaf(ShardError):
    """The bucket is here, but `table`, its table, has no partition for the reading's time."""

    retryable = True

    def __init__(self, shard: str, detail: str, table: str | None = None) -> None:
        super().__init__(shard, detail)
        self.table = table


class Frozen(ShardError):
    """The time of a reading is frozen: it is stored as a late one."""

    retryable = True


class Archived(ShardError):
    """A question about readings of a kind that are not in the shard any more: from a day to before another (UTC)."""

    def __init__(self, shard: str, kind: str, first: str, past: str) -> None:
        super().__init__(shard, f"readings of {kind} from {first} to before {past} are archived, or dropped")
        self.kind = kind
        self.first = first
        self.past = past


class WriteConflict(ShardError):
    """Deadlock or serialization failure: the transaction was rolled back and can be repeated as it was."""

    retryable = True


class DataRejected(ShardError):
    """PostgreSQL refuses a value. Permanent: the same row is refused again."""


class ShardFault(ShardError):
    """Anything else: wrong privileges, missing tables, a bug. Not the sender's fault, and not curable by waiting."""

    cause = Cause.FAULT


# Why a database cannot be used now.
Unusable: TypeAlias = ShardUnavailable | ShardFault


class ForeignTenant(Exception):
    """A session served another tenant than the one it was asked for. A bug; nothing of its answer is used."""


class NotAsRecorded(ShardFault):
    """A table is not the one that a move recorded: somebody changed it by hand. An operator must look."""


class ClusterError(Exception):
    """A command cannot do what it was asked; the message says what to do (exit code 1)."""


class NoCluster(ClusterError):
    """There is no cluster, it is not running, or making it was not finished."""


class NoMap(NoCluster):
    """No shard map was read from the catalog yet."""


class SchemaError(ClusterError):
    """A database's schema is not the one that this release knows, or could not be brought to it."""


class MachineError(ClusterError):
    """This machine does not give what is needed: a program, a folder, a port, a server that starts."""


class MoveError(ClusterError):
    """A move cannot go on as it is; subclasses say what becomes of it."""


class Refused(ClusterError):
    """The command is understood, but carrying it out would contradict what the cluster is (exit code 3)."""


class InvalidArgument(ValueError):
    """A name, number or DSN that no cluster can have (exit code 2)."""
