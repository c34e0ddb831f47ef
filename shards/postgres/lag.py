"""How far a replica is behind its primary, by when the primary had written what the replica has replayed. Pure.

What PostgreSQL says itself is wrong in one situation or another: now() - pg_last_xact_replay_timestamp() grows while
nothing is written, received = replayed is true while the wire is cut, and replay_lag stands still with a paused replay.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Final

KEPT_S: Final = 600.0


@dataclass
class Written:
    """Positions in the primary's WAL (bytes), each with the last time that it was asked and had written no more.

    Whatever was committed before that time is within the position. Times are of one monotonic clock, and come in order.
    """

    _times: list[float] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)

    def add(self, asked_at: float, position: int) -> None:
        """When it was asked the primary had written up to `position`, and perhaps more when it answered.

        A position that goes back is another history's: what was known is forgotten.
        """
        if self._positions and position < self._positions[-1]:
            self.forget()
        if self._positions and position == self._positions[-1]:
            self._times[-1] = asked_at
            return
        self._times.append(asked_at)
        self._positions.append(position)
        if self._times[0] < asked_at - 2 * KEPT_S:
            first = bisect_left(self._times, asked_at - KEPT_S)
            del self._times[:first], self._positions[:first]

    def forget(self) -> None:
        """Another primary's positions follow."""
        self._times.clear()
        self._positions.clear()

    def complete_at(self, replayed: int) -> float | None:
        """A time of which a replica that has replayed so much has everything; None when no such time is known."""
        found = bisect_right(self._positions, replayed)
        return self._times[found - 1] if found else None


class Floors:
    """How far each of many readers has seen, so that the next answer is never of an earlier state.

    Those that have not asked for longest are forgotten, and from then on count as having seen what any of them has.
    """

    def __init__(self, readers_max: int = 10_000) -> None:
        self._readers_max = readers_max
        self._seen: dict[str, int] = {}
        self._of_others = 0

    def of(self, reader: str) -> int:
        """The position that an answer for `reader` must hold at least."""
        return self._seen.get(reader, self._of_others)

    def saw(self, reader: str, position: int) -> None:
        """An answer held nothing that came after `position`."""
        position = max(position, self._seen.pop(reader, self._of_others))
        self._seen[reader] = position
        if len(self._seen) > self._readers_max:
            oldest = next(iter(self._seen))
            self._of_others = max(self._of_others, self._seen.pop(oldest))
