"""What the commands that send readings have in common: the router they send to, and what they say at the end."""

import os
from typing import Annotated, Any

import typer

from router.cli.show.output import errors, print_json
from router.cli.target import text_of
from router.fleet.client import Tally
from router.settings import PREFIX
from shards.errors import InvalidArgument

URL_DEFAULT = "http://127.0.0.1:8080"
UrlOption = Annotated[str, typer.Option("--url", help="Router.", envvar=f"{PREFIX}URL")]


KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key", help=f"Where the key is: @FILE, env:NAME, or -.  [{PREFIX}KEY holds one]", show_default=False
    ),
]


def key_of(given: str | None) -> str | None:
    """The key that a command sends, None when it has none. InvalidArgument for one in argv itself."""
    if given is None:
        return os.environ.get(f"{PREFIX}KEY") or None
    if given != "-" and not given.startswith(("@", "env:")):
        message = f"--key: other users see what stands here; use @FILE, env:NAME, - or {PREFIX}KEY"
        raise InvalidArgument(message)
    return text_of(given, "key")


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
