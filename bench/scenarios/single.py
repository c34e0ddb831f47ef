"""`single`: one reading a POST, as devices do it once a minute."""

from collections import defaultdict
from typing import Final

from bench.context import NULL, SEED, VOLTROUTE, Context
from bench.measure import Shape, flood, offered
from bench.results import Figure, ScenarioResult, Target, ratio

CONNECTIONS: Final = (64, 256)
EXPECTED_RATE: Final = 40_000  # readings a second that no system here reaches with one a request
OPEN_LOOP_SHARE: Final = 0.5
TARGETS: Final = [
    Target("single/64: voltroute / null", 0.5, 0.7),
    Target("single/64: voltroute / seed-design", 5, 8),
]


async def run(context: Context) -> ScenarioResult:
    """Closed loops for the throughput, interleaved; then an open loop at half of it for honest latencies."""
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    latency: dict[str, list[float]] = defaultdict(list)
    proofs = 0
    async with context.systems() as systems:
        for system in systems.values():
            await flood(system, Shape(1, 16), 1, EXPECTED_RATE)
        for number in range(context.rounds):
            for connections in CONNECTIONS:
                for name, system in systems.items():
                    context.say(f"single: round {number + 1}, {connections} connections, {name}")
                    measured = await flood(system, Shape(1, connections), context.seconds, EXPECTED_RATE)
                    rates[f"single/{connections}: {name}"].append(measured.rate)
                    proofs += measured.proof.acknowledged if measured.proof else 0
                    if name == VOLTROUTE:
                        cpu[f"single/{connections}: router CPU"].append(measured.cpu_us.server)
                        cpu[f"single/{connections}: PostgreSQL CPU"].append(measured.cpu_us.postgres)
                        cpu[f"single/{connections}: generator CPU"].append(measured.cpu_us.generator)
            rate = rates["single/64: voltroute"][-1] * OPEN_LOOP_SHARE
            context.say(f"single: round {number + 1}, open loop at {rate:,.0f}/s")
            outcome, proof = await offered(systems[VOLTROUTE], Shape(1, 256), rate, context.seconds)
            proofs += proof.acknowledged if proof else 0
            for percent in (50, 99, 99.9):
                latency[f"single/open loop: p{percent:g}"].append(outcome.percentile_ms(percent))
    figures = [Figure(name, "readings/s", values) for name, values in rates.items()]
    figures += [Figure(name, "us/reading", values) for name, values in cpu.items()]
    figures += [Figure(name, "ms", values) for name, values in latency.items()]
    for connections in CONNECTIONS:
        ours = rates[f"single/{connections}: {VOLTROUTE}"]
        for other in (NULL, SEED):
            if theirs := rates.get(f"single/{connections}: {other}"):
                figures.append(ratio(f"single/{connections}: {VOLTROUTE} / {other}", ours, theirs))
    notes = [] if len(systems) > 1 else ["no baselines: the router was not started by the suite"]
    return ScenarioResult("single", figures, TARGETS, proofs, notes)
