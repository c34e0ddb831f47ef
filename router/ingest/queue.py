"""The queue of a lane: bounded, and short once its readings have waited too long: who is let in is served in time.

A burst may wait. What stands is another matter: more arrives than is committed, and a longer queue only means that all
are late. Then new requests are refused before their body is read (`Pressure`), and what waits is a transaction or two.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from router.ingest.promises import Promise
from router.ingest.routing import Chunk
from router.tracing import Span

PAUSE_S: Final = 1.0  # a transaction that takes longer was one of a server that stood still, not of a full one
EXCUSED_S: Final = 10.0  # what came during a pause may take so long to be worked off
_FULL: Final = 3  # transactions' worth that a standing queue holds at most: of a shard with more than its part


@dataclass(frozen=True)
class LaneLimits:
    """Readings in a transaction, readings waiting, seconds for a transaction.

    `in_flight_max`: transactions at a time of small chunks, and as many of large ones. `wait_max_s`: what readings wait
    for their transaction before new ones are refused.
    """

    batch_readings_max: int
    in_flight_max: int
    queue_readings_max: int
    commit_timeout_s: float
    wait_max_s: float = 3600.0


@dataclass
class Pressure:
    """Of all queues of one size of chunk: how many have work, and how many of them too much for long."""

    busy: int = 0
    over: int = 0

    @property
    def is_high(self) -> bool:
        """Most of them have: one shard that is slow, or has more than its part, is no reason to refuse the others'."""
        return 2 * self.over > self.busy


@dataclass(eq=False, slots=True)
class Ticket:
    """A chunk that waits `since` then (monotonic seconds)."""

    chunk: Chunk
    future: Promise
    span: Span | None
    since: float


class Queue:
    """Chunks of about one size. `readings` wait in it; `in_flight`: transactions of theirs that are under way."""

    __slots__ = (
        "_excused_until",
        "_is_over",
        "_is_standing",
        "_limits",
        "_pressure",
        "_waiting",
        "in_flight",
        "readings",
    )

    def __init__(self, limits: LaneLimits, pressure: Pressure) -> None:
        self.readings = 0
        self.in_flight = 0
        self._limits = limits
        self._pressure = pressure
        self._waiting: deque[Ticket] = deque()
        self._is_standing = False
        self._is_over = False
        self._excused_until = 0.0

    def has_room(self, readings: int) -> bool:
        """Whether so many more may wait."""
        limits = self._limits
        if self._is_standing and self.readings > _FULL * limits.batch_readings_max:
            return False
        return self.readings + readings <= limits.queue_readings_max

    def put(self, ticket: Ticket) -> bool:
        """Add it; whether a worker is to be started for it."""
        self._waiting.append(ticket)
        self.readings += len(ticket.chunk.rows)
        if self._is_standing:
            self._weigh()
        if self.in_flight >= self._limits.in_flight_max:
            return False
        self.in_flight += 1
        if self.in_flight == 1:
            self._pressure.busy += 1
        return True

    def take(self, now: float) -> list[Ticket]:
        """The next tickets whose rows fit into one transaction; withdrawn ones are dropped."""
        taken: list[Ticket] = []
        waiting = self._waiting
        room = self._limits.batch_readings_max
        while waiting and (not taken or len(waiting[0].chunk.rows) <= room):
            ticket = waiting.popleft()
            self.readings -= len(ticket.chunk.rows)
            if not ticket.future.done():
                taken.append(ticket)
                room -= len(ticket.chunk.rows)
        self._judge(taken, now, is_full=room <= 0)
        return taken

    def _judge(self, taken: list[Ticket], now: float, *, is_full: bool) -> None:
        """It stands while readings wait too long, until there is room in a transaction again."""
        if not self._waiting and not is_full:
            self._is_standing = False
            self._excused_until = 0.0
        elif taken and now >= self._excused_until and now - taken[0].since > self._limits.wait_max_s:
            self._is_standing = True
        self._weigh()

    def _weigh(self) -> None:
        is_over = self._is_standing and self.readings >= self._limits.batch_readings_max
        if is_over is not self._is_over:
            self._is_over = is_over
            self._pressure.over += 1 if is_over else -1

    def took(self, seconds: float, now: float) -> None:
        """A transaction took so long: what came during a pause is worked off, and not refused."""
        if seconds > PAUSE_S:
            self._excused_until = now + EXCUSED_S
            self._is_standing = False
            self._weigh()

    def leave(self) -> None:
        """A worker has found nothing more."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._pressure.busy -= 1
