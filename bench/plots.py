"""Plots of a scenario, as SVG images inside a page."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes

from bench.results import Curve, Figure, ScenarioResult, Target

mpl.use("Agg")
from matplotlib import pyplot as plt

CPU_PARTS = ("router", "PostgreSQL", "generator")
_COLOURS = ("#4c78a8", "#f58518", "#bab0ac")


def plots(scenario: ScenarioResult) -> str:
    """Ratios and figures by unit as bars, the split of CPU time, latencies, throughput over time."""
    by_unit: dict[str, list[Figure]] = {}
    for figure in scenario.figures:
        if not _is_cpu(figure):
            by_unit.setdefault(figure.unit, []).append(figure)
    made = [_bars(unit, by_unit[unit], scenario.targets) for unit in sorted(by_unit, key=lambda unit: unit != "x")]
    made.append(_cpu_split([figure for figure in scenario.figures if _is_cpu(figure)]))
    made.append(_percentiles([curve for curve in scenario.curves if curve.x_unit == "%"]))
    made.append(_over_time([curve for curve in scenario.curves if curve.x_unit == "s"]))
    return "".join(made)


def _is_cpu(figure: Figure) -> bool:
    return figure.unit == "us/reading" and figure.name.endswith(" CPU")


def _image(axes: Axes, alt: str) -> str:
    image = io.BytesIO()
    plt.sca(axes)
    plt.savefig(image, format="svg", bbox_inches="tight")
    plt.close("all")
    data = base64.b64encode(image.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def _axes(rows: int) -> Axes:
    _, axes = plt.subplots(figsize=(9, 0.45 * rows + 1))
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _bars(unit: str, figures: Sequence[Figure], targets: Iterable[Target]) -> str:
    """Medians with the range of the rounds; a line where a target lies."""
    axes = _axes(len(figures))
    names = [figure.name for figure in figures]
    medians = [figure.median for figure in figures]
    low = [figure.median - min(figure.values) for figure in figures]
    high = [max(figure.values) - figure.median for figure in figures]
    axes.barh(names, medians, xerr=[low, high], color=_COLOURS[0], ecolor="#333333", capsize=3)
    for target in targets:
        if target.figure in names:
            row = names.index(target.figure)
            axes.plot([target.at_least] * 2, [row - 0.4, row + 0.4], color="#d62728", linewidth=2)
    axes.invert_yaxis()
    axes.set_xlabel("ratio" if unit == "x" else unit)
    return _image(axes, f"figures in {unit}; a red line is a target")


def _cpu_split(figures: Sequence[Figure]) -> str:
    """One bar a measurement: whose CPU time a reading costs."""
    cost: dict[str, dict[str, float]] = {}
    for figure in figures:
        name, _, part = figure.name.removesuffix(" CPU").rpartition(", ")
        cost.setdefault(name, {})[part] = figure.median
    if not cost:
        return ""
    axes = _axes(len(cost))
    left = [0.0] * len(cost)
    for part, colour in zip(CPU_PARTS, _COLOURS, strict=True):
        widths = [each.get(part, 0.0) for each in cost.values()]
        axes.barh(list(cost), widths, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("CPU us/reading")
    axes.legend(frameon=False)
    return _image(axes, "CPU time by process")


def _percentiles(curves: Sequence[Curve]) -> str:
    """Latency over percentiles; each nine gets as much room as the last."""
    if not curves:
        return ""
    axes = _axes(6)
    for curve in curves:
        nines = [1 / (1 - percent / 100) for percent, _ in curve.points]
        axes.plot(nines, [latency for _, latency in curve.points], marker="o", markersize=3, label=curve.name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1, 2, 10, 100, 1_000, 10_000], ["0", "50", "90", "99", "99.9", "99.99"])
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms")
    axes.legend(frameon=False, fontsize="small")
    return _image(axes, "latency percentiles")


def _over_time(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    axes = _axes(6)
    for curve in curves:
        axes.plot([x for x, _ in curve.points], [y for _, y in curve.points], label=curve.name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel(curves[0].y_unit)
    axes.legend(frameon=False, fontsize="small")
    return _image(axes, "throughput over time")
