"""`hostile`: slow headers, silent connections and clients that never read, beside devices that post as ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from bench.context import Context
from bench.http1 import connect, get
from bench.measure import offer
from bench.results import Collected, ScenarioResult, Target
from bench.systems import VOLTROUTE, System
from bench.workload import Plan, new_readings

RATE: Final = 500
SETTLE_S: Final = 2.0
CONNECTIONS: Final = 64
SHARES: Final = {"slow headers": 2, "silent": 2, "never reading": 1}  # parts of the hostile connections
UNIT: Final = 1_000  # with --full; a tenth otherwise
LIMITS: Final = {
    "VOLTROUTE_CONNECTIONS_MAX": "8192",
    "VOLTROUTE_HEADER_TIMEOUT_S": "10",
    "VOLTROUTE_WRITE_TIMEOUT_S": "5",
    "VOLTROUTE_IDLE_TIMEOUT_S": "5",
}
ENDED_WITHIN_S: Final = 20.0  # the limits above, a sweep, and a busy machine
TARGETS: Final = [
    Target("hostile: others' p99, beside / alone", 2, 2, higher=False),
    Target("hostile: others refused", 0, 0, higher=False),
    Target("hostile: still open after their limits", 0, 0, higher=False),
]
_HEAD: Final = b"POST /v1/ingest/meter HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
_UNREAD: Final = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
_UNREAD_AT_ONCE: Final = 5


class _Hostile(asyncio.Protocol):
    """A connection that does what its kind does, until the router ends it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ended = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return not self.ended.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's callback."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self.kind == "slow headers":
            self.transport.write(_HEAD)
        elif self.kind == "never reading":
            self.transport.pause_reading()
            self.transport.write(_UNREAD * _UNREAD_AT_ONCE)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Asyncio's callback."""
        self.ended.set()

    def drip(self) -> None:
        """What it does once a second: one byte more of a header."""
        if self.is_open and self.kind == "slow headers":
            self.transport.write(b"x")


@asynccontextmanager
async def _beside(system: System, unit: int) -> AsyncIterator[list[_Hostile]]:
    parts, loop = urlsplit(system.url), asyncio.get_running_loop()
    made: list[_Hostile] = []
    for kind, share in SHARES.items():
        for _ in range(share * unit):
            host, port = parts.hostname or "127.0.0.1", parts.port or 80
            _, each = await loop.create_connection(partial(_Hostile, kind), host, port)
            made.append(each)
    dripping = asyncio.create_task(_drip(made))
    await asyncio.sleep(SETTLE_S)  # their requests are requests like others': what is measured is what stays
    try:
        yield made
    finally:
        dripping.cancel()
        for each in made:
            with contextlib.suppress(OSError):
                each.transport.abort()


async def _drip(made: list[_Hostile]) -> None:
    while True:  # spread over the second, so that it is not this generator that holds the others up
        for start in range(0, len(made), max(len(made) // 100, 1)):
            await asyncio.sleep(0.01)
            for each in made[start : start + max(len(made) // 100, 1)]:
                each.drip()


async def _still_open(url: str) -> float:
    """Connections that the router has after their limits, but for the one that asks. Who never reads cannot tell."""
    async with asyncio.timeout(ENDED_WITHIN_S * 2):
        await asyncio.sleep(ENDED_WITHIN_S)
        asking = await connect(url)
        try:
            text = (await asking.request(get(url, "/metrics"))).body.decode()
        finally:
            asking.close()
    line = next(line for line in text.splitlines() if line.startswith("voltroute_connections "))
    return float(line.rpartition(" ")[2]) - 1


def _plan(url: str, requests: int) -> Plan:
    readings, plan = new_readings(5_000), Plan(url)
    for number in range(requests):
        plan.write(readings, range(number, number + 1))
    return plan


async def run(context: Context) -> ScenarioResult:
    """The same open loop alone, then beside hostile connections."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("hostile", [], TARGETS, 0, ["needs limits of its own: not run against --url"])
    unit = UNIT if context.full else UNIT // 10
    context.begin("hostile", 3, extra=1)
    context.step("starting")
    async with context.systems(LIMITS) as systems:
        ours = systems[VOLTROUTE]
        for _ in range(context.rounds):
            context.step("alone")
            alone, proof = await offer(ours, _plan(ours.url, int(RATE * context.seconds)), CONNECTIONS, RATE)
            found.proofs += proof.acknowledged
            before = ours.memory()
            async with _beside(ours, unit) as made:
                context.step(f"beside {len(made):,} hostile connections")
                outcome, proof = await offer(ours, _plan(ours.url, int(RATE * context.seconds)), CONNECTIONS, RATE)
                found.proofs += proof.acknowledged
                found.add("hostile: router's memory, growth", "MiB", ours.memory() - before)
                context.step("until all are closed")
                found.add("hostile: still open after their limits", "connections", await _still_open(ours.url))
            ratio = outcome.percentile_ms(99) / alone.percentile_ms(99)
            found.add("hostile: others' p99, beside / alone", "x", ratio)
            statuses = outcome.all_statuses()
            found.add("hostile: others refused", "requests", sum(statuses.values()) - statuses[200])
    return ScenarioResult("hostile", found.figures(), TARGETS, found.proofs, [], found.curves)
