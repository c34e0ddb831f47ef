"""What registers mean, in plain Python: the oracle of the statements that count them."""

from collections.abc import Mapping
from dataclasses import dataclass

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
