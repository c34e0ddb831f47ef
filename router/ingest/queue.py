"""The queue of a lane: bounded, and short once its readings have waited too long: who is let in is served in time.

A burst may wait. What stands is another matter: more arrives than is committed, and a longer queue only means that all
are late. Then new requests are refused before their body is read (`Pressure`), and what waits is a transaction or two.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakSet

from router.ingest.promises import Promise
from router.ingest.routing import Chunk
from router.tracing import Span

PAUSE_S: Final = 1.0  # a transaction that takes longer was one of a server that stood still, not of a full one
EXCUSED_S: Final = 10.0  # what came during a pause may take so long to be worked off
_FULL: Final = 5  # transactions' worth that a standing queue holds at most: of a shard with more than its part
_MOVING: Final = (
    2.0  # a transaction that takes so many times what full ones take may be one of a server that stands still
)
_BODY_SHARE: Final = 0.05  # of the newest body in what a reading's bytes are
_ACTIVE_S: Final = 10.0  # a queue that had a transaction so long ago is one with work
_SHARE: Final = 0.3  # of the newest full transaction in what they are expected to take


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
    """Of all queues of one size of chunk; in `standing` of them it stands.

    `requests`: under way; up to `requests_min` they are what some senders of much have, who wait for their own.
    `coming`: readings, about, of those that are on their way to a queue; by what a reading's bytes were lately.
    """

    batch_readings_max: int
    requests_min: int = 0
    standing: int = 0
    requests: int = 0
    coming: int = 0
    bytes_a_reading: float = 150.0
    queues: "WeakSet[Queue]" = field(default_factory=WeakSet)

    def is_high(self, now: float) -> bool:
        """More would only wait: in most queues it stands, and a transaction's worth is there for each.

        One shard that is slow, or has more than its part, is no reason to refuse the others' readings.
        """
        if not self.standing or self.are_few:
            return False
        active = [queue for queue in self.queues if queue.was_busy(now)]
        standing = [queue.readings for queue in active if queue.stands(now)]
        if 2 * len(standing) <= len(active):
            return False
        return sum(standing) + self.coming >= len(standing) * self.batch_readings_max

    @property
    def are_few(self) -> bool:
        """No more requests than may always be there."""
        return self.requests < self.requests_min

    @contextmanager
    def expecting(self, length: int) -> Iterator[None]:
        """A body of so many bytes is let in, until its readings are in their queues, or refused."""
        readings = int(length / self.bytes_a_reading)
        self.coming += readings
        try:
            yield
        finally:
            self.coming -= readings

    def came(self, length: int, readings: int) -> None:
        """A body of so many bytes held so many readings."""
        if readings:
            self.bytes_a_reading += _BODY_SHARE * (length / readings - self.bytes_a_reading)


@dataclass(eq=False, slots=True)
class Ticket:
    """A chunk that waits `since` then (monotonic seconds)."""

    chunk: Chunk
    future: Promise
    span: Span | None
    since: float


class Queue:
    """Chunks of about one size. `readings` wait in it; `in_flight`: transactions of theirs that are under way."""

    def __init__(self, limits: LaneLimits, pressure: Pressure) -> None:
        self.readings = 0
        self.in_flight = 0
        self._limits = limits
        self._pressure = pressure
        self._waiting: deque[Ticket] = deque()
        self._is_standing = False
        self._is_expected = False  # to stand: nobody has waited too long yet
        self._excused_until = 0.0
        self._began = -_ACTIVE_S  # the newest transaction
        self._full_s: float | None = None  # what a full one takes
        pressure.queues.add(self)

    def was_busy(self, now: float) -> bool:
        """It has, or had lately, something to do."""
        return self.in_flight > 0 or now - self._began <= _ACTIVE_S

    def stands(self, now: float) -> bool:
        """Readings wait too long in it, or would, as long as its transactions take what they always do."""
        return self._is_standing and not (self._is_expected and self._is_overdue(now))

    def has_room(self, readings: int, now: float) -> bool:
        """Whether so many more may wait."""
        limits = self._limits
        if self.readings > _FULL * limits.batch_readings_max and self.stands(now) and not self._pressure.are_few:
            return False
        return self.readings + readings <= limits.queue_readings_max

    def put(self, ticket: Ticket) -> bool:
        """Add it; whether a worker is to be started for it."""
        self._waiting.append(ticket)
        self.readings += len(ticket.chunk.rows)
        if not self._is_standing and self._full_s is not None and self._will_stand(ticket.since):
            self._is_expected = True
            self._stand(True)
        if self.in_flight >= self._limits.in_flight_max:
            return False
        self.in_flight += 1
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
        if taken:
            self._began = now
        if not waiting and 2 * room > self._limits.batch_readings_max:  # less than half full: there is time for more
            self._excused_until = 0.0
            self._stand(False)
        elif taken and now >= self._excused_until and now - taken[0].since > self._limits.wait_max_s:
            self._is_expected = False
            self._stand(True)
        return taken

    def _will_stand(self, now: float) -> bool:
        """Whether what comes now has to wait too long, while transactions take what they always do."""
        limits = self._limits
        wait_s = self.readings * (self._full_s or 0.0) / limits.batch_readings_max
        return wait_s > limits.wait_max_s and now >= self._excused_until and not self._is_overdue(now)

    def _is_overdue(self, now: float) -> bool:
        """The transaction under way takes so long that its server may stand still: what comes then is waited with."""
        return now - self._began > _MOVING * (self._full_s or 0.0)

    def _stand(self, is_standing: bool) -> None:  # noqa: FBT001 - what it is now
        if is_standing is not self._is_standing:
            self._is_standing = is_standing
            self._pressure.standing += 1 if is_standing else -1

    def took(self, readings: int, seconds: float, now: float) -> None:
        """A transaction of so many took so long. What came during a pause is worked off, and not refused."""
        if seconds > PAUSE_S or (self._is_expected and self._is_standing and self._is_overdue(now)):
            self._excused_until = now + EXCUSED_S
            self._stand(False)
        elif 2 * readings >= self._limits.batch_readings_max:
            full_s = seconds * self._limits.batch_readings_max / readings
            self._full_s = full_s if self._full_s is None else self._full_s + _SHARE * (full_s - self._full_s)

    def leave(self) -> None:
        """A worker has found nothing more."""
        self.in_flight -= 1
