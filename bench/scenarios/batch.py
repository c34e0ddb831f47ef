"""`batch`: NDJSON of many readings, as gateways and devices after an outage send it."""

from collections import defaultdict
from typing import Final

from bench.baselines.copy import copy_ceiling
from bench.context import SEED, VOLTROUTE, Context
from bench.measure import Shape, flood
from bench.results import Figure, ScenarioResult, Target, ratio
from bench.workload import new_readings

SIZES: Final = (100, 1_000, 10_000)
CONNECTIONS: Final = 8
EXPECTED_RATE: Final = 400_000  # readings a second that no system here reaches
CEILING: Final = "copy-ceiling"
CEILING_BATCHES: Final = 60
TARGETS: Final = [
    Target("batch/1000: voltroute / copy-ceiling", 0.5, 0.8),
    Target("batch/1000: voltroute / seed-design", 8, 15),
    Target("batch/1000: router CPU", 6, 4, higher=False),
    Target("batch/1000: PostgreSQL CPU", 12, 9, higher=False),
]


async def run(context: Context) -> ScenarioResult:
    """Closed loops for each size, interleaved with the baselines."""
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    proofs = 0
    async with context.systems() as made:
        systems = {name: system for name, system in made.items() if name in {VOLTROUTE, SEED}}
        for system in systems.values():
            await flood(system, Shape(1_000, CONNECTIONS), 1, EXPECTED_RATE)
        for number in range(context.rounds):
            for size in SIZES:
                for name, system in systems.items():
                    context.say(f"batch: round {number + 1}, {size:,} a request, {name}")
                    measured = await flood(system, Shape(size, CONNECTIONS), context.seconds, EXPECTED_RATE)
                    rates[f"batch/{size}: {name}"].append(measured.rate)
                    proofs += measured.proof.acknowledged if measured.proof else 0
                    if name == VOLTROUTE:
                        cpu[f"batch/{size}: router CPU"].append(measured.cpu_us.server)
                        cpu[f"batch/{size}: PostgreSQL CPU"].append(measured.cpu_us.postgres)
                        cpu[f"batch/{size}: generator CPU"].append(measured.cpu_us.generator)
            if systems[VOLTROUTE].shards:
                context.say(f"batch: round {number + 1}, {CEILING}")
                rate, _ = await copy_ceiling(systems[VOLTROUTE].shards, new_readings(1), CEILING_BATCHES, 1_000)
                rates[f"batch/1000: {CEILING}"].append(rate)
    figures = [Figure(name, "readings/s", values) for name, values in rates.items()]
    figures += [Figure(name, "us/reading", values) for name, values in cpu.items()]
    for size in SIZES:
        ours = rates[f"batch/{size}: {VOLTROUTE}"]
        for other in (SEED, CEILING):
            if theirs := rates.get(f"batch/{size}: {other}"):
                figures.append(ratio(f"batch/{size}: {VOLTROUTE} / {other}", ours, theirs))
    notes = [] if SEED in systems else ["no baselines: the router was not started by the suite"]
    return ScenarioResult("batch", figures, TARGETS, proofs, notes)
