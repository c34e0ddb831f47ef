"""Whole hours and minutes, as rollups have them: each holds what is after its beginning, up to its end. Pure."""

from datetime import UTC, datetime, timedelta
from typing import Final

HOUR: Final = timedelta(hours=1)
MINUTE: Final = timedelta(minutes=1)
DAY: Final = timedelta(days=1)
_ORIGIN: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LEAST: Final = timedelta(microseconds=1)


def floor(moment: datetime, width: timedelta) -> datetime:
    """The last beginning of a bin that is not after `moment`."""
    return moment - (moment - _ORIGIN) % width


def ceil(moment: datetime, width: timedelta) -> datetime:
    """The first beginning of a bin that is not before `moment`."""
    return moment + (_ORIGIN - moment) % width


def bin_of(moment: datetime, width: timedelta) -> datetime:
    """The beginning of the bin that holds `moment`."""
    return floor(moment - _LEAST, width)
