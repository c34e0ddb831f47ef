"""`scale`: what a reading costs on one, two and four shards of this one machine."""

from collections import defaultdict
from contextlib import AsyncExitStack
from typing import Final

from bench.context import Context
from bench.measure import Shape, flood
from bench.results import Figure, ScenarioResult, Target
from bench.systems import System, voltroute

COUNTS: Final = (1, 2, 4)
SHAPE: Final = Shape(1_000, 8)
EXPECTED_RATE: Final = 400_000
TARGETS: Final = [Target("scale: cost on 4 shards / cost on 1", 1.15, 1.05, higher=False)]


async def run(context: Context) -> ScenarioResult:
    """CPU of router and PostgreSQL for a reading, on three clusters that take turns."""
    cost: dict[int, list[float]] = defaultdict(list)
    proofs = 0
    if context.target is not None:
        return ScenarioResult("scale", [], TARGETS, 0, ["needs clusters of its own: not run against --url"])
    async with AsyncExitStack() as stack:
        systems: dict[int, System] = {}
        for count in COUNTS:
            context.say(f"scale: starting {count} shards")
            systems[count] = await stack.enter_async_context(voltroute(count))
            await flood(systems[count], SHAPE, 1, EXPECTED_RATE)
        for number in range(context.rounds):
            for count, system in systems.items():
                context.say(f"scale: round {number + 1}, {count} shards")
                measured = await flood(system, SHAPE, context.seconds, EXPECTED_RATE)
                cost[count].append(measured.cpu_us.server + measured.cpu_us.postgres)
                proofs += measured.proof.acknowledged if measured.proof else 0
    figures = [Figure(f"scale: cost on {count} shards", "us/reading", values) for count, values in cost.items()]
    growth = [four / one for one, four in zip(cost[1], cost[4], strict=True)]
    figures.append(Figure("scale: cost on 4 shards / cost on 1", "x", growth))
    return ScenarioResult("scale", figures, TARGETS, proofs, [])
