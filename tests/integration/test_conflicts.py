"""One key, two values: the first in the order of arrival counts on every path, and the other one is told."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shards.buckets import bucket_of
from tests.support.commands import Finished, run_command
from tests.support.ledger import execute, fetch
from tests.support.readings import at, ingest, meter, vehicle
from tests.support.routers import in_process, router_process
from tests.support.servers import TestCluster

KEY = datetime.fromisoformat(at(1))


@pytest_asyncio.fixture(params=[2_000, 4], ids=["one transaction", "several"])
async def small(cluster: TestCluster, request: pytest.FixtureRequest) -> AsyncIterator[httpx2.AsyncClient]:
    """A router whose transactions hold few readings."""
    async with in_process(cluster, runner=False, batch_readings_max=request.param, batches_in_flight_max=3) as client:
        yield client


async def kept(cluster: TestCluster, device: str) -> tuple[float, float]:
    """kWh of the device's reading at KEY, in history and in status."""
    shard = cluster.shards[cluster.owner(device)]
    history = "SELECT kwh_consumed_ac AS kwh FROM meter_telemetry_history WHERE meter_id = $1 AND timestamp = $2"
    status = "SELECT kwh_consumed_ac AS kwh FROM meter_current_status WHERE meter_id = $1 AND last_updated = $2"
    (first,), (second,) = [await fetch(shard, sql, device, KEY) for sql in (history, status)]
    return first["kwh"], second["kwh"]


def counts(answer: Any) -> tuple[int, int, int, int]:
    return answer["accepted"], answer["duplicates"], answer["conflicts"], answer["rejected"]


@pytest.mark.parametrize("values", [(1.0, 5.0, 1.0), (5.0, 1.0, 5.0)], ids=["small first", "large first"])
@pytest.mark.parametrize("others", [0, 30])
async def test_the_first_of_a_request_counts(
    cluster: TestCluster, small: httpx2.AsyncClient, values: tuple[float, ...], others: int
) -> None:
    device = f"ONE-{values[0]:g}-{others}-{id(small)}"
    around = [meter(device, -minute - 1) for minute in range(others)]
    first, second, third = (meter(device, 1, kwh=kwh) for kwh in values)
    answer = await ingest(small, [first, *around, second, third])
    assert counts(answer) == (1 + others, 1, 1, 0)
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(1 + others, "conflict")]
    assert await kept(cluster, device) == (values[0], values[0])


@pytest.mark.parametrize("values", [(1.0, 5.0), (5.0, 1.0)], ids=["small first", "large first"])
async def test_the_first_of_several_requests_counts(
    cluster: TestCluster, small: httpx2.AsyncClient, values: tuple[float, ...]
) -> None:
    device = f"MANY-{values[0]:g}-{id(small)}"
    first, second = (meter(device, 1, kwh=kwh) for kwh in values)
    async with in_process(cluster, runner=False) as other:
        assert counts(await ingest(small, first)) == (1, 0, 0, 0)
        for client in (small, other):
            assert counts(await ingest(client, second)) == (0, 0, 1, 0)
            assert counts(await ingest(client, first)) == (0, 1, 0, 0)
        metrics = (await other.get("/metrics")).text
    assert await kept(cluster, device) == (values[0], values[0])
    assert 'voltroute_ingest_readings_total{kind="meter",outcome="conflict"}' in metrics


async def test_of_many_at_once_one_counts_everywhere(cluster: TestCluster, small: httpx2.AsyncClient) -> None:
    """Whoever is first, by two routers at once: history, status and every answer agree."""
    device = f"RACE-{id(small)}"
    async with in_process(cluster, runner=False) as other:
        posts = [ingest(client, meter(device, 1, kwh=kwh)) for kwh in range(20) for client in (small, other)]
        answers = await asyncio.gather(*posts)
    assert [sum(each) for each in zip(*map(counts, answers), strict=True)] == [1, 1, 38, 0]
    history, status = await kept(cluster, device)
    assert history == status
    assert counts(answers[int(history) * 2])[2] == counts(answers[int(history) * 2 + 1])[2] == 0


async def test_all_in_conflict_is_no_error(small: httpx2.AsyncClient) -> None:
    device = f"V-{id(small)}"
    await ingest(small, vehicle(device, 1, soc=50))
    mixed = await ingest(small, [vehicle(device, 1, soc=51), vehicle(device, 1, soc=-1)])
    assert counts(mixed) == (0, 0, 1, 1)
    assert [error["code"] for error in mixed["errors"]] == ["conflict", "out_of_range"]


async def test_post_tells_of_conflicts(cluster: TestCluster, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    lines = ["timestamp,kwhConsumedAc,voltage", f"{at(1)},1,230", f"{at(1)},5,230"]
    file.write_text("\n".join(lines))
    async with router_process(cluster.catalog_dsn, VOLTROUTE_RUNNER="false") as router:
        for batch, stored in (
            (1, "1 accepted, 0 duplicates, 1 conflicts"),
            (2, "0 accepted, 1 duplicates, 1 conflicts"),
        ):
            post = ("post", file, "--kind", "meter", "--device", "FILE", "--batch", batch, "--url", router.url)
            done = await run_command(*post)
            assert (done.code, stored in done.err, f"{file}:3: is stored already" in done.err) == (1, True, True), (
                done.err
            )
    assert await kept(cluster, "FILE") == (1, 1)


async def correct(cluster: TestCluster, *arguments: object, code: int = 0) -> Finished:
    done = await run_command("correct", *arguments, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn})
    assert done.code == code, done.err
    return done


async def test_a_reading_is_corrected(cluster: TestCluster, client: httpx2.AsyncClient) -> None:
    await ingest(client, [meter("WRONG", 0, kwh=3), meter("WRONG", 1, kwh=1000)])
    before = (await client.get("/v1/meters/WRONG/history", params={"from": at(-1)})).json()["items"]
    done = await correct(cluster, "meter", "WRONG", at(1), "--set", "kwhConsumedAc=0.5", "--reason", "a spike")
    assert done.out.splitlines() == ["kwhConsumedAc: 1000 -> 0.5", "voltage: 230 -> 230"]
    assert await kept(cluster, "WRONG") == (0.5, 0.5)
    after = (await client.get("/v1/meters/WRONG/history", params={"from": at(-1)})).json()["items"]
    assert [item["kwhConsumedAc"] for item in after] == [0.5, 3]
    assert after[0]["ingestedAt"] > before[0]["ingestedAt"]
    assert counts(await ingest(client, meter("WRONG", 1, kwh=1000))) == (0, 0, 1, 0)
    older = await correct(cluster, "meter", "WRONG", at(0), "--set", "kwhConsumedAc=2", "--json")
    assert older.json["after"] == {"kwh_consumed_ac": 2, "voltage": 230, "register_kwh": None}
    assert await kept(cluster, "WRONG") == (0.5, 0.5)  # the status is of the newest reading
    other = await correct(cluster, "meter", "WRONG", at(1), "--set", "registerKwh=70")
    assert other.out.splitlines() == [
        "kwhConsumedAc: 0.5 -> not there",
        "registerKwh: not there -> 70",
        "voltage: 230 -> 230",
    ]
    status = (await client.get("/v1/meters/WRONG/status")).json()
    assert (status["kwhConsumedAc"], status["registerKwh"]) == (None, 70)
    told = await fetch(cluster.shards[cluster.owner("WRONG")], "SELECT * FROM correction ORDER BY correction_id")
    assert [(line["device_id"], line["timestamp"], line["reason"]) for line in told] == [
        ("WRONG", KEY, "a spike"),
        ("WRONG", datetime.fromisoformat(at(0)), None),
        ("WRONG", KEY, None),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ("meter", "NOBODY", at(1), "--set", "voltage=1"),
            3,
            "no reading of meter NOBODY at 2026-05-01T00:01:00+00:00",
        ),
        (("meter", "a b", at(1), "--set", "voltage=1"), 2, "ID"),
        (("meter", "M", "yesterday", "--set", "voltage=1"), 2, "timestamp"),
        (("meter", "M", at(1), "--set", "soc=1"), 2, "with one of kwhConsumedAc, registerKwh, voltage"),
        (("meter", "M", at(1), "--set", "voltage=-1"), 2, "--set voltage: must be >= 0"),
        (("meter", "M", at(1), "--set", "voltage=much"), 2, "--set voltage: must be a number, not str"),
        (("meter", "M", at(1), "--set", "voltage=1", "--set", "voltage=2"), 2, "--set voltage is given twice"),
        (("meter", "M", at(1), "--set", "voltage=null"), 2, "--set voltage: 'null' is no value"),
        (("meter", "M", at(1), "--set", "registerKwh=1", "--set", "kwhConsumedAc=2"), 2, "set one of them"),
        (("meter", "M", at(1)), 2, "--set"),
    ],
)
async def test_what_cannot_be_corrected_says_why(
    cluster: TestCluster, arguments: tuple[str, ...], code: int, words: str
) -> None:
    assert words in (await correct(cluster, *arguments, code=code)).err


async def test_nothing_is_corrected_while_its_bucket_moves(cluster: TestCluster, client: httpx2.AsyncClient) -> None:
    await ingest(client, meter("MOVING", 1))
    shard, bucket = cluster.shards[cluster.owner("MOVING")], bucket_of("MOVING", cluster.buckets)
    record = "INSERT INTO bucket_move (move_id, bucket, role, runner) VALUES (77, $1, 'source', 1)"
    await execute(shard, record, bucket)
    try:
        refused = await correct(cluster, "meter", "MOVING", at(1), "--set", "voltage=1", code=3)
        assert "is in move 77: correct it when that has ended" in refused.err
    finally:
        await execute(shard, "DELETE FROM bucket_move WHERE move_id = 77")
