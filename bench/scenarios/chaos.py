"""`chaos`: servers, routers and Redis fail all at once, by a seed, while buckets move and devices post."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from typing import Final

from bench.chaos.cast import Cast, cast
from bench.chaos.devices import Device, Heard
from bench.chaos.faults import Fault, chosen, command, faults
from bench.context import Context
from bench.ledger import prove
from bench.results import Collected, ScenarioResult, Target
from bench.workload import METER, new_readings

SHARDS: Final = 3
REPLICAS: Final = 1
DEVICES: Final = 24
CALM_S: Final = (0.5, 3.0)  # between the beginnings of two faults; they overlap
STALE_S: Final = 6.0  # the time that a status is kept, and a second
END_S: Final = 180
ALLOWED: Final = {200, 404, 429, 503}  # 404: a status before the first reading is stored
TARGETS: Final = [
    Target("chaos: answers other than 200, 429, 503", 0, 0, higher=False),
    Target("chaos: statuses older than allowed", 0, 0, higher=False),
    Target("chaos: router memory, last / first", 1.5, 1.2, higher=False),
]


async def run(context: Context) -> ScenarioResult:
    """`--minutes` of it; a round has the seed of the run and its own number."""
    if context.target is not None:
        return ScenarioResult("chaos", [], TARGETS, 0, ["needs a cluster of its own: not run against --url"])
    found, notes = Collected(), list[str]()
    context.begin("chaos", 1, extra=0)
    for number in range(context.rounds):
        seed = context.seed + number
        context.step(f"seed {seed}: {context.minutes:g} minutes")
        notes += await _round(seed, context.minutes * 60, found)
    return ScenarioResult("chaos", found.figures(), TARGETS, found.proofs, notes, found.curves)


async def _round(seed: int, seconds: float, found: Collected) -> list[str]:
    chance, heard = random.Random(seed), Heard()
    readings = new_readings(DEVICES, METER)
    async with cast(SHARDS, REPLICAS) as who:
        urls = [router.url for router in who.routers]
        ended = asyncio.Event()
        devices = [Device(urls, readings, n, heard, random.Random(f"{seed} {n}")) for n in range(DEVICES)]
        posting = asyncio.gather(*(device.run(ended) for device in devices))
        happened: Counter[str] = Counter()
        recovered: dict[str, list[float]] = defaultdict(list)
        await _until_more(heard)
        before = who.memory()
        await _storm(who, chance, seconds, (heard, happened, recovered))
        ended.set()
        async with asyncio.timeout(END_S):  # every device's last reading is acknowledged
            await posting
        await command(who, "rebalance", "watch")
        proof = await prove(who.databases(), readings, set(heard.acknowledged), heard.sent)
        found.add("chaos: router memory, last / first", "x", who.memory() / before)
    found.proofs += proof.acknowledged
    _report(heard, recovered, found)
    told = ", ".join(f"{count} x {name}" for name, count in sorted(happened.items()))
    answers = ", ".join(f"{count:,} x {status}" for status, count in sorted(heard.statuses.items()))
    lost = f"{heard.lost:,} connections lost to routers that were killed or restarted"
    return [f"seed {seed}: {told}", f"seed {seed}: answers {answers}; {lost}"]


async def _storm(
    who: Cast, chance: random.Random, seconds: float, into: tuple[Heard, Counter[str], dict[str, list[float]]]
) -> None:
    heard, happened, recovered = into
    possible, end = faults(who), time.monotonic() + seconds
    busy: dict[Fault, asyncio.Task[None]] = {}
    while time.monotonic() < end:
        fault, lasts = chosen(possible, chance)
        pause = chance.uniform(*CALM_S)
        if fault not in busy or busy[fault].done():
            happened[fault.name] += 1
            busy[fault] = asyncio.create_task(_happen(fault, lasts, heard, recovered))
        await asyncio.sleep(pause)
    await asyncio.gather(*busy.values())


async def _happen(fault: Fault, lasts: float, heard: Heard, recovered: dict[str, list[float]]) -> None:
    """And how long it took until every device had a reading stored that it sent afterwards."""
    await fault.happens(lasts)
    ended = time.monotonic()
    next_ones = {number % DEVICES: number + DEVICES for number in sorted(heard.acknowledged)}
    await heard.until(lambda: heard.acknowledged.keys() >= set(next_ones.values()))
    recovered[fault.name].append(time.monotonic() - ended)


async def _until_more(heard: Heard) -> None:
    """Every device has had an answer."""
    async with asyncio.timeout(END_S):
        await heard.until(lambda: len(heard.acknowledged) >= DEVICES * 3)


def _report(heard: Heard, recovered: dict[str, list[float]], found: Collected) -> None:
    odd = sum(count for status, count in heard.statuses.items() if status not in ALLOWED)
    found.add("chaos: answers other than 200, 429, 503", "answers", odd)
    found.add("chaos: requests without an answer for 20 s", "requests", heard.silent)
    found.add("chaos: statuses asked for", "statuses", heard.looked)
    found.add("chaos: statuses older than allowed", "statuses", sum(age > STALE_S for age in heard.stale))
    found.add("chaos: statuses older than acknowledged", "statuses", len(heard.stale))
    for name, times in sorted(recovered.items()):
        ordered = sorted(times)
        found.add(f"chaos: recovery, {name}, median", "s", ordered[len(ordered) // 2])
        found.add(f"chaos: recovery, {name}, longest", "s", ordered[-1])
