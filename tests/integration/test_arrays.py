"""Arrays of our own making are what asyncpg would have sent, and are read back equal."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.postgres.arrays import TYPES, teach
from tests.support.servers import TestCluster

ZONES: Final = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
VALUES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "_bool": st.booleans(),
    "_int2": st.integers(-(2**15), 2**15 - 1),
    "_int4": st.integers(-(2**31), 2**31 - 1),
    "_float4": st.floats(width=32),
    "_float8": st.floats() | st.integers(-(2**53), 2**53),
    "_timestamptz": st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES | st.just(UTC)),  # noqa: DTZ001
    "_text": st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=200),
    "_varchar": st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=64),
}


@pytest_asyncio.fixture(loop_scope="session")
async def pair(cluster: TestCluster) -> AsyncIterator[tuple[Any, Any]]:
    """A connection as asyncpg makes it, and one that was taught."""
    dsn = next(iter(cluster.shards.values()))
    plain, taught = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    assert teach(taught)
    yield plain, taught
    await plain.close()
    await taught.close()


@pytest.mark.parametrize("name", [each.name for each in TYPES])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_sent_and_received(pair: tuple[Any, Any], name: str, data: st.DataObject) -> None:
    plain, taught = pair
    values = data.draw(st.lists(st.none() | VALUES[name], max_size=20) | st.lists(VALUES[name], max_size=20))
    as_text = f"SELECT $1::{name[1:]}[]::text"
    assert await taught.fetchval(as_text, tuple(values)) == await plain.fetchval(as_text, values)
    same = f"SELECT $1::{name[1:]}[]"
    assert repr(await taught.fetchval(same, values)) == repr(await plain.fetchval(same, values))


@pytest.mark.parametrize(("name", "value"), [("int2", 40_000), ("float8", "high"), ("varchar", 5), ("timestamptz", 1)])
async def test_what_is_none_is_refused_before_it_is_sent(pair: tuple[Any, Any], name: str, value: object) -> None:
    with pytest.raises(asyncpg.DataError):
        await pair[1].fetchval(f"SELECT $1::{name}[]", [value])


async def test_a_connection_that_keeps_its_codecs_elsewhere_goes_on_without() -> None:
    assert not teach(object())
