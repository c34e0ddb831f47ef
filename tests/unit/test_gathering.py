"""Shares: each request hears of its own reading, whatever becomes of those of others."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from router.access.caller import Caller
from router.http.deadlines import Deadlines
from router.ingest.dispatch import Dispatcher, Outcome, Sent
from router.ingest.gathering import Gathering
from router.ingest.queue import LaneLimits
from router.ingest.routing import Chunk, Chunks
from shards.errors import BucketUnavailable, ShardError, StaleMap
from shards.kinds import VEHICLE, Row
from shards.storage.write import Written

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
OURS, FOREIGN = 4, 3  # buckets


class Exchange:
    """Takes requests together as readings of the buckets that they name."""

    def __init__(self) -> None:
        self.broken = False

    def take_together(self, _intake: Any, _callers: Sequence[Caller], bodies: Sequence[bytes]) -> Chunks | None:
        if self.broken:
            raise RuntimeError
        if b"odd" in bodies:
            return None
        rows = [row(int(body), index) for index, body in enumerate(bodies)]
        return {("s", VEHICLE): Chunk(rows, list(range(len(rows))))}


def row(bucket: int, number: int) -> Row:
    return (bucket, 0, f"D{number}", MOMENT, 1.0, 1.0, 1.0)


@dataclass(eq=False)
class Request:
    """Notes what it hears."""

    exchange: Any
    body: bytes
    started: float = field(default_factory=time.monotonic)
    heard: list[Any] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    caller: Caller = field(default_factory=Caller)

    def _hear(self, what: Any) -> None:
        self.heard.append(what)
        self.told.set()

    def take(self) -> None:
        self._hear("alone")

    def stored(self, _now: float) -> None:
        self._hear("stored")

    def ended(self, sent: Sent) -> None:
        assert len(sent.chunk.rows) == len(sent.chunk.indexes) == 1
        self._hear(sent)

    def fail(self) -> None:
        self._hear("failed")


class Cluster:
    """Commits as a test says."""

    def __init__(self) -> None:
        self.error: ShardError | None = None
        self.written = Written(None)
        self.batches: list[int] = []
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, _shard: str, _kind: Any, rows: Sequence[Row], _deadline: float) -> Written:
        await self.open.wait()
        if self.error is not None and any(each[0] == FOREIGN for each in rows):
            raise self.error
        self.batches.append(len(rows))
        return self.written


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def gather(cluster: Cluster, bodies: Sequence[bytes], exchange: Any = None, **limits: Any) -> list[Request]:
    """Requests that came at once, when each has heard of its end."""
    dispatcher = Dispatcher(cluster, LaneLimits(100, 1, limits.get("queue", 100), 5), lambda _error: None)  # type: ignore[arg-type]
    intake = SimpleNamespace(dispatcher=dispatcher, timeout_s=limits.get("timeout_s", 5.0))
    gathering = Gathering(intake, Deadlines())  # type: ignore[arg-type]
    shared = exchange or Exchange()
    requests = [Request(shared, body) for body in bodies]
    for request in requests:
        gathering.add(request)
    async with asyncio.timeout(20):
        for request in requests:
            await request.told.wait()
    assert all(len(request.heard) == 1 for request in requests)
    return requests


def heard(requests: Sequence[Request]) -> list[Any]:
    return [request.heard[0] for request in requests]


async def test_one_transaction_for_all(cluster: Cluster) -> None:
    assert heard(await gather(cluster, [b"4"] * 7)) == ["stored"] * 7
    assert cluster.batches == [7]


async def test_with_an_odd_one_each_goes_alone(cluster: Cluster) -> None:
    assert heard(await gather(cluster, [b"4", b"odd", b"4"])) == ["alone"] * 3
    broken = Exchange()
    broken.broken = True
    assert heard(await gather(cluster, [b"4", b"4"], broken)) == ["alone"] * 2
    assert heard(await gather(cluster, [b"4"] * 3, queue=2)) == ["alone"] * 3


@pytest.mark.parametrize(
    "error", [StaleMap("s", "moved", FOREIGN), BucketUnavailable("s", "locked", frozenset([FOREIGN]))]
)
async def test_a_refused_bucket_is_no_matter_of_the_others(cluster: Cluster, error: ShardError) -> None:
    cluster.error = error
    requests = await gather(cluster, [b"4", b"3", b"4", b"3", b"4"])
    assert [what == "stored" for what in heard(requests)] == [True, False, True, False, True]
    assert cluster.batches == [3]
    for request in (requests[1], requests[3]):
        (sent,) = request.heard
        assert sent.future.exception() is error
        assert sent.chunk.rows[0][0] == FOREIGN


async def test_an_error_of_the_shard_is_everybodys(cluster: Cluster) -> None:
    cluster.error = StaleMap("s", "moved", None)
    requests = await gather(cluster, [b"4", b"3"])
    assert [sent.future.exception() for sent in heard(requests)] == [cluster.error] * 2


async def test_each_hears_of_its_own(cluster: Cluster) -> None:
    keys = [row(OURS, number)[1:4] for number in range(4)]
    cluster.written = Written({keys[0]}, {keys[1]: (1.0, 1.0, 1.0), keys[2]: (2.0, 1.0, 1.0)})
    requests = await gather(cluster, [b"4"] * 4)
    told = []
    for sent in heard(requests):
        outcome = Outcome()
        assert Dispatcher.tally(None, [sent], outcome)  # type: ignore[arg-type]
        told.append((outcome.accepted, outcome.duplicates, outcome.conflicts))
    assert told == [(1, 0, []), (0, 1, []), (0, 0, [0]), (0, 1, [])]


@pytest.mark.parametrize("spoilt", [False, True])
async def test_a_deadline_ends_what_waits(cluster: Cluster, spoilt: bool) -> None:
    """Also what was spared when another one's bucket was refused, and goes again."""
    cluster.open.clear()
    if spoilt:
        cluster.error = StaleMap("s", "moved", FOREIGN)
        write: Callable[..., Any] = cluster.write

        async def refuse_first(shard: str, kind: Any, rows: Sequence[Row], deadline: float) -> Written:
            if any(each[0] == FOREIGN for each in rows):
                cluster.open.set()
                try:
                    return await write(shard, kind, rows, deadline)  # type: ignore[no-any-return]
                finally:
                    cluster.open.clear()
            return await write(shard, kind, rows, deadline)  # type: ignore[no-any-return]

        cluster.write = refuse_first  # type: ignore[method-assign,assignment]
    requests = await gather(cluster, [b"3" if spoilt else b"4", b"4"], timeout_s=0.1)
    assert requests[1].heard[0].future.cancelled()
    cluster.open.set()
