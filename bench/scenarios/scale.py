"""`scale`: what a reading costs on one, two and four shards of this one machine."""

from contextlib import AsyncExitStack
from typing import Final

from bench.context import Context
from bench.measure import Shape, flood
from bench.results import Collected, ScenarioResult, Target
from bench.systems import System, voltroute

COUNTS: Final = (1, 2, 4)
SHAPE: Final = Shape(1_000, 8)
EXPECTED_RATE: Final = 400_000
TARGETS: Final = [Target("scale: cost on 4 shards / cost on 1", 1.15, 1.05, higher=False)]


async def run(context: Context) -> ScenarioResult:
    """CPU of router and PostgreSQL for a reading, on three clusters that take turns."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("scale", [], TARGETS, 0, ["needs clusters of its own: not run against --url"])
    context.begin("scale", len(COUNTS), extra=len(COUNTS))
    async with AsyncExitStack() as stack:
        systems: dict[int, System] = {}
        for count in COUNTS:
            context.step(f"starting {count} shards")
            systems[count] = await stack.enter_async_context(voltroute(count))
            await flood(systems[count], SHAPE, 1, EXPECTED_RATE)
        for _ in range(context.rounds):
            for count, system in systems.items():
                context.step(f"{count} shards")
                measured = await flood(system, SHAPE, context.seconds, EXPECTED_RATE)
                cost = measured.cpu_us.server + measured.cpu_us.postgres
                found.add(f"scale: cost on {count} shards", "us/reading", cost)
                found.proofs += measured.proof.acknowledged
    growth = found.ratio("scale: cost on 4 shards / cost on 1", "scale: cost on 4 shards", "scale: cost on 1 shards")
    return ScenarioResult("scale", found.figures(growth), TARGETS, found.proofs, [])
