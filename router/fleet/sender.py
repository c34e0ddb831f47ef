"""Sending a stream at its own pace, whatever the router does, and counting what comes back."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from router.fleet.client import RouterClient, Tally
from router.fleet.devices import Fleet, wire_time
from router.fleet.stream import Rates, stream

PATH: Final = "/v1/ingest"
IN_FLIGHT_MAX: Final = 256
_PAIR_TOGETHER: Final = 16
_SEND_ATTEMPTS: Final = 4


@dataclass
class Progress:
    """Counts so far, and the latencies (seconds, from when a request was due) of the last requests."""

    tally: Tally = field(default_factory=Tally)
    asked: float = 0.0  # readings a second
    sent: int = 0
    skipped: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=5_000))

    def percentile(self, share: float) -> float | None:
        """Latency in seconds; None before the first answer."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None


async def pair_all(client: RouterClient, fleet: Fleet, start: datetime) -> None:
    """Tell the router which meter feeds which vehicle."""
    gate = asyncio.Semaphore(_PAIR_TOGETHER)

    async def pair(vehicle_id: str, meter_id: str) -> None:
        async with gate:
            await client.pair(vehicle_id, meter_id, wire_time(start))

    await asyncio.gather(*(pair(bay.vehicle_id, bay.meter_id) for bay in fleet.bays))


async def simulate(
    client: RouterClient, fleet: Fleet, rate: float, seconds: float, batch: int, rates: Rates, progress: Progress
) -> None:
    """Send `rate` readings a second for `seconds`, `batch` in a request. An open loop: a slow router is not spared.

    More than 256 requests under way are not sent but counted as skipped: the generator stays bounded.
    """
    started, start = time.monotonic(), datetime.now(UTC)
    progress.asked = rate
    pending: set[asyncio.Task[None]] = set()
    readings = stream(fleet, start, timedelta(seconds=1 / rate), rates)
    try:
        for due_s, bodies in _requests(readings, start, batch):
            if due_s >= seconds:
                break
            wait = started + due_s - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            if len(pending) >= IN_FLIGHT_MAX:
                progress.skipped += len(bodies)
                continue
            task = asyncio.create_task(_send(client, bodies, started + due_s, progress))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)
    finally:
        left = list(pending)  # when this was cancelled: they end before their client is closed
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _requests(
    readings: Iterator[tuple[datetime, dict[str, Any]]], start: datetime, batch: int
) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    """(seconds after start, readings of one request)."""
    bodies: list[dict[str, Any]] = []
    for moment, reading in readings:
        bodies.append(reading)
        if len(bodies) >= batch:
            yield (moment - start).total_seconds(), bodies
            bodies = []


async def _send(client: RouterClient, bodies: list[dict[str, Any]], due: float, progress: Progress) -> None:
    progress.sent += len(bodies)
    answer = await client.post(PATH, bodies, attempts=_SEND_ATTEMPTS)
    progress.tally.add(answer)
    progress.latencies.append(time.monotonic() - due)
