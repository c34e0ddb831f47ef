"""`overload`: four times what the router can take, offered in an open loop: batches, and single readings."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from bench.context import Context
from bench.measure import Shape, flood, offer
from bench.results import Collected, ScenarioResult, Target, throughput
from bench.systems import VOLTROUTE, System


@dataclass(frozen=True)
class _Load:
    """What capacity is measured with, and what is offered then; readings a second that no system here reaches."""

    capacity: Shape
    offered: Shape
    expected_rate: int


LOADS: Final = {
    "batches": _Load(Shape(1_000, 8), Shape(1_000, 512), 400_000),
    "single": _Load(Shape(1, 256), Shape(1, 2_048), 60_000),
}
TIMES: Final = 4
SAMPLE_S: Final = 0.1
TARGETS: Final = [
    Target("overload: batches, router memory", 1_024, 512, higher=False),
    *(
        target
        for name in LOADS
        for target in (
            Target(f"overload: {name}, memory, second half / first half", 1.25, 1.1, higher=False),
            Target(f"overload: {name}, stored / capacity", 0.5, 0.8),
            Target(f"overload: {name}, p99 of the stored / at capacity", 4, 2, higher=False),
        )
    ),
]


async def run(context: Context) -> ScenarioResult:
    """Capacity in a closed loop, then four times that; the ledger must hold, and memory stay flat."""
    found = Collected()
    answers: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    context.begin("overload", 2 * len(LOADS), extra=1)
    context.step("starting")
    async with context.systems() as systems:
        system = systems[VOLTROUTE]
        await flood(system, LOADS["batches"].capacity, 1, LOADS["batches"].expected_rate)
        for _ in range(context.rounds):
            for name, load in LOADS.items():
                await _one(context, system, name, load, found, answers[name])
    told = [
        f"{name}: " + ", ".join(f"{count:,} x {status or 'no answer'}" for status, count in sorted(each.items()))
        for name, each in answers.items()
    ]
    return ScenarioResult("overload", found.figures(), TARGETS, found.proofs, told, found.curves)


async def _one(
    context: Context, system: System, name: str, load: _Load, found: Collected, answers: dict[int, int]
) -> None:
    context.step(f"{name}: capacity")
    at_capacity = await flood(system, load.capacity, context.seconds, load.expected_rate)
    capacity, size = at_capacity.rate, load.offered.size
    context.step(f"{name}: {TIMES} times that")
    plan = load.offered.plan(system.url, int(capacity * TIMES / size * context.seconds))
    memory: list[float] = []
    sampling = asyncio.create_task(_sample(system, memory))
    before = system.cpu()
    outcome, proof = await offer(system, plan, load.offered.connections, capacity * TIMES / size)
    sampling.cancel()
    for part, value in system.cpu().since(before).parts().items():
        found.add(f"overload: {name}, {part} CPU of the time", "x", value / outcome.seconds)
    for part, value in at_capacity.cpu_us.parts().items():
        found.add(f"overload: {name}, {part} CPU of the time at capacity", "x", value * at_capacity.rate / 1e6)
    title = f"overload: {name}"
    found.add(f"{title}, offered / capacity", "x", outcome.sent * size / outcome.seconds / capacity)
    found.add(f"{title}, stored / capacity", "x", len(outcome.acknowledged) * size / outcome.seconds / capacity)
    found.add(f"{title}, p99 at capacity", "ms", at_capacity.outcome.served_ms(99))
    found.add(f"{title}, p99 of the stored", "ms", outcome.served_ms(99))
    ratio = outcome.served_ms(99) / at_capacity.outcome.served_ms(99)
    found.add(f"{title}, p99 of the stored / at capacity", "x", ratio)
    found.curve(throughput(f"{title}, stored", plan, outcome))
    if system.server_pid:
        half = len(memory) // 2
        found.add(f"{title}, router memory", "MiB", max(memory))
        growth = max(memory[half:]) / max(memory[:half] or memory)
        found.add(f"{title}, memory, second half / first half", "x", growth)
    found.proofs += proof.acknowledged
    for status, count in outcome.all_statuses().items():
        answers[status] += count
    answers[0] += outcome.lost


async def _sample(system: System, memory: list[float]) -> None:
    while True:
        memory.append(system.memory())
        await asyncio.sleep(SAMPLE_S)
