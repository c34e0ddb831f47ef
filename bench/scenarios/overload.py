"""`overload`: four times what the router can take, offered in an open loop."""

import asyncio
from collections import defaultdict
from typing import Final

import psutil

from bench.context import VOLTROUTE, Context
from bench.measure import Shape, flood, offered
from bench.results import Figure, ScenarioResult, Target
from bench.systems import System

CAPACITY_SHAPE: Final = Shape(1_000, 8)
SHAPE: Final = Shape(1_000, 512)  # more readings under way than all queues together may hold
EXPECTED_RATE: Final = 400_000
TIMES: Final = 4
SAMPLE_S: Final = 0.1
TARGETS: Final = [
    Target("overload: router memory", 1_024, 512, higher=False),
    Target("overload: stored / capacity", 0.5, 0.8),
]


async def run(context: Context) -> ScenarioResult:
    """Capacity in a closed loop, then four times that; the ledger must hold, and memory stay flat."""
    values: dict[str, list[float]] = defaultdict(list)
    answers: dict[int, int] = defaultdict(int)
    proofs = 0
    async with context.systems() as systems:
        system = systems[VOLTROUTE]
        await flood(system, CAPACITY_SHAPE, 1, EXPECTED_RATE)
        for number in range(context.rounds):
            context.say(f"overload: round {number + 1}, capacity")
            capacity = (await flood(system, CAPACITY_SHAPE, context.seconds, EXPECTED_RATE)).rate
            context.say(f"overload: round {number + 1}, {TIMES} times that")
            peak = [_memory(system)]
            sampling = asyncio.create_task(_sample(system, peak))
            outcome, proof = await offered(system, SHAPE, capacity * TIMES / SHAPE.size, context.seconds)
            sampling.cancel()
            stored = len(outcome.acknowledged) * SHAPE.size
            values["overload: stored / capacity"].append(stored / outcome.seconds / capacity)
            values["overload: p99"].append(outcome.percentile_ms(99))
            if peak[0]:
                values["overload: router memory"].append(max(peak) / 2**20)
            proofs += proof.acknowledged if proof else 0
            for status, count in outcome.statuses.items():
                answers[status] += count
    units = {"overload: p99": "ms", "overload: router memory": "MiB"}
    figures = [Figure(name, units.get(name, "x"), found) for name, found in values.items()]
    shed = ", ".join(f"{count:,} x {status}" for status, count in sorted(answers.items()))
    return ScenarioResult("overload", figures, TARGETS, proofs, [f"answers: {shed}"])


def _memory(system: System) -> float:
    return float(psutil.Process(system.server_pid).memory_info().rss) if system.server_pid else 0.0


async def _sample(system: System, peak: list[float]) -> None:
    while True:
        peak.append(_memory(system))
        await asyncio.sleep(SAMPLE_S)
