"""The wire types of stored readings, made of what their kinds declare: newest ones, histories, all kinds together."""

from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any, Final

import msgspec

from router.wire.answers import Answer
from router.wire.readings import PYTHON_TYPES
from shards.kinds import Field, Kind

_TIMES: Final = {"timestamp": "timestamp", "ingested_at": "ingestedAt"}
_STATUS_TIMES: Final = {"last_updated": "lastUpdated", "created_at": "createdAt"}


@cache
def status_type(kind: Kind) -> type[Answer]:
    """The newest reading of a device: its attributes are the columns of its row."""
    return _answer(f"{kind.name.capitalize()}Status", kind, _STATUS_TIMES, f"The newest reading of a {kind}.")


@cache
def history_type(kind: Kind) -> type[Answer]:
    """A reading of a device: its attributes are the columns of its row."""
    doc = "A reading and when it was stored."
    if kind.register is not None:
        energy = next(each.name for each in kind.fields if each.column == kind.energy)
        doc += f" Of a register, `{energy}` is the energy since the count before."
    return _answer(f"Stored{kind.name.capitalize()}Reading", kind, _TIMES, doc)


def _answer(name: str, kind: Kind, times: dict[str, str], doc: str) -> type[Answer]:
    fields = [(kind.id_column, str), *((each.column, _held(each)) for each in kind.fields)]
    fields += [(column, datetime) for column in times]
    names = {kind.id_column: kind.id_name, **{each.column: each.name for each in kind.fields}, **times}
    return _defined(name, fields, names, doc)


def _held(field: Field) -> Any:
    known = PYTHON_TYPES[field.type]
    return known if field.required else known | None


def _defined(name: str, fields: Iterable[Any], names: dict[str, str], doc: str) -> type[Answer]:
    return msgspec.defstruct(  # type: ignore[return-value]
        name, fields, bases=(Answer,), namespace={"__doc__": doc}, frozen=True, rename=names
    )
