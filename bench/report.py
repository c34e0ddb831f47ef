"""Showing runs: a table on the terminal, a comparison of two runs, and a page with plots."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from bench.results import Figure, Run, ScenarioResult, Target

mpl.use("Agg")
from matplotlib import pyplot as plt


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _verdict(target: Target | None, figure: Figure) -> str:
    if target is None:
        return ""
    sign = ">=" if target.higher else "<="
    mark = "✓✓" if target.aimed(figure.median) else "✓" if target.reached(figure.median) else "✗"
    return f"{mark} {sign} {target.at_least:g}, aim {target.aim:g}"


def print_run(run: Run, console: Console) -> None:
    """Every figure with its median and spread, and ticks against the targets."""
    for scenario in run.scenarios:
        table = Table(title=f"{scenario.name}: {scenario.proofs:,} readings proved stored once", box=None)
        for column in ("figure", "median", "unit", "spread", "target"):
            table.add_column(column, justify="right" if column in {"median", "spread"} else "left")
        targets = {target.figure: target for target in scenario.targets}
        for figure in scenario.figures:
            verdict = _verdict(targets.get(figure.name), figure)
            style = "red" if verdict.startswith("✗") else "green" if verdict else None
            table.add_row(
                figure.name, _number(figure.median), figure.unit, f"{figure.spread:.0%}", verdict, style=style
            )
        console.print(table)
        for note in scenario.notes:
            console.print(f"  {note}", markup=False)


def print_comparison(before: Run, after: Run, console: Console) -> None:
    """Ratios of the medians of two runs, with the larger of their spreads. Runs of one machine only."""
    table = Table(box=None)
    for column in ("figure", "before", "after", "after / before", "spread"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for scenario in after.scenarios:
        old = next((other for other in before.scenarios if other.name == scenario.name), None)
        for figure in scenario.figures:
            was = old.figure(figure.name) if old else None
            if was is None or not was.median:
                continue
            change = figure.median / was.median
            spread = max(figure.spread, was.spread)
            table.add_row(figure.name, _number(was.median), _number(figure.median), f"{change:.3f}", f"{spread:.0%}")
    console.print(table)


def write_html(run: Run, path: Path) -> None:
    """A page that needs nothing else: the figures as plots, and what they were measured on."""
    parts = [_scenario_html(scenario) for scenario in run.scenarios]
    facts = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in {"started": run.started_at, **run.machine, **run.options}.items()
    )
    path.write_text(_PAGE.format(facts=facts, scenarios="".join(parts)), encoding="utf-8")


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>voltroute bench</title>
<style>body{{font:15px system-ui;max-width:60rem;margin:2rem auto}}th{{text-align:left;padding-right:2rem}}
img{{max-width:100%}}</style></head><body><h1>voltroute bench</h1><table>{facts}</table>{scenarios}</body></html>
"""


def _scenario_html(scenario: ScenarioResult) -> str:
    by_unit: dict[str, list[Figure]] = {}
    for figure in scenario.figures:
        by_unit.setdefault(figure.unit, []).append(figure)
    plots = "".join(_plot(unit, figures, scenario.targets) for unit, figures in by_unit.items())
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in scenario.notes)
    title = f"<h2>{html.escape(scenario.name)}</h2><p>{scenario.proofs:,} readings proved stored once.</p>"
    return title + notes + plots


def _plot(unit: str, figures: list[Figure], targets: Iterable[Target]) -> str:
    """Bars of medians with the range of the rounds; a line where a target lies."""
    plot, axes = plt.subplots(figsize=(9, 0.45 * len(figures) + 1))
    names = [figure.name for figure in figures]
    medians = [figure.median for figure in figures]
    low = [figure.median - min(figure.values) for figure in figures]
    high = [max(figure.values) - figure.median for figure in figures]
    axes.barh(names, medians, xerr=[low, high], color="#4c78a8", ecolor="#333333", capsize=3)
    for target in targets:
        if target.figure in names:
            row = names.index(target.figure)
            axes.plot([target.at_least] * 2, [row - 0.4, row + 0.4], color="#d62728", linewidth=2)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    image = io.BytesIO()
    plot.savefig(image, format="svg", bbox_inches="tight")
    plt.close(plot)
    return (
        f'<img alt="{html.escape(unit)}" src="data:image/svg+xml;base64,{base64.b64encode(image.getvalue()).decode()}">'
    )
