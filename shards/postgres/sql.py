"""SQL text: the one function that quotes identifiers, and statements written once for both kinds."""

import re
from typing import Final

from shards.kinds import VALUES_AT, Kind


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


def _quoted(column: str | None) -> str:
    return quote_identifier(column) if column else "NULL::float8"


def for_kind(template: str, kind: Kind) -> str:
    """Fill a statement's placeholders with the names of one kind. `{tenant}` is the parameter after all others."""
    known = (_REGISTER_OF_STATUS if name == kind.register else f"s.{quote_identifier(name)}" for name in kind.values)
    template = template.replace("{known_values}", ", ".join(known))
    names = {
        "{history}": quote_identifier(kind.history),
        "{status}": quote_identifier(kind.status),
        "{id}": quote_identifier(kind.id_column),
        "{energy}": _quoted(kind.energy),
        "{values}": ", ".join(map(quote_identifier, kind.values)),
        "{new_values}": ", ".join(f"{name} = excluded.{name}" for name in map(quote_identifier, kind.values)),
        "{value_arrays}": ", ".join(f"${_VALUES_FROM + at}::{field.type}[]" for at, field in enumerate(kind.fields)),
        "{newest_array}": f"${_VALUES_FROM + len(kind.values)}::boolean[]",
        "{register}": _quoted(kind.register),
        "{temperature}": quote_identifier(kind.temperature) if kind.temperature else "0.0::float8",
    }
    for placeholder, text in names.items():
        template = template.replace(placeholder, text)
    return template.replace("{tenant}", f"${1 + max(map(int, _PARAMETER.findall(template)), default=0)}")
