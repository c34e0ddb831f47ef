"""What is due of one kind of a bucket. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from shards.policy import Policy

NEVER: Final = datetime(1, 1, 2, tzinfo=UTC)  # nothing is frozen, or packed, up to it
# Late readings are taken into packed days when so many wait, or the first one has waited this long: packing a day anew
# for each of them would write it a thousand times.
MERGE_READINGS: Final = 10_000
MERGE_AFTER: Final = timedelta(hours=1)


class Step(StrEnum):
    """What the lifecycle does to one kind of a bucket, each in transactions of its own."""

    ROLL = "roll"
    DROP = "drop"
    PACK = "pack"
    FREEZE = "freeze"
    MERGE = "merge"
    ARCHIVE = "archive"  # a month leaves its shard
    PLACE = "place"  # a frozen leaf goes to another tablespace
    EXPIRE = "expire"  # a month leaves the archive


@dataclass(frozen=True)
class Leaf:
    """A leaf of history; `lower`: None for the one that holds everything before the cluster. `published`: packed."""

    name: str
    lower: datetime | None
    upper: datetime
    published: bool = False
    tablespace: str = ""


@dataclass(frozen=True)
class Tiers:
    """One kind of a bucket: leaves from old to new, up to where they are frozen and packed, late readings.

    `undropped`: leaves whose readings are served from packed days. `late`: that wait for a merge, and since when.
    """

    bucket: int
    kind: str
    leaves: Sequence[Leaf]
    frozen_until: datetime = NEVER
    packed_until: datetime = NEVER
    table_oid: int = 0
    packed_readings: int = 0
    undropped: int = 0
    late: int = 0
    late_since: datetime | None = None
    step: Step | None = None  # that is due

    @property
    def to_pack(self) -> Leaf | None:
        """The oldest leaf that is frozen and not packed."""
        waiting = (leaf for leaf in self.leaves if self.packed_until < leaf.upper <= self.frozen_until)
        return next(waiting, None)

    def to_place(self, tablespace: str | None) -> Leaf | None:
        """The oldest leaf that is frozen, not packed, and in another tablespace."""
        if tablespace is None:
            return None
        frozen = (leaf for leaf in self.leaves if self.packed_until < leaf.upper <= self.frozen_until)
        return next((leaf for leaf in frozen if leaf.tablespace != tablespace), None)

    def to_freeze(self, policy: Policy, now: datetime) -> Leaf | None:
        """The oldest leaf that is not frozen, when all of it is older than what stays hot."""
        leaf = next((leaf for leaf in self.leaves if leaf.upper > self.frozen_until), None)
        return leaf if leaf is not None and leaf.upper <= now - policy.hot else None

    def is_merge_due(self, now: datetime) -> bool:
        """Whether enough late readings wait, or for long enough."""
        waited = self.late_since is not None and self.late_since <= now - MERGE_AFTER
        return self.late > 0 and (waited or self.late >= MERGE_READINGS)


def due(tiers: Tiers, policy: Policy, now: datetime) -> Step | None:
    """The next step of a bucket's kind. What was begun is ended first: at most one leaf is frozen and not packed.

    With a tablespace, frozen leaves stay as they are there, and are packed when their time may leave the shard.
    """
    leaf = tiers.to_pack
    if leaf is not None and (policy.tablespace is None or policy.is_leaving(leaf.upper, now)):
        return Step.PACK
    if leaf is None and tiers.frozen_until > tiers.packed_until:
        return Step.PACK  # the leaf is gone: nothing but the horizon is behind
    if tiers.undropped:
        return Step.DROP
    if tiers.is_merge_due(now):
        return Step.MERGE
    if tiers.to_freeze(policy, now) is not None:
        return Step.FREEZE
    return Step.PLACE if tiers.to_place(policy.tablespace) is not None else None
