"""load: years of readings from files and other databases, straight into packed history."""

import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from router.cli.catalog import with_catalog
from router.cli.show.output import errors, print_json, say
from router.cli.target import DataOption, JsonOption, dsn_of, load_settings
from router.files.reading import zone_of
from shards.archive.rows import arrow
from shards.catalog.database import Catalog
from shards.catalog.tenants import DEFAULT_NAME
from shards.errors import InvalidArgument

if TYPE_CHECKING:  # what comes with an extra is imported when it is needed
    from shards.bulk.sources import File, Foreign
    from shards.operations.load import Result

_SHOWN: Final = 20
_UNITS: Final = ("s", "ms", "us", "ns")
_Kind = Annotated[str, typer.Argument(help="The kind: meter, vehicle, ...", show_default=False)]
_Files = Annotated[
    list[Path] | None,
    typer.Argument(help="CSV, Parquet, NDJSON, line protocol; .gz, .zst and .bz2 are unpacked.", show_default=False),
]
_Dsn = Annotated[
    str | None,
    typer.Option(help="A PostgreSQL or TimescaleDB to read: @FILE, env:NAME or -.", show_default=False),
]
_Table = Annotated[
    list[str] | None, typer.Option(help="Of --dsn: a table or view. Of lines: the measurement.", show_default=False)
]
_Map = Annotated[
    list[str] | None, typer.Option("--map", help="FIELD=COLUMN, for columns called otherwise.", show_default=False)
]
_Ignore = Annotated[list[str] | None, typer.Option(help="A column that is left out.", show_default=False)]
_Form = Annotated[
    str | None, typer.Option("--format", help="csv, parquet, ndjson or lines; else by the name.", show_default=False)
]
_Tenant = Annotated[str, typer.Option(help="Whose they are.")]
_Device = Annotated[str | None, typer.Option(help="Of rows that name none.", show_default=False)]
_Zone = Annotated[str | None, typer.Option(help="Of times without one, as Europe/Berlin.", show_default=False)]
_Unit = Annotated[
    str | None, typer.Option(help="Times are whole numbers from 1970: s, ms, us or ns.", show_default=False)
]
_Spool = Annotated[
    Path | None,
    typer.Option(help="Folder for readings on their way; repeated with it, a load goes on.", show_default=False),
]
_Parallel = Annotated[int, typer.Option(min=1, max=16, help="Buckets at once on each shard.")]
_Verify = Annotated[bool, typer.Option("--verify", help="Shards read every day again, not a sample.")]
_SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be stored.")]


def load(
    kind: _Kind,
    files: _Files = None,
    dsn: _Dsn = None,
    table: _Table = None,
    columns: _Map = None,
    ignore: _Ignore = None,
    form: _Form = None,
    tenant: _Tenant = DEFAULT_NAME,
    device: _Device = None,
    time_zone: _Zone = None,
    time_unit: _Unit = None,
    spool: _Spool = None,
    parallel: _Parallel = 1,
    verify: _Verify = False,
    skip_bad: _SkipBad = False,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Store years of readings, straight into packed history and its sums, beside live traffic.

    All of it is read and checked first: when a row cannot be stored, nothing is. What is there already counts as
    duplicates and conflicts. Interrupted, a load with --spool is repeated as it was.
    """
    arrow()
    zone_of(time_zone)
    if time_unit not in {None, *_UNITS}:
        raise InvalidArgument(f"--time-unit {str(time_unit)[:10]} is none: one of {', '.join(_UNITS)}")
    given = _Given(files or [], dsn, table or [], _mapped(columns or []), ignore or [], form)
    settings = load_settings()
    now = datetime.now(UTC)
    oldest = max(now - timedelta(days=settings.reading_age_max_days), datetime(1970, 1, 1, tzinfo=UTC))
    limits = (oldest, now + timedelta(seconds=settings.reading_ahead_max_s))
    options = [repr((columns, ignore, form, table, device, time_zone, time_unit, skip_bad))]

    async def work(catalog: Catalog, folder: Path) -> "Result":
        from shards.bulk.checking import Checker  # noqa: PLC0415 - an extra
        from shards.operations import load as operation  # noqa: PLC0415

        of = await operation.kind_named(catalog, kind)
        checker = Checker(of, *limits, device=device, zone=time_zone, unit=time_unit, skip_bad=skip_bad)
        wanted = operation.Wanted(tenant, folder, parallel, verify, options)
        with _Bar() as bar:
            sources = given.sources(of, checker.bad.append if skip_bad else None, counted=time_unit is not None)
            return await operation.load(catalog, checker, sources, wanted, bar.told)

    with tempfile.TemporaryDirectory(prefix="voltroute-load-") as temporary:
        folder = spool or Path(temporary) / "spool"
        _tell(with_catalog(data, lambda catalog: work(catalog, folder)), spool, json=json)


class _Given:
    """What is to be read."""

    def __init__(
        self,
        files: Sequence[Path],
        dsn: str | None,
        tables: Sequence[str],
        columns: dict[str, str],
        ignore: Sequence[str],
        form: str | None,
    ) -> None:
        if bool(files) == (dsn is not None):
            raise InvalidArgument("say what is loaded: files, or --dsn with --table")
        if dsn is not None and not tables:
            raise InvalidArgument("--dsn needs --table")
        if files and len(tables) > 1:
            raise InvalidArgument("--table is given twice: of lines of InfluxDB, one measurement is loaded at a time")
        if dsn is not None and dsn != "-" and not dsn.startswith(("@", "env:")):
            raise InvalidArgument("--dsn: other users see what stands here; use @FILE, env:NAME or -")
        for file in files:
            if not file.is_file():
                raise InvalidArgument(f"{file}: there is no such file")
        self._files, self._tables, self._columns, self._ignore, self._form = files, tables, columns, ignore, form
        self._dsn = dsn_of(dsn) if dsn is not None else None

    def sources(self, kind: Any, told: Callable[[str], None] | None, *, counted: bool) -> "list[File | Foreign]":
        """In the order in which they were given; `told` takes rows that are none."""
        from shards.bulk.sources import File, Foreign, Form, Naming, form_of  # noqa: PLC0415 - an extra

        forms = [each.value for each in Form]
        if self._form not in {None, *forms}:
            raise InvalidArgument(f"--format {str(self._form)[:20]} is none: one of {', '.join(forms)}")
        measurement = self._tables[0] if self._tables and self._dsn is None else None
        naming = Naming(kind, self._columns, self._ignore, counted, measurement)
        if self._dsn is not None:
            return [Foreign(self._dsn, each, naming) for each in self._tables]
        form = Form(self._form) if self._form else None
        return [File(each, form_of(each, form), naming, told) for each in self._files]


def _mapped(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for each in given:
        name, equals, column = each.partition("=")
        if not name or not equals or not column:
            raise InvalidArgument(f"--map {each[:80]!r} is not FIELD=COLUMN")
        if name in found:
            raise InvalidArgument(f"--map {name} is given twice")
        found[name] = column
    return found


class _Bar:
    """How far it is, on a terminal."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._read = self._progress.add_task("reading", total=None)
        self._placed = self._progress.add_task("storing", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def told(self, what: str, count: int) -> None:
        """So many were read, or stored, so far."""
        if what == "read":
            self._progress.update(self._read, completed=count)
            self._progress.update(self._placed, total=count)
        else:
            self._progress.update(self._placed, completed=count)


def _tell(result: "Result", spool: Path | None, *, json: bool) -> None:
    counts = {
        "accepted": result.outcome.accepted,
        "duplicates": result.outcome.duplicates,
        "conflicts": result.outcome.conflicts,
        "tooOld": result.outcome.too_old,
        "bad": result.bad,
    }
    if json:
        print_json({**counts, "badRows": list(result.bad_rows[:_SHOWN]), "failed": result.failed})
    else:
        words = {"tooOld": "too old"}
        say(", ".join(f"{count:,} {words.get(name, name)}" for name, count in counts.items()))
        for line in result.bad_rows[:_SHOWN]:
            errors.print(f"  {line}", markup=False, soft_wrap=True)
        if result.bad > _SHOWN:
            errors.print(f"  and {result.bad - _SHOWN:,} more")
        for unit, why in result.failed.items():
            errors.print(f"  {unit}: {why}", markup=False, soft_wrap=True)
        if result.failed:
            how = "repeat it as it was: it goes on" if spool else "repeat it: what is stored counts as duplicates"
            errors.print(f"not all of it is stored: {how}", soft_wrap=True)
    if result.failed or result.bad or result.outcome.conflicts or result.outcome.too_old:
        raise typer.Exit(1)
