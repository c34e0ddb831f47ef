"""What the commands print: results on stdout, the rest on stderr."""

import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import orjson
import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from shards.operations.finding import Finding

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, in one line, so that a script may read line by line."""
    print_line(orjson.dumps(value).decode())


def print_line(text: str) -> None:
    """One line on stdout, at once, so that a script can wait for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A sentence on stdout; a terminal breaks it, nobody else does, so that commands in it can be pasted."""
    console.print(text, markup=False, soft_wrap=True)


def tell(document: Any, text: str, *, json: bool) -> None:
    """What a command did: a document for scripts, or a sentence."""
    if json:
        print_json(document)
    else:
        say(text)


def say_check(name: str, found: str, *, ok: bool) -> None:
    """One line of a list of checks."""
    console.print("[green][OK][/green] " if ok else "[red][ERR][/red]", end=" ")
    say(f"{name}: {found}")


def show_findings(found: Sequence[Finding], *, json: bool) -> None:
    """A list of checks; what fails comes with its remedy."""
    if json:
        print_json([asdict(each) for each in found])
        return
    for each in found:
        say_check(each.name, each.found, ok=each.ok)
        if not each.ok and each.remedy:
            say(f"      -> {each.remedy}")


def exit_unless_ok(found: Sequence[Finding]) -> None:
    """Exit code 1 when a check failed."""
    if not all(each.ok for each in found):
        raise typer.Exit(1)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout, no wider than its contents."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def size_text(size: int) -> str:
    """Bytes, for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def bar(share: float, width: int) -> str:
    """How much of something is done, readable without colours."""
    full, empty = ("#", ".") if console.options.ascii_only else ("█", "░")
    filled = round(min(max(share, 0.0), 1.0) * width)
    return full * filled + empty * (width - filled)


class Redraw:
    """A live view that is drawn from the first line again when the terminal's size changes: else frames are torn."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._size = live.console.size

    def __call__(self, view: RenderableType) -> None:
        size = self._live.console.size
        if size != self._size:
            self._size = size
            self._live.console.clear()
        self._live.update(view, refresh=True)


def ranges(numbers: Sequence[int]) -> str:
    """1,2,3,7 as "1-3 7"; evenly spaced ones as "0-60/4"."""
    if len(numbers) > 3:
        step = numbers[1] - numbers[0]
        if step > 1 and all(b - a == step for a, b in itertools.pairwise(numbers)):
            return f"{numbers[0]}-{numbers[-1]}/{step}"
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
