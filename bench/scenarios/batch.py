"""`batch`: NDJSON of many readings, as gateways and devices after an outage send it."""

from typing import Final

from bench.baselines.copy import copy_ceiling
from bench.context import Context
from bench.measure import Shape, saturate
from bench.results import NO_BASELINES, Collected, ScenarioResult, Target, throughput
from bench.systems import SEED, VOLTROUTE
from bench.workload import new_readings

SIZES: Final = (100, 500, 1_000, 10_000)
CONNECTIONS: Final = 8
EXPECTED_RATE: Final = 400_000  # readings a second that no system here reaches
CEILING: Final = "copy-ceiling"
CEILING_SIZES: Final = (500, 1_000)
CEILING_READINGS: Final = 60_000
TARGETS: Final = [
    Target("batch/500: voltroute / copy-ceiling", 0.85, 0.95),
    Target("batch/1000: voltroute / copy-ceiling", 0.5, 0.8),
    Target("batch/1000: voltroute / seed-design", 8, 15),
    Target("batch/1000: voltroute, router CPU", 6, 4, higher=False),
    Target("batch/1000: voltroute, PostgreSQL CPU", 12, 9, higher=False),
]


async def run(context: Context) -> ScenarioResult:
    """Closed loops for each size, interleaved with the baselines."""
    found = Collected()
    context.begin("batch", len(SIZES) * (1 if context.target else 2) + len(CEILING_SIZES), extra=1)
    context.step("starting")
    async with context.systems() as made:
        systems = {name: system for name, system in made.items() if name in {VOLTROUTE, SEED}}
        ours = systems[VOLTROUTE]
        for system in systems.values():
            await saturate(system, Shape(1_000, CONNECTIONS).plan(system.url, EXPECTED_RATE // 1_000), CONNECTIONS, 1)
        for _ in range(context.rounds):
            for size in SIZES:
                shape = Shape(size, CONNECTIONS)
                for name, system in systems.items():
                    context.step(f"{size:,} a request, {name}")
                    requests = int(EXPECTED_RATE * context.seconds / size) + CONNECTIONS
                    plan = shape.plan(system.url, requests)
                    measured = await saturate(system, plan, CONNECTIONS, context.seconds)
                    found.add(f"batch/{size}: {name}", "readings/s", measured.rate)
                    found.curve(throughput(f"batch/{size}: {name}", plan, measured.outcome))
                    found.proofs += measured.proof.acknowledged
                    for part, value in measured.cpu_us.parts().items():
                        found.add(f"batch/{size}: {name}, {part} CPU", "us/reading", value)
            for size in CEILING_SIZES:
                context.step(f"{size:,} a transaction, {CEILING}")
                if ours.shards:
                    rate = await copy_ceiling(ours.shards, new_readings(CEILING_READINGS), size)
                    found.add(f"batch/{size}: {CEILING}", "readings/s", rate)
    ratios = [
        found.ratio(f"batch/{n}: {VOLTROUTE} / {other}", f"batch/{n}: {VOLTROUTE}", f"batch/{n}: {other}")
        for n in SIZES
        for other in (SEED, CEILING)
    ]
    ratios.append(found.ratio(f"batch/1000: {CEILING} / {SEED}", f"batch/1000: {CEILING}", f"batch/1000: {SEED}"))
    notes = [NO_BASELINES] if context.target else []
    return ScenarioResult("batch", found.figures(*ratios), TARGETS, found.proofs, notes, found.curves)
