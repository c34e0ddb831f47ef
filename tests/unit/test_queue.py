"""A lane's queue by a clock that the test moves: bursts wait, what stands is refused, pauses are excused."""

import asyncio
from datetime import UTC, datetime

import pytest

from router.ingest.intake import HOLD_S, SMALL_BYTES, Intake
from router.ingest.queue import EXCUSED_S, PAUSE_S, LaneLimits, Pressure, Queue, Ticket
from router.ingest.routing import Chunk
from router.wire.problems import OVERLOADED, ProblemError

LIMITS = LaneLimits(batch_readings_max=10, in_flight_max=1, queue_readings_max=100, commit_timeout_s=5, wait_max_s=0.25)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def high(pressure: Pressure) -> bool:
    return pressure.is_high


class Line:
    """A queue, and what stands in it."""

    def __init__(self, pressure: Pressure) -> None:
        self.pressure = pressure
        self.queue = Queue(LIMITS, pressure)

    def put(self, readings: int, since: float) -> None:
        assert self.queue.has_room(readings)
        chunk = Chunk([(0, 1, "M", MOMENT, 1.0)] * readings, list(range(readings)))
        future = asyncio.get_running_loop().create_future()
        self.queue.put(Ticket(chunk, future, None, since))

    def take(self, now: float) -> int:
        return sum(len(ticket.chunk.rows) for ticket in self.queue.take(now))


@pytest.fixture
def pressure() -> Pressure:
    return Pressure()


@pytest.fixture
def line(pressure: Pressure) -> Line:
    return Line(pressure)


async def test_a_burst_waits(line: Line, pressure: Pressure) -> None:
    for _ in range(10):
        line.put(10, 0.0)
    assert not line.queue.has_room(1)
    assert [line.take(0.02 * turn) for turn in range(1, 11)] == [10] * 10
    assert not high(pressure)
    assert pressure.over == 0


async def test_what_stands_is_kept_short(line: Line, pressure: Pressure) -> None:
    for _ in range(8):
        line.put(10, 0.0)
    assert line.take(0.26) == 10
    assert high(pressure)
    assert not line.queue.has_room(1)
    for _ in range(4):
        line.take(0.3)
    assert line.queue.has_room(1)  # three transactions' worth, for a shard with more than its part
    line.take(0.3)
    line.take(0.3)
    assert high(pressure)
    line.put(5, 0.3)
    assert line.take(0.3) == 10
    assert not high(pressure)  # less than a transaction waits: more are let in
    line.put(5, 0.3)
    assert high(pressure)  # and no more: it still stands
    assert line.take(0.31) == 10
    line.put(9, 0.32)
    assert line.take(0.33) == 9  # not full: there is room again
    for _ in range(5):
        line.put(10, 0.4)
    assert not high(pressure)


async def test_what_came_in_a_pause_is_worked_off(line: Line, pressure: Pressure) -> None:
    line.put(1, 0.0)
    assert line.take(0.0) == 1
    for at in range(9):
        line.put(10, 0.3 * at)
    line.queue.took(PAUSE_S + 2, 3.0)
    for turn in range(7):
        assert line.take(3.0 + turn) == 10
        assert not high(pressure)
    line.put(10, 3.0)
    line.put(10, 3.0)
    line.take(3.0 + EXCUSED_S)
    assert high(pressure)  # not for ever
    line.queue.took(PAUSE_S + 2, 20.0)
    assert not high(pressure)


async def test_one_shard_of_several_is_no_reason_to_refuse_all(pressure: Pressure) -> None:
    lines = [Line(pressure) for _ in range(4)]
    for each in lines:
        for _ in range(3):
            each.put(10, 0.0)
    assert pressure.busy == 4
    for number, each in enumerate(lines):
        assert high(pressure) is (number > 2)
        each.take(0.3)
    assert high(pressure)
    while any(each.take(0.4) for each in lines):
        pass
    for each in lines:
        each.queue.leave()
    assert (pressure.busy, pressure.over, high(pressure)) == (0, 0, False)


async def test_withdrawn_tickets_say_nothing(line: Line, pressure: Pressure) -> None:
    line.put(10, 0.0)
    line.queue._waiting[0].future.cancel()
    line.put(10, 9.9)
    assert line.take(10.0) == 10
    assert not high(pressure)


class Lanes:
    """What an intake asks of its dispatcher."""

    def __init__(self) -> None:
        self.pressures = self
        self.small = Pressure(4, 0)
        self.large = Pressure(4, 0)


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
def test_who_has_room_is_let_in(size: str, length: bytes, refused: bool) -> None:
    lanes = Lanes()
    intake = Intake(None, lanes, None, None, 5, 1, None, None, None)  # type: ignore[arg-type]
    intake.check_room(length)
    getattr(lanes, size).over = 3
    if not refused:
        intake.check_room(length)
        return
    with pytest.raises(ProblemError) as caught:
        intake.check_room(length)
    assert caught.value.problem is OVERLOADED
    assert 0 < caught.value.hold_s <= HOLD_S
    assert int(caught.value.headers["Retry-After"]) >= 1
