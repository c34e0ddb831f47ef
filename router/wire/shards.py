"""Answers about shards: the map, their health and replicas, their slow statements."""

from router.wire.answers import Answer, Count, Shards


class ReplicaInfo(Answer, frozen=True):
    """A replica as this router sees it. `lagS`: null when it is not known; `detail`: why it is not read from."""

    name: str
    zone: str | None
    lag_s: float | None
    is_read: bool
    detail: str | None


class ShardInfo(Answer, frozen=True):
    """A shard as this router sees it. Sizes are null when it does not answer."""

    name: str
    state: str
    reachable: bool
    buckets: list[int]
    size_bytes: int | None
    readings_estimate: int | None
    breaker: str
    pool_open: Count
    pool_idle: Count
    queued_readings: Count
    detail: str | None
    replicas: list[ReplicaInfo]


class ShardList(Answer, frozen=True):
    """The shard map and the health of every shard."""

    items: list[ShardInfo]
    next: str | None
    epoch: int
    bucket_count: int
    is_partial: bool
    shards: Shards


class Statement(Answer, frozen=True):
    """What PostgreSQL counts of one statement, whatever its values were."""

    query_id: str
    query: str
    calls: int
    mean_ms: float
    total_s: float


class StatementList(Answer, frozen=True):
    """Slow ones first, then by the time that they took together."""

    items: list[Statement]
