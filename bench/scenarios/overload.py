"""`overload`: four times what the router can take, offered in an open loop."""

import asyncio
from collections import defaultdict
from typing import Final

from bench.context import Context
from bench.measure import Shape, flood, offer
from bench.results import Collected, ScenarioResult, Target, throughput
from bench.systems import VOLTROUTE, System

CAPACITY_SHAPE: Final = Shape(1_000, 8)
SHAPE: Final = Shape(1_000, 512)  # more readings under way than all queues together may hold
EXPECTED_RATE: Final = 400_000
TIMES: Final = 4
SAMPLE_S: Final = 0.1
TARGETS: Final = [
    Target("overload: router memory", 1_024, 512, higher=False),
    Target("overload: memory, second half / first half", 1.25, 1.1, higher=False),
    Target("overload: stored / capacity", 0.5, 0.8),
]


async def run(context: Context) -> ScenarioResult:
    """Capacity in a closed loop, then four times that; the ledger must hold, and memory stay flat."""
    found = Collected()
    answers: dict[int, int] = defaultdict(int)
    context.begin("overload", 2, extra=1)
    context.step("starting")
    async with context.systems() as systems:
        system = systems[VOLTROUTE]
        await flood(system, CAPACITY_SHAPE, 1, EXPECTED_RATE)
        for _ in range(context.rounds):
            context.step("capacity")
            capacity = (await flood(system, CAPACITY_SHAPE, context.seconds, EXPECTED_RATE)).rate
            context.step(f"{TIMES} times that")
            plan = SHAPE.plan(system.url, int(capacity * TIMES / SHAPE.size * context.seconds))
            memory: list[float] = []
            sampling = asyncio.create_task(_sample(system, memory))
            outcome, proof = await offer(system, plan, SHAPE.connections, capacity * TIMES / SHAPE.size)
            sampling.cancel()
            stored = len(outcome.acknowledged) * SHAPE.size
            found.add("overload: stored / capacity", "x", stored / outcome.seconds / capacity)
            found.add("overload: p99", "ms", outcome.percentile_ms(99))
            found.curve(throughput("overload: stored", plan, outcome))
            if system.server_pid:
                half = len(memory) // 2
                found.add("overload: router memory", "MiB", max(memory))
                growth = max(memory[half:]) / max(memory[:half] or memory)
                found.add("overload: memory, second half / first half", "x", growth)
            found.proofs += proof.acknowledged
            for status, count in outcome.all_statuses().items():
                answers[status] += count
    shed = ", ".join(f"{count:,} x {status}" for status, count in sorted(answers.items()))
    return ScenarioResult("overload", found.figures(), TARGETS, found.proofs, [f"answers: {shed}"], found.curves)


async def _sample(system: System, memory: list[float]) -> None:
    while True:
        memory.append(system.memory())
        await asyncio.sleep(SAMPLE_S)
