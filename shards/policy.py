"""How long readings stay in which tier, as operators say it. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, pairwise
from typing import Final

from shards.errors import InvalidArgument

HOT_MIN: Final = timedelta(days=1)
HOT_MAX: Final = timedelta(days=3660)
AFTER_MAX: Final = timedelta(days=36_600)
NEVER: Final = "never"
NO_TABLESPACE: Final = "none"
_MONTH: Final = timedelta(days=31)
LEAF_WIDTHS: Final = ("day", "week", "month")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class Policy:
    """How long readings of a kind stay hot: a leaf is frozen when all of it is older.

    `archive`: when all of a month is older, it goes from its shard to the archive; `drop`: for good; `rollups`: its
    sums go. None: never. `tablespace`: where frozen leaves go instead of being packed.
    """

    kind: str
    hot: timedelta
    archive: timedelta | None = None
    drop: timedelta | None = None
    rollups: timedelta | None = None
    tablespace: str | None = None
    tenant: str | None = None  # whose buckets alone it is for

    @property
    def whose(self) -> str:
        """What it is a policy of, in words."""
        return self.kind if self.tenant is None else f"{self.kind} of {self.tenant}"

    def check(self) -> None:
        """InvalidArgument when a later step would come before an earlier one."""
        steps = (("--hot", self.hot), ("--archive-after", self.archive), ("--drop-after", self.drop))
        given = [(name, span) for name, span in steps if span is not None]
        for (name, span), (following, later) in pairwise(given):
            if later <= span:
                raise _out_of_order(self.whose, (following, later), "more than", (name, span))
        if self.rollups is not None:
            name, span = given[-1]
            if self.rollups < span or (self.rollups == span and name != "--drop-after"):
                words = "at least" if name == "--drop-after" else "more than"
                raise _out_of_order(self.whose, ("--rollups-for", self.rollups), words, (name, span))

    def leaves_after(self) -> timedelta | None:
        """How old a month is when it leaves its shard."""
        return self.drop if self.archive is None else self.archive

    def is_leaving(self, until: datetime, now: datetime) -> bool:
        """Whether what ends then may leave its shard within a month: months leave as wholes."""
        after = self.leaves_after()
        return after is not None and until <= now - after + _MONTH


class Policies:
    """Those of kinds, and of tenants that have buckets of their own: there, they stand for the kind's."""

    def __init__(self, kinds: Mapping[str, Policy], own: Iterable[tuple[range, Policy]] = ()) -> None:
        self.kinds = dict(kinds)
        self.own = tuple(own)

    def of(self, kind: str, bucket: int) -> Policy | None:
        """The policy of a kind's readings in a bucket; None: nothing becomes of them."""
        for buckets, policy in self.own:
            if bucket in buckets and policy.kind == kind:
                return policy
        return self.kinds.get(kind)

    def of_tenant(self, tenant: str) -> dict[str, Policy]:
        """Kind -> its policy for a tenant's buckets alone."""
        return {policy.kind: policy for _, policy in self.own if policy.tenant == tenant}

    def __iter__(self) -> Iterator[Policy]:
        return chain(self.kinds.values(), (policy for _, policy in self.own))

    def __bool__(self) -> bool:
        return bool(self.kinds or self.own)


def _out_of_order(
    whose: str, later: tuple[str, timedelta], words: str, earlier: tuple[str, timedelta]
) -> InvalidArgument:
    (following, long), (name, short) = later, earlier
    return InvalidArgument(f"{following} {duration_text(long)} must be {words} {name} {duration_text(short)} ({whose})")


def read_duration(text: str, name: str) -> timedelta:
    """Hours, days or weeks, as in 36h, 7d or 4w. InvalidArgument, with `name`, for anything else."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"{name} {text[:40]}: a number of hours, days or weeks is expected, as in 36h, 7d or 4w")
    return int(found[1]) * _UNITS[found[2]]


def duration_text(span: timedelta) -> str:
    """As `read_duration` takes it."""
    hours = round(span.total_seconds() / 3600)
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"


def read_hot(text: str) -> timedelta:
    """How long readings stay hot. InvalidArgument when that is no time, too short or too long."""
    hot = read_duration(text, "--hot")
    if not HOT_MIN <= hot <= HOT_MAX:
        raise InvalidArgument(
            f"--hot {text}: from {duration_text(HOT_MIN)} to {duration_text(HOT_MAX)}; a day is packed when it is over"
        )
    return hot


def read_after(text: str, name: str) -> timedelta | None:
    """How old a month is when something is done with it; None for "never". InvalidArgument, with `name`, otherwise."""
    if text == NEVER:
        return None
    span = read_duration(text, name)
    if span > AFTER_MAX:
        raise InvalidArgument(f"{name} {text}: at most {duration_text(AFTER_MAX)}, or {NEVER}")
    return span
