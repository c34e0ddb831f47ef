"""archive: months that left their shards; whether they are whole; bringing them back."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import print_json, print_table, say
from router.cli.target import DataOption, JsonOption
from shards.catalog.archive import Entry
from shards.catalog.database import Catalog
from shards.errors import InvalidArgument
from shards.operations import archive as operation
from shards.operations import register as registering
from shards.operations.archive import Outcome, Wanted
from shards.policy import read_duration

archive_app = typer.Typer(help="Months that left their shards for the archive.", no_args_is_help=True)
_MIB: Final = 2**20
_Kind = Annotated[str | None, typer.Argument(help="The kind [all of them].")]
_From = Annotated[str | None, typer.Option("--from", help="The first day (UTC), as in 2026-05-01 [all of them].")]
_To = Annotated[str | None, typer.Option("--to", help="The day before which it ends [none].")]


def _day(text: str | None, name: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f"{name} {text[:40]}: a day is expected, as in 2026-05-01") from None


def _wanted(kind: str | None, start: str | None, end: str | None) -> Wanted:
    wanted = Wanted(kind, _day(start, "--from"), _day(end, "--to"))
    if wanted.first is not None and wanted.past is not None and wanted.first >= wanted.past:
        raise InvalidArgument(f"--to {end} must be after --from {start}")
    return wanted


@archive_app.command("list")
def list_months(
    kind: _Kind = None, start: _From = None, end: _To = None, data: DataOption = None, json: JsonOption = False
) -> None:
    """What left its shard, or is on its way: by month and kind."""
    wanted = _wanted(kind, start, end)
    found = with_catalog(data, lambda catalog: operation.listed(catalog, wanted))
    if json:
        print_json({"months": [_told(entry) for entry in found]})
        return
    if not found:
        say("nothing left its shard")
        return
    print_table(("month", "kind", "state", "buckets", "readings", "MiB", "restored until"), _rows(found))


def _rows(entries: Sequence[Entry]) -> list[Sequence[object]]:
    groups: dict[tuple[date, str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.month, entry.kind, entry.state.value), []).append(entry)
    rows: list[Sequence[object]] = []
    for (month, kind, state), mine in sorted(groups.items()):
        size = sum(each.bytes or 0 for each in mine if each.object) / _MIB
        until = min((each.restored_until for each in mine if each.restored_until), default=None)
        kept = "-" if until is None else f"{until:%Y-%m-%d %H:%M}Z"
        readings = sum(each.readings for each in mine)
        rows.append((f"{month:%Y-%m}", kind, state, len(mine), f"{readings:,}", f"{size:.1f}", kept))
    return rows


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "month": f"{entry.month:%Y-%m}",
        "kind": entry.kind,
        "bucket": entry.bucket,
        "state": entry.state.value,
        "readings": entry.readings,
        "object": entry.object,
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "restoredUntil": entry.restored_until,
        "changedAt": entry.changed_at,
    }


@archive_app.command("verify")
def verify(
    kind: _Kind = None, start: _From = None, end: _To = None, data: DataOption = None, json: JsonOption = False
) -> None:
    """Read the objects of the archive whole, and check them: size, SHA-256, every page."""
    wanted = _wanted(kind, start, end)

    async def work(catalog: Catalog) -> Outcome:
        return await operation.verify(catalog, wanted, _progress(json=json))

    _end(with_catalog(data, work), "whole", json=json)


@archive_app.command("restore")
def restore(
    kind: Annotated[str, typer.Argument(help="The kind.")],
    start: Annotated[str, typer.Option("--from", help="The first day (UTC), as in 2026-05-01.")],
    end: Annotated[str, typer.Option("--to", help="The day before which it ends.")],
    keep: Annotated[str, typer.Option("--for", help="How long they stay, as in 7d.")] = "7d",
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Bring back the months that hold these days, as they were; then they are dropped from their shards again."""
    wanted, span = _wanted(kind, start, end), read_duration(keep, "--for")

    async def work(catalog: Catalog) -> Outcome:
        return await operation.restore(catalog, wanted, span, _progress(json=json))

    outcome = with_catalog(data, work)
    _end(outcome, f"there until {datetime.now(UTC) + span:%Y-%m-%d %H:%M}Z", json=json)


@archive_app.command("recover")
def recover(data: DataOption = None, json: JsonOption = False) -> None:
    """Find what a catalog that was restored from an older backup does not know of: by the shards, and the store."""

    async def work(catalog: Catalog) -> Outcome:
        return await operation.recover(catalog, _progress(json=json))

    outcome = with_catalog(data, work)
    if not json:
        for name, why in outcome.failed.items():
            say(f"{name}: {why}")
    _end(outcome, "known again", json=json)


@archive_app.command("register")
def register(
    iceberg: Annotated[bool, typer.Option("--iceberg", help="As Apache Iceberg tables, one for a kind.")] = False,
    catalog: Annotated[
        str | None, typer.Option("--catalog", help="A catalog of pyiceberg's configuration [the cluster's own].")
    ] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Tell a catalog of tables which objects there are now, so that Spark, Trino and DuckDB see a table."""
    if not iceberg:
        raise InvalidArgument("--iceberg: it is the only kind of table so far, and must be asked for")
    found = with_catalog(data, lambda known: registering.register(known, catalog))
    if json:
        print_json({"tables": [asdict(table) for table in found]})
        return
    names = ("table", "objects", "came", "went", "metadata")
    print_table(names, [(each.name, each.objects, each.added, each.removed, each.metadata) for each in found])


def _progress(*, json: bool) -> operation.Told:
    def told(entry: Entry, why: str | None) -> None:
        if why is not None and not json:
            say(f"{entry.name}: {why}")

    return told


def _end(outcome: Outcome, words: str, *, json: bool) -> None:
    if json:
        print_json({"months": outcome.months, "readings": outcome.readings, "failed": outcome.failed})
    else:
        say(f"{outcome.months} objects, {outcome.readings:,} readings: {words}")
    if outcome.failed:
        raise typer.Exit(1)
