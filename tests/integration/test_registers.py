"""Meters that send registers: what history, performance, fleet and series make of them, whatever order they came in."""

import itertools
import random
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import LoopRunner
from tests.support.ledger import execute, fetch
from tests.support.readings import at, ingest, meter, register, vehicle
from tests.support.registers import count
from tests.support.servers import TestCluster

DAY = {"from": at(0), "to": at(1440)}
NUMBERS = itertools.count()


async def paired(client: httpx2.AsyncClient, meter_id: str) -> str:
    """A vehicle that the meter feeds for good."""
    body = {"vehicleId": f"V-{meter_id}", "meterId": meter_id, "validFrom": "2020-01-01T00:00:00Z"}
    assert (await client.put("/v1/pairings", json=body)).status_code == 201
    return f"V-{meter_id}"


async def get(client: httpx2.AsyncClient, path: str, **query: str) -> Any:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def energies(client: httpx2.AsyncClient, meter_id: str) -> list[tuple[float | None, float | None]]:
    """(kWh, register) of a meter's readings, oldest first."""
    items = (await get(client, f"/v1/meters/{meter_id}/history", to=at(10**6), limit="1000"))["items"]
    return [(item["kwhConsumedAc"], item["registerKwh"]) for item in reversed(items)]


async def fleet_delta(client: httpx2.AsyncClient, before: Any, **query: str) -> tuple[float, int]:
    """How much AC energy and how many suspects the fleet has more than before."""
    after = await get(client, "/v1/analytics/fleet", **query)
    return (
        (after["totalEnergyConsumedAc"] or 0) - ((before or {}).get("totalEnergyConsumedAc") or 0),
        after["suspect"] - (before or {}).get("suspect", 0),
    )


async def test_five_counts_are_17_tenths(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    counts = [1000, 1000.5, 1001, 0.2, 0.7]
    readings = [register("FIVE", minute + 1, count) for minute, count in enumerate(counts)]
    vehicle_id = await paired(client, "FIVE")
    window = {"from": at(0), "to": at(60)}
    before = await get(client, "/v1/analytics/fleet", **window, interval="1m")
    for reading in [readings[3], readings[0], readings[4], readings[1], readings[1], readings[2]]:
        await ingest(client, reading)
    kwh = [energy for energy, _ in await energies(client, "FIVE")]
    assert kwh == pytest.approx([0, 0.5, 0.5, 0.2, 0.5])
    assert [count for _, count in await energies(client, "FIVE")] == counts
    performance = await get(client, f"/v1/analytics/performance/{vehicle_id}", **window)
    assert performance["totalEnergyConsumedAc"] == pytest.approx(1.7)
    assert (performance["meterDataPoints"], performance["mixedMeterIds"]) == (5, [])
    after = await get(client, "/v1/analytics/fleet", **window, interval="1m")
    assert after["totalEnergyConsumedAc"] - (before["totalEnergyConsumedAc"] or 0) == pytest.approx(1.7)
    assert after["paired"]["totalEnergyConsumedAc"] == pytest.approx(1.7)
    assert [part["totalEnergyConsumedAc"] for part in after["series"][:6]] == pytest.approx(
        [0, 0.5, 0.5, 0.2, 0.5, None]
    )
    status = await get(client, "/v1/meters/FIVE/status")
    assert (status["registerKwh"], status["kwhConsumedAc"], status["voltage"]) == (0.7, None, None)
    (row,) = await fetch(
        cluster.shards[cluster.owner("FIVE")],
        "SELECT kwh_consumed_ac, register_kwh, voltage FROM meter_telemetry_history WHERE meter_id = 'FIVE' LIMIT 1",
    )
    assert row["kwh_consumed_ac"] is None


async def test_a_status_keeps_its_register_when_its_partition_is_gone(
    client: httpx2.AsyncClient, cluster: TestCluster
) -> None:
    shard = cluster.shards[cluster.owner("KEPT")]
    await ingest(client, register("KEPT", 1, 41))
    await execute(shard, "DELETE FROM meter_telemetry_history WHERE meter_id = 'KEPT'")
    assert (await get(client, "/v1/meters/KEPT/status"))["registerKwh"] == 41
    await ingest(client, meter("KEPT", 2, 0.5))
    status = await get(client, "/v1/meters/KEPT/status")
    assert (status["kwhConsumedAc"], status["registerKwh"]) == (0.5, None)
    (kept,) = await fetch(shard, "SELECT register_kwh FROM meter_current_status WHERE meter_id = 'KEPT'")
    assert kept["register_kwh"] is None


async def test_a_status_keeps_its_newest_voltage(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    """A reading without one, or a late one, does not take it away; nor where a router of before told no time of it."""
    shown = ("registerKwh", "voltage", "valueTimes")

    async def status() -> tuple[object, ...]:
        answer = await get(client, "/v1/meters/VOLTS/status")
        return tuple(answer.get(name) for name in shown)

    await ingest(client, {**register("VOLTS", 5, 41), "voltage": 231})
    assert await status() == (41, 231, None)
    await ingest(client, register("VOLTS", 6, 42))
    kept = (42, 231, {"voltage": at(5).replace("+00:00", "Z")})
    assert await status() == kept
    await ingest(client, [{**register("VOLTS", minute, 40), "voltage": 200 + minute} for minute in (3, 4)])
    assert await status() == kept
    await execute(
        cluster.shards[cluster.owner("VOLTS")],
        "UPDATE meter_current_status SET voltage_at = NULL, voltage = 229 WHERE meter_id = 'VOLTS'",
    )
    await ingest(client, {**register("VOLTS", 2, 39), "voltage": 202})
    assert await status() == (42, 229, None)
    await ingest(client, {**register("VOLTS", 7, 43), "voltage": 233})
    assert await status() == (43, 233, None)


async def test_a_status_that_a_router_of_before_wrote_has_the_register_of_its_reading(
    client: httpx2.AsyncClient, cluster: TestCluster
) -> None:
    """It knows no register in a status, and leaves the one that stands there."""
    shard = cluster.shards[cluster.owner("OLD-WAY")]
    await ingest(client, register("OLD-WAY", 1, 7))
    await execute(
        shard,
        "WITH stored AS (INSERT INTO meter_telemetry_history (timestamp, register_kwh, bucket, meter_id) "
        "SELECT last_updated + interval '1 minute', 9, bucket, meter_id FROM meter_current_status "
        "WHERE meter_id = 'OLD-WAY' RETURNING timestamp) "
        "UPDATE meter_current_status SET last_updated = stored.timestamp, kwh_consumed_ac = NULL, voltage = NULL "
        "FROM stored WHERE meter_id = 'OLD-WAY'",
    )
    status = await get(client, "/v1/meters/OLD-WAY/status")
    assert (status["registerKwh"], status["lastUpdated"]) == (9, at(2).replace("+00:00", "Z"))


async def test_a_window_begins_where_the_count_stood(client: httpx2.AsyncClient) -> None:
    vehicle_id = await paired(client, "EDGE")
    await ingest(client, [register("EDGE", minute, 100 + minute) for minute in range(10)])
    path = f"/v1/analytics/performance/{vehicle_id}"
    parts = [await get(client, path, **{"from": at(a), "to": at(a + 3)}) for a in (0, 3, 6)]
    assert [part["totalEnergyConsumedAc"] for part in parts] == [3, 3, 3]
    page = await get(client, "/v1/meters/EDGE/history", to=at(9), limit="2")
    assert [item["kwhConsumedAc"] for item in page["items"]] == [1, 1]


@pytest.mark.parametrize(
    ("counts", "maximum", "energy", "suspect"),
    [
        ([100, 101, 0, 2], None, 3, 0),  # another device in its place
        ([99_990, 99_998, 3], 100_000, 13, 0),  # rolls over
        ([50_000, 50_001, 3], 100_000, 4, 0),  # a maximum is known, and was far: replaced
        ([1000, 1001, 995, 999, 1002], None, 2, 1),  # a dip
        ([1000, 950, 1000, 1001], None, 1, 1),
        ([1000, 900, 1001], None, 1, 1),  # 90 % is a dip
        ([1000, 899, 900], None, 900, 0),  # below is a reset
        ([5], None, 0, 0),
        ([0, 0, 0], None, 0, 0),
    ],
)
async def test_resets_rolls_and_dips(
    client: httpx2.AsyncClient, counts: list[float], maximum: float | None, energy: float, suspect: int
) -> None:
    device = f"COUNT-{next(NUMBERS)}"
    vehicle_id = await paired(client, device)
    if maximum:
        assert (await client.put(f"/v1/meters/{device}", json={"registerMaxKwh": maximum})).status_code == 201
    await ingest(client, [register(device, minute + 1, count) for minute, count in enumerate(counts)])
    found = await get(client, f"/v1/analytics/performance/{vehicle_id}", **DAY)
    assert (found["totalEnergyConsumedAc"], found["suspect"]) == (pytest.approx(energy), suspect)


async def test_both_ways_of_one_device_are_told(client: httpx2.AsyncClient) -> None:
    vehicle_id = await paired(client, "MIXED")
    before = await get(client, "/v1/analytics/fleet", **DAY)
    await ingest(
        client, [meter("MIXED", 1, 0.5), meter("MIXED", 2, 0.5), register("MIXED", 3, 7), register("MIXED", 4, 8)]
    )
    found = await get(client, f"/v1/analytics/performance/{vehicle_id}", **DAY)
    assert (found["totalEnergyConsumedAc"], found["mixedMeterIds"]) == (2.0, ["MIXED"])
    after = await get(client, "/v1/analytics/fleet", **DAY)
    assert after["mixedMeters"] == before["mixedMeters"] + 1
    apart = await get(client, f"/v1/analytics/performance/{vehicle_id}", **{"from": at(2), "to": at(9)})
    assert (apart["totalEnergyConsumedAc"], apart["mixedMeterIds"]) == (1.0, [])


@pytest.mark.parametrize("how", ["device", "defaults"])
async def test_implausible_energy_is_told_and_left_out(client: httpx2.AsyncClient, how: str) -> None:
    one, two = f"POWER-{how}", f"REGISTER-{how}"
    vehicle_id = await paired(client, one)
    second = {"vehicleId": vehicle_id, "meterId": two, "validFrom": "2020-01-01T00:00:00Z"}
    assert (await client.put("/v1/pairings", json=second)).status_code == 201
    await ingest(
        client, [meter(one, 1, 0.1), meter(one, 2, 50.0), vehicle(vehicle_id, 1, 0.1), vehicle(vehicle_id, 2, 9.0)]
    )
    await ingest(
        client, [register(two, 1, 10), register(two, 2, 10.1), register(two, 3, 60.1), register(two, 63, 66.1)]
    )
    if how == "device":
        for device in (one, two):
            assert (await client.put(f"/v1/meters/{device}", json={"powerMaxKw": 11})).status_code == 201
        assert (await client.put(f"/v1/vehicles/{vehicle_id}", json={"powerMaxKw": 100})).status_code == 201
    else:
        assert (await client.put("/v1/defaults/meters", json={"powerMaxKw": 11})).status_code == 200
        assert (await client.put("/v1/defaults/vehicles", json={"powerMaxKw": 100})).status_code == 200
    try:
        path = f"/v1/analytics/performance/{vehicle_id}"
        found = await get(client, path, **DAY)
        assert (found["totalEnergyConsumedAc"], found["totalEnergyDeliveredDc"]) == (
            pytest.approx(6.2),
            pytest.approx(0.1),
        )
        assert (found["suspect"], found["meterDataPoints"]) == (3, 6)
        every = await get(client, path, **DAY, include="suspect")
        assert every["totalEnergyConsumedAc"] == pytest.approx(106.2)
        assert (every["totalEnergyDeliveredDc"], every["suspect"]) == (pytest.approx(9.1), 3)
        plain = await get(client, "/v1/analytics/fleet", **DAY, interval="1h")
        all_ = await get(client, "/v1/analytics/fleet", **DAY, interval="1h", include="suspect")
        assert all_["totalEnergyConsumedAc"] - plain["totalEnergyConsumedAc"] >= 99.8
        assert sum(part["suspect"] for part in plain["series"]) == plain["suspect"] >= 3
        assert sum(part["totalEnergyConsumedAc"] or 0 for part in plain["series"]) == pytest.approx(
            plain["totalEnergyConsumedAc"]
        )
    finally:
        for kind in ("meters", "vehicles"):
            await client.put(f"/v1/defaults/{kind}", json={})


async def test_coarse_steps_and_full_power_are_plausible(client: httpx2.AsyncClient) -> None:
    vehicle_id = await paired(client, "COARSE")
    other = {"vehicleId": vehicle_id, "meterId": "FULL", "validFrom": "2020-01-01T00:00:00Z"}
    assert (await client.put("/v1/pairings", json=other)).status_code == 201
    for device in ("COARSE", "FULL"):
        assert (await client.put(f"/v1/meters/{device}", json={"powerMaxKw": 11})).status_code == 201
    await ingest(client, [register("COARSE", minute, 100 + minute // 10) for minute in range(61)])  # 6 kW, in whole kWh
    await ingest(client, [meter("FULL", minute, 0.183) for minute in range(1, 61)])  # 11 kW, rounded to Wh
    found = await get(client, f"/v1/analytics/performance/{vehicle_id}", **DAY)
    assert (found["totalEnergyConsumedAc"], found["suspect"]) == (pytest.approx(6 + 60 * 0.183), 0)


async def test_what_is_outside_of_pairings_is_not_told(client: httpx2.AsyncClient) -> None:
    body = {"vehicleId": "V-SHARED", "meterId": "SHARED", "validFrom": at(0), "validTo": at(10)}
    assert (await client.put("/v1/pairings", json=body)).status_code == 201
    assert (await client.put("/v1/meters/SHARED", json={"powerMaxKw": 11})).status_code == 201
    await ingest(client, [meter("SHARED", 5, 0.1), meter("SHARED", 20, 50), register("SHARED", 30, 5)])
    await ingest(client, vehicle("V-SHARED", 5))
    found = await get(client, "/v1/analytics/performance/V-SHARED", **DAY)
    assert (found["totalEnergyConsumedAc"], found["suspect"], found["mixedMeterIds"]) == (0.1, 0, [])


async def test_coverage_is_of_what_is_expected(client: httpx2.AsyncClient) -> None:
    await ingest(client, [vehicle("QUARTER", 15 * (n + 1)) for n in range(4)])
    path, hour = "/v1/analytics/performance/QUARTER", {"from": at(0), "to": at(60)}
    assert (await get(client, path, **hour))["coverage"] == pytest.approx(4 / 60)
    assert (await client.put("/v1/vehicles/QUARTER", json={"intervalS": 900, "label": "slow"})).status_code == 201
    assert (await get(client, path, **hour))["coverage"] == 1.0
    far = {"from": "2027-01-01T00:00:00Z", "to": "2027-01-01T01:00:00Z"}
    await ingest(client, [{**vehicle("QUARTER"), "timestamp": "2026-05-02T01:00:00Z"}])
    fleet = await get(client, "/v1/analytics/fleet", **{"from": "2026-05-02T00:00:00Z", "to": "2026-05-02T01:00:00Z"})
    assert fleet["coverage"] == 0.25
    assert (await get(client, "/v1/analytics/fleet", **far))["coverage"] == 0


COUNTS = st.lists(
    st.one_of(
        st.sampled_from([0.0, 0.5, 89.0, 90.0, 95.0, 99.0, 100.0, 100.5]),
        st.floats(0, 120, allow_nan=False).map(lambda x: round(x, 2)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(counts=[1000, 1000.5, 1001, 0.2, 0.7], start=0, length=6, maximum=None, power=None, chance=1, batch=2)
@example(counts=[95, 99, 1, 3], start=1, length=9, maximum=100.0, power=60.0, chance=2, batch=1)
@given(
    counts=COUNTS,
    start=st.integers(0, 20),
    length=st.integers(1, 30),
    maximum=st.sampled_from([None, 100.0]),
    power=st.sampled_from([None, 60.0, 600.0]),
    chance=st.integers(0, 2**32),
    batch=st.integers(1, 9),
)
def test_any_order_repetition_and_batch(
    client: httpx2.AsyncClient,
    event_loop_runner: LoopRunner,
    counts: list[float],
    start: int,
    length: int,
    maximum: float | None,
    power: float | None,
    chance: int,
    batch: int,
) -> None:
    async def check() -> None:
        device, rolled = f"ANY-{next(NUMBERS)}", random.Random(chance)
        vehicle_id = await paired(client, device)
        body = {"registerMaxKwh": maximum, "powerMaxKw": power}
        assert (await client.put(f"/v1/meters/{device}", json=body)).status_code == 201
        window = {"from": at(start), "to": at(start + length)}
        base = await get(client, "/v1/analytics/fleet", **window)
        readings = [register(device, minute, count) for minute, count in enumerate(counts)]
        sent = [*readings, *rolled.sample(readings, len(readings) // 3)]
        rolled.shuffle(sent)
        for at_ in range(0, len(sent), batch):
            await ingest(client, sent[at_ : at_ + batch])
        expected = count(dict(enumerate(counts)), maximum, power)
        history = [energy for energy, _ in await energies(client, device)]
        assert history == pytest.approx([each.energy for _, each in sorted(expected.items())])
        inside = [each for minute, each in expected.items() if start < minute <= start + length]
        energy = sum(each.energy for each in inside if not each.implausible)
        suspect = sum(each.dips or each.implausible for each in inside)
        found = await get(client, f"/v1/analytics/performance/{vehicle_id}", **window)
        assert (found["totalEnergyConsumedAc"] or 0, found["suspect"]) == (pytest.approx(energy), suspect)
        whole = await get(client, f"/v1/analytics/performance/{vehicle_id}", **window, include="suspect")
        assert (whole["totalEnergyConsumedAc"] or 0) == pytest.approx(sum(each.energy for each in inside))
        more, suspects = await fleet_delta(client, base, **window)
        assert more == pytest.approx(energy, abs=1e-6)
        assert suspects == suspect
        series = (await get(client, "/v1/analytics/fleet", **window, interval="1m"))["series"]
        assert sum(part["totalEnergyConsumedAc"] or 0 for part in series) == pytest.approx(
            (base["totalEnergyConsumedAc"] or 0) + energy, abs=1e-6
        )

    event_loop_runner.run(check())


async def test_bad_registers_are_named(client: httpx2.AsyncClient) -> None:
    both = {**meter("BAD"), "registerKwh": 5}
    neither = {"meterId": "BAD", "timestamp": at(0), "voltage": 230}
    answer = await client.post("/v1/ingest/meter", json=[both, neither, register("BAD", 0, -1), register("BAD", 0, 4)])
    assert answer.json()["accepted"] == 1
    assert [(e["index"], e["pointer"], e["code"]) for e in answer.json()["errors"]] == [
        (0, "/registerKwh", "ambiguous_energy"),
        (1, "/kwhConsumedAc", "missing_field"),
        (2, "/registerKwh", "out_of_range"),
    ]
