"""A lane's queue by a clock that the test moves: bursts wait, what stands is refused, pauses are excused."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from router.ingest.intake import HOLD_S, SMALL_BYTES, Intake
from router.ingest.queue import EXCUSED_S, PAUSE_S, LaneLimits, Pressure, Queue, Ticket
from router.ingest.routing import Chunk
from router.wire.problems import OVERLOADED, ProblemError

LIMITS = LaneLimits(batch_readings_max=10, in_flight_max=1, queue_readings_max=100, commit_timeout_s=5, wait_max_s=0.25)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def high(pressure: Pressure, now: float = 0.3) -> bool:
    return pressure.is_high(now)


class Line:
    """A queue, and what stands in it."""

    def __init__(self, pressure: Pressure) -> None:
        self.pressure = pressure
        self.queue = Queue(LIMITS, pressure)

    def put(self, readings: int, since: float) -> None:
        assert self.queue.has_room(readings, since)
        chunk = Chunk([(0, 1, "M", MOMENT, 1.0)] * readings, list(range(readings)))
        future = asyncio.get_running_loop().create_future()
        self.queue.put(Ticket(chunk, future, None, since))

    def take(self, now: float, seconds: float | None = None) -> int:
        """The next transaction, which takes so long."""
        readings = sum(len(ticket.chunk.rows) for ticket in self.queue.take(now))
        if seconds is not None:
            self.queue.took(readings, seconds, now + seconds)
        return readings


@pytest.fixture
def pressure() -> Pressure:
    return Pressure(LIMITS.batch_readings_max)


@pytest.fixture
def line(pressure: Pressure) -> Line:
    return Line(pressure)


async def test_a_burst_waits(line: Line, pressure: Pressure) -> None:
    for _ in range(10):
        line.put(10, 0.0)
    assert not line.queue.has_room(1, 0.3)
    assert [line.take(0.02 * turn) for turn in range(1, 11)] == [10] * 10
    assert pressure.standing == 0


async def test_what_stands_is_kept_short(line: Line, pressure: Pressure) -> None:
    for _ in range(8):
        line.put(10, 0.0)
    assert line.take(0.26) == 10
    assert high(pressure)
    assert not line.queue.has_room(1, 0.3)
    line.take(0.3)
    line.take(0.3)
    assert line.queue.has_room(1, 0.3)  # five transactions' worth, for a shard with more than its part
    for _ in range(4):
        line.take(0.3)
    assert high(pressure)
    line.put(5, 0.3)
    assert line.take(0.3) == 10
    assert not high(pressure)  # less than a transaction waits: more are let in
    with pressure.expecting(600):
        assert not high(pressure)
        with pressure.expecting(150):
            assert high(pressure)  # what was let in counts, too
    line.put(5, 0.3)
    assert high(pressure)  # and no more: it still stands
    assert line.take(0.31) == 10
    line.put(5, 0.32)
    assert line.take(0.33) == 5
    assert pressure.standing == 1
    line.put(4, 0.34)
    assert line.take(0.35) == 4  # less than half full: there is time for more
    for _ in range(5):
        line.put(10, 0.4)
    assert pressure.standing == 0


async def test_few_senders_of_much_wait_for_themselves(line: Line, pressure: Pressure) -> None:
    pressure.requests_min, pressure.requests = 3, 2
    for _ in range(9):
        line.put(10, 0.0)
    line.take(0.3)
    assert pressure.standing == 1
    assert not high(pressure)
    assert line.queue.has_room(10, 0.3)
    pressure.requests = 3
    assert high(pressure)
    assert not line.queue.has_room(10, 0.3)


async def test_what_would_wait_too_long_stands_at_once(line: Line, pressure: Pressure) -> None:
    line.put(10, 0.0)
    line.take(0.0, 0.1)
    assert pressure.standing == 0
    line.put(10, 0.1)
    line.take(0.1)
    line.put(10, 0.15)
    line.put(10, 0.15)
    assert pressure.standing == 0
    line.put(10, 0.15)
    assert pressure.standing == 1


async def test_a_server_that_may_stand_still_is_waited_for(line: Line, pressure: Pressure) -> None:
    line.put(10, 0.0)
    line.take(0.0, 0.1)
    line.put(10, 0.1)
    line.take(0.1)  # and nothing is heard of it
    for _ in range(9):
        line.put(10, 0.4)
    assert pressure.standing == 0


async def test_what_came_in_a_pause_is_worked_off(line: Line, pressure: Pressure) -> None:
    line.put(1, 0.0)
    assert line.take(0.0) == 1
    for at in range(9):
        line.put(10, 0.3 * at)
    line.queue.took(1, PAUSE_S + 2, 3.0)
    for turn in range(7):
        assert line.take(3.0 + turn) == 10
        assert pressure.standing == 0
    line.put(10, 3.0)
    line.put(10, 3.0)
    line.take(3.0 + EXCUSED_S)
    assert pressure.standing == 1  # not for ever
    line.queue.took(1, PAUSE_S + 2, 20.0)
    assert pressure.standing == 0


async def test_one_shard_of_several_is_no_reason_to_refuse_all(pressure: Pressure) -> None:
    lines = [Line(pressure) for _ in range(4)]
    for each in lines:
        for _ in range(3):
            each.put(10, 0.0)
    for number, each in enumerate(lines):
        assert high(pressure) is (number > 2)
        each.take(0.3)
    assert high(pressure)
    while any(each.take(0.4) for each in lines):
        pass
    assert pressure.standing == 0


async def test_shards_that_are_done_at_once_have_work_too(pressure: Pressure) -> None:
    """The slow one is nearly always the only one with a transaction under way."""
    slow, others = Line(pressure), [Line(pressure) for _ in range(2)]
    for each in others:
        each.put(1, 0.0)
        each.take(0.0)
        each.take(0.01)
        each.queue.leave()
    for _ in range(4):
        slow.put(10, 0.0)
    slow.take(0.3)
    assert pressure.standing == 1
    assert not high(pressure, 0.3)
    assert high(pressure, 30.0)  # they have long had nothing to do


async def test_a_queue_that_was_expected_to_stand_is_excused_in_a_pause(line: Line, pressure: Pressure) -> None:
    line.put(10, 0.0)
    line.take(0.0, 0.1)
    line.put(10, 0.1)
    line.take(0.1)
    for _ in range(3):
        line.put(10, 0.2)
    assert high(pressure, 0.25)
    assert not high(pressure, 0.4)  # it takes longer than they do: the server may stand still
    for _ in range(6):
        line.put(10, 0.5)
    assert line.queue.has_room(10, 0.5)
    line.queue.took(10, 0.9, 1.0)
    assert pressure.standing == 0
    line.take(1.0)
    assert pressure.standing == 0


async def test_withdrawn_tickets_say_nothing(line: Line, pressure: Pressure) -> None:
    line.put(10, 0.0)
    line.queue._waiting[0].future.cancel()
    line.put(10, 9.9)
    assert line.take(10.0) == 10
    assert pressure.standing == 0


def test_bytes_of_a_reading_are_learnt(pressure: Pressure) -> None:
    pressure.came(100, 0)
    for _ in range(200):
        pressure.came(5_000, 100)
    assert 50 <= pressure.bytes_a_reading < 51


class Lanes:
    """What an intake asks of its dispatcher."""

    def __init__(self) -> None:
        self.pressures = self
        self.small = Pressure(10)
        self.large = Pressure(10)


@pytest.mark.parametrize(
    ("size", "length", "refused"),
    [
        ("large", b"", True),
        ("large", b"%d" % (SMALL_BYTES + 1), True),
        ("large", b"%d" % SMALL_BYTES, False),
        ("small", b"%d" % SMALL_BYTES, True),
        ("small", b"", False),
    ],
)
async def test_who_has_room_is_let_in(size: str, length: bytes, refused: bool) -> None:
    lanes = Lanes()
    intake = Intake(None, lanes, None, None, 5, 1, None, None, None)  # type: ignore[arg-type]
    intake.check_room(length)
    now = time.monotonic()
    line = Line(getattr(lanes, size))
    for _ in range(3):
        line.put(10, now - 1)
    line.take(now)
    if not refused:
        intake.check_room(length)
        return
    with pytest.raises(ProblemError) as caught:
        intake.check_room(length)
    assert caught.value.problem is OVERLOADED
    assert 0 < caught.value.hold_s <= HOLD_S
    assert int(caught.value.headers["Retry-After"]) >= 1


async def test_two_workers_of_a_queue_are_one_with_work(pressure: Pressure) -> None:
    line = Line(pressure)
    line.queue = Queue(replace(LIMITS, in_flight_max=2), pressure)
    for _ in range(3):
        line.put(1, 0.0)
    assert line.queue.in_flight == 2
    line.take(0.0, 0.1)  # small ones say nothing of what full ones take
    for _ in range(9):
        line.put(10, 0.1)
    assert pressure.standing == 0
    line.queue.leave()
    line.queue.leave()
    assert line.queue.in_flight == 0
