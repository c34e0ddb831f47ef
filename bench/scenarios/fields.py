"""`fields`: what a field more costs, of a kind that was declared, beside a kind of the seed's."""

import asyncio
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Final

from bench.commands import command
from bench.context import Context
from bench.load import closed_loop
from bench.measure import MeasurementError, saturate
from bench.results import Collected, ScenarioResult
from bench.systems import System, voltroute
from bench.workload import VEHICLE, Kind, Plan, even_plan, new_readings

COUNTS: Final = (3, 20)
SIZE: Final = 1_000
CONNECTIONS: Final = 8
DEVICES: Final = 10_000
EXPECTED_RATE: Final = 400_000
LEARN_TRIES_MAX: Final = 300
LEARN_PAUSE_S: Final = 0.1


def _kind(count: int, *, required: bool) -> Kind:
    name = f"{'whole' if required else 'some'}{count}"
    values = "".join(f',"f{at:02d}":{at}.25' for at in range(count))
    body = f'{{"{name}Id":"%s"{values},"timestamp":"%s"}}'.encode()
    return Kind(name, body, f"{name}_telemetry_history", f"{name}_current_status", f"{name}_id")


async def _declare(system: System, kind: Kind, count: int, *, required: bool) -> None:
    fields = [{"name": f"f{at:02d}", "required": required} for at in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kind.json"
        await asyncio.to_thread(file.write_text, json.dumps({"name": kind.name, "fields": fields}))
        await command(system, "kind", "create", str(file))
    plan = Plan(system.url)
    plan.read(f"/v1/{kind.name}s", "learnt")
    for _ in range(LEARN_TRIES_MAX):
        if set((await closed_loop(plan, 1, None)).all_statuses()) == {200}:
            return
        await asyncio.sleep(LEARN_PAUSE_S)
    message = f"the router did not hear of {kind.name}"
    raise MeasurementError(message)


async def run(context: Context) -> ScenarioResult:
    """CPU of router and PostgreSQL for a reading: whole readings, and such as a status keeps each value of."""
    found = Collected()
    if context.target is not None:
        return ScenarioResult("fields", [], [], 0, ["needs a cluster of its own: not run against --url"])
    context.begin("fields", 1 + 2 * len(COUNTS), extra=1)
    context.step("starting")
    async with voltroute(context.shards) as system:
        kinds = [VEHICLE]
        for count, required in product(COUNTS, (True, False)):
            kinds.append(_kind(count, required=required))
            await _declare(system, kinds[-1], count, required=required)
        for kind in kinds:
            await saturate(system, even_plan(system.url, new_readings(DEVICES, kind), SIZE, 100), CONNECTIONS, None)
        for _ in range(context.rounds):
            for kind in kinds:
                context.step(kind.name)
                await _measure(system, kind, context.seconds, found)
    _add_costs(found)
    few = COUNTS[0]
    same = found.ratio(f"fields: whole{few} / vehicle", f"fields: whole{few}", "fields: vehicle")
    return ScenarioResult("fields", found.figures(same), [], found.proofs, [])


async def _measure(system: System, kind: Kind, seconds: float, found: Collected) -> None:
    requests = int(EXPECTED_RATE * seconds / SIZE) + CONNECTIONS
    plan = even_plan(system.url, new_readings(DEVICES, kind), SIZE, requests)
    measured = await saturate(system, plan, CONNECTIONS, seconds)
    found.add(f"fields: {kind.name}", "readings/s", measured.rate)
    found.proofs += measured.proof.acknowledged
    for part, value in measured.cpu_us.parts().items():
        found.add(f"fields: {kind.name}, {part} CPU", "us/reading", value)


def _add_costs(found: Collected) -> None:
    """What one field more costs, round by round."""
    few, many = COUNTS
    for name, part in product(("whole", "some"), ("router", "PostgreSQL")):
        costs = (found.values[f"fields: {name}{count}, {part} CPU"] for count in COUNTS)
        for less, more in zip(*costs, strict=True):
            found.add(f"fields: a field more of `{name}`, {part} CPU", "us/reading", (more - less) / (many - few))
