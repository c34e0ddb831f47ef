"""Any kind that somebody may declare, and any readings of it: what is accepted is read back, whatever a reading has."""

import itertools
import struct
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shards.catalog.database import Catalog
from shards.kinds import Field, Kind, Type
from tests.conftest import LoopRunner
from tests.support import declared
from tests.support.declaring import QUICK, make
from tests.support.readings import START, ingest
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster
from tests.support.tiering import PLACES, age, soon

EXAMPLES = 20
DEVICES = ("D-1", "D-2", "D-3")
_numbers = itertools.count(1)
MOMENTS = tuple(START + timedelta(minutes=minute) for minute in range(6))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=4) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(small: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(small, **QUICK) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def catalog(small: TestCluster) -> AsyncIterator[Catalog]:
    made = Catalog(small.catalog_dsn)
    yield made
    await made.close()


@pytest.fixture(autouse=True)
def _merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    soon(monkeypatch)


class Model:
    """What a kind's devices should show: of two readings with one device and time the first one counts."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.stored: dict[tuple[str, str], dict[str, Any]] = {}

    def take(self, batch: list[dict[str, Any]]) -> tuple[int, int, int]:
        """(accepted, duplicates, conflicts)"""
        counts = [0, 0, 0]
        for reading in batch:
            key = (reading[self.kind.id_name], reading["timestamp"])
            values = {field.name: reading.get(field.name) for field in self.kind.fields}
            known = self.stored.get(key)
            if known is None:
                self.stored[key] = values
                counts[0] += 1
            else:
                counts[1 if known == values else 2] += 1
        return counts[0], counts[1], counts[2]

    def history(self, device: str) -> list[dict[str, Any]]:
        found = sorted(((moment, values) for (name, moment), values in self.stored.items() if name == device))
        return [values for _, values in reversed(found)]

    def status(self, device: str) -> dict[str, Any]:
        """Of each kept field the newest value; of the others what the newest reading had."""
        history = self.history(device)
        shown = {}
        for field in self.kind.in_status:
            values = [values[field.name] for values in history]
            shown[field.name] = (
                next((value for value in values if value is not None), None) if field.kept else values[0]
            )
        return shown


def told(fields: tuple[Field, ...], answer: dict[str, Any]) -> dict[str, Any]:
    """The values of an answer. A float4 is shown by its shortest text, which means the same float4."""
    found = {field.name: answer[field.name] for field in fields}
    for field in fields:
        if field.type is Type.FLOAT4 and found[field.name] is not None:
            (found[field.name],) = struct.unpack("f", struct.pack("f", found[field.name]))
    return found


# Each example makes a kind: to shrink one would take minutes.
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_kind_and_any_readings(
    small: TestCluster,
    router: httpx2.AsyncClient,
    catalog: Catalog,
    event_loop_runner: LoopRunner,
    data: st.DataObject,
) -> None:
    """What is accepted is read back equal, and a status is exact, in whatever order and batches readings come.

    In between, what is there may be frozen, packed and merged: nobody who reads or writes can tell.
    """
    kind = data.draw(declared.kinds(f"pump{next(_numbers)}"))
    batch = st.lists(declared.readings(kind, DEVICES, MOMENTS), min_size=1, max_size=12)
    batches = data.draw(st.lists(batch, min_size=1, max_size=8))
    ages = [data.draw(st.sampled_from([None, "the end", *PLACES])) for _ in batches]
    event_loop_runner.run(read_back(small, router, catalog, kind, [*zip(batches, ages, strict=True)]))


async def read_back(
    small: TestCluster,
    router: httpx2.AsyncClient,
    catalog: Catalog,
    kind: Kind,
    batches: list[tuple[list[dict[str, Any]], str | None]],
) -> None:
    await make(catalog, router, kind)
    model = Model(kind)
    for number, (batch, place) in enumerate(batches):
        path = "/v1/ingest" if number % 2 else f"/v1/ingest/{kind.path}"
        answer = await ingest(router, batch, path)
        counts = (answer["accepted"], answer["duplicates"], answer["conflicts"])
        assert (counts, answer["rejected"]) == (model.take(batch), 0)
        if place is not None:
            await age(small, kind.name, place)
    for device in {name for name, _ in model.stored}:
        items = (await router.get(f"/v1/{kind.plural}/{device}/history")).json()["items"]
        assert [told(kind.fields, item) for item in items] == model.history(device)
        shown = (await router.get(f"/v1/{kind.plural}/{device}/status")).json()
        expected = model.status(device)
        assert told(kind.in_status, shown) == expected
        listed = (await router.get(f"/v1/{kind.plural}", params={"prefix": device})).json()["items"]
        assert listed == [shown]
