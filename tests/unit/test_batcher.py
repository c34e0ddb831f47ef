"""The lane, driven by a commit that the test holds in its hand."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from router.ingest.batcher import Lane, LaneFull, Pressures
from router.ingest.promises import Committed
from router.ingest.queue import LaneLimits
from router.ingest.routing import Chunk
from shards.errors import DataRejected, ShardUnavailable, StaleMap
from shards.kinds import METER, Row
from shards.storage.write import Key, Written

LIMITS = LaneLimits(batch_readings_max=10, in_flight_max=1, queue_readings_max=30, commit_timeout_s=1)


def row(number: int) -> Row:
    return (0, 1, f"M-{number}", datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number), 1.0, 230.0)


def submit(lane: Lane, given: Chunk) -> asyncio.Future[Committed]:
    """A future of what becomes of it."""
    future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
    lane.submit(given, future)
    return future


def chunk(*numbers: int) -> Chunk:
    return Chunk([row(n) for n in numbers], list(range(len(numbers))))


class Hand:
    """Commits when told to; remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[Row]] = []
        self.open = asyncio.Event()
        self.known: set[int] = set()
        self.poison: set[str] = set()
        self.down = False
        self.foreign = -1
        self.stored: dict[Key, tuple[object, ...]] = {}

    async def write(self, rows: Sequence[Row], deadline: float) -> Written:
        self.batches.append(list(rows))
        await self.open.wait()
        if any(r[0] == self.foreign for r in rows):
            raise StaleMap("s", "not mine", self.foreign)
        if self.down:
            raise ShardUnavailable("s", "down")
        if any(r[2] in self.poison for r in rows):
            raise DataRejected("s", "poison")
        new = {r[1:4] for r in rows if r[2] not in {f"M-{n}" for n in self.known}}
        return Written(None if len(new) == len(rows) else new, self.stored)


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def lane(hand: Hand) -> Lane:
    return Lane("s", METER, hand.write, LIMITS, Pressures(LIMITS))


async def test_what_arrives_during_a_commit_goes_together(lane: Lane, hand: Hand) -> None:
    first = submit(lane, chunk(1))
    await asyncio.sleep(0)
    later = [submit(lane, chunk(n)) for n in range(2, 8)]
    hand.open.set()
    assert await asyncio.gather(first, *later) == [Committed(1)] * 7
    assert [len(batch) for batch in hand.batches] == [1, 6]


async def test_batches_have_a_limit_and_keep_chunks_whole(lane: Lane, hand: Hand) -> None:
    hand.open.set()
    sizes = [6, 4, 7, 7]
    start = iter(range(0, 100, 10))
    await asyncio.gather(*[submit(lane, chunk(*range(at, at + size))) for at, size in zip(start, sizes, strict=False)])
    assert [len(batch) for batch in hand.batches] == [10, 7, 7]


async def test_a_full_lane_refuses(lane: Lane, hand: Hand) -> None:
    waiting = [submit(lane, chunk(*range(n, n + 10))) for n in (0, 10, 20)]
    with pytest.raises(LaneFull):
        submit(lane, chunk(99))
    assert lane.queued == 30
    hand.open.set()
    await asyncio.gather(*waiting)
    assert lane.queued == 0


async def test_duplicates_are_attributed_to_their_chunks(lane: Lane, hand: Hand) -> None:
    hand.known = {2}
    hand.open.set()
    results = await asyncio.gather(submit(lane, chunk(1, 2)), submit(lane, chunk(1, 3)))
    assert list(results) == [Committed(1, (1,)), Committed(1, (0,))]


async def test_a_repeat_with_other_values_is_a_conflict(lane: Lane, hand: Hand) -> None:
    hand.known = {3, 4}
    hand.stored = {row(3)[1:4]: (1.0, 230.0), row(4)[1:4]: (5.0, 230.0)}
    hand.open.set()
    assert await submit(lane, chunk(2, 3, 4)) == Committed(1, (1,), (), (2,))


async def test_a_poison_row_is_found_and_the_others_stored(lane: Lane, hand: Hand) -> None:
    hand.poison = {"M-3"}
    hand.open.set()
    good, bad = await asyncio.gather(submit(lane, chunk(1, 2)), submit(lane, chunk(3, 4)))
    assert good == Committed(2)
    assert bad == Committed(1, (), ((0, "refused_by_database", "poison"),))


async def test_a_failure_reaches_all_who_wait_and_the_lane_goes_on(lane: Lane, hand: Hand) -> None:
    hand.down = True
    hand.open.set()
    results = await asyncio.gather(submit(lane, chunk(1)), submit(lane, chunk(2)), return_exceptions=True)
    assert all(isinstance(result, ShardUnavailable) for result in results)
    hand.down = False
    assert await submit(lane, chunk(3)) == Committed(1)


async def test_a_withdrawn_chunk_is_not_written(lane: Lane, hand: Hand) -> None:
    first = submit(lane, chunk(1))
    await asyncio.sleep(0)
    withdrawn, kept = submit(lane, chunk(2)), submit(lane, chunk(3))
    withdrawn.cancel()
    hand.open.set()
    await asyncio.gather(first, kept)
    assert [r[2] for batch in hand.batches for r in batch] == ["M-1", "M-3"]
    await lane.drain()
    assert lane.in_flight == 0


async def test_a_foreign_bucket_concerns_only_its_readings(lane: Lane, hand: Hand) -> None:
    hand.foreign = 7
    foreign = Chunk([(7, *row(1)[1:]), row(2)], [0, 1])
    first = submit(lane, chunk(0))
    await asyncio.sleep(0)
    mine, theirs = submit(lane, chunk(3)), submit(lane, foreign)
    hand.open.set()
    results = await asyncio.gather(first, mine, theirs, return_exceptions=True)
    assert list(results[:2]) == [Committed(1), Committed(1)]
    assert isinstance(results[2], StaleMap)
    assert [len(batch) for batch in hand.batches] == [1, 3, 1]


async def test_what_is_submitted_as_a_worker_ends_is_not_forgotten(lane: Lane, hand: Hand) -> None:
    """Who waits for a commit runs before the worker's done-callbacks do."""
    hand.open.set()
    async with asyncio.timeout(5):
        for number in range(5):
            assert await submit(lane, chunk(number)) == Committed(1)
        await lane.drain()
    assert lane.in_flight == 0


async def test_whoever_sends_again_at_once_goes_with_the_next_transaction(lane: Lane, hand: Hand) -> None:
    """Half of the senders are answered; what they send then does not wait for a transaction of the others."""
    first = submit(lane, chunk(0))

    async def send_again() -> Committed:
        await first
        return await submit(lane, chunk(2))

    again = asyncio.create_task(send_again())
    while not hand.batches:
        await asyncio.sleep(0)
    late = submit(lane, chunk(3))
    hand.open.set()
    await asyncio.gather(again, late)
    assert hand.batches == [[row(0)], [row(3), row(2)]]


async def test_single_readings_do_not_wait_behind_a_backlog(hand: Hand) -> None:
    """Nor does it wait behind them: each has transactions of its own, and room."""
    lane = Lane(
        "s", METER, hand.write, LaneLimits(100, 1, queue_readings_max=100, commit_timeout_s=1), Pressures(LIMITS)
    )
    backlog = [submit(lane, chunk(*range(100, 180))), submit(lane, chunk(*range(200, 220)))]
    with pytest.raises(LaneFull):
        submit(lane, chunk(*range(300, 311)))
    singles = [submit(lane, chunk(number)) for number in range(5)]
    assert lane.in_flight == 2
    hand.open.set()
    await asyncio.gather(*backlog, *singles)
    assert sorted(len(batch) for batch in hand.batches) == [5, 100]


async def test_what_many_requests_sent_is_small(hand: Hand) -> None:
    lane = Lane("s", METER, hand.write, LIMITS, Pressures(LIMITS))
    future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
    many = chunk(*range(12))
    lane.submit(many, future, singles=True)
    large = submit(lane, chunk(*range(20, 32)))
    assert lane.in_flight == 2
    hand.open.set()
    assert list(await asyncio.gather(future, large)) == [Committed(12), Committed(12)]
