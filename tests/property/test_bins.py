"""Bins of time: every instant is in one, its end included."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shards.bins import HOUR, MINUTE, bin_of, ceil, floor

MOMENTS = st.integers(0, 3_000_000_000_000_000).map(
    lambda us: datetime(1971, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
)
WIDTHS = st.sampled_from([MINUTE, HOUR, timedelta(days=1)])


@given(MOMENTS, WIDTHS)
def test_every_instant_is_after_the_beginning_of_its_bin_and_not_after_its_end(
    moment: datetime, width: timedelta
) -> None:
    begins = bin_of(moment, width)
    assert begins < moment <= begins + width
    assert begins == floor(begins, width) == ceil(begins, width)


@given(MOMENTS, WIDTHS)
def test_whole_bins_around_an_instant(moment: datetime, width: timedelta) -> None:
    low, high = floor(moment, width), ceil(moment, width)
    assert low <= moment <= high
    assert high - low in {timedelta(0), width}
    assert (high - low == timedelta(0)) == (moment == low)
    assert low.minute == 0 or width == MINUTE
