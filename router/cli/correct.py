"""correct: replacing a stored reading, which posting it again does not do."""

from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import print_json, say
from router.cli.target import DataOption, JsonOption
from router.wire.complaints import explain
from router.wire.parameters import read_device, read_moment
from router.wire.problems import ProblemError
from router.wire.readings import reading_type
from shards.catalog.database import Catalog
from shards.catalog.tenants import DEFAULT_NAME
from shards.errors import InvalidArgument
from shards.kinds import Kind, Value
from shards.operations import correct as operation
from shards.operations import kinds
from shards.operations.tenants import find_tenant
from shards.storage.correction import Correction


def correct(
    kind: Annotated[str, typer.Argument(help="Kind of the device.")],
    device: Annotated[str, typer.Argument(help="Its ID.")],
    timestamp: Annotated[str, typer.Argument(help="The reading's, RFC 3339 with offset.")],
    values: Annotated[list[str], typer.Option("--set", help="FIELD=VALUE, as in kwhConsumedAc=0.5. Repeatable.")],
    reason: Annotated[str | None, typer.Option(help="Why; kept beside the old values.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose device it is.")] = DEFAULT_NAME,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Replace values of a stored reading; the old ones are kept in the shard's table `correction`."""
    try:
        device_id, moment = read_device(device, "ID"), read_moment(timestamp, "timestamp")
    except ProblemError as error:
        raise InvalidArgument(error.detail) from None

    async def replace(catalog: Catalog) -> tuple[Correction, Kind]:
        which = (await kinds.find(catalog, kind)).kind
        names = {field.name: field.column for field in which.fields}
        changed = {names[name]: value for name, value in _values(values, names, reading_type(which)).items()}
        whose = (await find_tenant(catalog, tenant)).tenant_id
        return await operation.correct(catalog, whose, which, (device_id, moment), changed, reason), which

    done, which = with_catalog(data, replace)
    if json:
        print_json(asdict(done))
        return
    shown = {field.column: field.name for field in which.fields}
    for column, value in done.after.items():
        if value is not None or done.before[column] is not None:
            say(f"{shown[column]}: {_shown(done.before[column])} -> {_shown(value)}")


def _shown(value: Value) -> str:
    if value is None:
        return "not there"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(given: list[str], names: dict[str, str], reading: Any) -> dict[str, Value]:
    """Field -> value, each within the limits of its field. InvalidArgument names the field."""
    found: dict[str, Value] = {}
    types = {f.encode_name: f.type for f in msgspec.structs.fields(reading)}
    for entry in given:
        name, equals, text = entry.partition("=")
        if not equals or name not in names:
            raise InvalidArgument(f"--set {entry[:64]}: FIELD=VALUE is expected, with one of {', '.join(names)}")
        if name in found:
            raise InvalidArgument(f"--set {name} is given twice")
        try:
            value = msgspec.convert(_parsed(text), types[name])
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"--set {name}: {explain(str(error))[2]}") from None
        if value is None:
            raise InvalidArgument(f"--set {name}: {text[:40]!r} is no value")
        found[name] = value
    return found


def _parsed(text: str) -> object:
    """JSON, or a word."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
