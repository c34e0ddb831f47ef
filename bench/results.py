"""What a run found: figures with all their values, ratios of figures of one round, targets, as JSON."""

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One quantity, a value for each round."""

    name: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(greatest - least) / median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0


class Target(msgspec.Struct, frozen=True):
    """What a figure must reach and should reach. Not `higher`: it must stay below."""

    figure: str
    at_least: float
    aim: float
    higher: bool = True

    def reached(self, value: float) -> bool:
        """Whether the value is good enough."""
        return value >= self.at_least if self.higher else value <= self.at_least

    def aimed(self, value: float) -> bool:
        """Whether the value is as good as hoped."""
        return value >= self.aim if self.higher else value <= self.aim


class ScenarioResult(msgspec.Struct, frozen=True):
    """Figures of one scenario; `proofs` counts the readings whose storage the ledger confirmed."""

    name: str
    figures: list[Figure]
    targets: list[Target]
    proofs: int
    notes: list[str]

    def figure(self, name: str) -> Figure | None:
        """The figure of that name, if it was measured."""
        return next((figure for figure in self.figures if figure.name == name), None)

    def failed(self) -> list[Target]:
        """Targets that were measured and missed."""
        found = ((target, self.figure(target.figure)) for target in self.targets)
        return [target for target, figure in found if figure is not None and not target.reached(figure.median)]


class Run(msgspec.Struct, frozen=True):
    """One run of the suite."""

    started_at: str
    machine: dict[str, str]
    options: dict[str, str]
    scenarios: list[ScenarioResult]


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> Figure:
    """Round by round, one series over the other: what the machine did in a round cancels out."""
    return Figure(name, "x", [a / b for a, b in zip(above, below, strict=True)])


_encoder: Final = msgspec.json.Encoder()


def encode(run: Run) -> bytes:
    """A run as JSON."""
    return msgspec.json.format(_encoder.encode(run), indent=1)


def decode(content: bytes) -> Run:
    """A run from JSON; msgspec.ValidationError when it is not one."""
    return msgspec.json.decode(content, type=Run)
