"""What a run found: figures with all their values, ratios of figures of one round, targets, as JSON."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from bench.load import Outcome
from bench.workload import Plan

PERCENTS: Final = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99)
NO_BASELINES: Final = "no baselines: the router was not started by the suite"


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


class Curve(msgspec.Struct, frozen=True):
    """Points to plot: throughput over time ("s", "readings/s") or latency over percentiles ("%", "ms")."""

    name: str
    x_unit: str
    y_unit: str
    points: list[tuple[float, float]]


class ScenarioResult(msgspec.Struct, frozen=True):
    """Figures of one scenario; `proofs` counts the readings whose storage the ledger confirmed."""

    name: str
    figures: list[Figure]
    targets: list[Target]
    proofs: int
    notes: list[str]
    curves: list[Curve] = []

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


class Collected:
    """Values of figures as the rounds bring them, in order of appearance."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self._units: dict[str, str] = {}
        self.curves: list[Curve] = []
        self.proofs = 0

    def add(self, name: str, unit: str, value: float) -> None:
        """One round's value of a figure."""
        self.values.setdefault(name, []).append(value)
        self._units[name] = unit

    def curve(self, curve: Curve) -> None:
        """A curve; a later round's replaces it."""
        self.curves = [other for other in self.curves if other.name != curve.name] + [curve]

    def latencies(self, prefix: str, outcome: Outcome, topics: Mapping[str, str]) -> None:
        """p50 and p99 of some topics (topic -> how to call it), and their percentiles as curves."""
        for topic, shown in topics.items():
            for percent in (50, 99):
                self.add(f"{prefix}: {shown} p{percent}", "ms", outcome.percentile_ms(percent, topic))
            points = [(percent, outcome.percentile_ms(percent, topic)) for percent in PERCENTS]
            self.curve(Curve(f"{prefix}: {shown}", "%", "ms", points))

    def figures(self, *ratios: Figure | None) -> list[Figure]:
        """All figures, ratios last."""
        found = [Figure(name, self._units[name], values) for name, values in self.values.items()]
        return found + [ratio for ratio in ratios if ratio is not None]

    def ratio(self, name: str, above: str, below: str) -> Figure | None:
        """Round by round, one figure over another; None when one of them was not measured."""
        if above not in self.values or below not in self.values:
            return None
        return ratio(name, self.values[above], self.values[below])


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> Figure:
    """Round by round, one series over the other: what the machine did in a round cancels out."""
    return Figure(name, "x", [a / b for a, b in zip(above, below, strict=True)])


def throughput(name: str, plan: Plan, outcome: Outcome, step_s: float = 0.25) -> Curve:
    """Readings acknowledged a second, over time."""
    counts = [0] * (int(outcome.seconds / step_s) + 1)
    for number, moment in zip(outcome.acknowledged, outcome.ended_at, strict=True):
        counts[min(int(moment / step_s), len(counts) - 1)] += len(plan.requests[number].numbers)
    return Curve(name, "s", "readings/s", [(at * step_s, count / step_s) for at, count in enumerate(counts)])


_encoder: Final = msgspec.json.Encoder()


def encode(run: Run) -> bytes:
    """A run as JSON."""
    return msgspec.json.format(_encoder.encode(run), indent=1)


def decode(content: bytes) -> Run:
    """A run from JSON; msgspec.ValidationError when it is not one."""
    return msgspec.json.decode(content, type=Run)
