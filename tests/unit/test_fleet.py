import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from router.fleet.client import RouterClient, RouterRefused
from router.fleet.devices import Bay, charging_power_kw, new_fleet
from router.fleet.stream import Rates, stream

START = datetime(2026, 5, 1, tzinfo=UTC)


def take(seed: int, count: int, rates: Rates | None = None) -> list[tuple[datetime, dict[str, object]]]:
    fleet = new_fleet(20, seed, faulty=0.2, start=START)
    return list(itertools.islice(stream(fleet, START, timedelta(seconds=1), rates or Rates()), count))


def test_the_same_seed_gives_the_same_readings() -> None:
    assert take(3, 2_000) == take(3, 2_000)
    assert take(3, 50) != take(4, 50)


def test_duplicates_late_and_out_of_order_readings_come_at_their_rates() -> None:
    sent = take(1, 20_000, Rates(duplicate=0.05, late=0.05, out_of_order=0.05))
    keys = [(r.get("meterId") or r.get("vehicleId"), r["timestamp"]) for _, r in sent]
    repeats = sum(count - 1 for count in Counter(keys).values())
    assert 600 < repeats < 1_200
    newest: dict[object, object] = {}
    late = 0
    for device, moment in keys:
        late += str(moment) < str(newest.get(device, ""))
        newest[device] = max(str(moment), str(newest.get(device, "")))
    assert late > 500
    times = [moment for moment, _ in sent]
    assert times == sorted(times)


def test_charging_tapers_and_ends() -> None:
    bay = Bay(1, 60, 50, 0.9, 18, 0, 0.5, hot_sensor=False, soc=50, meter_at=START, vehicle_at=START)
    evening = datetime(2026, 5, 1, 20, tzinfo=UTC)
    full_speed = charging_power_kw(bay, evening)
    bay.soc = 95
    assert 0 < charging_power_kw(bay, evening) < full_speed == pytest.approx(45)
    bay.soc = 100
    assert charging_power_kw(bay, evening) == 0
    assert charging_power_kw(bay, datetime(2026, 5, 1, 12, tzinfo=UTC)) == 0


def test_energy_of_both_sides_fits_together() -> None:
    sums: Counter[str] = Counter()
    for _, reading in take(5, 20_000, Rates(0, 0, 0)):
        sums["ac"] += float(reading.get("kwhConsumedAc", 0))  # type: ignore[arg-type, assignment]
        sums["dc"] += float(reading.get("kwhDeliveredDc", 0))  # type: ignore[arg-type, assignment]
    assert 0.5 < sums["dc"] / sums["ac"] < 0.96


ANSWERS = [
    (b"503 Service Unavailable", b""),  # too many connections: said before there is a request
    (b"502 Bad Gateway", b"<html>a balancer</html>"),
    (b"408 Request Timeout", b'{"detail":"too slow"}'),
    (b"200 OK", b'{"accepted":1,"duplicates":0,"rejected":0,"errors":[]}'),
]


@asynccontextmanager
async def answering(left: list[tuple[bytes, bytes]]) -> AsyncIterator[RouterClient]:
    """A client of something that gives these answers, one after the other."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        status, body = left.pop(0)
        head = b"HTTP/1.1 %s\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (status, len(body)) + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, RouterClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        yield client


async def test_a_client_tries_again_whatever_the_refusal_looks_like() -> None:
    left = list(ANSWERS)
    async with answering(left) as client:
        tally = await client.post("/v1/ingest", [{"meterId": "M"}])
    assert (tally.accepted, tally.failed, tally.retries, left) == (1, 0, 3, [])


async def test_an_answer_that_no_router_gives_is_refused() -> None:
    async with answering([(b"200 OK", b"<html>a login page</html>")]) as client:
        with pytest.raises(RouterRefused, match="HTTP 200"):
            await client.post("/v1/ingest", [{"meterId": "M"}])
