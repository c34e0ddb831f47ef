"""post: readings from a file into a router."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import httpx2
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from router.cli.sending import URL_DEFAULT, KeyOption, UrlOption, key_of, report
from router.cli.show.output import errors, print_json, print_table
from router.cli.target import JsonOption
from router.files.layout import UNITS, FileError, Label
from router.files.options import FileOptions, layout_of
from router.files.presets import PRESETS
from router.files.reading import STDIN, Numbered, batched, name_of, read
from router.files.readings import Skipped
from router.fleet.client import RouterClient, RouterRefused, Tally
from shards.errors import ClusterError, InvalidArgument
from shards.kinds import METER

_Sending: TypeAlias = tuple[str, tuple[str, str | None], int]  # path, (URL, key) of the router, readings in a request
_KIND: Final = re.compile(r"[a-z][a-z0-9_]{0,19}")
SHOWN: Final = 5  # readings of a dry run

_FileArgument = Annotated[Path, typer.Argument(help="CSV, NDJSON, or what --preset names; - is standard input.")]
_Kind = Annotated[str, typer.Option(help="Kind of the device, as `voltroute kind list` has it.")]
_Device = Annotated[str | None, typer.Option(help="Device of the rows that name none.")]
_Batch = Annotated[int, typer.Option(min=1, max=20_000, help="Readings in a request.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")]
_SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read.")]


def _of_others(*names: str, text: str, **more: Any) -> Any:
    """An option about files that are not ours; they have a panel of their own in the help."""
    return typer.Option(*names, help=text, rich_help_panel="A file of others", **more)


_COLUMNS = "Which column holds timestamp, kwhConsumedAc, registerKwh, voltage, meterId. A+B: both together."
_Preset = Annotated[str | None, _of_others(text="A known export format: see `voltroute presets`.")]
_Map = Annotated[list[str] | None, _of_others("--map", metavar="FIELD=COLUMN", text=_COLUMNS)]
_Where = Annotated[list[str] | None, _of_others(metavar="COLUMN=VALUE", text="Only rows with this value.")]
_TimeZone = Annotated[str | None, _of_others(text="Zone of times without an offset, as Europe/Berlin.")]
_TimeFormat = Annotated[str | None, _of_others(text="As strptime's, or iso, or epoch.")]
_TimeAt = Annotated[Label | None, _of_others(text="Which end of its interval a row's time is.")]
_Interval = Annotated[str | None, _of_others(text="Length of an interval, as 15m; else as the rows tell.")]
_Unit = Annotated[str | None, _of_others(text=f"{', '.join(UNITS)}; a power is an average.")]
_Register = Annotated[bool, _of_others("--register", text="Values are a meter's count, not energies.")]
_Voltage = Annotated[float | None, _of_others(min=0, text="Voltage of every reading.")]
_Delimiter = Annotated[str | None, _of_others(text="Between cells; or tab.")]
_Decimal = Annotated[str | None, _of_others(text="Decimal sign: . or ,")]
_Encoding = Annotated[str | None, _of_others(text="As latin-1; default utf-8.")]


def post(
    file: _FileArgument,
    kind: _Kind = METER.name,
    device: _Device = None,
    url: UrlOption = URL_DEFAULT,
    key: KeyOption = None,
    batch: _Batch = 1_000,
    dry_run: _DryRun = False,
    skip_bad: _SkipBad = False,
    json: JsonOption = False,
    preset: _Preset = None,
    columns: _Map = None,
    where: _Where = None,
    time_zone: _TimeZone = None,
    time_format: _TimeFormat = None,
    time_at: _TimeAt = None,
    interval: _Interval = None,
    unit: _Unit = None,
    register: _Register = False,
    voltage: _Voltage = None,
    delimiter: _Delimiter = None,
    decimal: _Decimal = None,
    encoding: _Encoding = None,
) -> None:
    """Post a file of readings, up to the first request that keeps failing.

    Repeating it is safe: what is stored already counts as duplicates, or as conflicts where its values were others.
    """
    if str(file) != STDIN and (not file.exists() or file.is_dir()):
        raise InvalidArgument(f"{file} is {'a folder' if file.is_dir() else 'not there'}: a file, or -, is expected")
    options = FileOptions(preset, tuple(columns or ()), tuple(where or ()), time_zone, time_format, time_at, interval)
    options = replace(options, unit=unit, is_register=register, voltage=voltage)
    layout, told = layout_of(replace(options, delimiter=delimiter, decimal=decimal, encoding=encoding))
    if told is not None and kind != METER.name:
        raise InvalidArgument(f"--preset and --map are for meters: a {kind[:20]}'s file has the names of its fields")
    if not _KIND.fullmatch(kind):
        raise InvalidArgument(f"--kind {kind[:64]!r}: the name of a kind is expected, as vehicle")
    skipped = Skipped()
    numbered = read(file, kind, layout, told, device, skipped, skip_bad=skip_bad)
    if dry_run:
        _show(file, numbered, skipped, json=json)
    else:
        _send(file, numbered, skipped, (kind.replace("_", "-"), (url, key_of(key)), batch), json=json)


def _show(file: Path, numbered: Iterator[Numbered], skipped: Skipped, *, json: bool) -> None:
    """The first readings as they would be sent, and what all of them come to."""
    count, kwh, shown, times = 0, 0.0, list[dict[str, Any]](), list[str]()
    try:
        for _, reading in numbered:
            count += 1
            energy = reading.get("kwhConsumedAc", reading.get("kwhDeliveredDc"))
            kwh += energy if isinstance(energy, int | float) else 0.0
            if len(shown) < SHOWN:
                shown.append(reading)
            moment = str(reading.get("timestamp"))
            times = [min(*times[:1], moment), max(*times[1:], moment)] if times else [moment, moment]
    except FileError as error:
        raise InvalidArgument(str(error)) from None
    if not count:
        raise ClusterError(f"{name_of(file)}: there is no reading in it{_words(skipped)}")
    total = {"readings": count, "kwh": round(kwh, 6), "from": times[0], "to": times[1], "missing": skipped.missing}
    if json:
        print_json({**total, "bad": skipped.bad[:20], "first": shown})
        return
    for reading in shown:
        print_json(reading)
    text = f"{count:,} readings would be sent, {kwh:,.3f} kWh, from {times[0]} to {times[1]}{_words(skipped)}"
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def _words(skipped: Skipped) -> str:
    found = [f"; {skipped.missing:,} values are missing"] if skipped.missing else []
    found += [f"; {len(skipped.bad):,} rows cannot be read, the first one is {skipped.bad[0]}"] if skipped.bad else []
    return "".join(found)


def _send(file: Path, numbered: Iterator[Numbered], skipped: Skipped, where: _Sending, *, json: bool) -> None:
    tally, url = Tally(), where[1][0]
    try:
        asyncio.run(_post(tally, file, numbered, where))
    except FileError as error:
        before = f"; of the readings before it, {tally.accepted:,} were stored" if tally.accepted else ""
        raise InvalidArgument(f"{error}{before}") from None
    except RouterRefused as error:
        raise ClusterError(str(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        message = f"{url}: {error or type(error).__name__}"
        raise ClusterError(message) from error
    if tally.total == 0:
        raise ClusterError(f"{name_of(file)}: there is no reading in it{_words(skipped)}")
    extra: dict[str, Any] = {"missing": skipped.missing} if skipped.missing or json else {}
    if skipped.bad or json:
        extra["bad"] = skipped.bad[:20] if json else len(skipped.bad)
    report(tally, extra, json=json)
    if tally.failed or tally.rejected or tally.conflicts or skipped.bad:
        raise typer.Exit(1)


async def _post(tally: Tally, file: Path, numbered: Iterator[Numbered], where: _Sending) -> None:
    path, router, batch = where
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(file.name, total=None)  # a pipe can be read only once, so nobody knows how much is to come
        async with RouterClient(*router) as client:
            await client.get("/livez")  # a wrong URL fails here, at once
            for some in batched(numbered, batch):
                answer = await client.post(f"/v1/ingest/{path}", [reading for _, reading in some])
                answer.errors = [_placed(error, file, some) for error in answer.errors]
                tally.add(answer)
                bar.update(task, advance=len(some))
                if answer.failed:
                    break


def _placed(error: dict[str, Any], file: Path, some: list[Numbered]) -> dict[str, Any]:
    """The error of an item, with its place in the file instead of in the request."""
    if "index" not in error:
        return error
    line = some[error["index"]][0]
    return {"at": f"{name_of(file)}:{line}", **{name: value for name, value in error.items() if name != "index"}}


def presets(json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """List the known export formats that `post --preset` reads."""
    if json:
        print_json(
            {
                "presets": [
                    {"name": name, "title": each.title, "timeZone": each.layout.zone} for name, each in PRESETS.items()
                ]
            }
        )
        return
    rows = [(name, each.title, each.zone) for name, each in PRESETS.items()]
    print_table(("preset", "who exports it", "time zone"), rows)
