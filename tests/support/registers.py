"""What registers mean, in plain Python: the oracle of the statements that count them; and counts to try them with."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support import readings

ROUNDING_KWH = 0.0005


@dataclass(frozen=True)
class Counted:
    """Energy of one reading in kWh; `most`: what the largest power allows (None: not known); `dips`: below the last."""

    energy: float
    dips: bool = False
    most: float | None = None

    @property
    def implausible(self) -> bool:
        return self.most is not None and self.energy > self.most


def count(
    registers: Mapping[float, float],
    maximum: float | None = None,
    power_kw: float | None = None,
    interval_s: float = 60.0,
) -> dict[float, Counted]:
    """Minute -> what was counted, of minute -> register."""
    found: dict[float, Counted] = {}
    before: tuple[float, float] | None = None
    high = risen = 0.0
    for minute, register in sorted(registers.items()):
        if before is None:
            found[minute] = Counted(0.0)
            high, risen = register, minute
        else:
            _, last = before
            most = None if power_kw is None else power_kw / 3600 * max((minute - risen) * 60, interval_s) + ROUNDING_KWH
            if register >= 0.9 * last:
                found[minute] = Counted(max(register - high, 0.0), register < last, most)
                risen = minute if register > high else risen
                high = max(high, register)
            else:
                rolls = maximum is not None and last >= 0.9 * maximum
                energy = max((maximum or 0.0) - high, 0.0) + register if rolls else register
                found[minute] = Counted(energy, most=most)
                high, risen = register, minute
        before = minute, register
    return found


def counts_of(dice: random.Random, device: str, size: int) -> list[dict[str, Any]]:
    """Counts of four days, most at the edges of minutes and hours: they rise, rest, dip, begin again and roll over."""
    times = {60.0 * dice.randrange(96) for _ in range(size // 4)} | {
        float(dice.randrange(4 * 1440)) for _ in range(size // 2)
    }
    base = float(dice.randrange(4 * 1440))
    times |= {base + dice.choice([0, 1e-6 / 60, -1e-6 / 60]) + n for n in range(size // 4)}
    count, low, found = 900.0, 0.0, []
    for minute in sorted(times):
        what = dice.random()
        if what < 0.55:
            count += dice.choice([0.25, 0.5, 1 / 3, 4])
        elif what < 0.65:
            low = 0.0 if low else dice.choice([1.0, 30.0])
        elif what < 0.7:
            count, low = dice.choice([0.0, 3.0, 40.0]), 0.0
        elif what < 0.73:
            count = 995.0
        found.append(readings.register(device, minute, max(count - low, 0)))
    return found
