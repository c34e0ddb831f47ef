"""`statuses`: what Redis or Valkey in front of the shards brings to readers of statuses, and costs those who write."""

from pathlib import Path
from typing import Final

from bench.context import Context
from bench.measure import Shape, flood, saturate
from bench.results import Collected, ScenarioResult, Target
from bench.store import store, store_program
from bench.systems import System, voltroute
from bench.workload import Plan, new_readings

SHAPES: Final = {"single/64": Shape(1, 64), "batch/1000": Shape(1_000, 8)}
EXPECTED: Final = {"single/64": 60_000, "batch/1000": 400_000}
READERS: Final = 16
READS_MAX: Final = 20_000  # a second, that no system here reaches
DEVICES: Final = 200
PLAIN: Final = "shards alone"
KEPT: Final = "kept"
TARGETS: Final = [Target(f"{name}: {KEPT} / {PLAIN}", 0.8, 0.9) for name in SHAPES]


async def run(context: Context) -> ScenarioResult:
    """Closed loops, interleaved; which of the two begins changes with each round."""
    program = store_program()
    if context.target is not None or program is None:
        why = "needs a cluster of its own" if context.target is not None else "neither redis-server nor valkey is here"
        return ScenarioResult("statuses", [], [], 0, [why], [])
    found = Collected()
    context.begin("statuses", 2 * (len(SHAPES) + 1), extra=1)
    context.step("starting")
    async with (
        store(program) as kept_by,
        voltroute(context.shards) as plain,
        voltroute(context.shards, {"VOLTROUTE_REDIS_URL": kept_by.url}) as kept,
    ):
        systems = {PLAIN: plain, KEPT: kept}
        for system in systems.values():
            await flood(system, Shape(1_000, 8), 1, EXPECTED["batch/1000"])
        for number in range(context.rounds):
            turns = sorted(systems.items(), reverse=bool(number % 2))
            for name, shape in SHAPES.items():
                for which, system in turns:
                    context.step(f"{name}, {which}")
                    measured = await flood(system, shape, context.seconds, EXPECTED[name])
                    found.add(f"{name}: {which}", "readings/s", measured.rate)
                    found.proofs += measured.proof.acknowledged
                    for part, value in measured.cpu_us.parts().items():
                        found.add(f"{name}: {which}, {part} CPU", "us/reading", value)
            for which, system in turns:
                context.step(f"statuses, {which}")
                await _read(system, context.seconds, which, found)
    ratios = [found.ratio(f"{n}: {KEPT} / {PLAIN}", f"{n}: {KEPT}", f"{n}: {PLAIN}") for n in SHAPES]
    ratios.append(found.ratio(f"statuses: {KEPT} / {PLAIN}", f"statuses: {KEPT}", f"statuses: {PLAIN}"))
    return ScenarioResult("statuses", found.figures(*ratios), TARGETS, found.proofs, [Path(program).name], found.curves)


async def _read(system: System, seconds: float, which: str, found: Collected) -> None:
    """Statuses of devices that sent something once, over and over."""
    readings = new_readings(DEVICES)
    known = Plan(system.url)
    known.write(readings, range(DEVICES))
    await saturate(system, known, 1, None)
    plan = Plan(system.url)
    for number in range(int(READS_MAX * seconds)):
        plan.read(f"/v1/vehicles/{readings.device(number)}/status", "status")
    measured = await saturate(system, plan, READERS, seconds)
    found.add(f"statuses: {which}", "requests/s", measured.requests_rate)
    found.add(f"statuses: {which}, p50", "ms", measured.outcome.percentile_ms(50, "status"))
    for part, value in measured.cpu_us.parts().items():
        found.add(f"statuses: {which}, {part} CPU", "us/request", value)
