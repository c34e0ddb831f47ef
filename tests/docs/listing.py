"""What the code has, as the docs must list it."""

import inspect
import re

import typer
from prometheus_client.metrics import MetricWrapperBase

from router import metrics
from router.cli.main import app
from router.http import health
from shards.postgres import figures


def metric_names() -> list[tuple[str, tuple[str, ...]]]:
    """(name as Prometheus shows it, labels) of every metric of the router, sorted."""
    found = []
    for value in vars(metrics).values():
        if isinstance(value, MetricWrapperBase):
            name = value._name + ("_total" if value._type == "counter" else "")
            found.append((name, tuple(value._labelnames)))
    found += metrics.DERIVED.items()
    found += [(figure.name, ("shard", *figure.labels)) for figure in (*figures.CHEAP, *figures.HEAVY)]
    source = inspect.getsource(health)
    gauges = re.findall(r'"((?:voltroute|vehicle)_\w+)",\s+"[^"]+",\s+(labels|\(.*?\)),', source)
    for name, labels in gauges:
        words = ("shard", "kind") if labels == "labels" else tuple(re.findall(r'"(\w+)"', labels))
        found.append((name, words))
    return sorted(found)


def command_names() -> set[str]:
    """`up`, `shard add`, ...: every command that is not hidden."""
    root = typer.main.get_command(app)
    found = set()
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found |= {f"{name} {each}" for each in below} if below else {name}
    return found
