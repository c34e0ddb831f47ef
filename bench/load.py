"""Sending requests: in a closed loop for the greatest throughput, in an open loop for honest latencies."""

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from hdrh.histogram import HdrHistogram

from bench.http1 import Connection, ConnectionLost, connect
from bench.workload import Plan

_LOWEST_US: Final = 1
_HIGHEST_US: Final = 120_000_000
_DIGITS: Final = 3
STORED: Final = frozenset({200, 204})
_GRACE_S: Final = 60  # an answer that takes longer ends the measurement


def new_histogram() -> HdrHistogram:
    """Latencies in microseconds, three significant digits, up to two minutes."""
    return HdrHistogram(_LOWEST_US, _HIGHEST_US, _DIGITS)


@dataclass
class Outcome:
    """What came of a load; requests are named by their place in the plan.

    `acknowledged`: those that got 200 or 204, `ended_at` seconds after the start; `statuses` and `latencies` by topic.
    `served`: latencies of the acknowledged, from when they were sent, whatever kept them from being sent before.
    """

    seconds: float = 0.0
    sent: int = 0
    acknowledged: list[int] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    statuses: dict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    latencies: dict[str, HdrHistogram] = field(default_factory=lambda: defaultdict(new_histogram))
    served: HdrHistogram = field(default_factory=new_histogram)
    lost: int = 0
    exhausted: bool = False
    started: float = field(default_factory=time.perf_counter)

    def count(self, status: int) -> int:
        """Answers of that status, over all topics."""
        return sum(found.get(status, 0) for found in self.statuses.values())

    def all_statuses(self) -> dict[int, int]:
        """Answers by status, over all topics."""
        return {status: self.count(status) for status in {s for found in self.statuses.values() for s in found}}

    def served_ms(self, percent: float) -> float:
        """Milliseconds of the acknowledged."""
        return float(self.served.get_value_at_percentile(percent)) / 1_000

    def percentile_ms(self, percent: float, topic: str | None = None) -> float:
        """Latency in milliseconds, of one topic or of all."""
        merged = new_histogram()
        for name, histogram in self.latencies.items():
            if topic in {None, name}:
                merged.add(histogram)
        return float(merged.get_value_at_percentile(percent)) / 1_000


async def closed_loop(plan: Plan, connections: int, seconds: float | None) -> Outcome:
    """Each connection sends its next request when it has the answer of the last. For throughput only.

    Ends after `seconds` (None: when the plan is sent), or when the plan is exhausted, which the outcome tells.
    """
    outcome = Outcome()
    opened = [await connect(plan.url) for _ in range(connections)]
    outcome.started = time.perf_counter()
    end = outcome.started + seconds if seconds is not None else float("inf")
    try:
        async with asyncio.timeout(None if seconds is None else seconds + _GRACE_S):
            await asyncio.gather(*(_keep_sending(each, plan, end, outcome) for each in opened))
    finally:
        outcome.seconds = time.perf_counter() - outcome.started
        for each in opened:
            each.close()
    return outcome


async def _keep_sending(connection: Connection, plan: Plan, end: float, outcome: Outcome) -> None:
    now = time.perf_counter()
    while now < end:
        number = outcome.sent
        if number == len(plan.requests):
            outcome.exhausted = True
            return
        outcome.sent += 1
        if not await _one(connection, plan, number, now, outcome):
            return
        now = time.perf_counter()


async def _one(connection: Connection, plan: Plan, number: int, due: float, outcome: Outcome) -> bool:
    request, sent = plan.requests[number], time.perf_counter()
    try:
        answer = await connection.request(request.payload)
    except ConnectionLost:
        outcome.lost += 1
        return False
    now = time.perf_counter()
    outcome.latencies[request.topic].record_value(max(int((now - due) * 1_000_000), _LOWEST_US))
    outcome.statuses[request.topic][answer.status] += 1
    if answer.status in STORED:
        outcome.acknowledged.append(number)
        outcome.ended_at.append(now - outcome.started)
        outcome.served.record_value(max(int((now - sent) * 1_000_000), _LOWEST_US))
    return True


async def open_loop(plan: Plan, connections: int, rate: float) -> Outcome:
    """The plan's requests become due at `rate` a second whatever the answers do; latency counts from when one was due.

    So a stall is seen by every request that became due meanwhile (no coordinated omission). What is due and finds no
    free connection waits for one.
    """
    outcome = Outcome()
    due: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
    opened = [await connect(plan.url) for _ in range(connections)]
    outcome.started = time.perf_counter()
    workers = [asyncio.create_task(_serve(each, due, plan, outcome)) for each in opened]
    try:
        for number in range(len(plan.requests)):
            moment = outcome.started + number / rate
            wait = moment - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            outcome.sent += 1
            due.put_nowait((number, moment))
        for _ in workers:
            due.put_nowait(None)
        async with asyncio.timeout(_GRACE_S):
            await asyncio.gather(*workers)
    finally:
        outcome.seconds = time.perf_counter() - outcome.started
        for worker in workers:
            worker.cancel()
        for each in opened:
            each.close()
    return outcome


async def _serve(
    connection: Connection, due: "asyncio.Queue[tuple[int, float] | None]", plan: Plan, outcome: Outcome
) -> None:
    while (item := await due.get()) is not None:
        number, moment = item
        if not await _one(connection, plan, number, moment, outcome):
            return
