"""How long readings stay in which tier, as operators say it. Pure."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from shards.errors import InvalidArgument

HOT_MIN: Final = timedelta(days=1)
HOT_MAX: Final = timedelta(days=3660)
LEAF_WIDTHS: Final = ("day", "week", "month")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class Policy:
    """How long readings of a kind stay hot: a leaf is frozen when all of it is older."""

    kind: str
    hot: timedelta


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
