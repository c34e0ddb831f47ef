"""What an error of a database says of it: whether it is down, and whether it is likely to be back soon. Pure."""

from dataclasses import dataclass
from typing import Final

from shards.errors import BucketUnavailable, Cause, ShardError, ShardUnavailable

# Says nothing about the health of the database: PostgreSQL answered, or was never asked.
_SAYS_NOTHING: Final = frozenset({Cause.CANCELLED, Cause.LOCKED, Cause.BUSY, Cause.BREAKER_OPEN})
_PLANNED: Final = frozenset({Cause.STARTING_OR_STOPPING, Cause.READ_ONLY, Cause.SUPERSEDED})
_ENDS_SOON: Final = _PLANNED | {Cause.UNREACHABLE, Cause.SILENT, Cause.BREAKER_OPEN}


def was_answered(error: ShardError) -> bool:
    """Whether the database has answered, if only to refuse."""
    return isinstance(error, BucketUnavailable) or not isinstance(error, ShardUnavailable)


def is_down(error: ShardError) -> bool:
    """Whether the database could not be reached, did not answer in time, or takes nothing."""
    return isinstance(error, ShardUnavailable) and error.cause not in _SAYS_NOTHING


@dataclass
class Outage:
    """Since when nothing was answered (seconds of a monotonic clock; None: it answers), and whether that was wanted.

    `several`: the database has other hosts, of which one may take over.
    """

    several: bool
    hold_s: float
    since: float | None = None
    is_planned: bool = False

    def begins(self, error: ShardUnavailable, now: float) -> None:
        """An error that says that it is down."""
        if self.since is None:
            self.since, self.is_planned = now, error.cause in _PLANNED

    def ends(self) -> None:
        """It answers."""
        self.since = None

    def may_end_until(self, error: ShardError) -> float | None:
        """Until when the call that got this error may be repeated; None: it is to be told."""
        if self.since is None or not isinstance(error, ShardUnavailable) or error.cause not in _ENDS_SOON:
            return None
        return self.since + self.hold_s if self.is_planned or self.several else None
