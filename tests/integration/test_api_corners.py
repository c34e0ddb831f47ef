"""What people meet at the edges of the API: its first page, charsets, pages of other origins, unknown devices."""

import httpx2
import pytest

from tests.support.readings import at, ingest, meter, vehicle
from tests.support.routers import in_process
from tests.support.servers import TestCluster


async def test_the_first_page_says_where_everything_is(client: httpx2.AsyncClient) -> None:
    found = (await client.get("/")).json()
    assert found["name"] == "voltroute"
    for path in ("docs", "openapi", "health", "metrics"):
        assert (await client.get(found[path])).status_code == 200


@pytest.mark.parametrize(
    ("charset", "status"),
    [("utf-8", 200), ('"UTF-8"', 200), ("us-ascii", 200), ("latin-1", 415), ("utf-16", 415)],
)
async def test_json_is_utf_8(client: httpx2.AsyncClient, charset: str, status: int) -> None:
    body = b'{"meterId":"CHARSET","kwhConsumedAc":1,"timestamp":"2026-05-01T00:00:00Z"}'
    headers = {"Content-Type": f"application/json; charset={charset}"}
    answer = await client.post("/v1/ingest/meter", content=body, headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert f"charset is {charset}" in answer.json()["detail"]


async def test_pages_of_named_origins_may_call(cluster: TestCluster) -> None:
    origin = "https://dashboard.example"
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    async with in_process(cluster, runner=False, cors_origins=f"{origin}, https://other.example") as client:
        allowed = await client.options("/v1/ingest/meter", headers=asks)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
        posted = await client.post("/v1/ingest/meter", json=meter("CORS"), headers={"Origin": origin})
        assert posted.headers["access-control-allow-origin"] == origin
        assert "X-Request-ID" in posted.headers["access-control-expose-headers"]
        foreign = await client.options("/v1/ingest/meter", headers={**asks, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers
    async with in_process(cluster, runner=False) as client:
        refused = await client.get("/v1/meters", headers={"Origin": origin})
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("kind", ["meters", "vehicles"])
async def test_an_unknown_device_is_not_an_empty_one(client: httpx2.AsyncClient, kind: str) -> None:
    device = f"CORNER-{kind}"
    await ingest(client, meter(device, 5) if kind == "meters" else vehicle(device, 5))
    for path in ("history", "status"):
        unknown = await client.get(f"/v1/{kind}/NOBODY/{path}")
        assert (unknown.status_code, "NOBODY has ever sent a reading" in unknown.json()["detail"]) == (404, True)
    empty = await client.get(f"/v1/{kind}/{device}/history", params={"from": at(6)})
    assert (empty.status_code, empty.json()["items"]) == (200, [])


async def test_nothing_is_null_and_not_zero(client: httpx2.AsyncClient) -> None:
    far = {"from": "2031-01-01T00:00:00Z", "to": "2031-01-02T00:00:00Z", "interval": "day", "tz": "Europe/Berlin"}
    found = (await client.get("/v1/analytics/fleet", params=far)).json()
    for part in (found, found["paired"], *found["series"]):
        assert (part["totalEnergyConsumedAc"], part["totalEnergyDeliveredDc"], part["efficiencyRatio"]) == (None,) * 3


async def test_what_is_known_of_a_device(client: httpx2.AsyncClient) -> None:
    path = "/v1/meters/KNOWN"
    assert (await client.get(path)).status_code == 404
    body = {"intervalS": 900, "powerMaxKw": 22, "registerMaxKwh": 1e6, "label": "garage"}
    first = await client.put(path, json=body)
    assert (first.status_code, first.json()["meterId"]) == (201, "KNOWN")
    assert (await client.get(path)).json() == first.json()
    second = await client.put(path, json={"label": "cellar"})
    assert (second.status_code, second.json()["label"], second.json()["intervalS"]) == (200, "cellar", None)
    assert (await client.delete(path)).status_code == 204
    assert (await client.delete(path)).status_code == 404
    await ingest(client, meter("KNOWN"))
    assert (await client.get(path)).json()["label"] is None
    capacity = {"batteryKwh": 77.4, "intervalS": 60}
    assert (await client.put("/v1/vehicles/KNOWN", json=capacity)).json()["batteryKwh"] == 77.4


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/v1/meters/BAD", {"intervalS": 0}, "/intervalS"),
        ("/v1/meters/BAD", {"powerMaxKw": -1}, "/powerMaxKw"),
        ("/v1/meters/BAD", {"batteryKwh": 5}, "/batteryKwh"),
        ("/v1/vehicles/BAD", {"registerMaxKwh": 5}, "/registerMaxKwh"),
        ("/v1/meters/BAD", {"label": "x" * 201}, "/label"),
        ("/v1/defaults/meters", {"label": "x"}, "/label"),
        ("/v1/meters/BAD", [], ""),
    ],
)
async def test_a_bad_setting_is_named(client: httpx2.AsyncClient, path: str, body: object, pointer: str) -> None:
    answer = await client.put(path, json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
