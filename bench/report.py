"""Showing runs: a table on the terminal, a comparison of two runs, and a page with plots."""

import html
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.plots import plots
from bench.results import Figure, Run, ScenarioResult, Target


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
        console.print(f"\n{scenario.name}: {scenario.proofs:,} readings proved stored once", style="bold")
        table = Table(box=None, pad_edge=False)
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
img{{max-width:100%}}.figures td,.figures th{{padding:.1rem 1rem .1rem 0;border-bottom:1px solid #ddd}}
.figures td:nth-child(2),.figures td:nth-child(4){{text-align:right}}</style></head><body><h1>voltroute bench</h1>
<table>{facts}</table>
<p>A figure is the median over the rounds; its spread is (largest - smallest) / median. Only ratios (x) of one run
compare: machines differ, and change. Bars show medians, their whiskers the rounds, a red line a target; ✓ reached,
✓✓ what is aimed for, ✗ missed.</p>
{scenarios}</body></html>
"""


def _figures_html(scenario: ScenarioResult) -> str:
    """All figures of a scenario in a table."""
    targets = {target.figure: target for target in scenario.targets}
    rows = "".join(
        f"<tr><td>{html.escape(figure.name)}</td><td>{_number(figure.median)}</td><td>{html.escape(figure.unit)}</td>"
        f"<td>{figure.spread:.0%}</td><td>{html.escape(_verdict(targets.get(figure.name), figure))}</td></tr>"
        for figure in scenario.figures
    )
    head = "".join(f"<th>{name}</th>" for name in ("figure", "median", "unit", "spread", "target"))
    return f'<table class="figures"><tr>{head}</tr>{rows}</table>'


def _scenario_html(scenario: ScenarioResult) -> str:
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in scenario.notes)
    missed = "".join(f"<li>{html.escape(target.figure)}</li>" for target in scenario.failed())
    verdict = f"<p>Targets missed:</p><ul>{missed}</ul>" if missed else ""
    title = f"<h2>{html.escape(scenario.name)}</h2><p>{scenario.proofs:,} readings proved stored once.</p>"
    return title + notes + verdict + _figures_html(scenario) + plots(scenario)
