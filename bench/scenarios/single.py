"""`single`: one reading a POST, as devices do it once a minute."""

from typing import Final

from bench.context import Context
from bench.measure import Shape, flood, offer
from bench.results import NO_BASELINES, Collected, ScenarioResult, Target
from bench.systems import NULL, SEED, VOLTROUTE, System
from bench.workload import WRITE

CONNECTIONS: Final = (64, 256)
EXPECTED_RATE: Final = 60_000  # readings a second that no system here reaches with one a request
OPEN_LOOP_SHARE: Final = 0.5
OPEN: Final = "single/open loop"
TARGETS: Final = [
    Target("single/64: voltroute / null", 0.65, 0.75),
    Target("single/256: voltroute / null", 1.05, 1.2),
    Target("single/64: voltroute / seed-design", 5, 8),
]


async def run(context: Context) -> ScenarioResult:
    """Closed loops for the throughput, interleaved; then an open loop at half of it for honest latencies."""
    found = Collected()
    context.begin("single", len(CONNECTIONS) * (1 if context.target else 3) + 1, extra=1)
    context.step("starting")
    async with context.systems() as systems:
        for system in systems.values():
            await flood(system, Shape(1, 16), 1, EXPECTED_RATE)
        for _ in range(context.rounds):
            for connections in CONNECTIONS:
                for name, system in systems.items():
                    context.step(f"{connections} connections, {name}")
                    measured = await flood(system, Shape(1, connections), context.seconds, EXPECTED_RATE)
                    found.add(f"single/{connections}: {name}", "readings/s", measured.rate)
                    found.proofs += measured.proof.acknowledged
                    for part, value in measured.cpu_us.parts().items():
                        found.add(f"single/{connections}: {name}, {part} CPU", "us/reading", value)
            rate = found.values["single/64: voltroute"][-1] * OPEN_LOOP_SHARE
            for name in (VOLTROUTE, NULL):
                if name in systems:
                    context.step(f"open loop at {rate:,.0f}/s, {name}")
                    await _offer(systems[name], rate, context.seconds, found)
    ratios = [
        found.ratio(f"single/{n}: {VOLTROUTE} / {other}", f"single/{n}: {VOLTROUTE}", f"single/{n}: {other}")
        for n in CONNECTIONS
        for other in (NULL, SEED)
    ]
    ratios.append(
        found.ratio("single/open loop: p99, voltroute / null", f"{OPEN}: latency p99", f"{OPEN}, null: latency p99")
    )
    notes = [NO_BASELINES] if context.target else []
    return ScenarioResult("single", found.figures(*ratios), TARGETS, found.proofs, notes, found.curves)


async def _offer(system: System, rate: float, seconds: float, found: Collected) -> None:
    """Honest latencies at `rate` a second; those of `null` are what machine and generator add to them."""
    plan = Shape(1, 256).plan(system.url, int(rate * seconds))
    outcome, proof = await offer(system, plan, 256, rate)
    found.proofs += proof.acknowledged
    name = OPEN if system.name == VOLTROUTE else f"{OPEN}, {system.name}"
    found.latencies(name, outcome, {WRITE: "latency"})
    found.add(f"{name}: latency p99.9", "ms", outcome.percentile_ms(99.9))
