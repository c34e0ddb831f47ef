"""What an operation found: the one type that every check of a cluster speaks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One check. `remedy` says what to do when it is not `ok`."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def rule(name: str, broken: Sequence[Any], remedy: str) -> Finding:
    """A rule that holds when nothing breaks it; names at most ten of what does."""
    shown = ", ".join(str(each) for each in broken[:10]) + (f" and {len(broken) - 10} more" if len(broken) > 10 else "")
    return Finding(name, ok=not broken, found=f"not so: {shown}" if broken else "holds", remedy=remedy)
