"""correct: replacing a stored reading, which posting it again does not do."""

from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import typer

from router.cli.catalog import with_catalog
from router.cli.sending import KindName
from router.cli.show.output import print_json, say
from router.cli.target import DataOption, JsonOption
from router.wire.complaints import explain
from router.wire.parameters import read_device, read_moment
from router.wire.problems import ProblemError
from router.wire.readings import reading_type
from shards.catalog.database import Catalog
from shards.catalog.tenants import DEFAULT_NAME
from shards.errors import InvalidArgument
from shards.kinds import METER, VEHICLE
from shards.operations import correct as operation
from shards.operations.tenants import find_tenant
from shards.storage.correction import Correction


def correct(
    kind: Annotated[KindName, typer.Argument(help="Kind of the device.")],
    device: Annotated[str, typer.Argument(help="Its ID.")],
    timestamp: Annotated[str, typer.Argument(help="The reading's, RFC 3339 with offset.")],
    values: Annotated[list[str], typer.Option("--set", help="FIELD=NUMBER, as in kwhConsumedAc=0.5. Repeatable.")],
    reason: Annotated[str | None, typer.Option(help="Why; kept beside the old values.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose device it is.")] = DEFAULT_NAME,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Replace values of a stored reading; the old ones are kept in the shard's table `correction`."""
    which = METER if kind is KindName.METER else VEHICLE
    try:
        device_id, moment = read_device(device, "ID"), read_moment(timestamp, "timestamp")
    except ProblemError as error:
        raise InvalidArgument(error.detail) from None
    names = {field.name: field.column for field in which.fields}
    changed = {names[name]: number for name, number in _numbers(values, names, reading_type(which)).items()}

    async def replace(catalog: Catalog) -> Correction:
        whose = (await find_tenant(catalog, tenant)).tenant_id
        return await operation.correct(catalog, whose, which, (device_id, moment), changed, reason)

    done = with_catalog(data, replace)
    if json:
        print_json(asdict(done))
        return
    shown = {column: name for name, column in names.items()}
    for column, value in done.after.items():
        if value is not None or done.before[column] is not None:
            say(f"{shown[column]}: {_shown(done.before[column])} -> {_shown(value)}")


def _shown(value: float | None) -> str:
    return "not there" if value is None else f"{value:g}"


def _numbers(given: list[str], names: dict[str, str], reading: Any) -> dict[str, float]:
    """Field -> number, each within the limits of its field. InvalidArgument names the field."""
    found: dict[str, float] = {}
    types = {f.encode_name: f.type for f in msgspec.structs.fields(reading)}
    for entry in given:
        name, equals, text = entry.partition("=")
        if not equals or name not in names:
            raise InvalidArgument(f"--set {entry[:64]}: FIELD=NUMBER is expected, with one of {', '.join(names)}")
        if name in found:
            raise InvalidArgument(f"--set {name} is given twice")
        try:
            number = msgspec.convert(msgspec.json.decode(text), types[name])
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"--set {name}: {explain(str(error))[2]}") from None
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            number = None
        if number is None:
            raise InvalidArgument(f"--set {name}: {text[:40]!r} is not a number")
        found[name] = number
    return found
