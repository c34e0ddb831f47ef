"""SQL text: the one function that quotes identifiers, and statements written once for all kinds."""

import re
from typing import Final

from shards.kinds import VALUES_AT, Field, Kind, Type

# A step of the lifecycle of a bucket, and the beginning of a move of it, keep each other out.
LIFECYCLE_XACT: Final = "SELECT pg_advisory_xact_lock(hashtext('voltroute.lifecycle'), $1::integer)"


LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '150ms'"  # writers queue behind what waits for a lock


def quote_identifier(name: str) -> str:
    """`name` as a quoted SQL identifier. ValueError when PostgreSQL could not hold it."""
    if not name or "\0" in name or len(name.encode()) > 63:
        message = f"{name!r} cannot be an SQL identifier"
        raise ValueError(message)
    return '"' + name.replace('"', '""') + '"'


_PARAMETER: Final = re.compile(r"\$(\d+)")
_VALUES_FROM: Final = VALUES_AT + 1  # the parameter of a row's first value
# History is asked first: a router of the release before writes a status' energy and time, and leaves its register as it
# was. The status' own is for readings whose partition is gone.
_REGISTER_OF_STATUS: Final = """CASE WHEN s.{energy} IS NULL THEN coalesce((
        SELECT {register} FROM {history}
        WHERE bucket = s.bucket AND {id} = s.{id} AND timestamp = s.last_updated AND tenant_id = s.tenant_id
    ), s.{register}) END AS {register}"""


def _shown(field: Field, alias: str) -> str:
    """A column as its values are read. float4 by its text: 0.1 comes back as 0.1, and not as the double next to it."""
    name = quote_identifier(field.column)
    return f"{alias}{name}::text::float8 AS {name}" if field.type is Type.FLOAT4 else f"{alias}{name}"


def _of_status(kind: Kind) -> str:
    """What a status `s` shows: its values, and the times of those that are older than its newest reading."""
    alternatives = kind.alternatives
    shown = [
        _REGISTER_OF_STATUS
        if alternatives and field.column == alternatives[1] and not field.kept
        else _shown(field, "s.")
        for field in kind.in_status
    ]
    return ", ".join([*shown, *(f"s.{quote_identifier(field.time_column)}" for field in kind.kept)])


def measured_at(column: str, time_column: str, row: str) -> str:
    """When the kept value of a status `row` was measured; before all times where it has none."""
    name, time = quote_identifier(column), quote_identifier(time_column)
    untold = f"CASE WHEN {row}.{name} IS NOT NULL THEN {row}.last_updated END"
    return f"coalesce({row}.{time}, {untold}, '-infinity')"


def _quoted(column: str | None) -> str:
    return quote_identifier(column) if column else "NULL::float8"


def for_kind(template: str, kind: Kind) -> str:
    """Fill a statement's placeholders with the names of one kind. `{tenant}` is the parameter after all others."""
    template = template.replace("{known_values}", _of_status(kind))
    status_columns = [each.column for each in kind.in_status] + [each.time_column for each in kind.kept]
    names = {
        "{history}": quote_identifier(kind.history),
        "{late}": quote_identifier(kind.late),
        "{packed}": quote_identifier(kind.packed),
        "{hourly}": quote_identifier(kind.hourly),
        "{minutely}": quote_identifier(kind.minutely),
        "{daily}": quote_identifier(kind.daily),
        "{kind}": f"'{kind.name}'",
        "{status}": quote_identifier(kind.status),
        "{id}": quote_identifier(kind.id_column),
        "{energy}": _quoted(kind.energy),
        "{values}": ", ".join(map(quote_identifier, kind.values)),
        "{stored_values}": ", ".join(_shown(field, "") for field in kind.stored),
        "{status_columns}": ", ".join(map(quote_identifier, status_columns)),
        "{value_arrays}": ", ".join(f"${_VALUES_FROM + at}::{field.type}[]" for at, field in enumerate(kind.fields)),
        "{register}": _quoted(kind.register),
        "{temperature}": quote_identifier(kind.temperature) if kind.temperature else "NULL::float8",
    }
    for placeholder, text in names.items():
        template = template.replace(placeholder, text)
    return template.replace("{tenant}", f"${1 + max(map(int, _PARAMETER.findall(template)), default=0)}")
