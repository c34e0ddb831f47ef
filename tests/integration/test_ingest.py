"""POST /v1/ingest: formats, encodings, limits, duplicates and what is said about bad readings."""

import asyncio
import gzip
import json
import zlib
from typing import Any

import httpx2
import orjson
import pytest
import zstandard

from tests.support.ledger import execute, fetch, stored, wipe
from tests.support.readings import at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster

NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
async def _clean(cluster: TestCluster) -> None:
    await wipe(cluster.shards)


async def test_one_object(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    assert await ingest(client, meter("M-1"), "/v1/ingest/meter") == {
        "accepted": 1,
        "duplicates": 0,
        "conflicts": 0,
        "rejected": 0,
        "errors": [],
    }
    assert [(shard, device) for shard, device, _ in await stored(cluster.shards)] == [(cluster.owner("M-1"), "M-1")]


async def test_array_and_repeat(client: httpx2.AsyncClient) -> None:
    batch = [vehicle(f"V-{n}", minute) for n in range(20) for minute in range(5)]
    assert (await ingest(client, batch, "/v1/ingest/vehicle"))["accepted"] == 100
    again = await ingest(client, [*batch, vehicle("V-0", 99)], "/v1/ingest/vehicle")
    assert (again["accepted"], again["duplicates"]) == (1, 100)


async def test_mixed_and_ndjson(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    lines = b"\n".join(orjson.dumps(reading) for reading in (meter("A"), vehicle("B"), meter("C")))
    response = await client.post("/v1/ingest", content=lines + b"\n\n", headers=NDJSON)
    assert response.json()["accepted"] == 3
    assert {device for _, device, _ in await stored(cluster.shards)} == {"A", "B", "C"}


async def test_one_reading_twice_in_a_request_counts_once(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    answer = await ingest(client, [meter("M", 1, kwh=1), meter("M", 1, kwh=1), meter("M", 2)])
    assert (answer["accepted"], answer["duplicates"], answer["conflicts"]) == (2, 1, 0)
    (row,) = await fetch(
        cluster.shards[cluster.owner("M")],
        "SELECT * FROM meter_telemetry_history WHERE voltage = 230 AND timestamp = '2026-05-01T00:01Z'",
    )
    assert row["kwh_consumed_ac"] == 1


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_compressed(client: httpx2.AsyncClient, encoding: str) -> None:
    plain = orjson.dumps([meter(f"M-{n}") for n in range(50)])
    body = gzip.compress(plain) if encoding == "gzip" else zstandard.compress(plain)
    response = await client.post("/v1/ingest", content=body, headers={**JSON, "Content-Encoding": encoding})
    assert response.json()["accepted"] == 50


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_a_bomb_and_garbage(client: httpx2.AsyncClient, encoding: str) -> None:
    plain = b" " * 200_000_000
    bomb = gzip.compress(plain, 9) if encoding == "gzip" else zstandard.compress(plain)
    assert len(bomb) < 300_000
    headers = {**JSON, "Content-Encoding": encoding}
    assert (await client.post("/v1/ingest", content=bomb, headers=headers)).status_code == 413
    assert (await client.post("/v1/ingest", content=b"nonsense", headers=headers)).status_code == 400
    half = bomb[: len(bomb) // 400]
    assert (await client.post("/v1/ingest", content=half, headers=headers)).status_code in {400, 413}


async def test_gzip_of_several_members(client: httpx2.AsyncClient) -> None:
    body = gzip.compress(b"[" + orjson.dumps(meter("A"))) + gzip.compress(b"," + orjson.dumps(meter("B")) + b"]")
    response = await client.post("/v1/ingest", content=body, headers={**JSON, "Content-Encoding": "gzip"})
    assert response.json()["accepted"] == 2
    assert zlib.crc32(body)


async def test_limits(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    async with in_process(cluster, body_bytes_max=2_000, readings_max=5) as small:
        long_body = await small.post("/v1/ingest", content=b" " * 3_000, headers=JSON)
        assert (long_body.status_code, long_body.json()["type"]) == (413, "/problems/content-too-large")
        many = await small.post("/v1/ingest", json=[meter(f"M{n}") for n in range(6)])
        assert many.status_code == 413
    assert not await stored(cluster.shards)
    assert (await client.post("/v1/ingest", content=b"a,b", headers={"Content-Type": "text/csv"})).status_code == 415
    brotli = await client.post("/v1/ingest", content=b"{}", headers={**JSON, "Content-Encoding": "br"})
    assert brotli.status_code == 415


BAD = [
    (b'{"meterId":"M","kwhConsumedAc":NaN,"voltage":1,"timestamp":"%s"}', "/kwhConsumedAc"),
    (b'{"meterId":"M","kwhConsumedAc":1,"voltage":Infinity,"timestamp":"%s"}', "/voltage"),
    (b'{"meterId":"M","kwhConsumedAc":1,"voltage":1e999,"timestamp":"%s"}', "/voltage"),
    (b'{"meterId":"M","kwhConsumedAc":-0.1,"voltage":1,"timestamp":"%s"}', "/kwhConsumedAc"),
    (b'{"meterId":"M\\u0000","kwhConsumedAc":1,"voltage":1,"timestamp":"%s"}', "/meterId"),
    (b'{"meterId":"M\0","kwhConsumedAc":1,"voltage":1,"timestamp":"%s"}', "/meterId"),
    (b'{"meterId":"M\\n","kwhConsumedAc":1,"voltage":1,"timestamp":"%s"}', "/meterId"),
    (b'{"meterId":"' + b"x" * 1_000_000 + b'","kwhConsumedAc":1,"voltage":1,"timestamp":"%s"}', "/meterId"),
    (b'{"meterId":"M","kwhConsumedAc":1,"voltage":1,"timestamp":"2026-05-01T00:00:00"}', "/timestamp"),
    (b'{"meterId":"M","kwhConsumedAc":1,"voltage":1,"timestamp":"2999-05-01T00:00:00Z"}', "/timestamp"),
    (b'{"meterId":"M","kwhConsumedAc":1,"voltage":1,"timestamp":"1850-05-01T00:00:00Z"}', "/timestamp"),
    (b'{"meterId":"M","kwhConsumedAc":1,"voltage":1,"timestamp":1777593600}', "/timestamp"),
    (b'{"meterId":"M","kwhConsumedAc":"1","voltage":1,"timestamp":"%s"}', "/kwhConsumedAc"),
    (b'{"meterId":"M","voltage":1,"timestamp":"%s"}', "/kwhConsumedAc"),
    (b'{"meterId":"M","kwhConsumedAc":1,"voltage":1,"timestamp":"%s","extra/field":1}', "/extra~1field"),
    (b'{"vehicleId":"V","soc":101,"kwhDeliveredDc":1,"batteryTemp":1,"timestamp":"%s"}', "/soc"),
    (b'{"vehicleId":"V","soc":1,"kwhDeliveredDc":1,"batteryTemp":-61,"timestamp":"%s"}', "/batteryTemp"),
    (b'{"vehicleId":"V","meterId":"M","timestamp":"%s"}', ""),
    (b'{"timestamp":"%s"}', ""),
    (b"17", ""),
    (b'{"meterId":"M\\ud800","kwhConsumedAc":1,"voltage":1,"timestamp":"%s"}', "/meterId"),
]


@pytest.mark.parametrize(("item", "pointer"), BAD, ids=[f"{n}-{pointer}" for n, (_, pointer) in enumerate(BAD)])
async def test_a_bad_item_is_named_and_sinks_no_other(
    client: httpx2.AsyncClient, cluster: TestCluster, item: bytes, pointer: str
) -> None:
    item = item.replace(b"%s", at(0).encode())
    alone = await client.post("/v1/ingest", content=item, headers=JSON)
    assert (alone.status_code, alone.headers["content-type"]) == (422, "application/problem+json")
    (error,) = alone.json()["errors"]
    assert (error["index"], error["pointer"]) == (0, pointer)
    assert error["detail"]
    body = b"[" + orjson.dumps(meter("GOOD-1")) + b"," + item + b"," + orjson.dumps(vehicle("GOOD-2")) + b"]"
    strict = await client.post("/v1/ingest?strict=true", content=body, headers=JSON)
    assert strict.status_code == 422
    assert not await stored(cluster.shards)
    among = await client.post("/v1/ingest", content=body, headers=JSON)
    assert among.status_code == 200, among.text
    answer = among.json()
    assert (answer["accepted"], answer["rejected"]) == (2, 1)
    assert [(e["index"], e["pointer"]) for e in answer["errors"]] == [(1, pointer)]


@pytest.mark.parametrize("body", [b"", b"{", b"[1,", b"nope", b'{"a":1}{', b"\xff\xfe", b"[" * 100_000])
async def test_what_is_no_json(client: httpx2.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/ingest", content=body, headers=JSON)
    assert (response.status_code, response.json()["type"]) == (400, "/problems/malformed-body")


async def test_a_broken_line_is_one_bad_item(client: httpx2.AsyncClient) -> None:
    body = orjson.dumps(meter("A")) + b"\n{broken\n" + orjson.dumps(meter("B"))
    answer = (await client.post("/v1/ingest", content=body, headers=NDJSON)).json()
    assert (answer["accepted"], answer["errors"][0]["index"]) == (2, 1)


async def test_nothing_in_the_body(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/ingest", content=b"[]", headers=JSON)).status_code == 422
    assert (await client.post("/v1/ingest", content=b"\n", headers=NDJSON)).status_code == 422


async def test_at_most_100_errors_are_listed(client: httpx2.AsyncClient) -> None:
    body = [meter("A")] + [meter("A", kwh=-1) for _ in range(150)]
    answer = await ingest(client, body)
    assert (answer["rejected"], len(answer["errors"])) == (150, 100)


async def test_what_postgresql_refuses_is_found_by_bisecting(client: httpx2.AsyncClient, cluster: TestCluster) -> None:
    rule = "ALTER TABLE meter_telemetry_history ADD CONSTRAINT odd CHECK (voltage <> 666)"
    for dsn in cluster.shards.values():
        await execute(dsn, rule)
    try:
        batch = [meter(f"M-{n}", voltage=666 if n in {7, 70} else 230) for n in range(100)]
        answer = await ingest(client, [*batch, vehicle("V-1")])
        assert (answer["accepted"], answer["rejected"]) == (99, 2)
        assert [error["index"] for error in answer["errors"]] == [7, 70]
        assert answer["errors"][0]["code"] == "refused_by_database"
        assert len(await stored(cluster.shards)) == 99
    finally:
        for dsn in cluster.shards.values():
            await execute(dsn, "ALTER TABLE meter_telemetry_history DROP CONSTRAINT odd")


async def test_a_full_queue_says_so_and_loses_nothing(cluster: TestCluster) -> None:
    async with in_process(cluster, queue_readings_max=1_000, batch_readings_max=200) as small:
        batch = [meter("ONE-DEVICE", minute) for minute in range(3_000)]
        response = await small.post("/v1/ingest", json=batch)
        assert (response.status_code, response.json()["type"]) == (429, "/problems/overloaded")
        assert int(response.headers["Retry-After"]) >= 1
        assert response.json()["accepted"] == len(await stored(cluster.shards)) < 3_000


async def test_the_memory_for_bodies_is_bounded(cluster: TestCluster) -> None:
    async with in_process(cluster, bodies_bytes_max=2_000) as small:
        response = await small.post("/v1/ingest", content=b" " * 3_000, headers=JSON)
        assert response.status_code == 429
        assert json.loads(response.content)["type"] == "/problems/overloaded"
        assert (await small.post("/v1/ingest", json=meter("M"))).status_code == 200


@pytest.mark.parametrize("form", ["ndjson", "array", "gzip"])
async def test_a_large_body_is_taken_in_turns_and_answered_as_one(client: httpx2.AsyncClient, form: str) -> None:
    """More than a turn's items: counts and indexes are the request's; a repeat in another turn is one."""
    readings: list[dict[str, Any]] = [vehicle(f"TURNS-{form}-{number % 7}", number) for number in range(3_000)]
    readings[1_500] = {**readings[1_500], "soc": 101}
    readings[2_999] = readings[3]
    readings[2_998] = {**readings[4], "soc": 1}
    body = orjson.dumps(readings) if form == "array" else b"\n".join(map(orjson.dumps, readings))
    headers = {"Content-Type": "application/json" if form == "array" else "application/x-ndjson"}
    if form == "gzip":
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    answer = (await client.post("/v1/ingest/vehicle", content=body, headers=headers)).json()
    counts = [answer[name] for name in ("accepted", "duplicates", "conflicts", "rejected")]
    assert counts == [2_997, 1, 1, 1]
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [
        (1_500, "out_of_range"),
        (2_998, "conflict"),
    ]
    strict = await client.post("/v1/ingest/vehicle?strict=true", content=body, headers=headers)
    assert (strict.status_code, strict.json()["errors"][0]["index"]) == (422, 1_500)
    cut = await client.post("/v1/ingest/vehicle", content=body[:-20], headers=headers)
    assert cut.status_code == (200 if form == "ndjson" else 400)


async def test_large_bodies_wait_for_their_turn_and_not_for_ever(cluster: TestCluster) -> None:
    readings = [vehicle(f"WAITS-{number}", 1) for number in range(2_000)]
    body, answer = b"\n".join(map(orjson.dumps, readings)), "/v1/ingest/vehicle"
    async with in_process(cluster, runner=False, ingest_timeout_s=1) as client:
        lock = client.app.state.intake.large  # type: ignore[attr-defined]
        async with lock:
            refused = await client.post(answer, content=body, headers=NDJSON)
            assert (refused.status_code, refused.json()["detail"]) == (429, "too many large bodies are being taken")
            assert (await ingest(client, readings[:8], answer))["accepted"] == 8
        assert client.app.state.intake.budget.held == 0  # type: ignore[attr-defined]
    async with in_process(cluster, runner=False) as client:
        answers = await asyncio.gather(*[client.post(answer, content=body, headers=NDJSON) for _ in range(4)])
        counts = [(each.json()["accepted"], each.json()["duplicates"]) for each in answers]
        assert (sum(new for new, _ in counts), {sum(each) for each in counts}) == (2_000 - 8, {2_000})


async def test_a_name_that_is_no_text_is_told_and_harms_no_neighbour(client: httpx2.AsyncClient) -> None:
    broken = b'{"\\ud800": NaN}'
    alone = await client.post("/v1/ingest/vehicle", content=broken, headers=JSON)
    assert (alone.status_code, alone.json()["errors"][0]["pointer"]) == (422, "/?")
    body = b"[" + broken + b"," + orjson.dumps(vehicle("NEIGHBOUR", 1)) + b"]"
    among = (await client.post("/v1/ingest/vehicle", content=body, headers=JSON)).json()
    assert (among["accepted"], among["errors"][0]["index"]) == (1, 0)
