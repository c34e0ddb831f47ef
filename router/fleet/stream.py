"""The readings of a fleet as a network delivers them: some twice, some late, some out of order. Pure."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from router.fleet.devices import Fleet, meter_reading, vehicle_reading


@dataclass(frozen=True)
class Rates:
    """Shares (0 to 1) of readings that arrive again, after minutes, or after a younger one of the same device."""

    duplicate: float = 0.01
    late: float = 0.01
    out_of_order: float = 0.02


@dataclass(order=True)
class _Held:
    due: datetime
    number: int
    reading: dict[str, Any] = field(compare=False)


def stream(fleet: Fleet, start: datetime, step: timedelta, rates: Rates) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """(when it is sent, reading), one new reading each `step`, endlessly, going around the devices."""
    held: list[_Held] = []
    number = 0
    moment = start
    lap = step * len(fleet.bays) * 2
    while True:
        while held and held[0].due <= moment:
            waiting = heapq.heappop(held)
            yield moment, waiting.reading
        bay = fleet.bays[number // 2 % len(fleet.bays)]
        reading = (vehicle_reading if number % 2 else meter_reading)(fleet, bay, moment)
        chance = fleet.noise.random()
        if chance < rates.late:
            delay = timedelta(seconds=fleet.noise.uniform(5, 60))
            heapq.heappush(held, _Held(moment + delay, number, reading))
        elif chance < rates.late + rates.out_of_order:
            heapq.heappush(held, _Held(moment + lap * 1.5, number, reading))
        else:
            yield moment, reading
            if fleet.noise.random() < rates.duplicate:
                yield moment, reading
        number += 1
        moment = start + step * number
