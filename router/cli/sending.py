"""What the commands that send readings have in common: the router they send to, and what they say at the end."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from router.cli.show.output import errors, print_json
from router.fleet.client import Tally
from router.settings import PREFIX

URL_DEFAULT = "http://127.0.0.1:8080"
UrlOption = Annotated[str, typer.Option("--url", help="Router.", envvar=f"{PREFIX}URL")]


class KindName(StrEnum):
    """The kinds of device."""

    METER = "meter"
    VEHICLE = "vehicle"


def _summary(tally: Tally) -> dict[str, Any]:
    return {
        "accepted": tally.accepted,
        "duplicates": tally.duplicates,
        "conflicts": tally.conflicts,
        "rejected": tally.rejected,
        "failed": tally.failed,
        "retries": tally.retries,
        "errors": tally.errors,
    }


def report(tally: Tally, extra: dict[str, Any], *, json: bool) -> None:
    """The counts, and the first errors: by item of a request, or by line of a file."""
    if json:
        print_json({**_summary(tally), **extra})
        return
    words = [f"{value:,} {name}" for name, value in _summary(tally).items() if name != "errors"]
    words += [f"{name} {value}" for name, value in extra.items() if not isinstance(value, list)]
    errors.print(", ".join(words), soft_wrap=True)
    for error in tally.errors[:5]:
        place = error.get("at") or (f"item {error['index']}" if "index" in error else "")
        where = f"{place}{error.get('pointer', '')}: " if place else ""
        errors.print(f"  {where}{error.get('detail')}", markup=False, soft_wrap=True)
