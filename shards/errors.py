"""What can go wrong with a shard or the catalog. Driver exceptions end here."""


class ShardError(Exception):
    """A database said no. `retryable`: the same call may succeed later, unchanged."""

    retryable = False

    def __init__(self, shard: str, detail: str) -> None:
        super().__init__(f"{shard}: {detail}")
        self.shard = shard
        self.detail = detail


class ShardUnavailable(ShardError):
    """The database cannot be reached, does not answer in time, or is shutting down."""

    retryable = True

    def __init__(self, shard: str, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(shard, detail)
        self.retry_after_s = retry_after_s


class StaleMap(ShardError):
    """The shard does not own `bucket` (None: not known which): the caller's map is older than the truth."""

    retryable = True

    def __init__(self, shard: str, detail: str, bucket: int | None = None) -> None:
        super().__init__(shard, detail)
        self.bucket = bucket


class MissingLeaf(ShardError):
    """The bucket is here, but has no partition for the reading's time."""

    retryable = True


class WriteConflict(ShardError):
    """Deadlock or serialization failure: the transaction was rolled back and can be repeated as it was."""

    retryable = True


class DataRejected(ShardError):
    """PostgreSQL refuses a value. Permanent: the same row is refused again."""


class ShardFault(ShardError):
    """Anything else: wrong privileges, missing tables, a bug. Not the sender's fault, and not curable by waiting."""


class ClusterError(Exception):
    """The cluster as a whole is not usable as asked; the message says what to do."""


class Refused(ClusterError):
    """The command is understood, but carrying it out would contradict what the cluster is (exit code 3)."""


class InvalidArgument(ValueError):
    """A name, number or DSN that no cluster can have (exit code 2)."""
