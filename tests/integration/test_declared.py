"""Kinds and fields that are declared while routers run: what is accepted is read back, whatever a reading has."""

import itertools
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shards.catalog import kinds as catalogued
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, Refused
from shards.kinds import BUILT_IN, METER, VEHICLE, Field, Kind, Type
from shards.operations import check, kinds
from shards.readymade import EXTENSIONS
from tests.conftest import LoopRunner
from tests.support import declared
from tests.support.declared import CHARGER
from tests.support.ledger import execute, fetch
from tests.support.processes import eventually
from tests.support.readings import START, at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster

EXAMPLES = 12
DEVICES = ("D-1", "D-2", "D-3")
MOMENTS = tuple(START + timedelta(minutes=minute) for minute in range(6))


def silently(_text: str) -> None:
    """Nobody waits."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=4) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def router(small: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(small, runner=False, map_poll_s=0.05) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def catalog(small: TestCluster) -> AsyncIterator[Catalog]:
    made = Catalog(small.catalog_dsn)
    yield made
    await made.close()


async def learnt(router: httpx2.AsyncClient, known: Callable[[Any], bool]) -> None:
    """Wait until the router's kinds are such."""
    cluster = router.app.state.router.cluster  # type: ignore[attr-defined]
    await eventually(lambda: known(cluster.kinds.by_name))


async def make(catalog: Catalog, router: httpx2.AsyncClient, kind: Kind) -> None:
    await kinds.create(catalog, kind, silently)
    await learnt(router, lambda by_name: kind.name in by_name)


async def whole(catalog: Catalog) -> None:
    assert [each for each in await check.check(catalog) if not each.ok] == []


async def test_the_built_in_ones_are_declared_as_the_seed_has_them(catalog: Catalog) -> None:
    known = (await catalogued.known(catalog, deadline_in(10))).keeping(BUILT_IN)
    assert known.by_name["meter"] is METER
    assert known.by_name["vehicle"] is VEHICLE


async def test_a_kind_with_a_field_of_each_type(catalog: Catalog, router: httpx2.AsyncClient) -> None:
    assert (await router.post("/v1/ingest/charger", json={})).status_code == 404
    await make(catalog, router, CHARGER)
    first = {"chargerId": "C-1", "timestamp": at(1), "kwh": 0.5, "powerKw": 11, "plugged": True, "state": "charging"}
    second = {"chargerId": "C-1", "timestamp": at(2), "kwh": 0.25, "phases": 3, "state": "idle"}
    assert (await ingest(router, [first, second], "/v1/ingest/charger"))["accepted"] == 2
    assert (await ingest(router, [first, meter("M", 1), vehicle("V", 1)]))["accepted"] == 2
    conflict = {**second, "phases": 2}
    assert (await ingest(router, conflict, "/v1/ingest/charger"))["conflicts"] == 1
    shown = (await router.get("/v1/chargers/C-1/status")).json()
    assert {name: shown[name] for name in ("kwh", "powerKw", "phases", "plugged", "state", "voltage")} == {
        "kwh": 0.25,
        "powerKw": 11.0,
        "phases": 3,
        "plugged": True,
        "state": "idle",
        "voltage": None,
    }
    assert set(shown["valueTimes"]) == {"powerKw", "plugged"}
    assert [item["chargerId"] for item in (await router.get("/v1/chargers")).json()["items"]] == ["C-1"]
    recent = (await router.get("/v1/analytics/activity", params={"since": at(0)})).json()["items"]
    assert [(item["kind"], item["powerKw"]) for item in recent if item["deviceId"] == "C-1"] == [
        ("charger", None),
        ("charger", 11.0),
    ]
    put = await router.put("/v1/chargers/C-1", json={"powerMaxKw": 50, "label": "at the gate"})
    assert (put.status_code, put.json()["label"]) == (201, "at the gate")
    assert (await router.get("/v1/defaults/chargers")).json() == {"intervalS": None, "powerMaxKw": None}
    paths = (await router.get("/openapi.json")).json()["paths"]
    assert {"/v1/ingest/charger", "/v1/chargers/{id}/status", "/v1/chargers/{id}/history"} <= paths.keys()
    await whole(catalog)


async def test_a_field_is_added_retired_and_taken_again(catalog: Catalog, router: httpx2.AsyncClient) -> None:
    extra = EXTENSIONS["vehicle"]["driving"]
    odometer = {**vehicle("V-9", 1), "odometerKm": 1_000.5}
    refused = await router.post("/v1/ingest/vehicle", json=odometer)
    (error,) = refused.json()["errors"]
    assert (error["code"], error["pointer"]) == ("unknown_field", "/odometerKm")
    assert "voltroute field add vehicle odometerKm" in error["detail"]
    await kinds.add(catalog, "vehicle", extra, silently)
    await learnt(router, lambda by_name: len(by_name["vehicle"].fields) == 5)
    assert (await ingest(router, [odometer, vehicle("V-9", 3)], "/v1/ingest/vehicle"))["accepted"] == 2
    late = {**vehicle("V-9", 2), "odometerKm": 1_001.0, "outsideTemp": -3}
    assert (await ingest(router, late, "/v1/ingest/vehicle"))["accepted"] == 1
    shown = (await router.get("/v1/vehicles/V-9/status")).json()
    assert (shown["odometerKm"], shown["outsideTemp"], shown["lastUpdated"]) == (1_001.0, -3.0, "2026-05-01T00:03:00Z")
    assert shown["valueTimes"] == {"odometerKm": "2026-05-01T00:02:00Z", "outsideTemp": "2026-05-01T00:02:00Z"}
    await kinds.retire(catalog, "vehicle", "odometerKm")
    await learnt(router, lambda by_name: bool(by_name["vehicle"].retired))
    (error,) = (await router.post("/v1/ingest/vehicle", json={**odometer, "timestamp": at(5)})).json()["errors"]
    assert (error["code"], error["pointer"]) == ("retired_field", "/odometerKm")
    assert "odometerKm" not in (await router.get("/v1/vehicles/V-9/status")).json()
    history = (await router.get("/v1/vehicles/V-9/history")).json()["items"]
    assert [item["odometerKm"] for item in history] == [None, 1_001.0, 1_000.5]
    await kinds.add(catalog, "vehicle", extra[:1], silently)
    await learnt(router, lambda by_name: not by_name["vehicle"].retired)
    assert (await ingest(router, {**odometer, "timestamp": at(5)}, "/v1/ingest/vehicle"))["accepted"] == 1
    assert (await router.get("/v1/vehicles/V-9/status")).json()["odometerKm"] == 1_000.5
    assert (await router.get("/v1/analytics/performance/V-9", params={"from": at(0), "to": at(9)})).status_code == 200
    await whole(catalog)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (replace(VEHICLE.fields[0], type=Type.INT), "with the type float8, and that never changes"),
        (replace(VEHICLE.fields[0], column="other"), "with the column soc"),
        (replace(VEHICLE.fields[0], name="other", column="other", required=True), "cannot be required"),
        (replace(METER.fields[2], name="meterId"), "is the ID of kind meter"),
    ],
)
async def test_a_field_that_would_be_another_is_refused(catalog: Catalog, field: Field, reason: str) -> None:
    before = await catalogued.declared(catalog, deadline_in(10))
    with pytest.raises((Refused, ValueError), match=reason):
        await kinds.add(catalog, "vehicle", [field], silently)
    after = await catalogued.declared(catalog, deadline_in(10))
    assert [len(each.whole.stored) for each in after] == [len(each.whole.stored) for each in before]
    assert [each.whole.name for each in after if each.is_open] == []


async def test_what_is_not_to_be_retired(catalog: Catalog) -> None:
    for name, reason in (("soc", "built-in"), ("nothing", "has no field")):
        with pytest.raises(Refused, match=reason):
            await kinds.retire(catalog, "vehicle", name)
    with pytest.raises(Refused, match="there is no kind"):
        await kinds.retire(catalog, "boat", "soc")
    with pytest.raises(Refused, match="is there already"):
        await kinds.create(catalog, METER, silently)


async def test_a_shard_that_is_away_is_waited_for(servers: list[str]) -> None:
    """No router hears of a kind that a shard does not have; what was begun is finished by hand."""
    async with new_cluster(servers, shards=3, buckets=4) as own, in_process(own, runner=False) as client:
        catalog = Catalog(own.catalog_dsn)
        dsn = own.shards["s2"]
        change = "UPDATE shard SET owner_dsn = $1 WHERE name = 's2'"
        await execute(own.catalog_dsn, change, dsn.replace("/t", "/nobody_"))
        with pytest.raises(ClusterError, match=r"not on every shard yet: s2: .* `voltroute kind resume`"):
            await kinds.create(catalog, CHARGER, silently)
        with pytest.raises(Refused, match="begun with another declaration"):
            await kinds.create(catalog, replace(CHARGER, description="another"), silently)
        assert (await client.post("/v1/ingest/charger", json={})).status_code == 404
        await execute(own.catalog_dsn, change, dsn)
        told = {each.name: each.found for each in await check.check(catalog) if not each.ok}
        assert told == {"no change of kinds is left half done": "not so: charger"}
        assert await kinds.resume(catalog, silently) == ["meter", "vehicle", "charger"]
        await whole(catalog)
        await learnt(client, lambda by_name: "charger" in by_name)
        await catalog.close()


async def test_what_a_shard_lost_is_told_and_made_again(servers: list[str]) -> None:
    async with new_cluster(servers, shards=3, buckets=4) as own:
        catalog = Catalog(own.catalog_dsn)
        await kinds.add(catalog, "meter", EXTENSIONS["meter"]["grid"], silently)
        await execute(own.shards["s3"], "ALTER TABLE meter_telemetry_history DROP COLUMN power_kw")
        (lacking,) = [each for each in await check.check(catalog) if not each.ok]
        assert (lacking.found, lacking.remedy) == (
            "not so: meter.power_kw of its history is missing on s3",
            "voltroute kind resume",
        )
        await kinds.resume(catalog, silently)
        await whole(catalog)
        rights = "SELECT has_column_privilege(polroles[1], 'meter_telemetry_history', 'power_kw', 'INSERT') AS may"
        rights += " FROM pg_policy WHERE polname = 'written' AND polrelid = 'meter_telemetry_history'::regclass"
        assert [row["may"] for row in await fetch(own.shards["s3"], rights)] == [True]
        await catalog.close()


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


_numbers = itertools.count(1)


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
    """What is accepted is read back equal, and a status is exact, in whatever order and batches readings come."""
    kind = data.draw(declared.kinds(f"pump{next(_numbers)}"))
    batch = st.lists(declared.readings(kind, DEVICES, MOMENTS), min_size=1, max_size=12)
    batches = data.draw(st.lists(batch, min_size=1, max_size=8))
    event_loop_runner.run(read_back(router, catalog, kind, batches))


async def read_back(
    router: httpx2.AsyncClient, catalog: Catalog, kind: Kind, batches: list[list[dict[str, Any]]]
) -> None:
    await make(catalog, router, kind)
    model = Model(kind)
    for number, batch in enumerate(batches):
        path = "/v1/ingest" if number % 2 else f"/v1/ingest/{kind.path}"
        answer = await ingest(router, batch, path)
        counts = (answer["accepted"], answer["duplicates"], answer["conflicts"])
        assert (counts, answer["rejected"]) == (model.take(batch), 0)
    for device in {name for name, _ in model.stored}:
        items = (await router.get(f"/v1/{kind.plural}/{device}/history")).json()["items"]
        assert [told(kind.fields, item) for item in items] == model.history(device)
        shown = (await router.get(f"/v1/{kind.plural}/{device}/status")).json()
        expected = model.status(device)
        assert told(kind.in_status, shown) == expected
        listed = (await router.get(f"/v1/{kind.plural}", params={"prefix": device})).json()["items"]
        assert listed == [shown]
