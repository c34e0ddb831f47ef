"""Sending requests: in a closed loop for the greatest throughput, in an open loop for honest latencies."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hdrh.histogram import HdrHistogram

from bench.http1 import Connection, ConnectionLost, connect

_LOWEST_US: Final = 1
_HIGHEST_US: Final = 120_000_000
_DIGITS: Final = 3


def new_histogram() -> HdrHistogram:
    """Latencies in microseconds, three significant digits, up to two minutes."""
    return HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)


@dataclass
class Outcome:
    """What came of a load. `acknowledged` are numbers of requests that got a 200; `seconds` is wall-clock."""

    seconds: float = 0.0
    sent: int = 0
    acknowledged: list[int] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    latencies: HdrHistogram = field(default_factory=new_histogram)

    def percentile_ms(self, percent: float) -> float:
        """Latency in milliseconds."""
        return float(self.latencies.get_value_at_percentile(percent)) / 1_000


async def closed_loop(url: str, payload: Callable[[int], bytes], connections: int, seconds: float) -> Outcome:
    """Each connection sends its next request when it has the answer of the last. For throughput only."""
    outcome = Outcome()
    opened = [await connect(url) for _ in range(connections)]
    started = time.perf_counter()
    end = started + seconds
    try:
        await asyncio.gather(*(_keep_sending(each, payload, end, outcome) for each in opened))
    finally:
        outcome.seconds = time.perf_counter() - started
        for each in opened:
            each.close()
    return outcome


async def _keep_sending(connection: Connection, payload: Callable[[int], bytes], end: float, outcome: Outcome) -> None:
    now = time.perf_counter()
    while now < end:
        number = outcome.sent
        outcome.sent += 1
        if not await _one(connection, payload(number), number, now, outcome):
            return
        now = time.perf_counter()


async def _one(connection: Connection, payload: bytes, number: int, due: float, outcome: Outcome) -> bool:
    try:
        answer = await connection.request(payload)
    except ConnectionLost:
        outcome.lost += 1
        return False
    outcome.latencies.record_value(max(int((time.perf_counter() - due) * 1_000_000), _LOWEST_US))
    outcome.statuses[answer.status] = outcome.statuses.get(answer.status, 0) + 1
    if answer.status == 200:
        outcome.acknowledged.append(number)
    return True


async def open_loop(
    url: str, payload: Callable[[int], bytes], connections: int, rate: float, seconds: float
) -> Outcome:
    """Requests become due at `rate` a second whatever the answers do; latency counts from when one was due.

    So a stall is seen by every request that became due meanwhile (no coordinated omission). What is due and finds no
    free connection waits for one.
    """
    outcome = Outcome()
    due: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
    opened = [await connect(url) for _ in range(connections)]
    started = time.perf_counter()
    workers = [asyncio.create_task(_serve(each, due, payload, outcome)) for each in opened]
    total = int(rate * seconds)
    for number in range(total):
        moment = started + number / rate
        wait = moment - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        outcome.sent += 1
        due.put_nowait((number, moment))
    for _ in workers:
        due.put_nowait(None)
    await asyncio.gather(*workers)
    outcome.seconds = time.perf_counter() - started
    for each in opened:
        each.close()
    return outcome


async def _serve(
    connection: Connection,
    due: "asyncio.Queue[tuple[int, float] | None]",
    payload: Callable[[int], bytes],
    outcome: Outcome,
) -> None:
    while (item := await due.get()) is not None:
        number, moment = item
        if not await _one(connection, payload(number), number, moment, outcome):
            return
