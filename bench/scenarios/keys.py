"""`keys`: what keys and tenants cost: the same cluster twice, one of them closed, with a key for each tenant."""

import asyncio
from typing import Final

from bench.context import Context
from bench.measure import Shape, flood
from bench.results import Collected, ScenarioResult, Target
from bench.systems import voltroute, with_tenants

TENANTS: Final = 10
SHAPES: Final = {"single/64": Shape(1, 64), "batch/1000": Shape(1_000, 8)}
EXPECTED: Final = {"single/64": 60_000, "batch/1000": 400_000}  # readings a second that no system here reaches
OPEN: Final = "open"
CLOSED: Final = f"{TENANTS} tenants"
LEARNT_S: Final = 3.0  # routers know of keys within map_poll_s, 2 s
TARGETS: Final = [Target(f"{name}: {CLOSED} / {OPEN}", 0.95, 1) for name in SHAPES]


async def run(context: Context) -> ScenarioResult:
    """Closed loops, interleaved; which of the two begins changes with each round."""
    if context.target is not None:
        return ScenarioResult("keys", [], [], 0, ["a router that runs already is not closed for a measurement"], [])
    found = Collected()
    context.begin("keys", 2 * len(SHAPES), extra=1)
    context.step("starting")
    async with voltroute(context.shards) as plain, voltroute(context.shards) as other:
        closed = await with_tenants(other, TENANTS)
        await asyncio.sleep(LEARNT_S)
        systems = {OPEN: plain, CLOSED: closed}
        for system in systems.values():
            await flood(system, Shape(1_000, 8), 1, EXPECTED["batch/1000"])
        for number in range(context.rounds):
            for name, shape in SHAPES.items():
                for which, system in sorted(systems.items(), reverse=bool(number % 2)):
                    context.step(f"{name}, {which}")
                    measured = await flood(system, shape, context.seconds, EXPECTED[name])
                    found.add(f"{name}: {which}", "readings/s", measured.rate)
                    found.proofs += measured.proof.acknowledged
                    for part, value in measured.cpu_us.parts().items():
                        found.add(f"{name}: {which}, {part} CPU", "us/reading", value)
    ratios = [found.ratio(f"{n}: {CLOSED} / {OPEN}", f"{n}: {CLOSED}", f"{n}: {OPEN}") for n in SHAPES]
    return ScenarioResult("keys", found.figures(*ratios), TARGETS, found.proofs, [], found.curves)
