"""What a cluster of any size needs, from what a small one was measured to cost. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

CORE_MAX: Final = 0.6  # of a core: what is planned for it, so that a burst finds room
CORES_A_SHARD: Final = 4
LANE_MAX: Final = 0.7  # of its time that a lane commits
KINDS: Final = 2
BUCKETS_MIN: Final = 64
BUCKETS_A_SHARD: Final = 16
SHARDS_MAX: Final = 256
DAY_S: Final = 86_400
BUCKETS_MAX: Final = 1_024


@dataclass(frozen=True)
class Point:
    """One measurement: readings in a request and in a transaction (means), buckets of a shard, and what a reading cost.

    CPU in microseconds, `wal` in bytes, `commit_s`: seconds of a transaction.
    """

    request: float
    batch: float
    buckets: int
    router_us: float
    postgres_us: float
    wal: float
    commit_s: float


def distinct(batch: float, buckets: int) -> float:
    """Buckets that a batch of readings of random devices touches, on average."""
    return buckets * (1 - float((1 - 1 / buckets) ** batch))


def _solve(rows: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, ...]:
    """Least squares, every equation in proportion to its value; no negative coefficient."""
    matrix, right = np.array(rows, float), np.array(values, float)
    used = list(range(matrix.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(matrix[:, used] / right[:, None], np.ones(len(right)), rcond=None)
        if found.min() >= 0 or len(used) == 1:
            break
        del used[int(found.argmin())]
    whole = [0.0] * matrix.shape[1]
    for at, value in zip(used, found, strict=True):
        whole[at] = max(float(value), 0.0)
    return tuple(whole)


@dataclass(frozen=True)
class Costs:
    """Coefficients: of a reading, of a request, of a transaction, of a bucket in a transaction."""

    router: tuple[float, float]
    postgres: tuple[float, float, float]
    wal: tuple[float, float]
    commit: tuple[float, float]  # of a transaction, of a reading in it; seconds

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Costs":
        """Fitted to at least three points."""
        router = _solve([[1, 1 / p.request] for p in points], [p.router_us for p in points])
        rows = [[1, 1 / p.batch, distinct(p.batch, p.buckets) / p.batch] for p in points]
        postgres = _solve(rows, [p.postgres_us for p in points])
        wal = _solve([[1, 1 / p.batch] for p in points], [p.wal for p in points])
        commit = _solve([[1, p.batch] for p in points], [p.commit_s for p in points])
        return cls(router, postgres, wal, commit)  # type: ignore[arg-type]

    def postgres_us(self, batch: float, buckets: int) -> float:
        """CPU of PostgreSQL for a reading."""
        each, transaction, bucket = self.postgres
        return each + (transaction + bucket * distinct(batch, buckets)) / batch

    def router_us(self, request: float) -> float:
        """CPU of the router for a reading."""
        return self.router[0] + self.router[1] / request

    def batch(self, lane_rate: float) -> float | None:
        """Readings that collect while a transaction is under way; None when a lane cannot keep up."""
        fixed, each = self.commit
        busy = lane_rate * each
        return None if busy >= LANE_MAX else max(1.0, lane_rate * fixed / (1 - busy))


@dataclass(frozen=True)
class Needs:
    """Of so many devices that post once a minute, one reading a request."""

    devices: int
    rate: float
    shards: int
    buckets: int
    batch: float
    postgres_cores: float
    router_cores: float
    wal_mb_s: float
    disk_gb_day: float
    connections_max: int  # of a shard, by the settings' defaults

    def words(self) -> str:
        """In a line."""
        return (
            f"{self.devices:>10,} devices: {self.rate:>9,.0f} readings/s; {self.shards} shards, "
            f"{self.buckets} buckets, batches of {self.batch:,.0f}; {self.postgres_cores:.1f} cores for PostgreSQL, "
            f"{self.router_cores:.1f} for routers; WAL {self.wal_mb_s:,.1f} MB/s, "
            f"hot disk {self.disk_gb_day:,.1f} GB a day; up to {self.connections_max} connections a shard"
        )


def needs(costs: Costs, devices: int, disk_bytes: float, pool_max: int = 20) -> Needs:
    """The least power of two of shards that carries them with room to spare. ValueError when none does."""
    rate, shards = devices / 60, 1
    while shards <= SHARDS_MAX:
        buckets = min(max(BUCKETS_MIN, BUCKETS_A_SHARD * shards), BUCKETS_MAX)
        batch = costs.batch(rate / shards / KINDS)
        if batch is not None:
            cores = rate * costs.postgres_us(batch, max(buckets // shards, 1)) / 1e6 / CORE_MAX
            if cores / shards <= CORES_A_SHARD:
                router = rate * costs.router_us(1) / 1e6 / CORE_MAX
                wal = rate * (costs.wal[0] + costs.wal[1] / batch) / 1e6
                connections = max(1, round(router + 0.5)) * (2 * pool_max + 1)
                disk = rate * DAY_S * disk_bytes / 1e9
                return Needs(devices, rate, shards, buckets, batch, cores, router, wal, disk, connections)
        shards *= 2
    message = f"{devices:,} devices need more than {SHARDS_MAX} shards"
    raise ValueError(message)


@dataclass(frozen=True)
class FanOut:
    """p99 of an answer that waits for all of so many shards, without and with a second try; calls more, as a share."""

    shards: int
    p99_ms: float
    hedged_ms: float
    more: float


def fan_out(one_ms: Sequence[float], shards: int, slow: tuple[float, float], seed: int = 1) -> FanOut:
    """Simulated from latencies of one shard; a second try goes out at p95.

    `slow`: (share of calls, milliseconds more).
    """
    draws, random = 4_000, np.random.default_rng(seed)
    share, extra = slow

    def calls() -> "NDArray[np.float64]":
        drawn: NDArray[np.float64] = random.choice(np.asarray(one_ms, float), (draws, shards))
        return drawn + extra * (random.random((draws, shards)) < share)

    first, second = calls(), calls()
    after = float(np.percentile(first, 95))
    hedged = np.where(first > after, np.minimum(first, after + second), first)
    p99 = [float(np.percentile(each.max(axis=1), 99)) for each in (first, hedged)]
    return FanOut(shards, p99[0], p99[1], float((first > after).mean()))
