"""`shard-down`: one shard's server stands still for a while; what do the devices of the others notice?"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Final

import psutil

from bench.context import Context
from bench.measure import offer
from bench.ownership import bucket_of, owners
from bench.results import Collected, ScenarioResult, Target, throughput
from bench.systems import VOLTROUTE, System
from bench.workload import Plan, new_readings

RATE: Final = 1_000
CONNECTIONS: Final = 512  # those of the shard that is away wait for their deadline
OTHERS: Final = "other shards"
DOWN: Final = "the shard that is down"
TARGETS: Final = [
    Target("shard-down: other shards refused", 0, 0, higher=False),
    Target("shard-down: other shards p99, down / up", 3, 1.5, higher=False),
]


def sorted_plan(url: str, where: dict[int, str], victim: str, requests: int) -> Plan:
    """Single readings, each under the topic of where its device lives."""
    readings = new_readings(5_000)
    plan = Plan(url)
    for number in range(requests):
        home = where[bucket_of(readings.device(number), len(where))]
        plan.write(readings, range(number, number + 1), DOWN if home == victim else OTHERS)
    return plan


@contextlib.contextmanager
def stalled(processes: list[psutil.Process]) -> Iterator[None]:
    """The processes stand still inside the block: their connections stay, nothing answers."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


async def run(context: Context) -> ScenarioResult:
    """The same open loop with all shards up, and with one stalled for its middle third."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("shard-down", [], TARGETS, 0, ["stops a server: not run against --url"])
    context.begin("shard-down", 2, extra=1)
    context.step("starting")
    async with context.systems() as systems:
        ours = systems[VOLTROUTE]
        where = await owners(ours.shards)
        victim = next(iter(ours.shards))
        seconds = max(context.seconds, 3)
        for _ in range(context.rounds):
            context.step("all up")
            up, proof = await offer(ours, sorted_plan(ours.url, where, victim, int(RATE * seconds)), CONNECTIONS, RATE)
            found.proofs += proof.acknowledged
            context.step(f"{victim} stalled for {seconds / 3:.1f} s")
            plan = sorted_plan(ours.url, where, victim, int(RATE * seconds))
            fault = asyncio.create_task(_stall_later(ours, victim, seconds / 3))
            down, proof = await offer(ours, plan, CONNECTIONS, RATE)
            await fault
            found.proofs += proof.acknowledged
            found.latencies("shard-down", down, {OTHERS: OTHERS})
            before = up.percentile_ms(99, OTHERS)
            found.add("shard-down: other shards p99, down / up", "x", down.percentile_ms(99, OTHERS) / before)
            answers = down.statuses[OTHERS]
            found.add("shard-down: other shards refused", "requests", sum(answers.values()) - answers[200])
            answers = down.statuses[DOWN]
            found.add("shard-down: its own refused (503)", "requests", answers[503])
            found.add("shard-down: its own, longest answer", "ms", down.percentile_ms(100, DOWN))
            found.curve(throughput("shard-down: stored", plan, down))
    return ScenarioResult("shard-down", found.figures(), TARGETS, found.proofs, [], found.curves)


async def _stall_later(system: System, victim: str, third_s: float) -> None:
    await asyncio.sleep(third_s)
    with stalled(system.server_of(victim)):
        await asyncio.sleep(third_s)
