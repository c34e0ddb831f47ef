"""What a router knows of a shard's frozen time, by bucket. PostgreSQL refuses what comes too late: then it is asked."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from shards.kinds import Row

BATCHES: Final = 256  # looked through after a late reading; a batch without that costs nothing


class Horizons:
    """Up to when the readings of one kind are frozen, by bucket. They only grow, while a bucket is on the shard."""

    def __init__(self) -> None:
        self._frozen_until: Mapping[int, datetime] = {}
        self._batches = 0

    def learn(self, frozen_until: Mapping[int, datetime]) -> None:
        """What the shard says now; the next batches are looked through."""
        self._frozen_until = frozen_until
        self._batches = BATCHES

    def split(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Sequence[Row]]]:
        """Rows for the hot tier, and late ones, by bucket. All are hot when nothing late has come for a while."""
        if not self._batches or not self._frozen_until:
            return rows, ()
        known = self._frozen_until
        hot: list[Row] = []
        late: dict[int, list[Row]] = {}
        for row in rows:
            frozen_until = known.get(row[0])
            if frozen_until is not None and row[3] < frozen_until:
                late.setdefault(row[0], []).append(row)
            else:
                hot.append(row)
        if not late:
            self._batches -= 1
            return rows, ()
        self._batches = BATCHES
        return hot, [late[bucket] for bucket in sorted(late)]
